"""Engines: how the two databases are opened, made durable, and brought to this version."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, Engine, MetaData, create_engine, event, inspect, text
from sqlalchemy.engine import make_url
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


def ledger_engine(url: str, *, read_only: bool = False) -> Engine:
    """Open the ledger's database, creating or upgrading its tables.

    Read-only, nothing is created or upgraded: only a database of this version opens.

    Raises:
        StoreError: not a database, or not reachable.
        LedgerTooNew: written by a newer version; nothing was changed.
    """
    return _open(url, "ledger_versions", ledger_metadata, read_only)


def keys_engine(url: str, *, read_only: bool = False) -> Engine:
    """Open the vault's key database; the same conditions as `ledger_engine`."""
    return _open(url, "key_versions", key_metadata, read_only)


def _open(url: str, versions: str, metadata: MetaData, read_only: bool) -> Engine:  # noqa: FBT001 - passed on
    engine = create_engine(_read_only_url(url) if read_only else url)
    if engine.dialect.name == "sqlite":
        settings = _sqlite_reading if read_only else _sqlite_settings
        event.listen(engine, "connect", settings)
        event.listen(engine, "begin", _sqlite_begin)
    try:
        if read_only:
            _require_newest(engine, versions)
        else:
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


def _sqlite_reading(connection: Any, _record: object) -> None:
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")


def _read_only_url(url: str) -> str:
    """Have SQLite refuse every write, and refuse to make a file that is not there."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        parsed = parsed.set(
            database=f"file:{quote(parsed.database)}", query={"mode": "ro", "uri": "true"}
        )
    return parsed.render_as_string(hide_password=False)


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
    config = _config(versions)
    if _is_newest(engine, config):
        return
    with writing(engine) as connection:
        config.attributes |= {"connection": connection, "metadata": metadata}
        command.upgrade(config, "head")


def _config(versions: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("version_locations", str(_MIGRATIONS / versions).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _is_newest(engine: Engine, config: Config) -> bool:
    """Whether the database has the newest version; raises LedgerTooNew for an unknown one."""
    scripts = ScriptDirectory.from_config(config)
    with engine.connect() as connection:
        current = _version(connection)
    if current is not None:
        try:
            scripts.get_revision(current)
        except CommandError as error:
            raise LedgerTooNew(
                f"the database has version {current}, newer than this software knows",
                next_step="install the newer rlhf-audit-trail that wrote it; nothing was changed",
            ) from error
    return current == scripts.get_current_head()


def _require_newest(engine: Engine, versions: str) -> None:
    if not _is_newest(engine, _config(versions)):
        raise StoreError(
            "the database has no tables, or those of an older version",
            next_step="restore it, or open the ledger once (rlhf-audit status) to upgrade it",
        )


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
