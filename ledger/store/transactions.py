"""Transactions: how work becomes durable, and which connection it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError, OperationalError

from rlhf_audit_trail.ledger.store import postgresql
from rlhf_audit_trail.ledger.store.errors import StoreError
from rlhf_audit_trail.ledger.store.gate import Gate
from rlhf_audit_trail.ledger.store.kept import Kept
from rlhf_audit_trail.ledger.store.statements import execute

__all__ = [
    "PATIENCE_S",
    "PAUSE_S",
    "begin_sqlite",
    "equip",
    "fetch_all",
    "fetch_first",
    "go_on",
    "hold_still",
    "leave_connections",
    "renew",
    "transact",
    "transact_once",
    "writing",
]

PATIENCE_S: Final = 30
PAUSE_S: Final = 0.05

Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class AtHand:
    """What each engine has beside its pool."""

    gate: Gate
    writing: Kept
    reading: Kept


def equip(engine: Engine) -> None:
    """Give an engine its gate, and the connections that are kept at hand."""
    gate = Gate()
    kept = AtHand(gate, Kept(gate), Kept(gate))
    engine.update_execution_options(at_hand=kept)
    event.listen(engine, "checkout", gate.enter)
    event.listen(engine, "checkin", gate.leave)

    def close(_engine: Engine) -> None:
        kept.writing.close()
        kept.reading.close()

    event.listen(engine, "engine_disposed", close)


def begin_sqlite(connection: Connection) -> None:
    """Take the write lock at once when writing: a later upgrade fails with BUSY_SNAPSHOT."""
    options = connection.get_execution_options()
    if options.get("is_kept"):
        return  # begun already, see `transact_once`
    mode = "IMMEDIATE" if options.get("writing") else "DEFERRED"
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
    deadline_s: float | None = None
    while True:
        try:
            return transact_once(engine, work)
        except DBAPIError as error:
            # from the first failure on: a process that was stopped for long tries once more
            deadline_s = deadline_s or time.monotonic() + PATIENCE_S
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
        time.sleep(PAUSE_S)
        renew(engine)


def transact_once(engine: Engine, work: Callable[[Connection], Outcome]) -> Outcome:
    """Do `work` in one transaction that writes; for what must not be done a second time.

    Raises:
        DBAPIError: the database failed; what becomes of the transaction is not known.
    """
    kept = _at_hand(engine).writing
    if engine.dialect.name == "postgresql" or not kept.take(engine):
        with writing(engine) as connection:
            return work(connection)
    is_done = False
    try:
        # past SQLAlchemy, whose own transaction costs more than SQLite's without the disk
        execute(kept.connection, "BEGIN IMMEDIATE", ())
        outcome = work(kept.connection)
        if kept.connection.in_transaction():  # where the work went through SQLAlchemy
            kept.connection.commit()
        else:
            execute(kept.connection, "COMMIT", ())
        is_done = True
    finally:
        kept.give_back(is_sound=is_done)
    return outcome


def renew(engine: Engine) -> None:
    """Let go of connections whose last commit has an unknown outcome, and open new ones."""
    engine.dispose()
    if engine.dialect.name == "postgresql":
        postgresql.await_server(engine)


def hold_still(engine: Engine) -> None:
    """Wait until no thread uses the database, and let none but this one begin; see `Gate`."""
    _at_hand(engine).gate.close()


def go_on(engine: Engine) -> None:
    """Let all threads use the database again."""
    _at_hand(engine).gate.open()


def leave_connections(engine: Engine) -> None:
    """In a forked child: use new connections, and never touch, not even close, the old ones."""
    kept = _at_hand(engine)
    kept.gate.begin_anew()
    _OF_PARENTS.extend((engine.pool, kept.writing.abandon(), kept.reading.abandon()))
    engine.dispose(close=False)


_OF_PARENTS: list[Any] = []  # kept, since a connection is closed when nobody holds it


def _at_hand(engine: Engine) -> AtHand:
    return cast("AtHand", engine.get_execution_options()["at_hand"])


def fetch_first(engine: Engine, query: str, parameters: tuple[Any, ...]) -> Any:
    """Return the first row of a query, or None; as `fetch_all`."""
    return next(iter(fetch_all(engine, query, parameters)), None)


def fetch_all(engine: Engine, query: str, parameters: tuple[Any, ...]) -> Sequence[Any]:
    """Return all rows of a query, in a transaction of its own.

    For what is read thousands of times a second; `query` has a `?` for each parameter.
    """
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            return connection.exec_driver_sql(query.replace("?", "%s"), parameters).all()
    kept = _at_hand(engine).reading
    if not kept.take(engine):
        held = engine.raw_connection()
        try:
            found: Any = held.cursor().execute(query, parameters)
            return list(found)
        finally:
            held.close()
    is_done = False
    try:
        rows = list(kept.driver.execute(query, parameters))
        is_done = True
    finally:
        kept.give_back(is_sound=is_done)
    return rows
