"""What PostgreSQL needs beyond the models: sessions that stay durable and never block for long.

Writers take turns by `SELECT ... FOR UPDATE` on a log's row. Whoever holds that lock may be
stopped, cut off or killed at any moment, so the server ends such a transaction, and the
one cut off finds out by (writer id, sequence) what became of its entries.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Engine, Table, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, OperationalError

from rlhf_audit_trail.ledger.store.errors import NotDurable

__all__ = [
    "await_server",
    "begin_writing",
    "engine_options",
    "insert_columns",
    "is_passing",
]

IDLE_TIMEOUT_S: Final = 5  # between two statements of one transaction we only compute
LOCK_TIMEOUT_S: Final = 20
TRANSACTION_TIMEOUT_S: Final = 30
RECONNECT_WAIT_S: Final = 30
_RECONNECT_PAUSE_S: Final = 0.1
_MIGRATION_LOCK: Final = 0x726C6866_61756469  # any number that no one else would choose
_TRANSACTION_TIMEOUT_SINCE: Final = (17,)

# A dead network is noticed after about half a minute, by either side of a silent connection.
_CONNECT: Final = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "application_name": "rlhf-audit",
}

# serialization failure, deadlock, lock not available, server starting or shutting down, and
# the two timeouts by which the server ends a transaction
_PASSING: Final = frozenset(
    {"40001", "40P01", "55P03", "57P01", "57P02", "57P03", "25P03", "25P04"}
)


def engine_options(url: URL, *, read_only: bool) -> dict[str, Any]:
    """Return the arguments for `create_engine`; what the URL says itself has precedence.

    Reading transactions see one state, as with SQLite. Read-only, the server refuses writes.
    """
    options = {name: value for name, value in _CONNECT.items() if name not in url.query}
    return {
        "connect_args": options,
        "execution_options": {"postgresql_readonly": read_only},
        "isolation_level": "REPEATABLE READ",
        "pool_pre_ping": True,  # a connection may be from before the server's restart
    }


def begin_writing(connection: Connection, *, is_migration: bool) -> None:
    """Begin a transaction: refuse a server that forgets, and bound what a pause can block.

    The timeouts hold for this transaction only; long reads take no locks and need none.

    Raises:
        NotDurable: the session or the server acknowledges what is not on disk.
    """
    limits = {"idle_in_transaction_session_timeout": IDLE_TIMEOUT_S}
    if not is_migration:  # which may have to wait for another, and to copy a large table
        limits["lock_timeout"] = LOCK_TIMEOUT_S
        if (connection.dialect.server_version_info or ()) >= _TRANSACTION_TIMEOUT_SINCE:
            # the only one that counts while a statement is half sent by a process now stopped
            limits["transaction_timeout"] = TRANSACTION_TIMEOUT_S
    parts = [f"set_config('{name}', '{value}s', true)" for name, value in limits.items()]
    durable = ["current_setting('synchronous_commit')", "current_setting('fsync')"]
    row = connection.exec_driver_sql(f"SELECT {', '.join(durable + parts)}").one()
    for name, value in zip(("synchronous_commit", "fsync"), row, strict=False):
        if value == "off":
            raise NotDurable(
                f"the PostgreSQL session has {name}=off: receipts could be lost in a crash",
                next_step=f"set {name}=on for this role, database and server",
            )
    if is_migration:
        lock = text("SELECT pg_advisory_xact_lock(:key)")
        connection.execute(lock, {"key": _MIGRATION_LOCK})


def insert_columns(
    connection: Connection,
    table: Table,
    common: Mapping[str, Any],
    columns: Mapping[str, Sequence[Any]],
    counted: Mapping[str, int],
    *,
    is_missing_only: bool,
) -> None:
    """Insert many rows by one statement, a column an array; what is common is sent once.

    One statement in one message: a process stopped in the middle of COPY, or of a pipeline
    of statements, would hold its locks where the server's timeouts for idling do not count.
    """
    names = (*common, *counted, *columns)
    types = {name: table.c[name].type.compile(connection.dialect) for name in names}
    chosen = [f"%b::{types[name]}" for name in common]
    chosen += [f"%b::{types[name]} + place - 1" for name in counted]
    given = [f"column{number}" for number in range(len(columns))]
    arrays = ", ".join(f"%b::{types[name]}[]" for name in columns)
    # the names are the models' own
    statement = (
        f"INSERT INTO {table.name} ({', '.join(names)})"  # noqa: S608
        f" SELECT {', '.join(chosen + given)}"
        f" FROM unnest({arrays}) WITH ORDINALITY AS varied({', '.join(given)}, place)"
        f"{' ON CONFLICT DO NOTHING' * is_missing_only}"
    )
    values = [list(column) for column in columns.values()]
    connection.exec_driver_sql(statement, (*common.values(), *counted.values(), *values))


def is_passing(error: DBAPIError) -> bool:
    """Whether the same transaction may succeed through a new connection."""
    state = getattr(error.orig, "sqlstate", None)
    if error.connection_invalidated or (state is None and isinstance(error, OperationalError)):
        return True
    return state is not None and (state in _PASSING or state.startswith("08"))


def await_server(engine: Engine) -> None:
    """Wait until the server takes connections; raises what it said when it does not."""
    deadline_s = time.monotonic() + RECONNECT_WAIT_S
    while True:
        try:
            engine.connect().close()
        except OperationalError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(_RECONNECT_PAUSE_S)
        else:
            return
