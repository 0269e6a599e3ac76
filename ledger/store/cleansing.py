"""Making deleted bytes leave the files, also those beside a database.

SQLite overwrites what is deleted (`secure_delete`), but the bytes from before stay in its
write-ahead file until that is emptied, and pages that were divided may keep copies until the
file is written anew. PostgreSQL keeps dead rows until a VACUUM, and their pages until a full one.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from typing import Any, Final

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

__all__ = ["cleanse"]

_PATIENCE_S: Final = 30.0
_PAUSE_S: Final = 0.2
_READERS_WAIT_MS: Final = 100
_LOCK_TIMEOUT_S: Final = 20


def cleanse(engine: Engine, *tables: str, is_whole: bool) -> str:
    """Let nothing that was deleted before stay in the files of a database.

    Args:
        engine: the database; others may use it at the same time.
        tables: those that lost rows, by which PostgreSQL is cleansed.
        is_whole: write the tables anew, which leaves nothing in any page; for small ones.

    Returns:
        Where deleted bytes may still be, in words; empty if nowhere that we reach.
    """
    if engine.dialect.name == "postgresql":
        return _cleanse_tables(engine, tables, is_whole=is_whole)
    try:
        with closing(engine.raw_connection()) as held:
            return _cleanse_file(
                held.driver_connection, str(engine.url.database), is_whole=is_whole
            )
    except sqlite3.Error as error:
        return f"{engine.url.database} and the files beside it, since SQLite failed: {error}"


def _cleanse_file(driver: Any, path: str, *, is_whole: bool) -> str:
    if is_whole:
        driver.execute("PRAGMA temp_store=MEMORY")  # else the secrets pass through /tmp
        driver.execute("VACUUM")
    ((wait_ms,),) = driver.execute("PRAGMA busy_timeout").fetchall()
    try:
        # while it waits for a reader, nobody can write: rather several times a little
        driver.execute(f"PRAGMA busy_timeout={_READERS_WAIT_MS}")
        return _empty_log(driver, path)
    finally:
        driver.execute(f"PRAGMA busy_timeout={wait_ms}")


def _empty_log(driver: Any, path: str) -> str:
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        is_busy, *_ = driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if not is_busy:
            return ""
        if time.monotonic() > deadline_s:
            return f"{path}-wal, which another process is reading"
        time.sleep(_PAUSE_S)


def _cleanse_tables(engine: Engine, tables: tuple[str, ...], *, is_whole: bool) -> str:
    options = "(FULL) " * is_whole
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            # of the session, which the pool gets back as it was
            connection.exec_driver_sql(f"SET lock_timeout = '{_LOCK_TIMEOUT_S}s'")
            try:
                connection.exec_driver_sql(f"VACUUM {options}{', '.join(tables)}")
            finally:
                connection.exec_driver_sql("RESET lock_timeout")
    except DBAPIError as error:
        what = str(error.orig).splitlines()[0]
        return f"pages of the tables {', '.join(tables)}, since VACUUM failed: {what}"
    return ""
