"""What would give an erased value back: the secret of a round's noise, and sums without noise.

A released sum, less its noise, less the values of all others, is the one value that was erased.
So each such secret is sealed under a subject of its own, and its key is destroyed together with
the first person whose value it could show. The release stays, and its noise for good with it.
"""

from __future__ import annotations

import secrets
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Final

from sqlalchemy import select

from rlhf_audit_trail.ledger.log import Ledger, Log
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.entries import spans_of_kinds

__all__ = ["exposing", "own_subject"]

_ROOT_KIND: Final = "dp.noise_root"
_SPEND_KIND: Final = "dp.spend"
_PLAIN_KIND: Final = "dp.unprotected"
_ENTRIES = models.EntryRow.__table__  # type: ignore[attr-defined]
_VAULT = models.VaultRow.__table__  # type: ignore[attr-defined]


def own_subject() -> str:
    """Return a subject that is nobody, and of no other entry."""
    return f"noise\x00{secrets.token_hex(32)}"


def exposing(ledger: Ledger, log: Log, indices: Sequence[int]) -> list[bytes]:
    """Return under which subjects, as tags, a log seals what would show values of entries.

    Args:
        ledger: whose vault it is.
        log: of a run.
        indices: of entries whose values are to be erased.
    """
    ordered, rounds = sorted(indices), set()
    for spend in log.entries(kind=_SPEND_KIND):  # pruning keeps their bytes
        try:
            covered = range(int(spend.event["first_index"]), int(spend.event["end_index"]))
            number = int(spend.event["round"])
        except (KeyError, TypeError, ValueError):  # no release follows from such an entry
            continue
        if bisect_left(ordered, covered.start) < bisect_left(ordered, covered.stop):
            rounds.add(number)
    roots = _places(ledger, log, _ROOT_KIND)
    places = [index for number, index in enumerate(roots) if number in rounds]
    # a sum without noise covers whatever was there
    places += [x for x in _places(ledger, log, _PLAIN_KIND) if ordered and x > ordered[0]]
    return _tags(ledger, log, places)


def _places(ledger: Ledger, log: Log, kind: str) -> list[int]:
    entry = _ENTRIES.c
    with ledger.engine.connect() as connection:
        return [
            index
            for where in list(spans_of_kinds(connection, log.number, (kind,)))
            for index in connection.scalars(
                select(entry.leaf_index).where(where).order_by(entry.leaf_index)
            )
        ]


def _tags(ledger: Ledger, log: Log, places: Iterable[int]) -> list[bytes]:
    """Return whose the sealed values of some entries are, without the run's own."""
    run, sealed = ledger.vault.subject_tag("", log.origin), _VAULT.c
    with ledger.engine.connect() as connection:
        found = {
            bytes(connection.scalar(query) or b"")
            for place in places
            for query in [
                select(sealed.subject).where(
                    sealed.log_number == log.number, sealed.leaf_index == place
                )
            ]
        }
    return sorted(found - {run, b""})
