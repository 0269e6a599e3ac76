"""Restoring one log: the entries that the store lacks, put back from a verified copy.

The tree head is stored first, so that until the last entry is back nobody mistakes the store
for a whole one; then the entries, in transactions of bounded size, each with its tiles and
the log's new size. Killed anywhere and started again, it goes on where it was.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import Connection, Engine, select, update
from sqlalchemy.exc import IntegrityError

from rlhf_audit_trail.ledger.copies import Copy
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.proof.merkle import leaf_hash
from rlhf_audit_trail.ledger.proof.note import Algorithm
from rlhf_audit_trail.ledger.reading import Forked, RolledBack, StoredLog
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.database import insert_columns, insert_missing, transact
from rlhf_audit_trail.ledger.store.entries import Filing, insert_entries
from rlhf_audit_trail.ledger.store.spans import Spans
from rlhf_audit_trail.ledger.succession import KeyHistory
from rlhf_audit_trail.ledger.tiles import TILE_WIDTH, FullTile
from rlhf_audit_trail.ledger.vault import Vault

__all__ = ["Restoration", "StoreMoved"]

_CHUNK_ENTRIES: Final = 4 * TILE_WIDTH  # of at most 64 kB: what one transaction holds

_LOGS = models.LogRow.__table__  # type: ignore[attr-defined]
_ENTRIES = models.EntryRow.__table__  # type: ignore[attr-defined]
_TILES = models.HashTileRow.__table__  # type: ignore[attr-defined]
_TILE_COLUMNS: Final = ("level", "tile_index", "hashes", "inner_nodes")
_HEADS = models.TreeHeadRow.__table__  # type: ignore[attr-defined]


class StoreMoved(AuditTrailError):
    """Somebody else writes to the log that is being put back, or rows are in the way."""


@dataclass(frozen=True)
class _Chunk:
    """Entries [begin, end) and the tiles that they complete."""

    begin: int
    end: int
    rows: list[tuple[str, int, str, bytes, bytes]]  # writer, number, kind, bytes, leaf hash
    tiles: list[FullTile]


class Restoration:
    """Compares a log's stored side with a copy, and puts back what is missing."""

    def __init__(self, engine: Engine, vault: Vault, copy: Copy) -> None:
        """Look what is stored; nothing is written yet."""
        self.copy = copy
        self._engine = engine
        with engine.connect() as connection:
            query = select(_LOGS.c.number, _LOGS.c.archive)
            row = connection.execute(query.where(_LOGS.c.run_id == copy.run_id)).first()
        self.archive = row.archive if row else ""
        history = KeyHistory.begin(copy.origin, copy.keys)
        self.stored = None if row is None else StoredLog(engine, vault, int(row.number), history)
        self.size = self.stored.size if self.stored else 0

    @property
    def begin(self) -> int:
        """The first entry that may have to be put back; the copy's size for none."""
        return 0 if self.archive else min(self.size, self.copy.size)

    def compare(self) -> None:
        """Show that the copy and the store are one history, of which the copy has the longer part.

        Raises:
            Forked: they are two histories.
            RolledBack: more was signed than the copy has, and it is not in the store either.
        """
        if self.stored is None:
            return
        common = min(self.size, self.copy.size)
        if self.stored.root_at(common) != self.copy.log.root_at(common):
            raise self._forked(common)
        heads = self._signed_heads(self.stored.number)
        if heads and heads[-1].tree_size > max(self.size, self.copy.size):
            raise RolledBack(
                f"{self.copy.origin}: the copy ends at {self.copy.size:,} entries, "
                f"but a tree of {heads[-1].tree_size:,} was signed",
                next_step="find a newer export or mirror",
            )
        for row in heads:
            is_new = common < row.tree_size <= self.copy.size
            if is_new and bytes(row.root) != self.copy.log.root_at(row.tree_size):
                raise self._forked(row.tree_size)

    def _signed_heads(self, number: int) -> Sequence[Any]:
        """Return what the store says was signed; to refuse by it, it need not be verified."""
        query = select(_HEADS.c.tree_size, _HEADS.c.root).where(_HEADS.c.log_number == number)
        with self._engine.connect() as connection:
            return connection.execute(query.order_by(_HEADS.c.tree_size)).all()

    def _forked(self, size: int) -> Forked:
        return Forked(
            f"{self.copy.origin}: the copy's first {size:,} entries are not those of the store",
            next_step="keep both as evidence; run rlhf-audit fsck and rlhf-audit monitor on the "
            "copy to see which of them was changed",
        )

    def check(self) -> None:
        """Read and confirm every entry that would be put back; raises as `Copy.entries`."""
        for _ in self.copy.entries(self.begin):
            pass

    def created_at(self) -> str:
        """Return when the log began, by its first entry."""
        return next((entry.recorded_at for _, entry in self.copy.entries(0, 1)), "")

    def put_back(self) -> int:
        """Store what is missing; return how many entries there were.

        Raises:
            StoreMoved: another process appended meanwhile, or surplus rows are in the way.
        """
        number = transact(self._engine, self._begin)
        first = self.begin
        if self.archive:
            self._refill(number)
        try:
            for chunk in self._chunks():
                transact(self._engine, partial(_store, number=number, chunk=chunk))
        except IntegrityError as error:
            raise StoreMoved(
                f"{self.copy.origin}: rows beyond the log's size are in the way",
                next_step="run rlhf-audit fsck to see which; restore a sound backup first",
            ) from error
        if self.archive and self.copy.size >= self.size:
            done = update(_LOGS).where(_LOGS.c.number == number).values(archive="")
            transact(self._engine, lambda connection: connection.execute(done))
        return self.copy.size - first

    def _begin(self, connection: Connection) -> int:
        """Make the log's row if it is missing, and store the copy's tree head."""
        copy, head = self.copy, self.copy.signed.head
        row = {"run_id": copy.run_id, "origin": copy.origin, "size": 0, "closed": False}
        insert_missing(connection, _LOGS, [row | {"created_at": self.created_at()}])
        number = connection.scalar(select(_LOGS.c.number).where(_LOGS.c.run_id == copy.run_id))
        signed = {"log_number": number, "tree_size": head.size, "root": head.root}
        signed |= {"note": copy.own_note, "signed_at": _signed_at(copy)}
        insert_missing(connection, _HEADS, [signed])
        return int(number or 0)

    def _chunks(self) -> Iterator[_Chunk]:
        """Cut the missing entries into chunks, growing the tree on the way."""
        tree, begin = self.copy.log.tree_at(min(self.size, self.copy.size)), self.size
        entries = self.copy.entries(begin)
        while part := list(islice(entries, _CHUNK_ENTRIES - begin % TILE_WIDTH)):
            rows = [
                (entry.writer_id, entry.seq, entry.kind, entry.data, leaf_hash(entry.data))
                for _, entry in part
            ]
            tiles = tree.append(leaf for *_, leaf in rows)
            yield _Chunk(begin, tree.size, rows, tiles)
            begin = tree.size

    def _refill(self, number: int) -> None:
        """Put bytes back into the rows of entries that were pruned."""
        entries = self.copy.entries(0, min(self.size, self.copy.size))
        columns = _ENTRIES.c
        while part := list(islice(entries, _CHUNK_ENTRIES)):

            def work(connection: Connection, part: list[Any] = part) -> None:
                for index, entry in part:
                    here = (columns.log_number == number) & (columns.leaf_index == index)
                    empty = here & (columns.data == b"")
                    connection.execute(update(_ENTRIES).where(empty).values(data=entry.data))

            transact(self._engine, work)


