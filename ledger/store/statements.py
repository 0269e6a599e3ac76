"""Statements that run by the thousand, spelled for each database."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql as postgresql_dialect
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.exc import DBAPIError

from rlhf_audit_trail.ledger.store import postgresql

__all__ = ["claim_indices", "execute", "insert_columns", "insert_missing"]

# Rows of one statement: few sizes, so that prepared statements are found again; thousands
# since callers hand over round numbers. SQLite takes 32,766 parameters in a statement.
_STATEMENT_ROWS: Final = (*range(4000, 0, -1000), *(1 << x for x in range(9, -1, -1)))


def claim_indices(connection: Connection, log_number: int, count: int) -> int | None:
    """Take the next `count` leaf indices of a log; return the first, or None if it is closed.

    The log's row stays locked until the transaction ends: indices have no holes.
    """
    claim = "UPDATE log SET size = size + ? WHERE number = ? AND NOT closed RETURNING size"
    if connection.dialect.name == "postgresql":
        parameters = (count, log_number)
        row = connection.exec_driver_sql(claim.replace("?", "%s"), parameters).first()
    else:
        row = execute(connection, claim, (count, log_number)).fetchone()
    return None if row is None else int(row[0]) - count


def insert_columns(
    connection: Connection,
    table: Table,
    common: Mapping[str, Any],
    columns: Mapping[str, Sequence[Any]],
) -> None:
    """Insert many rows by as few statements as the database takes.

    Args:
        connection: in a transaction that writes.
        table: whose columns are `common` and `columns`.
        common: columns that have one value in all rows.
        columns: the other ones, all of the same length.
    """
    if connection.dialect.name == "postgresql":
        postgresql.insert_columns(connection, table, common, columns)
        return
    # one statement is one step of SQLite, in which other threads of Python run
    begin, end = 0, len(next(iter(columns.values())))
    while begin < end:
        left = end - begin
        count = 1 if left == 1 else next(count for count in _STATEMENT_ROWS if count <= left)
        statement = _sqlite_insert(table.name, tuple(common), tuple(columns), count)
        # zip makes one tuple for all rows, which Python's collector does not have to look at
        rows = zip(*[column[begin : begin + count] for column in columns.values()], strict=True)
        execute(connection, statement, (*common.values(), *itertools.chain.from_iterable(rows)))
        begin += count


def execute(connection: Connection, statement: str, parameters: tuple[Any, ...]) -> Any:
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
    # plain question marks: numbered ones take SQLite a time that grows with their square
    shared = "?," * len(common)
    row = f"({','.join('?' * len(names))})"
    columns = ",".join((*common, *names))  # the models' own names
    rows = ",".join([row] * count)
    return f"INSERT INTO {table} ({columns}) SELECT {shared}* FROM (VALUES {rows})"  # noqa: S608


def insert_missing(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows that are not there; waits for others that are inserting the same ones."""
    dialect = postgresql_dialect if connection.dialect.name == "postgresql" else sqlite_dialect
    connection.execute(dialect.insert(table).on_conflict_do_nothing(), rows)
