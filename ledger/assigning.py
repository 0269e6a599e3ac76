"""Assigning: the writer thread gives entries their indices, and stores them with their tree.

One transaction holds all of it: indices have no holes, and no tile is there without its leaves.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Engine

from rlhf_audit_trail.ledger.batches import Batch, Encoded, bare_entry
from rlhf_audit_trail.ledger.keyring import LogKeyRing
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.proof.merkle import HASH_BYTES
from rlhf_audit_trail.ledger.refusals import ConflictingEntry, RunClosed, SequenceGap
from rlhf_audit_trail.ledger.signing import SigningLog
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.database import claim_indices, insert_columns
from rlhf_audit_trail.ledger.store.entries import (
    Filing,
    insert_entries,
    insert_sealed,
)
from rlhf_audit_trail.ledger.store.spans import Spans, next_seq, stored_numbers
from rlhf_audit_trail.ledger.tiles import GrowingTree
from rlhf_audit_trail.ledger.vault import Erased, Vault, VaultDamaged
from rlhf_audit_trail.ledger.writer import Ticket

__all__ = ["AssigningLog", "BatchTicket", "Person"]

# beyond it, reading the tree's edge costs less than adding the leaves of others one by one
_CATCH_UP_LEAVES_MAX: Final = 50_000
_TILES = models.HashTileRow.__table__  # type: ignore[attr-defined]

_TILE_COLUMNS: Final = ("level", "tile_index", "hashes", "inner_nodes")

BatchTicket = Ticket[Batch]


class Person(NamedTuple):
    """Somebody in one log: under which account the budget is kept, and the pseudonym."""

    account: bytes
    pseudonym: str


class AssigningLog(SigningLog):
    """A log into which batches are stored; all of this runs in the thread that commits."""

    def __init__(
        self, engine: Engine, vault: Vault, *, number: int, run_id: str, keys: LogKeyRing
    ) -> None:
        """Store into the log whose row has this `number`."""
        super().__init__(engine, vault, number, keys)
        self.run_id = run_id
        self._tree: GrowingTree | None = None
        self._filing = Filing(number)
        self._spans = Spans(number)
        self._erasures = -1  # that `_filing` has seen

    def people(self, subjects: Iterable[str]) -> dict[str, Person]:
        """Return who these people are in this log, each with a secret from now on.

        What is told here holds while `erasures_seen` stays what it was before the call.
        """
        names = set(subjects)
        known = self._vault.prepare(names, self.origin)
        return {
            name: Person(
                self._vault.account_of(known[name].tag), str(json.loads(known[name].pseudonym))
            )
            for name in names
        }

    @property
    def erasures_seen(self) -> int:
        """How many erasures this process knows of; a transaction that writes looks again."""
        return self._vault.erasures

    def encode(self, tickets: Iterable[BatchTicket]) -> None:
        """Make entries of what was handed over; before the transaction, and once."""
        for ticket in tickets:
            ticket.items.encode(self._vault, self.origin, self.run_id)

    def assign(
        self, connection: Connection, tickets: Sequence[BatchTicket], *, retry: bool
    ) -> None:
        """Give indices to the tickets' entries and store them with their tree."""
        if not retry and not any(x.items.is_foreign or x.items.terms for x in tickets):
            claim = claim_indices(connection, self.number, sum([x.count for x in tickets]))
            if claim is not None:
                self._heed(claim.erasures)
                for ticket in tickets:
                    ticket.items.renew(self._vault, self.origin, self.run_id, claim.erasures)
                self._store_all(connection, tickets, claim.first_index)
                return
        self._store_missing(connection, tickets)

    def _heed(self, erasures: int) -> None:
        """Forget secrets, and under whom entries are filed, if somebody was erased meanwhile."""
        self._vault.heed(erasures)
        if erasures != self._erasures:
            self._filing.forget()
            self._erasures = erasures

    def _store_all(
        self, connection: Connection, tickets: Sequence[BatchTicket], first: int
    ) -> None:
        """Store entries that are all new, whose indices are taken already."""
        index = first
        for ticket in tickets:
            ticket.indices = range(index, index + ticket.count)
            index = ticket.indices.stop
        new = [(ticket.items.writer_id, ticket.items.encoded) for ticket in tickets]
        self._insert(connection, first, new)

    def _store_missing(self, connection: Connection, tickets: Sequence[BatchTicket]) -> None:
        """Store what is not there yet, and give what is there the index it has."""
        size = first = self._size(connection, lock=True)
        is_closed = self._closed(connection)
        erasures = self._count_erasures(connection)
        self._heed(erasures)
        new: list[tuple[str, Encoded]] = []
        for ticket in tickets:
            batch = ticket.items
            if batch.terms or (batch.is_foreign and any(x == batch.writer_id for x, _ in new)):
                # terms look at all before; what is sent twice or in pieces must see the other
                first = self._store_new(connection, first, new)
            try:
                known = self._known(connection, batch)
                seqs = batch.encoded.seq
                missing = [position for position, seq in enumerate(seqs) if seq not in known]
                if missing and is_closed:
                    raise self._refusal()
                if missing and batch.terms is not None:
                    batch.terms.settle(connection, self.number)
            except AuditTrailError as error:
                ticket.error = error
                continue
            ticket.error = None  # of an attempt before this one
            known |= {seqs[position]: size + number for number, position in enumerate(missing)}
            ticket.indices = [known[seq] for seq in seqs]
            size += len(missing)
            if missing:
                batch.renew(self._vault, self.origin, self.run_id, erasures)
                new.append((batch.writer_id, batch.encoded.only(missing)))
        self._store_new(connection, first, new)

    def _store_new(self, connection: Connection, first: int, new: list[tuple[str, Encoded]]) -> int:
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
        place = (self.number, batch.writer_id)
        known = self._stored_of(connection, batch)
        if batch.is_foreign:
            expected = next_seq(connection, *place)
            if batch.first_seq > expected and not _tells_gap(batch, expected):
                raise SequenceGap(
                    f"the writer's entries from {expected} to {batch.first_seq - 1} are missing",
                    expected=expected,
                    next_step="send those first, or a gap event in their place",
                )
        return known

    def _stored_of(self, connection: Connection, batch: Batch) -> dict[int, int]:
        """Return seq to leaf index of a batch's entries that are stored; raises ConflictingEntry.

        Of another machine's batch the drafts are compared, which need not be sealed for it.
        """
        place = (self.number, batch.writer_id)
        rows = list(stored_numbers(connection, *place, batch.first_seq, batch.last_seq))
        for row in rows:
            number = row.seq - batch.first_seq
            if batch.is_foreign:
                is_same = self._is_same(connection, row, batch, number)
            else:
                is_same = bytes(row.data) == batch.encoded.data[number]
            if not is_same:
                raise ConflictingEntry(
                    f"sequence number {row.seq} of this writer stands for another entry",
                    next_step="give each process start a writer id of its own",
                )
        return {row.seq: row.leaf_index for row in rows}

    def _is_same(self, connection: Connection, row: Any, batch: Batch, number: int) -> bool:
        """Whether a stored entry is the one that is sent again, as far as that can be told.

        Sealed values that nobody can open any more, since their subject was erased, are not
        compared: the entry is there, and saying so gives nothing away.

        Raises:
            RunClosed: its bytes were pruned, which only a closed run's are.
        """
        data = bytes(row.data)
        if not data:
            raise self._refusal()
        if not isinstance(batch.drafts, list):
            return False  # columns come from this process, which sends nothing twice
        item = batch.drafts[number]
        is_alike = bare_entry(data) == batch.bare(self.run_id, number)
        if not is_alike or set(json.loads(data).get("c", ())) != set(item.paths):
            return False
        try:
            openings = self._openings(connection, row.leaf_index, batch.writer_id, row.seq)
        except (Erased, VaultDamaged):  # the latter, where the subject has a new secret by now
            return True
        subject = self._vault.known(item.subject, self.origin)
        if not openings or subject is None:
            return not openings
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
        new: Sequence[tuple[str, Encoded]],
    ) -> None:
        """Store entries from index `first` on, their sealed values, and the tiles they fill."""
        self._tree = tree = self._grown(connection, first)
        index = first
        kinds: list[str] = []
        leaves: list[bytes] = []
        sealed: tuple[list[int], list[bytes], list[bytes]] = ([], [], [])
        for writer_id, pieces in groupby(new, key=itemgetter(0)):
            columns: tuple[list[Any], ...] = ([], [], [], [])
            begin = index
            for _, piece in pieces:
                for column, part in zip(columns, piece.columns(), strict=False):
                    column.extend(part)
                if piece.sealed:
                    sealed[0].extend(map(index.__add__, piece.sealed))
                    sealed[1].extend(piece.subject)
                    sealed[2].extend(piece.ciphertext)
                index += len(piece)
            kinds += columns[1]
            leaves += columns[3]
            place = (connection, self.number, begin, writer_id)
            insert_entries(*place, *columns, spans=self._spans)
        self._filing.kinds(connection, first, kinds)
        if sealed[0]:
            insert_sealed(connection, self.number, *sealed)
            self._filing.subjects(connection, *sealed[:2])
        full = tree.append(leaves)
        if full:
            tiles = {name: [getattr(tile, name) for tile in full] for name in _TILE_COLUMNS}
            insert_columns(connection, _TILES, {"log_number": self.number}, tiles)

    def forget_tree(self) -> None:
        """Drop what is known of the stored log; the next append reads it from the store."""
        self._tree = None
        self._filing.forget()
        self._spans.forget()


def _tells_gap(batch: Batch, expected: int) -> bool:
    """Whether another machine's batch begins with the gap that stands for what it leaves out."""
    first = batch.drafts[0] if isinstance(batch.drafts, list) else None
    if first is None or first.kind != "gap":
        return False
    fields = json.loads(f"{{{first.public[1:]}}}")
    missing = {"of_writer": batch.writer_id, "first_seq": expected, "last_seq": batch.first_seq - 1}
    missing |= {"count": batch.first_seq - expected}
    return all(fields.get(name) == value for name, value in missing.items())
