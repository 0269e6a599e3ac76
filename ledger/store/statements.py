"""Statements that run by the thousand, spelled for each database."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql as postgresql_dialect
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.exc import DBAPIError

from rlhf_audit_trail.ledger.store import postgresql

__all__ = [
    "ROWS_MAX",
    "Claim",
    "claim_indices",
    "execute",
    "insert_columns",
    "insert_missing",
]

_PARAMETERS_MAX: Final = 32_766  # of one statement, in SQLite as it comes
ROWS_MAX: Final = 8_000  # of one statement: four columns of so many fit
# Few sizes, so that prepared statements are found again.
_STATEMENT_ROWS: Final = (
    *(1 << x for x in range(10)), 1_000, 1_500, 2_000, 3_000, 4_000, 6_000, ROWS_MAX
)  # fmt: skip
_PADDING_MAX: Final = 1 / 4  # binding a row that is left out costs a fifth of inserting one


class Claim(NamedTuple):
    """Indices that were taken.

    Attributes:
        first_index: the first of them.
        erasures: how many there were until now; a secret from before the last is not used.
    """

    first_index: int
    erasures: int


def claim_indices(connection: Connection, log_number: int, count: int) -> Claim | None:
    """Take the next `count` leaf indices of a log; None if it is closed.

    The log's row stays locked until the transaction ends: indices have no holes.
    """
    claim = (
        "UPDATE log SET size = size + ? WHERE number = ? AND NOT closed RETURNING size, erasures"
    )
    if connection.dialect.name == "postgresql":
        parameters = (count, log_number)
        row = connection.exec_driver_sql(claim.replace("?", "%s"), parameters).first()
    else:
        row = execute(connection, claim, (count, log_number)).fetchone()
    return None if row is None else Claim(int(row[0]) - count, int(row[1]))


def insert_columns(
    connection: Connection,
    table: Table,
    common: Mapping[str, Any],
    columns: Mapping[str, Sequence[Any]],
    *,
    counted: Mapping[str, int] = MappingProxyType({}),
    is_missing_only: bool = False,
) -> None:
    """Insert many rows by as few statements as the database takes.

    Args:
        connection: in a transaction that writes.
        table: whose columns are `common`, `columns` and `counted`.
        common: columns that have one value in all rows.
        columns: the other ones, all of the same length; of at most four.
        counted: columns that grow by one from row to row, given by their first value.
        is_missing_only: leave out rows that are there already.
    """
    if connection.dialect.name == "postgresql":
        postgresql.insert_columns(
            connection, table, common, columns, counted, is_missing_only=is_missing_only
        )
        return
    into = f"{'OR IGNORE ' * is_missing_only}INTO {table.name}"
    begin, end = 0, len(next(iter(columns.values())))
    if end == 1:  # nothing to be spread over rows
        names = (*common, *counted, *columns)
        only = [column[0] for column in columns.values()]
        execute(connection, _row_insert(into, names), (*common.values(), *counted.values(), *only))
        return
    first = next(iter(counted.values()), 0)
    differences = [value - first for value in list(counted.values())[1:]]
    while begin < end:
        rows, count = _statement_size(end - begin)
        parts = [column[begin : begin + count] for column in columns.values()]
        if counted:
            parts.insert(0, range(first + begin, first + begin + count))
        statement = _sqlite_insert(into, tuple(common), tuple(counted), tuple(columns), rows)
        # zip makes one tuple for all rows, which Python's collector does not have to look at
        values = itertools.chain.from_iterable(zip(*parts, strict=True))
        padding = (None,) * ((rows - count) * len(parts))
        execute(connection, statement, (*common.values(), *differences, *values, *padding))
        begin += count


def _statement_size(left: int) -> tuple[int, int]:
    """Return how many rows the next statement has, and how many of them are rows to insert.

    A statement is one step of SQLite, in which other threads of Python run: the fewer there
    are, the less often the writing thread must wait for its turn.
    """
    for rows in _STATEMENT_ROWS:
        if rows >= left:
            if rows - left <= _PADDING_MAX * left:
                return rows, left
            break
    below = next(rows for rows in reversed(_STATEMENT_ROWS) if rows <= left)
    return below, below


def execute(connection: Connection, statement: str, parameters: tuple[Any, ...]) -> Any:
    """Reach past SQLAlchemy, which takes longer for a statement than SQLite takes to do it.

    What goes wrong is the same error as if it had not been left out.
    """
    found: Any = connection.connection.dbapi_connection
    try:
        return found.execute(statement, parameters)
    except sqlite3.Error as error:
        raise DBAPIError.instance(
            statement, None, error, sqlite3.Error, hide_parameters=True, dialect=connection.dialect
        ) from error


@lru_cache(maxsize=128)
def _sqlite_insert(
    into: str,
    common: tuple[str, ...],
    counted: tuple[str, ...],
    names: tuple[str, ...],
    rows: int,
) -> str:
    # plain question marks: numbered ones take SQLite a time that grows with their square
    width = len(names) + bool(counted)
    if width * rows + len(common) + len(counted) > _PARAMETERS_MAX:
        raise ValueError(f"{rows} rows of {width} columns are too much for a statement")
    columns = ",".join((*common, *counted, *names))  # the models' own names
    chosen = ["?"] * len(common)
    if counted:
        chosen += ["column1", *["?+column1"] * (len(counted) - 1)]
    chosen += [f"column{number}" for number in range(1 + bool(counted), width + 1)]
    row = f"({','.join('?' * width)})"
    given = ",".join([row] * rows)
    return (
        f"INSERT {into} ({columns}) SELECT {','.join(chosen)}"  # noqa: S608
        f" FROM (VALUES {given}) WHERE column1 IS NOT NULL"
    )


@lru_cache(maxsize=128)
def _row_insert(into: str, names: tuple[str, ...]) -> str:
    return f"INSERT {into} ({','.join(names)}) VALUES ({','.join('?' * len(names))})"  # noqa: S608 - the models' own names


def insert_missing(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows that are not there; waits for others that are inserting the same ones."""
    dialect = postgresql_dialect if connection.dialect.name == "postgresql" else sqlite_dialect
    connection.execute(dialect.insert(table).on_conflict_do_nothing(), rows)
