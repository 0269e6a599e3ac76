"""Bringing vault rows back from a backup: a copy of `ledger.db`, or a restored PostgreSQL one.

No public log holds sealed values, so they come from a backup of the database itself. A row is
taken only where its entry has the same bytes here and there, and where it opens to what the
entry committed to: nothing in the backup is believed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from rlhf_audit_trail.ledger.proof.bundle import parse_json
from rlhf_audit_trail.ledger.proof.commitment import commit
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.reading import StoredLog, place_of
from rlhf_audit_trail.ledger.store import models, postgresql
from rlhf_audit_trail.ledger.store.database import transact
from rlhf_audit_trail.ledger.store.entries import Filing, insert_sealed
from rlhf_audit_trail.ledger.vault import Erased, Vault, VaultDamaged

__all__ = ["BackupUnreadable", "Brought", "bring_vault_rows", "count_unopenable"]

_PAGE_ROWS: Final = 1_000
_LOGS = models.LogRow.__table__  # type: ignore[attr-defined]
_ENTRIES = models.EntryRow.__table__  # type: ignore[attr-defined]
_VAULT = models.VaultRow.__table__  # type: ignore[attr-defined]


_Find = Callable[[str, Any], tuple[bytes, bytes] | None]
"""From origin and entry row to subject and ciphertext; None if the backup has no such entry."""


class BackupUnreadable(AuditTrailError):
    """The backup is no copy of a ledger's database."""


@dataclass(frozen=True)
class Brought:
    """What a backup gave for one log.

    Attributes:
        rows: vault rows that were brought back.
        erased: rows left where they are, since their subject's secret no longer exists.
        refused: rows that do not open to what the entry committed to.
    """

    rows: int = 0
    erased: int = 0
    refused: int = 0


def count_unopenable(engine: Engine, log_number: int) -> int:
    """Return how many of a log's entries have sealed fields and no vault row."""
    return sum(1 for _ in _lacking(engine, log_number))


def bring_vault_rows(engine: Engine, vault: Vault, log: StoredLog, backup: Path | str) -> Brought:
    """Bring the vault rows that a log lacks, in transactions of bounded size.

    Args:
        engine: the ledger's database.
        vault: which opens them.
        log: whose rows are brought.
        backup: a copy of `ledger.db`, or the URL of a PostgreSQL database into which a
            backup was restored; nothing is changed in it.

    Raises:
        BackupUnreadable: it cannot be read, or is no copy of a ledger's database.
    """
    with _opened(str(backup)) as find:
        return _bring(engine, vault, log, find)


@contextmanager
def _opened(backup: str) -> Iterator[_Find]:
    shown = backup
    try:
        if "://" in backup:
            url = make_url(backup)
            shown = url.render_as_string(hide_password=True)
            with _opened_server(url) as find:
                yield find
        else:
            address = f"file:{quote(str(Path(backup).absolute()))}?mode=ro"
            with closing(sqlite3.connect(address, uri=True)) as source:
                yield lambda origin, entry: _find_in_file(source, origin, entry)
    except (sqlite3.Error, DBAPIError, ArgumentError, NoSuchModuleError, ImportError) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        what = str(cause).splitlines()[0] if isinstance(error, DBAPIError | sqlite3.Error) else ""
        raise BackupUnreadable(
            f"{shown} cannot be read as a ledger's database: {what or type(error).__name__}",
            next_step="give a copy of the file ledger.db, or the URL of a PostgreSQL database "
            "into which a backup was restored, made by this or an older version",
        ) from error


@contextmanager
def _opened_server(url: URL) -> Iterator[_Find]:
    """Open a restored database as it is: an older version has these columns, too."""
    options = postgresql.engine_options(url, read_only=True)
    engine = create_engine(url, hide_parameters=True, **options)
    try:
        with engine.connect() as source:
            yield lambda origin, entry: _find_on_server(source, origin, entry)
    finally:
        engine.dispose()


