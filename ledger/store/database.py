"""Engines: how the two databases are opened, made durable, and brought to this version."""

from __future__ import annotations

import itertools
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
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
from rlhf_audit_trail.ledger.store.gate import Gate
from rlhf_audit_trail.ledger.store.models import key_metadata, ledger_metadata

__all__ = [
    "LedgerTooNew",
    "NotDurable",
    "StoreError",
    "claim_indices",
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
    "writing",
]

_MIGRATIONS: Final = Path(__file__).parent / "migrations"
_BUSY_TIMEOUT_MS: Final = 30_000  # another process may hold the write lock for a group commit
_ALEMBIC: Final = threading.Lock()  # it keeps what it is working on in module globals
_PATIENCE_S: Final = 30
_PAUSE_S: Final = 0.05
# Rows of one statement: few sizes, so that prepared statements are found again; the round ones
# are those of full groups. SQLite takes 32,766 parameters in a statement.
_STATEMENT_ROWS: Final = (4096, 4000, 2048, 2000, 1024, 1000, *(1 << x for x in range(9, -1, -1)))

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
        event.listen(engine, "begin", _sqlite_begin)
    gate = _GATES[engine] = Gate()
    event.listen(engine, "checkout", gate.enter)
    event.listen(engine, "checkin", gate.leave)
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
    connection.isolation_level = None  # we say BEGIN ourselves, see _sqlite_begin
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
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline_s:
                raise
            time.sleep(_PAUSE_S)
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

    Raises:
        StoreError: the database, its disk or the way to it failed; nothing is known to be stored.
    """
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        try:
            with writing(engine) as connection:
                return work(connection)
        except DBAPIError as error:
            may_pass = engine.dialect.name == "postgresql" and postgresql.is_passing(error)
            if may_pass and time.monotonic() <= deadline_s:
                pass
            elif isinstance(error, OperationalError):
                raise StoreError(
                    f"the database failed: {str(error.orig).splitlines()[0]}",
                    next_step="free disk space or repair the database, then try again",
                ) from error
            else:
                raise
        time.sleep(_PAUSE_S)
        renew(engine)


def renew(engine: Engine) -> None:
    """Let go of connections whose last commit has an unknown outcome, and open new ones."""
    engine.dispose()
    if engine.dialect.name == "postgresql":
        postgresql.await_server(engine)


def hold_still(engine: Engine) -> None:
    """Wait until no thread uses the database, and let none but this one begin; see `Gate`."""
    _GATES[engine].close()


def go_on(engine: Engine) -> None:
    """Let all threads use the database again."""
    _GATES[engine].open()


def leave_connections(engine: Engine) -> None:
    """In a forked child: use new connections, and never touch, not even close, the old ones."""
    _OF_PARENTS.append(engine.pool)
    _GATES[engine].begin_anew()
    engine.dispose(close=False)


_OF_PARENTS: list[Any] = []  # kept, since a connection is closed when nobody holds it
_GATES: weakref.WeakKeyDictionary[Engine, Gate] = weakref.WeakKeyDictionary()


def fetch_first(engine: Engine, query: str, parameters: tuple[Any, ...]) -> Any:
    """Return the first row of a query, or None, in a transaction of its own.

    For what is read thousands of times a second; `query` has a `?` for each parameter.
    """
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            return connection.exec_driver_sql(query.replace("?", "%s"), parameters).first()
    held = engine.raw_connection()
    try:
        return held.cursor().execute(query, parameters).fetchone()
    finally:
        held.close()


def claim_indices(connection: Connection, log_number: int, count: int) -> int | None:
    """Take the next `count` leaf indices of a log; return the first, or None if it is closed.

    The log's row stays locked until the transaction ends: indices have no holes.
    """
    claim = "UPDATE log SET size = size + ? WHERE number = ? AND NOT closed RETURNING size"
    if connection.dialect.name == "postgresql":
        parameters = (count, log_number)
        row = connection.exec_driver_sql(claim.replace("?", "%s"), parameters).first()
    else:
        row = _execute(connection, claim, (count, log_number)).fetchone()
    return None if row is None else int(row[0]) - count


def insert_columns(
    connection: Connection,
    table: Table,
    common: Mapping[str, Any],
    names: Sequence[str],
    rows: Sequence[tuple[Any, ...]],
) -> None:
    """Insert many rows by as few statements as the database takes.

    Args:
        connection: in a transaction that writes.
        table: whose columns are `common` and `names`.
        common: columns that have one value in all rows.
        names: the other columns, in the order of each row's values.
        rows: one tuple each.
    """
    if connection.dialect.name == "postgresql":
        postgresql.insert_columns(connection, table, common, names, rows)
        return
    # one statement is one step of SQLite, in which other threads of Python run
    begin = 0
    while begin < len(rows):
        count = next(count for count in _STATEMENT_ROWS if count <= len(rows) - begin)
        statement = _sqlite_insert(table.name, tuple(common), tuple(names), count)
        values = itertools.chain(common.values(), *rows[begin : begin + count])
        _execute(connection, statement, tuple(values))
        begin += count


def _execute(connection: Connection, statement: str, parameters: tuple[Any, ...]) -> Any:
    """Reach past SQLAlchemy, which takes longer for a statement than SQLite takes to do it.

    What goes wrong is the same error as if it had not been left out.
    """
    found: Any = connection.connection.driver_connection
    try:
        return found.execute(statement, parameters)
    except sqlite3.Error as error:
        raise DBAPIError.instance(
            statement, None, error, sqlite3.Error, hide_parameters=True, dialect=connection.dialect
        ) from error


@lru_cache(maxsize=128)
def _sqlite_insert(table: str, common: tuple[str, ...], names: tuple[str, ...], count: int) -> str:
    shared = "".join(f"?{number + 1}," for number in range(len(common)))
    first, width = len(common) + 1, len(names)
    rows = (
        f"({shared}{','.join(f'?{number}' for number in range(begin, begin + width))})"
        for begin in range(first, first + count * width, width)
    )
    columns = ",".join((*common, *names))  # the models' own names
    return f"INSERT INTO {table} ({columns}) VALUES {','.join(rows)}"  # noqa: S608


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
