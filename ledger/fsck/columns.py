"""Reading columns that may hold anything: what a damaged database gives, made safe to compare."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Connection, LargeBinary, Table, and_, cast, func
from sqlalchemy.exc import DBAPIError

from rlhf_audit_trail.ledger.findings import Finding
from rlhf_audit_trail.ledger.store import models

__all__ = ["guarded", "is_whole", "raw", "table", "text_bytes", "word", "words_of"]


def table(model: Any) -> Table:
    """Return a model's table."""
    found: Table = models.ledger_metadata.tables[model.__tablename__]
    return found


def raw(value: object) -> bytes | None:
    """Return a column's bytes, or None where SQLite holds something that is not bytes."""
    return bytes(value) if isinstance(value, bytes | memoryview | bytearray) else None


def word(value: object) -> str | None:
    """Return a column selected by `text_bytes` as a text that can be shown, None for no text."""
    return _decoded(value) if type(value) is bytes else None


@lru_cache(maxsize=1024)
def _decoded(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


def text_bytes(connection: Connection, column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Select a text as its UTF-8 bytes: in a damaged SQLite file it need not be UTF-8."""
    if connection.dialect.name == "postgresql":  # whose cast would read backslashes as escapes
        return func.convert_to(column, "UTF8")
    return cast(column, LargeBinary)


def is_whole(column: ColumnElement[Any], low: int, end: int) -> ColumnElement[bool]:
    """Select where a column is a number in [low, end); SQLite sorts texts above all numbers."""
    return and_(column >= low, column < end)


def guarded(log: str, where: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Pass findings on; a database that fails while being read is one more finding."""
    try:
        yield from findings
    except DBAPIError as error:
        yield Finding(log, "database", where, words_of(error))


def words_of(error: DBAPIError) -> str:
    """Say in a sentence that reading failed, in the driver's first words."""
    words = str(error.orig).split("\n", 1)[0]
    return f"reading it failed, the rest is unknown: {words}"
