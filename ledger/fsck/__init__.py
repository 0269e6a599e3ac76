"""fsck: check everything a ledger stores against everything else, and name what is broken.

Entries against columns, leaves against tiles, tiles and roots against signed tree heads,
sealed values against commitments, run logs against the registry log, anchors against heads,
blobs against digests, key files against keys. Streams, in bounded memory, on all cores;
goes on after a finding.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Final

from sqlalchemy import Connection, func, select
from sqlalchemy.exc import DBAPIError

from rlhf_audit_trail.ledger.findings import UNCHECKED, Finding, Progress, Summary
from rlhf_audit_trail.ledger.fsck.columns import table
from rlhf_audit_trail.ledger.fsck.ranges import Bench
from rlhf_audit_trail.ledger.fsck.storage import Inspectable, Storage, open_damaged
from rlhf_audit_trail.ledger.fsck.whole import Whole
from rlhf_audit_trail.ledger.fsck.workers import Crew, Start, WorkerFailed, alone, employ
from rlhf_audit_trail.ledger.store import models

__all__ = ["Finding", "Inspectable", "Progress", "Storage", "Summary", "fsck", "open_damaged"]

_ENTRIES_ALONE_MAX: Final = 100_000  # are checked before workers would have started
_BLOBS_ALONE_MAX: Final = 1_000
_LOGS = table(models.LogRow)
_BLOBS = table(models.BlobRow)


def fsck(
    ledger: Inspectable,
    *,
    jobs: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    summary: Summary | None = None,
) -> Iterator[Finding]:
    """Yield every finding; nothing is yielded for a sound ledger.

    What is read is one state of the ledger's database, also while others append to it.
    Findings and their order are the same whoever does the work.

    Args:
        ledger: from `open_damaged`, or an open `Ledger`.
        jobs: how many processes may work, this one among them; all cores if left out.
            A small ledger is checked by this one in any case, unless a number is given.
        progress: told now and then how far it has come.
        summary: counted into; complete when the last finding was taken.
    """
    counted = summary if summary is not None else Summary()
    # one transaction from the first read on; never committed, which a damaged file may refuse
    with ledger.engine.connect() as connection, _crew(ledger, connection, jobs) as crew:
        try:
            for item in Whole(ledger, connection, counted, crew).findings():
                if isinstance(item, Progress):
                    if progress is not None:
                        progress(item)
                else:
                    counted.findings += 1
                    yield item
        except WorkerFailed as error:
            counted.findings += 1
            yield Finding("", UNCHECKED, "process", error.message)


def _crew(
    ledger: Inspectable, connection: Connection, jobs: int | None
) -> AbstractContextManager[Crew]:
    """Choose who does the work."""
    count = jobs if jobs is not None else _processes_for(connection)
    bench = Bench(connection, ledger.vault, ledger.blobs)
    if count <= 1:
        return alone(bench)
    snapshot = ""
    if connection.dialect.name == "postgresql":
        snapshot = str(connection.scalar(select(func.pg_export_snapshot())))
    return employ(bench, Start(ledger.directory, snapshot), count - 1)


def _processes_for(connection: Connection) -> int:
    """Return how many processes are worth starting: a large ledger has all cores."""
    try:
        entries = connection.scalar(select(func.sum(_LOGS.c.size))) or 0
        blobs = connection.scalar(select(func.count()).select_from(_BLOBS)) or 0
    except DBAPIError:
        return 1
    if isinstance(entries, int) and entries <= _ENTRIES_ALONE_MAX and blobs <= _BLOBS_ALONE_MAX:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
