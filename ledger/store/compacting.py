"""Giving disk space back after entries were pruned.

A database that lost bytes keeps its size: the room is used again, but not returned. SQLite
returns it by rewriting the file, which nobody else may use meanwhile; whoever appended would
wait, and could lose events. So it is done only where no other process has the file open.
PostgreSQL returns what lies at a table's end while others go on, and uses the rest again.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from rlhf_audit_trail.ledger.store.database import go_on, hold_still

__all__ = ["Compacted", "compact"]

_ATTEMPTS: Final = 3  # another thread may take a connection between two of our steps
_LOCK_WAIT_MS: Final = 500  # a process that is just ending lets go within this time
_SHARED: Final = "somebody else has the ledger open"
_TABLES: Final = ("entry", "vault")


@dataclass(frozen=True)
class Compacted:
    """How large a database was and is, in bytes on disk, write-ahead log included.

    Attributes:
        before: its size before.
        after: its size afterwards.
        reason: why all or some of the room was kept; empty if all was given back.
    """

    before: int
    after: int
    reason: str = ""

    @property
    def freed_bytes(self) -> int:
        """What the disk has more now; never negative."""
        return max(0, self.before - self.after)


def compact(engine: Engine) -> Compacted:
    """Give unused space of a ledger's database back to the disk, if that disturbs nobody.

    Nothing is lost when it is killed or the disk is full: the database is then as it was.
    """
    if engine.dialect.name == "postgresql":
        return _compact_tables(engine)
    return _compact_file(engine, Path(engine.url.database or ""))


# --- SQLite -----------------------------------------------------------------------------------


def _compact_file(engine: Engine, path: Path) -> Compacted:
    before = _size_on_disk(path)
    if shutil.disk_usage(path.parent).free < 2 * before:  # the new file, and the log of it
        reason = f"rewriting the file needs up to {2 * before:,} bytes of free disk space"
        return Compacted(before, before, reason)
    reason = ""
    for _ in range(_ATTEMPTS):
        reason = _try_to_rewrite(engine, path)
        if reason != _SHARED:
            break
    return Compacted(before, _size_on_disk(path), reason)


def _try_to_rewrite(engine: Engine, path: Path) -> str:
    """Rewrite the file while this process's other threads wait; return why that was impossible."""
    engine.dispose()  # before the gate is closed: a thread that waits there may have one in hand
    hold_still(engine)
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            _rewrite(connection)
    except sqlite3.Error as error:
        return _SHARED if "locked" in str(error) else str(error)
    finally:
        go_on(engine)
    return ""


def _rewrite(connection: sqlite3.Connection) -> None:
    for statement in (
        f"PRAGMA busy_timeout={_LOCK_WAIT_MS}",
        "PRAGMA synchronous=FULL",
        "PRAGMA secure_delete=ON",
        # with the next lock taken, no other connection can be open, nor become so
        "PRAGMA locking_mode=EXCLUSIVE",
        "BEGIN EXCLUSIVE",
        "COMMIT",
        "VACUUM",
        "PRAGMA wal_checkpoint(TRUNCATE)",
    ):
        connection.execute(statement).fetchall()


def _size_on_disk(path: Path) -> int:
    files = (path, path.with_name(f"{path.name}-wal"))
    return sum(file.stat().st_size for file in files if file.exists())


# --- PostgreSQL -------------------------------------------------------------------------------


def _compact_tables(engine: Engine) -> Compacted:
    reason = "the server uses the rest again; VACUUM FULL, which stops writers, would return it"
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        before = _size_of_tables(connection)
        try:
            connection.exec_driver_sql(f"VACUUM {', '.join(_TABLES)}")
        except DBAPIError as error:
            reason = str(error.orig).splitlines()[0]
        return Compacted(before, _size_of_tables(connection), reason)


def _size_of_tables(connection: Any) -> int:
    sizes = " + ".join(f"pg_total_relation_size('{name}')" for name in _TABLES)
    return int(connection.exec_driver_sql(f"SELECT {sizes}").scalar())
