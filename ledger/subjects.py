"""Subjects: where a ledger has anything about a person, found by id or by pseudonym.

A person's id is stored nowhere. Who knows it can ask; and who has a pseudonym from one run
can, as long as the person's secret exists, since the pseudonym follows from it.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import Connection, func, select

from rlhf_audit_trail.ledger.erasing import Erasure
from rlhf_audit_trail.ledger.log import REGISTRY, Ledger, Log
from rlhf_audit_trail.ledger.noise_secrets import exposing
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.entries import FILED_ENTRIES

__all__ = ["Subject", "SubjectMissing", "SubjectRun", "erase_subject", "find_subject"]

_PSEUDONYM: Final = re.compile(r"[0-9a-f]{32}")
_KEYS = models.SubjectKeyRow.__table__  # type: ignore[attr-defined]
_VAULT = models.VaultRow.__table__  # type: ignore[attr-defined]
_SUBJECTS = models.SubjectTileRow.__table__  # type: ignore[attr-defined]


class SubjectMissing(AuditTrailError):
    """Nothing is stored about this person."""


@dataclass(frozen=True)
class SubjectRun:
    """What one run has about a person.

    Attributes:
        run_id: the run.
        pseudonym: the person's name in it; empty if the secret is gone.
        indices: of the entries whose sealed values are about the person; growing.
    """

    run_id: str
    pseudonym: str
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Subject:
    """A person of whom something is stored.

    Attributes:
        tag: under which the vault files the person.
        has_secret: whether the sealed values can be opened.
        runs: those that have any of them, oldest first.
    """

    tag: bytes = field(repr=False)
    has_secret: bool
    runs: tuple[SubjectRun, ...]

    @property
    def entries(self) -> int:
        """In all runs."""
        return sum(len(run.indices) for run in self.runs)


def find_subject(ledger: Ledger, name: str, *, run_id: str = "") -> Subject:
    """Return what a ledger, or one run of it, has about a person.

    Args:
        ledger: open.
        name: the person's stable id, or a pseudonym of any run, 32 hex digits.
        run_id: only this run; empty for all of them.

    Raises:
        SubjectMissing: nothing is stored about anybody of this name; it is not repeated.
        LedgerMissing: there is no such run.
    """
    runs = [run_id] if run_id else ledger.runs()
    logs = [ledger.find(run) for run in runs]
    tag = ledger.vault.subject_tag(name, "") if name else b""
    found = _subject(ledger, tag, logs)
    if found is None and _PSEUDONYM.fullmatch(name):
        tag = _tag_of_pseudonym(ledger, name)
        found = _subject(ledger, tag, logs)
    if found is None:
        raise SubjectMissing(
            "nothing is stored about this person",
            next_step="compare the spelling; of a person who was erased, nothing is found either",
        )
    return found


def erase_subject(ledger: Ledger, name: str, *, run_id: str = "", basis: str) -> Erasure:
    """Destroy what a ledger, or one run of it, has about a person; see `erasing`.

    What this process has handed over is made durable first, and erased with the rest. Before it
    goes the noise of releases that the person's values are in, by which they would follow from
    those of all others; such a round releases nothing any more.

    Args:
        ledger: open.
        name: as `find_subject`.
        run_id: only this run; the secret then stays, for the others.
        basis: why, for the public registry log; names nobody.

    Raises:
        SubjectMissing, LedgerMissing: as `find_subject`.
        RolledBack, Forked, StoreError: as `Eraser.erase`.
    """
    if run_id == REGISTRY:
        raise SubjectMissing("the registry log has nothing about anybody")
    tag = ledger.vault.subject_tag(name, "") if name else b""
    resumed = [done for done in ledger.resumed_erasures if done.subject == tag]
    ledger.registry.flush()
    try:
        subject = find_subject(ledger, name, run_id=run_id)
    except SubjectMissing:
        if resumed and not run_id:  # it was begun before, and completed when the ledger opened
            return resumed[-1]
        raise
    _erase_exposing(ledger, subject, basis)
    done = ledger.eraser.erase(subject.tag, run_id=run_id, basis=basis)
    _erase_exposing(ledger, subject, basis)  # of what was charged for meanwhile, elsewhere
    return done


def _erase_exposing(ledger: Ledger, subject: Subject, basis: str) -> None:
    for run in subject.runs:
        for tag in exposing(ledger, ledger.find(run.run_id), run.indices):
            ledger.eraser.erase(tag, basis=basis)


def _subject(ledger: Ledger, tag: bytes, logs: list[Log]) -> Subject | None:
    if not tag:
        return None
    with ledger.vault.keys.connect() as connection:
        secret = connection.scalar(select(_KEYS.c.secret).where(_KEYS.c.subject == tag))
    runs = []
    with ledger.engine.connect() as connection:
        for log in logs:
            indices = tuple(_indices(connection, log.number, tag))
            if indices:
                name = ledger.vault.pseudonym(bytes(secret), log.origin) if secret else ""
                runs.append(SubjectRun(log.run_id, name, indices))
    return Subject(tag, secret is not None, tuple(runs)) if runs or secret else None


def _indices(connection: Connection, log_number: int, tag: bytes) -> Iterator[int]:
    """Yield the entries of a log that are about a subject, tile by tile."""
    filed, sealed = _SUBJECTS.c, _VAULT.c
    query = select(filed.tile_index).where(filed.log_number == log_number, filed.subject == tag)
    for tile_index in list(connection.scalars(query.order_by(filed.tile_index))):
        first = tile_index * FILED_ENTRIES
        yield from connection.scalars(
            select(sealed.leaf_index)
            .where(
                sealed.log_number == log_number,
                sealed.leaf_index.between(first, first + FILED_ENTRIES - 1),
                sealed.subject == tag,
                func.length(sealed.ciphertext) > 0,
            )
            .order_by(sealed.leaf_index)
        )


def _tag_of_pseudonym(ledger: Ledger, pseudonym: str) -> bytes:
    """Return whose pseudonym it is in any run; empty bytes if nobody's."""
    origins = [ledger.find(run).origin for run in ledger.runs()]
    with ledger.vault.keys.connect() as connection:
        for row in connection.execute(select(_KEYS)).yield_per(1_000):
            for origin in origins:
                name = ledger.vault.pseudonym(bytes(row.secret), origin)
                if hmac.compare_digest(name, pseudonym):
                    return bytes(row.subject)
    return b""
