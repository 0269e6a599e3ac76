"""Assigning: the writer thread gives entries their indices, and stores them with their tree.

One transaction holds all of it: indices have no holes, and no tile is there without its leaves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, groupby
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import Connection, Engine, func, select

from rlhf_audit_trail.ledger.batches import Batch, Encoded, bare_entry
from rlhf_audit_trail.ledger.keyring import LogKeyRing
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.proof.merkle import HASH_BYTES
from rlhf_audit_trail.ledger.refusals import ConflictingEntry, RunClosed, SequenceGap
from rlhf_audit_trail.ledger.signing import SigningLog
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.database import claim_indices, insert_columns
from rlhf_audit_trail.ledger.tiles import GrowingTree
from rlhf_audit_trail.ledger.vault import Vault
from rlhf_audit_trail.ledger.writer import Ticket

__all__ = ["AssigningLog", "BatchTicket"]

# beyond it, reading the tree's edge costs less than adding the leaves of others one by one
_CATCH_UP_LEAVES_MAX: Final = 50_000
_ENTRIES = models.EntryRow.__table__  # type: ignore[attr-defined]
_TILES = models.HashTileRow.__table__  # type: ignore[attr-defined]
_VAULT = models.VaultRow.__table__  # type: ignore[attr-defined]

_ENTRY_COLUMNS: Final = ("leaf_index", "seq", "kind", "data", "leaf_hash")
_VAULT_COLUMNS: Final = ("leaf_index", "subject", "ciphertext")
_TILE_COLUMNS: Final = ("level", "tile_index", "hashes", "inner_nodes")

BatchTicket = Ticket[Batch]


class AssigningLog(SigningLog):
    """A log into which batches are stored; all of this runs in the thread that commits."""

    def __init__(
        self, engine: Engine, vault: Vault, *, number: int, run_id: str, keys: LogKeyRing
    ) -> None:
        """Store into the log whose row has this `number`."""
        super().__init__(engine, vault, number, keys)
        self.run_id = run_id
        self._tree: GrowingTree | None = None

    def encode(self, tickets: Iterable[BatchTicket]) -> None:
        """Make entries of what was handed over; before the transaction, and once."""
        for ticket in tickets:
            ticket.items.encode(self._vault, self.origin, self.run_id)

    def assign(
        self, connection: Connection, tickets: Sequence[BatchTicket], *, retry: bool
    ) -> None:
        """Give indices to the tickets' entries and store them with their tree."""
        if not retry and not any(ticket.items.is_foreign for ticket in tickets):
            first = claim_indices(connection, self.number, sum([len(x.items) for x in tickets]))
            if first is not None:
                self._store_all(connection, tickets, first)
                return
        self._store_missing(connection, tickets)

    def _store_all(
        self, connection: Connection, tickets: Sequence[BatchTicket], first: int
    ) -> None:
        """Store entries that are all new, whose indices are taken already."""
        index = first
        for ticket in tickets:
            ticket.indices = range(index, index + len(ticket.items))
            index = ticket.indices.stop
        new = [(ticket.items.writer_id, ticket.items.encoded) for ticket in tickets]
        self._insert(connection, first, new)

    def _store_missing(self, connection: Connection, tickets: Sequence[BatchTicket]) -> None:
        """Store what is not there yet, and give what is there the index it has."""
        size = first = self._size(connection, lock=True)
        is_closed = self._closed(connection)
        new: list[tuple[str, tuple[Encoded, ...]]] = []
        for ticket in tickets:
            batch = ticket.items
            if batch.is_foreign and any(writer_id == batch.writer_id for writer_id, _ in new):
                # sent twice or in pieces, and none is answered yet: this one must see the other
                first = self._store_new(connection, first, new)
            try:
                known = self._known(connection, batch)
                missing = tuple(entry for entry in batch.encoded if entry.seq not in known)
                if missing and is_closed:
                    raise self._refusal()
            except AuditTrailError as error:
                ticket.error = error
                continue
            ticket.error = None  # of an attempt before this one
            known |= {entry.seq: size + number for number, entry in enumerate(missing)}
            ticket.indices = [known[entry.seq] for entry in batch.encoded]
            size += len(missing)
            new.append((batch.writer_id, missing))
        self._store_new(connection, first, new)

    def _store_new(
        self, connection: Connection, first: int, new: list[tuple[str, tuple[Encoded, ...]]]
    ) -> int:
        """Store entries from index `first` on, empty the list, and return the next index."""
        count = sum(len(entries) for _, entries in new)
        if count:
            claim_indices(connection, self.number, count)
            self._insert(connection, first, new)
        new.clear()
        return first + count

    def _known(self, connection: Connection, batch: Batch) -> dict[int, int]:
        """Return seq to leaf index of a batch's entries that are stored.

        Raises:
            ConflictingEntry, SequenceGap: the writer's numbers are not as they must be.
        """
        columns = _ENTRIES.c
        mine = (columns.log_number == self.number) & (columns.writer_id == batch.writer_id)
        rows = connection.execute(
            select(columns.seq, columns.leaf_index, columns.data).where(
                mine, columns.seq.between(batch.first_seq, batch.last_seq)
            )
        ).all()
        for row in rows:
            number = row.seq - batch.first_seq
            entry = batch.encoded[number]
            if bytes(row.data) != entry.data and not (
                batch.is_foreign and self._is_same(connection, row, batch, number)
            ):
                raise ConflictingEntry(
                    f"sequence number {row.seq} of this writer stands for another entry",
                    next_step="give each process start a writer id of its own",
                )
        if batch.is_foreign:
            newest = connection.scalar(select(func.max(columns.seq)).where(mine))
            expected = 0 if newest is None else int(newest) + 1
            if batch.first_seq > expected:
                raise SequenceGap(
                    f"the writer's entries from {expected} to {batch.first_seq - 1} are missing",
                    expected=expected,
                    next_step="send those first, or a gap event in their place",
                )
        return {row.seq: row.leaf_index for row in rows}

    def _is_same(self, connection: Connection, row: Any, batch: Batch, number: int) -> bool:
        item, entry = list(batch.drafts)[number], batch.encoded[number]
        openings = self._openings(connection, row.leaf_index, batch.writer_id, row.seq)
        if bare_entry(bytes(row.data)) != bare_entry(entry.data):
            return False
        if not item.paths:
            return not openings
        subject = self._vault.prepare([item.subject], self.origin)[item.subject]
        given = dict(zip(item.paths, subject.shown(item), strict=True))
        return given == {opening.path: opening.value for opening in openings}

    def _grown(self, connection: Connection, size: int) -> GrowingTree:
        """Return the tree of all `size` entries, among them what other processes appended."""
        tree = self._tree
        if tree is None or not 0 <= size - tree.size <= _CATCH_UP_LEAVES_MAX:
            return GrowingTree.restore(size, self._stored_tree.reader(connection))
        if tree.size == size:
            return tree
        leaves = self._stored_tree.leaves(connection, tree.size, size - tree.size)
        tree.append(leaves[i : i + HASH_BYTES] for i in range(0, len(leaves), HASH_BYTES))
        return tree

    def _refusal(self) -> RunClosed:
        return RunClosed(
            f"the run {self.run_id} is closed", next_step="open a run with another name"
        )

    def _insert(
        self,
        connection: Connection,
        first: int,
        new: Sequence[tuple[str, Sequence[Encoded]]],
    ) -> None:
        """Store entries from index `first` on, their sealed values, and the tiles they fill."""
        self._tree = tree = self._grown(connection, first)
        index, sealed, leaves = first, [], []
        for writer_id, batches in groupby(new, key=itemgetter(0)):
            rows = []
            for entry in chain.from_iterable(batch for _, batch in batches):
                rows.append((index, entry.seq, entry.kind, entry.data, entry.leaf_hash))
                leaves.append(entry.leaf_hash)
                if entry.subject is not None:
                    sealed.append((index, entry.subject, entry.ciphertext))
                index += 1
            common = {"log_number": self.number, "writer_id": writer_id}
            insert_columns(connection, _ENTRIES, common, _ENTRY_COLUMNS, rows)
        common = {"log_number": self.number}
        if sealed:
            insert_columns(connection, _VAULT, common, _VAULT_COLUMNS, sealed)
        full = tree.append(leaves)
        if full:
            tiles = [(tile.level, tile.tile_index, tile.hashes, tile.inner_nodes) for tile in full]
            insert_columns(connection, _TILES, common, _TILE_COLUMNS, tiles)

    def forget_tree(self) -> None:
        """Drop the tree in memory; the next append reads it from the store."""
        self._tree = None
