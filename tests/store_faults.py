"""A store that fails for a while: no room, or tables gone; each as a context that heals."""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Iterator
from typing import Any

from sqlalchemy import event

from rlhf_audit_trail.ledger.log import Ledger


@contextlib.contextmanager
def no_larger_files(limit_bytes: int) -> Iterator[None]:
    """Have the kernel refuse to make any file of this process larger than so much."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


@contextlib.contextmanager
def no_more_pages(ledger: Ledger, *, room_pages: int = 0) -> Iterator[None]:
    """Have SQLite itself say that the disk is full, some pages from now."""
    with ledger.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar() or 0

    def limit(connection: Any, _record: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages + room_pages}")

    event.listen(ledger.engine, "connect", limit)
    ledger.engine.dispose()
    try:
        yield
    finally:
        event.remove(ledger.engine, "connect", limit)
        ledger.engine.dispose()


@contextlib.contextmanager
def without_table(ledger: Ledger, name: str) -> Iterator[None]:
    """Take a table away: whatever is asked of it fails."""
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {name} RENAME TO taken_away")
    try:
        yield
    finally:
        with ledger.engine.begin() as connection:
            connection.exec_driver_sql(f"ALTER TABLE taken_away RENAME TO {name}")
