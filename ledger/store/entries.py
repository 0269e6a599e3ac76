"""Entry rows, and the small tables by which entries are found without an index of them all.

Which numbers of a writer are at which indices is said in spans. A kind, or a subject, is filed
under tiles: among which 256 entries there is one of it. The entries of those tiles are then
looked at.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    ScalarSelect,
    Table,
    and_,
    delete,
    exists,
    func,
    literal,
    select,
)

from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.spans import Spans
from rlhf_audit_trail.ledger.store.statements import insert_columns

__all__ = [
    "FILED_ENTRIES",
    "Filing",
    "insert_entries",
    "insert_sealed",
    "newest_by_log",
    "newest_of_kinds",
    "spans_of_kinds",
    "unfile_subjects",
]

FILED_ENTRIES: Final = 256
_TILES_AT_ONCE: Final = 16  # a few thousand entries at most are in memory

LogNumber = int | ScalarSelect[Any]  # or what selects it

_LOGS = models.LogRow.__table__  # type: ignore[attr-defined]
_ENTRIES = models.EntryRow.__table__  # type: ignore[attr-defined]
_KINDS = models.KindTileRow.__table__  # type: ignore[attr-defined]
_SUBJECTS = models.SubjectTileRow.__table__  # type: ignore[attr-defined]
_VAULT = models.VaultRow.__table__  # type: ignore[attr-defined]


# --- writing ----------------------------------------------------------------------------


def insert_entries(
    connection: Connection,
    log_number: int,
    first_index: int,
    writer_id: str,
    seqs: Sequence[int],
    kinds: Sequence[str],
    data: Sequence[bytes],
    leaf_hashes: Sequence[bytes],
    *,
    spans: Spans,
) -> None:
    """Insert entries of one writer at consecutive indices, and say where they are.

    Args:
        connection: in a transaction that holds the log's row.
        log_number: of the log.
        first_index: of the first entry.
        writer_id: whose entries they are.
        seqs: the writer's numbers of them, growing; may have holes.
        kinds: of each of them.
        data: of each the bytes.
        leaf_hashes: 32 bytes each.
        spans: of the log.
    """
    common: dict[str, Any] = {"log_number": log_number, "writer_id": writer_id}
    columns: dict[str, Sequence[Any]] = {"data": data, "leaf_hash": leaf_hashes}
    if len(set(kinds)) == 1:  # mostly so, and one value less for each row
        common["kind"] = kinds[0]
    else:
        columns["kind"] = kinds
    for begin, end in _runs(seqs):
        part = columns
        if end - begin < len(seqs):
            part = {name: column[begin:end] for name, column in columns.items()}
        place = (first_index + begin, seqs[begin])
        counted = dict(zip(("leaf_index", "seq"), place, strict=True))
        insert_columns(connection, _ENTRIES, common, part, counted=counted)
        spans.put(connection, writer_id, *place, end - begin)


def _runs(seqs: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cut numbers into runs without holes, given by their positions [begin, end)."""
    if seqs[-1] - seqs[0] == len(seqs) - 1:
        yield 0, len(seqs)
        return
    for _, group in groupby(enumerate(seqs), key=lambda item: item[1] - item[0]):
        positions = [position for position, _ in group]
        yield positions[0], positions[-1] + 1


def insert_sealed(
    connection: Connection,
    log_number: int,
    leaf_indices: Sequence[int],
    subjects: Sequence[bytes],
    ciphertexts: Sequence[bytes],
    *,
    is_missing_only: bool = False,
) -> None:
    """Insert what the vault keeps of some entries; of all, or of those that have nothing there."""
    columns = {"leaf_index": leaf_indices, "subject": subjects, "ciphertext": ciphertexts}
    common = {"log_number": log_number}
    insert_columns(connection, _VAULT, common, columns, is_missing_only=is_missing_only)