def _store(connection: Connection, *, number: int, chunk: _Chunk) -> None:
    locked = select(_LOGS.c.size).where(_LOGS.c.number == number).with_for_update()
    size = connection.scalar(locked)
    if size == chunk.end:  # an attempt whose outcome was unknown did it
        return
    if size != chunk.begin:
        raise StoreMoved(
            f"the log has {size:,} entries where {chunk.begin:,} were expected",
            next_step="let nobody append or import meanwhile, and start again",
        )
    index, spans = chunk.begin, Spans(number)
    for writer_id, rows in groupby(chunk.rows, key=itemgetter(0)):
        _, *columns = zip(*rows, strict=True)
        insert_entries(connection, number, index, writer_id, *columns, spans=spans)
        index += len(columns[0])
    Filing(number).kinds(connection, chunk.begin, [row[2] for row in chunk.rows])
    if chunk.tiles:
        tiles = {name: [getattr(tile, name) for tile in chunk.tiles] for name in _TILE_COLUMNS}
        insert_columns(connection, _TILES, {"log_number": number}, tiles)
    connection.execute(update(_LOGS).where(_LOGS.c.number == number).values(size=chunk.end))


def _signed_at(copy: Copy) -> str:
    """Return when the head was signed, as the ML-DSA line says it; the Ed25519 line has no time."""
    timed = {(x.name, x.key_id) for x in copy.keys if x.algorithm is Algorithm.ML_DSA_44}
    line = next(x for x in copy.signed.note.signatures if (x.name, x.key_id) in timed)
    (time_s,) = struct.unpack_from(">Q", line.blob)
    moment = datetime.fromtimestamp(time_s, UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
