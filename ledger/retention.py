"""Retention: sealed values that were kept for long enough are destroyed, and counted.

Which are due follows from `[retention]`, a kind of event and days, and from the time that the
entry bears. Each group goes in one transaction with the entry in the registry log that counts
it, so that a run which is interrupted is simply run again. The noise of releases that the values
are in goes, too: their sum would follow from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Final

from sqlalchemy import Connection, select, update

from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import SETTINGS_FILE, Ledger, Log
from rlhf_audit_trail.ledger.noise_secrets import exposing
from rlhf_audit_trail.ledger.settings import LEDGER_TABLES, RetentionSettings, read_tables
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.cleansing import cleanse
from rlhf_audit_trail.ledger.store.database import transact
from rlhf_audit_trail.ledger.store.entries import FILED_ENTRIES, unfile_subjects

__all__ = ["EXPIRED_KIND", "Expired", "expire", "read_retention"]

EXPIRED_KIND: Final = "values.expired"
_BASIS: Final = "retention"
_AT_ONCE: Final = 500  # so many numbers are few enough for one statement of either database
_LOGS = models.LogRow.__table__  # type: ignore[attr-defined]
_VAULT = models.VaultRow.__table__  # type: ignore[attr-defined]


@dataclass
class Expired:
    """What was due.

    Attributes:
        entries: run id and kind of event to the number of entries.
        leftovers: places where destroyed bytes may still be, in words.
    """

    entries: dict[tuple[str, str], int] = field(default_factory=dict)
    leftovers: list[str] = field(default_factory=list)


def read_retention(ledger: Ledger) -> RetentionSettings:
    """Return the table `[retention]` of a ledger's settings."""
    found: RetentionSettings = read_tables(ledger.directory / SETTINGS_FILE, LEDGER_TABLES)[
        "retention"
    ]
    return found


def expire(
    ledger: Ledger,
    settings: RetentionSettings,
    *,
    now: datetime | None = None,
    is_dry: bool = False,
) -> Expired:
    """Destroy the sealed values that have been kept for as long as the settings say.

    Entries whose bytes were pruned bear no time here any more, and are left out.

    Args:
        ledger: open.
        settings: which values are due, and when.
        now: the clock.
        is_dry: only count.

    Raises:
        RolledBack, Forked: this store is not the newest copy; nothing was destroyed.
        StoreError: the database failed; what is left is due still.
    """
    moment, done = now or datetime.now(UTC), Expired()
    if not is_dry:
        ledger.registry.require_writable()
    for run_id in ledger.runs():
        log, gone = ledger.find(run_id), list[int]()
        for kind, days in settings.days.items():
            for some in _due(ledger, log, kind, moment - timedelta(days=days)):
                if not is_dry:  # first: an interrupted run does not find them again
                    _destroy_noise(ledger, log, some)
                count = len(some) if is_dry else _destroy(ledger, log, kind, days, some)
                gone += some
                if count:
                    before = done.entries.get((run_id, kind), 0)
                    done.entries[run_id, kind] = before + count
        if not is_dry:
            _destroy_noise(ledger, log, gone)  # of what was charged for meanwhile, elsewhere
    if done.entries and not is_dry:
        place = cleanse(ledger.engine, "vault", "subject_tile", is_whole=False)
        done.leftovers = [place] if place else []
    return done


def _due(ledger: Ledger, log: Log, kind: str, before: datetime) -> Iterator[list[int]]:
    """Yield groups of entries of a kind, recorded before a moment, whose values are there."""
    if log.archive:
        return
    old = (
        entry.leaf_index
        for entry in log.entries(kind=kind)
        if datetime.fromisoformat(entry.event["recorded_at"]) < before
    )
    while some := list(islice(old, _AT_ONCE)):
        with ledger.engine.connect() as connection:
            found = connection.scalars(select(_VAULT.c.leaf_index).where(_full(log.number, some)))
            there = sorted(found)
        if there:
            yield there


def _destroy_noise(ledger: Ledger, log: Log, indices: Sequence[int]) -> None:
    for tag in exposing(ledger, log, indices):
        ledger.eraser.erase(tag, basis=_BASIS)


def _destroy(ledger: Ledger, log: Log, kind: str, days: int, indices: Sequence[int]) -> int:
    """Destroy the values of some entries, and count them in the registry log."""

    def work(connection: Connection) -> int:
        ledger.registry.hold(connection)
        rows = select(_LOGS.c.number).order_by(_LOGS.c.number)
        connection.execute(rows.with_for_update()).all()
        sealed = update(_VAULT).where(_full(log.number, indices))
        count = connection.execute(sealed.values(subject=b"", ciphertext=b"")).rowcount
        if count:
            tiles = sorted({index // FILED_ENTRIES for index in indices})
            unfile_subjects(connection, log.number, tiles)
            fields: dict[str, Any] = {"run": log.run_id, "entries": count}
            fields |= {"of_kind": kind, "kept_days": days}
            ledger.registry.enter(connection, [Event(EXPIRED_KIND, fields)])
            # open writers then look again under whom their newest entries are filed; last, for
            # nothing here may take notice of a count that could still be taken back
            connection.execute(update(_LOGS).values(erasures=_LOGS.c.erasures + 1))
        return count

    return transact(ledger.engine, work)


def _full(log_number: int, indices: Sequence[int]) -> Any:
    sealed = _VAULT.c
    here = (sealed.log_number == log_number) & sealed.leaf_index.in_(indices)
    return here & (sealed.ciphertext != b"")