def _bring(engine: Engine, vault: Vault, log: StoredLog, find: _Find) -> Brought:
    counts = {"rows": 0, "erased": 0, "refused": 0}
    lacking = _lacking(engine, log.number)
    while page := list(islice(lacking, _PAGE_ROWS)):
        rows = []
        for entry in page:
            found = find(log.origin, entry)
            if found is None:
                continue
            outcome = _judge(vault, log.origin, entry, *found)
            counts[outcome] += 1
            if outcome == "rows":
                subject, ciphertext = found
                rows.append((entry.leaf_index, subject, ciphertext))
        if rows:

            def work(connection: Connection, rows: list[tuple[int, bytes, bytes]] = rows) -> None:
                columns = list(zip(*rows, strict=True))
                insert_sealed(connection, log.number, *columns, is_missing_only=True)
                Filing(log.number).subjects(connection, *columns[:2])

            transact(engine, work)
    return Brought(**counts)


def _lacking(engine: Engine, log_number: int) -> Iterator[Any]:
    """Yield the rows of entries that have sealed fields and no vault row."""
    entry, sealed, start = _ENTRIES.c, _VAULT.c, 0
    query = (
        select(entry.leaf_index, entry.writer_id, entry.seq, entry.data)
        .outerjoin(
            _VAULT,
            (sealed.log_number == entry.log_number) & (sealed.leaf_index == entry.leaf_index),
        )
        .where(entry.log_number == log_number, sealed.leaf_index.is_(None), entry.data != b"")
        .order_by(entry.leaf_index)
        .limit(_PAGE_ROWS)
    )
    while True:
        with engine.connect() as connection:
            rows = connection.execute(query.where(entry.leaf_index >= start)).all()
        yield from (row for row in rows if parse_json(bytes(row.data)).get("c"))
        if len(rows) < _PAGE_ROWS:
            return
        start = rows[-1].leaf_index + 1


def _find_in_file(
    source: sqlite3.Connection, origin: str, entry: Any
) -> tuple[bytes, bytes] | None:
    row = source.execute(
        # cast: in a file that somebody has edited, a column may hold text
        "SELECT CAST(entry.data AS BLOB), CAST(vault.subject AS BLOB),"
        " CAST(vault.ciphertext AS BLOB) FROM log"
        " JOIN entry ON entry.log_number = log.number"
        " JOIN vault ON vault.log_number = log.number AND vault.leaf_index = entry.leaf_index"
        " WHERE log.origin = ? AND entry.leaf_index = ?",
        (origin, entry.leaf_index),
    ).fetchone()
    if row is None or row[0] != bytes(entry.data):
        return None
    return row[1], row[2]


def _find_on_server(source: Connection, origin: str, entry: Any) -> tuple[bytes, bytes] | None:
    theirs, sealed = _ENTRIES.c, _VAULT.c
    query = (
        select(theirs.data, sealed.subject, sealed.ciphertext)
        .join(_LOGS, _LOGS.c.number == theirs.log_number)
        .join(
            _VAULT,
            (sealed.log_number == theirs.log_number) & (sealed.leaf_index == theirs.leaf_index),
        )
        .where(_LOGS.c.origin == origin, theirs.leaf_index == entry.leaf_index)
    )
    row = source.execute(query).first()
    if row is None or bytes(row.data) != bytes(entry.data):
        return None
    return bytes(row.subject), bytes(row.ciphertext)


def _judge(vault: Vault, origin: str, entry: Any, subject: bytes, ciphertext: bytes) -> str:
    """Return `rows` if these bytes open to what the entry committed to, else why not."""
    commitments = parse_json(bytes(entry.data))["c"]
    try:
        place = place_of(entry.writer_id, entry.seq)
        openings = vault.unseal(subject, ciphertext, origin, place)
    except Erased:  # what an erasure destroyed does not come back
        return "erased"
    except VaultDamaged:
        return "refused"
    found = {opening.path: commit(opening).hex() for opening in openings}
    return "rows" if found == commitments else "refused"
