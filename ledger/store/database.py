"""Engines: how the two databases are opened, made durable, and brought to this version."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, Engine, MetaData, create_engine, event, inspect, text
from sqlalchemy.exc import DatabaseError, OperationalError

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.store.models import key_metadata, ledger_metadata

__all__ = ["LedgerTooNew", "StoreError", "keys_engine", "ledger_engine", "migrate", "writing"]

_MIGRATIONS: Final = Path(__file__).parent / "migrations"
_BUSY_TIMEOUT_MS: Final = 30_000  # another process may hold the write lock for a group commit


class StoreError(AuditTrailError):
    """The database cannot be opened, read or written."""


class LedgerTooNew(StoreError):
    """The database was written by a newer version of this software."""


def ledger_engine(url: str) -> Engine:
    """Open the ledger's database, creating or upgrading its tables.

    Raises:
        StoreError: not a database, or not reachable.
        LedgerTooNew: written by a newer version; nothing was changed.
    """
    return _open(url, "ledger_versions", ledger_metadata)


def keys_engine(url: str) -> Engine:
    """Open the vault's key database; the same conditions as `ledger_engine`."""
    return _open(url, "key_versions", key_metadata)


def _open(url: str, versions: str, metadata: MetaData) -> Engine:
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _sqlite_settings)
        event.listen(engine, "begin", _sqlite_begin)
    try:
        migrate(engine, versions, metadata)
    except (OperationalError, DatabaseError) as error:
        engine.dispose()
        raise StoreError(
            f"cannot open the database: {error.orig}",
            next_step="check the path and its permissions, or restore it from a backup",
        ) from error
    except BaseException:
        engine.dispose()
        raise
    return engine


def _sqlite_settings(connection: Any, _record: object) -> None:
    """Full durability, and deleted bytes overwritten (an erasure must reach the file)."""
    connection.isolation_level = None  # we say BEGIN ourselves, see _sqlite_begin
    cursor: sqlite3.Cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",  # NORMAL may lose acknowledged commits on power loss
        "secure_delete=ON",
        "foreign_keys=ON",
        f"busy_timeout={_BUSY_TIMEOUT_MS}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _sqlite_begin(connection: Connection) -> None:
    """Take the write lock at once when writing: a later upgrade fails with BUSY_SNAPSHOT."""
    mode = "IMMEDIATE" if connection.get_execution_options().get("writing") else "DEFERRED"
    connection.exec_driver_sql(f"BEGIN {mode}")


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that writes; commits at the end, rolls back on any error."""
    with engine.connect().execution_options(writing=True) as connection, connection.begin():
        yield connection


def migrate(engine: Engine, versions: str, metadata: MetaData) -> None:
    """Bring a database to the newest known version, all steps in one transaction or none.

    Raises:
        LedgerTooNew: its version is not known here.
    """
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("version_locations", str(_MIGRATIONS / versions).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)
    newest = scripts.get_current_head()
    with engine.connect() as connection:
        current = _version(connection)
    if current == newest:
        return
    if current is not None:
        try:
            scripts.get_revision(current)
        except CommandError as error:
            raise LedgerTooNew(
                f"the database has version {current}, newer than this software knows",
                next_step="install the newer rlhf-audit-trail that wrote it; nothing was changed",
            ) from error
    with writing(engine) as connection:
        config.attributes |= {"connection": connection, "metadata": metadata}
        command.upgrade(config, "head")


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
