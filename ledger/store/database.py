"""Engines: how the two databases are opened, made durable, and brought to this version."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, Engine, MetaData, Table, create_engine, event, inspect, text
from sqlalchemy.dialects import postgresql as postgresql_dialect
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DatabaseError, DBAPIError, NoSuchModuleError, OperationalError

from rlhf_audit_trail.ledger.store import postgresql
from rlhf_audit_trail.ledger.store.errors import LedgerTooNew, NotDurable, StoreError
from rlhf_audit_trail.ledger.store.models import key_metadata, ledger_metadata

__all__ = [
    "LedgerTooNew",
    "NotDurable",
    "StoreError",
    "insert_missing",
    "insert_rows",
    "keys_engine",
    "ledger_engine",
    "migrate",
    "renew",
    "transact",
    "writing",
]

_MIGRATIONS: Final = Path(__file__).parent / "migrations"
_BUSY_TIMEOUT_MS: Final = 30_000  # another process may hold the write lock for a group commit
_ALEMBIC: Final = threading.Lock()  # it keeps what it is working on in module globals
_PATIENCE_S: Final = 30
_PAUSE_S: Final = 0.05

Outcome = TypeVar("Outcome")


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
    engine = _engine(url, read_only=read_only)
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


def _engine(url: str, *, read_only: bool) -> Engine:
    parsed = make_url(url)
    kind = parsed.get_backend_name()
    try:
        if kind == "postgresql":
            return create_engine(parsed, **postgresql.engine_options(parsed, read_only=read_only))
        if kind == "sqlite":
            return create_engine(_read_only_url(url) if read_only else url)
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
    connection.isolation_level = None  # we say BEGIN ourselves, see _sqlite_begin
    cursor: sqlite3.Cursor = connection.cursor()
    for pragma in (
        f"busy_timeout={_BUSY_TIMEOUT_MS}",  # first: the next one may have to wait
        "journal_mode=WAL",
        "synchronous=FULL",  # NORMAL may lose acknowledged commits on power loss
        "secure_delete=ON",
        "foreign_keys=ON",
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
def writing(engine: Engine, *, is_migration: bool = False) -> Iterator[Connection]:
    """Open a transaction that writes; commits at the end, rolls back on any error.

    On PostgreSQL each statement in it sees what others have committed by then, so that
    whoever waited for a row's lock reads what the one before wrote.

    Raises:
        NotDurable: the database acknowledges commits before they are on disk.
    """
    options: dict[str, Any] = {"writing": True}
    if engine.dialect.name == "postgresql":
        options["isolation_level"] = "READ COMMITTED"
    with engine.connect().execution_options(**options) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            postgresql.begin_writing(connection, is_migration=is_migration)
        yield connection


def transact(engine: Engine, work: Callable[[Connection], Outcome]) -> Outcome:
    """Do `work` in a transaction that writes; on PostgreSQL again, where a connection broke.

    Args:
        engine: the database.
        work: done once or several times; the outcome of an earlier time is unknown, so it
            must look at what is there already.
    """
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        try:
            with writing(engine) as connection:
                return work(connection)
        except DBAPIError as error:
            may_pass = engine.dialect.name == "postgresql" and postgresql.is_passing(error)
            if not may_pass or time.monotonic() > deadline_s:
                raise
        time.sleep(_PAUSE_S)
        renew(engine)


def renew(engine: Engine) -> None:
    """Let go of connections whose last commit has an unknown outcome, and open new ones."""
    engine.dispose()
    if engine.dialect.name == "postgresql":
        postgresql.await_server(engine)


def insert_rows(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert many rows, all with the same columns, the fast way of the database."""
    if connection.dialect.name == "postgresql":
        postgresql.insert_rows(connection, table, rows)
    else:
        connection.execute(table.insert(), rows)


def insert_missing(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows that are not there; waits for others that are inserting the same ones."""
    dialect = postgresql_dialect if connection.dialect.name == "postgresql" else sqlite_dialect
    connection.execute(dialect.insert(table).on_conflict_do_nothing(), rows)


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
