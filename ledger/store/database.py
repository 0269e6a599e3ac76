"""Engines: how the two databases are opened, made durable, and brought to this version."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, Engine, MetaData, create_engine, event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DatabaseError, NoSuchModuleError, OperationalError

from rlhf_audit_trail.ledger.store import postgresql
from rlhf_audit_trail.ledger.store.errors import LedgerTooNew, NotDurable, StoreError
from rlhf_audit_trail.ledger.store.models import key_metadata, ledger_metadata
from rlhf_audit_trail.ledger.store.statements import claim_indices, insert_columns, insert_missing
from rlhf_audit_trail.ledger.store.transactions import (
    PATIENCE_S,
    PAUSE_S,
    begin_sqlite,
    equip,
    fetch_all,
    fetch_first,
    go_on,
    hold_still,
    leave_connections,
    renew,
    transact,
    transact_once,
    writing,
)

__all__ = [
    "LedgerTooNew",
    "NotDurable",
    "StoreError",
    "claim_indices",
    "fetch_all",
    "fetch_first",
    "go_on",
    "hold_still",
    "insert_columns",
    "insert_missing",
    "keys_engine",
    "leave_connections",
    "ledger_engine",
    "migrate",
    "renew",
    "transact",
    "transact_once",
    "writing",
]

_MIGRATIONS: Final = Path(__file__).parent / "migrations"
_BUSY_TIMEOUT_MS: Final = 30_000  # another process may hold the write lock for a group commit
_ALEMBIC: Final = threading.Lock()  # it keeps what it is working on in module globals


def ledger_engine(url: str, *, read_only: bool = False) -> Engine:
    """Open the ledger's database, creating or upgrading its tables.

    Read-only, nothing is created or upgraded: only a database of this version opens.

    Raises:
        StoreError: not a database, or not reachable.
        LedgerTooNew: written by a newer version; nothing was changed.
    """
    return _open(url, "ledger_versions", ledger_metadata, read_only)


def keys_engine(url: str, *, read_only: bool = False) -> Engine:
    """Open the vault's key database; the same conditions as `ledger_engine`.

    A new SQLite file is readable by its owner only, and so are those SQLite puts beside it.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database and not read_only:
        with suppress(OSError):  # there is no such directory: opening says so
            Path(parsed.database).touch(mode=0o600)
    return _open(url, "key_versions", key_metadata, read_only)


def _open(url: str, versions: str, metadata: MetaData, read_only: bool) -> Engine:  # noqa: FBT001 - passed on
    engine = _engine(url, read_only=read_only)
    if engine.dialect.name == "sqlite":
        settings = _sqlite_reading if read_only else _sqlite_settings
        event.listen(engine, "connect", settings)
        event.listen(engine, "begin", begin_sqlite)
    equip(engine)
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


def _engine(url: str, *, read_only: bool) -> Engine:
    parsed = make_url(url)
    kind = parsed.get_backend_name()
    # values stay out of the driver's messages: some of them are secrets
    try:
        if kind == "postgresql":
            options = postgresql.engine_options(parsed, read_only=read_only)
            return create_engine(parsed, hide_parameters=True, **options)
        if kind == "sqlite":
            return create_engine(_read_only_url(url) if read_only else url, hide_parameters=True)
    except (ImportError, NoSuchModuleError) as error:
        raise StoreError(
            f"the database driver of {parsed.drivername} is not installed",
            next_step="write postgresql+psycopg://... and install rlhf-audit-trail[postgres]",
        ) from error
    raise StoreError(
        f"databases of the kind {kind:.40} are not supported",
        next_step="use sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME",
    )


def _sqlite_settings(connection: Any, _record: object) -> None:
    """Full durability, and deleted bytes overwritten (an erasure must reach the file)."""
    connection.isolation_level = None  # we say BEGIN ourselves, see begin_sqlite
    cursor: sqlite3.Cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
    _use_wal(cursor)
    for pragma in (
        "synchronous=FULL",  # NORMAL may lose acknowledged commits on power loss
        "secure_delete=ON",
        "foreign_keys=ON",
        # a checkpoint writes each page once, however often it changed: fewer write less
        "wal_autocheckpoint=4000",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _use_wal(cursor: sqlite3.Cursor) -> None:
    """Turn a new database to WAL; while another connection does so, SQLite does not wait."""
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline_s:
                raise
            time.sleep(PAUSE_S)
        else:
            return


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


def migrate(engine: Engine, versions: str, metadata: MetaData) -> None:
    """Bring a database to the newest known version, all steps in one transaction or none.

    Raises:
        LedgerTooNew: its version is not known here.
    """
    config = _config(versions)
    if _is_newest(engine, config):
        return
    with _ALEMBIC, writing(engine, is_migration=True) as connection:
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