class Filing:
    """Says in which tiles of a log kinds and subjects occur, each pair once.

    Remembers what it stored of the newest tile, so that appending one entry at a time mostly
    needs no statement. To be forgotten when a transaction may have failed.
    """

    def __init__(self, log_number: int) -> None:
        """Remember nothing."""
        self._log_number = log_number
        self._known: dict[str, frozenset[tuple[Any, int]]] = {}

    def forget(self) -> None:
        """Take nothing for stored any more."""
        self._known = {}

    def kinds(self, connection: Connection, first_index: int, kinds: Sequence[str]) -> None:
        """File entries from an index on under their kinds."""
        if len(kinds) == 1:  # one by one, this is mostly known
            self._file(connection, _KINDS, "kind", {(kinds[0], first_index // FILED_ENTRIES)})
            return
        found: set[tuple[str, int]] = set()
        for tile_index, begin, end in _tiles(range(first_index, first_index + len(kinds))):
            found.update((kind, tile_index) for kind in set(kinds[begin:end]))
        self._file(connection, _KINDS, "kind", found)

    def subjects(
        self, connection: Connection, leaf_indices: Sequence[int], subjects: Sequence[bytes]
    ) -> None:
        """File entries with sealed values under whom these are about; the indices grow."""
        found: set[tuple[bytes, int]] = set()
        for tile_index, begin, end in _tiles(leaf_indices):
            found.update((subject, tile_index) for subject in set(subjects[begin:end]))
        self._file(connection, _SUBJECTS, "subject", found)

    def _file(
        self, connection: Connection, table: Table, name: str, found: set[tuple[Any, int]]
    ) -> None:
        known = self._known.get(name, frozenset())
        if found <= known:
            return
        values, tiles = zip(*sorted(found - known), strict=True)
        columns = {name: values, "tile_index": tiles}
        common = {"log_number": self._log_number}
        insert_columns(connection, table, common, columns, is_missing_only=True)
        newest = max(tiles)
        self._known[name] = frozenset(pair for pair in found | known if pair[1] == newest)


def unfile_subjects(connection: Connection, log_number: int, tiles: Sequence[int]) -> None:
    """Have no subject filed under those of these tiles in which nothing about it is left."""
    filed, sealed = _SUBJECTS.c, _VAULT.c
    first = filed.tile_index * FILED_ENTRIES
    left = exists().where(
        sealed.log_number == log_number,
        sealed.leaf_index >= first,
        sealed.leaf_index < first + FILED_ENTRIES,
        sealed.subject == filed.subject,
    )
    connection.execute(
        delete(_SUBJECTS).where(
            filed.log_number == log_number, filed.tile_index.in_(tiles), ~left.correlate(_SUBJECTS)
        )
    )


def _tiles(indices: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Cut growing indices by tile: its index, and the positions [begin, end) of its entries."""
    begin = 0
    while begin < len(indices):
        tile_index = indices[begin] // FILED_ENTRIES
        end = bisect_left(indices, (tile_index + 1) * FILED_ENTRIES, begin)
        yield tile_index, begin, end
        begin = end


# --- reading ----------------------------------------------------------------------------


def spans_of_kinds(
    connection: Connection,
    log_number: LogNumber,
    kinds: Sequence[str],
    *,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[ColumnElement[bool]]:
    """Yield conditions that together select a log's entries of some kinds, in growing order.

    Each selects a few thousand entries at most, so that a reader can take them one by one,
    from index `start` on and before `stop`.
    """
    tile, entry = _KINDS.c.tile_index, _ENTRIES.c
    query = select(tile).where(_KINDS.c.log_number == log_number, _KINDS.c.kind.in_(kinds))
    query = query.where(tile >= start // FILED_ENTRIES)
    if stop is not None:
        query = query.where(tile < -(-stop // FILED_ENTRIES))
    tiles = list(connection.scalars(query.distinct().order_by(tile)))
    while tiles:
        # neighbours are read together, but not what lies far between two of them
        near = [x for x in tiles[:_TILES_AT_ONCE] if x < tiles[0] + 2 * _TILES_AT_ONCE]
        del tiles[: len(near)]
        low, high = near[0] * FILED_ENTRIES, (near[-1] + 1) * FILED_ENTRIES
        high = high if stop is None else min(high, stop)
        yield and_(
            entry.log_number == log_number,
            entry.leaf_index.between(max(low, start), high - 1),
            entry.kind.in_(kinds),
        )


def newest_of_kinds(
    connection: Connection, columns: Sequence[Any], log_number: LogNumber, kinds: Sequence[str]
) -> Row[Any] | None:
    """Return columns of a log's last entry of some kinds, None if it has none."""
    tile, entry = _KINDS.c, _ENTRIES.c
    query = select(func.max(tile.tile_index)).where(
        tile.log_number == log_number, tile.kind.in_(kinds)
    )
    newest = connection.scalar(query)
    if newest is None:
        return None
    return connection.execute(
        select(*columns)
        .where(
            entry.log_number == log_number,
            entry.leaf_index >= newest * FILED_ENTRIES,
            entry.leaf_index < (newest + 1) * FILED_ENTRIES,
            entry.kind.in_(kinds),
        )
        .order_by(entry.leaf_index.desc())
        .limit(1)
    ).first()


def newest_by_log(connection: Connection, kind: str) -> dict[int, int]:
    """Return the index of each log's last entry of a kind, by the log's number."""
    tile, entry = _KINDS.c, _ENTRIES.c
    last = select(func.max(tile.tile_index)).where(
        tile.log_number == _LOGS.c.number, tile.kind == kind
    )
    number = _LOGS.c.number.label("log_number")
    found = last.correlate(_LOGS).scalar_subquery().label("tile_index")
    tiles = select(number, found).subquery()  # of each log, looked up by index
    low = tiles.c.tile_index * literal(FILED_ENTRIES)
    newest = select(func.max(entry.leaf_index)).where(
        entry.log_number == tiles.c.log_number,
        entry.leaf_index >= low,
        entry.leaf_index < low + FILED_ENTRIES,
        entry.kind == kind,
    )
    query = select(tiles.c.log_number, newest.correlate(tiles).scalar_subquery())
    return {number: index for number, index in connection.execute(query) if index is not None}
