"""Appending to a log: record and assign.

`record` hands over; the writer thread calls `assign`, which gives indices and extends the
tree in one transaction. How what is stored gets signed stands in `signing`.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Engine, select, update

from rlhf_audit_trail.ledger.events import KINDS, Event, encode_entry
from rlhf_audit_trail.ledger.keys import LogKeys
from rlhf_audit_trail.ledger.losses import Losses
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.proof.merkle import (
    HASH_BYTES,
    leaf_hash,
)
from rlhf_audit_trail.ledger.reading import Forked, place_of
from rlhf_audit_trail.ledger.signing import SigningLog, now_text
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.database import insert_rows, transact
from rlhf_audit_trail.ledger.tiles import GrowingTree
from rlhf_audit_trail.ledger.vault import Sealed, Vault
from rlhf_audit_trail.ledger.writer import Receipt, Ticket, Writer

__all__ = ["Log", "Pending", "RunClosed", "now_text"]

# beyond it, reading the tree's edge costs less than adding the leaves of others one by one
_CATCH_UP_LEAVES_MAX: Final = 50_000
_LOGS = models.LogRow.__table__  # type: ignore[attr-defined]
_ENTRIES = models.EntryRow.__table__  # type: ignore[attr-defined]
_TILES = models.HashTileRow.__table__  # type: ignore[attr-defined]
_HEADS = models.TreeHeadRow.__table__  # type: ignore[attr-defined]
_VAULT = models.VaultRow.__table__  # type: ignore[attr-defined]


class RunClosed(AuditTrailError):
    """The run's log was closed; its size and root stand in the registry log."""


@dataclass(frozen=True)
class Pending:
    """An encoded entry on its way to the store."""

    seq: int
    kind: str
    data: bytes
    sealed: Sealed | None


class Log(SigningLog):
    """One append-only log with its own origin and keys: everything that writes."""

    def __init__(
        self,
        engine: Engine,
        vault: Vault,
        writer: Writer[Pending],
        *,
        number: int,
        run_id: str,
        keys: LogKeys,
        registry: Log | None,
    ) -> None:
        """Use `Ledger.open_run` instead; `registry` is None for the registry log itself."""
        super().__init__(engine, vault, number, keys)
        self.run_id = run_id
        self.writer_id = secrets.token_hex(16)
        self._registry = registry
        self._writer = writer
        self._lock = threading.Lock()  # owns _next_seq; held while the writer's queue is full
        self._next_seq = 0
        self._losses = Losses()
        self._tree: GrowingTree | None = None  # owned by the writer thread

    # --- record -----------------------------------------------------------------------

    def record(self, event: Event) -> Receipt:
        """Hand over one event; see `record_many`."""
        return self.record_many([event])[0]

    def record_many(self, events: Iterable[Event]) -> list[Receipt]:
        """Hand over events to be made durable, in order; all are checked before any is taken.

        Raises:
            InvalidEvent, EntryTooLarge: an event does not fit; nothing was recorded.
            RunClosed: the run has ended.
        """
        events = list(events)
        if not events:
            return []
        if self._known_closed:  # what another process closed is found by the writer
            raise self._refusal()
        return self._hand_over(events)

    def _hand_over(self, events: list[Event]) -> list[Receipt]:
        """Give sequence numbers and submit, known losses first; return the events' receipts."""
        with self._lock:
            losses = self._losses.take()
            try:
                events = [Event("gap", loss) for loss in losses] + events
                self._vault.prepare(events, self.origin)
                first, now = self._next_seq, now_text()
                pending = [self._encode(item, first + i, now) for i, item in enumerate(events)]
                ticket = Ticket(self.run_id, pending)
                self._writer.submit(ticket)
            except BaseException:
                self._losses.add(losses)
                raise
            self._next_seq += len(pending)
        return [Receipt(ticket, position) for position in range(len(losses), len(pending))]

    def _encode(self, event: Event, seq: int, recorded_at: str) -> Pending:
        sealed = None
        if event.sealed:
            sealed = self._vault.seal(event, self.origin, place_of(self.writer_id, seq))
        data = encode_entry(
            event,
            run_id=self.run_id,
            writer_id=self.writer_id,
            seq=seq,
            recorded_at=recorded_at,
            commitments=sealed.commitments if sealed else {},
        )
        return Pending(seq, event.kind, data, sealed)

    def flush(self) -> None:
        """Wait until everything handed over so far is durable or known to have failed.

        What failed is recorded as a gap now, if the store takes entries again.
        """
        self._writer.flush()
        if self._losses:
            self._hand_over([])
            self._writer.flush()

    def note_loss(self, ticket: Ticket[Pending]) -> None:
        """Remember what could not be stored; the next record begins with a `gap` event."""
        first, last = ticket.items[0].seq, ticket.items[-1].seq
        fields = {"of_writer": self.writer_id, "first_seq": first, "last_seq": last}
        reason = ticket.error.message if ticket.error else "unknown"
        # gap events among the lost are not recorded either: what they told is still to be told
        gaps = [json.loads(item.data) for item in ticket.items if item.kind == "gap"]
        earlier = [{name: gap[name] for name in KINDS["gap"].public} for gap in gaps]
        self._losses.add([*earlier, fields | {"count": last - first + 1, "reason": reason}])

    # --- assign: the writer thread, inside its transaction ---------------------------

    def assign(
        self, connection: Connection, tickets: Sequence[Ticket[Pending]], *, retry: bool
    ) -> None:
        """Give indices to the tickets' entries and store them with their tree."""
        size = self._size(connection, lock=True)
        known = self._known(connection, tickets) if retry else {}
        if self._closed(connection):
            tickets = [ticket for ticket in tickets if self._is_stored(ticket, known)]
        self._tree = self._grown(connection, size)
        rows: list[dict[str, Any]] = []
        vault: list[dict[str, Any]] = []
        for ticket in tickets:
            indices = []
            for item in ticket.items:
                index = known.get(item.seq, size + len(rows))
                indices.append(index)
                if item.seq in known:
                    continue
                rows.append(self._row(item, index))
                if item.sealed:
                    vault.append(self._vault_row(item.sealed, index))
            ticket.indices = indices
        if rows:
            self._insert(connection, rows, vault)

    def _grown(self, connection: Connection, size: int) -> GrowingTree:
        """Return the tree of all `size` entries, among them what other processes appended."""
        tree = self._tree
        if tree is None or not 0 <= size - tree.size <= _CATCH_UP_LEAVES_MAX:
            return GrowingTree.restore(size, self._reader(connection))
        if tree.size == size:
            return tree
        leaves = self._leaves(connection, tree.size, size - tree.size)
        tree.append(leaves[i : i + HASH_BYTES] for i in range(0, len(leaves), HASH_BYTES))
        return tree

    def _is_stored(self, ticket: Ticket[Pending], known: dict[int, int]) -> bool:
        """Refuse a ticket that came after the run was closed, unless it is stored already."""
        if all(item.seq in known for item in ticket.items):
            return True
        ticket.error = self._refusal()
        return False

    def _refusal(self) -> RunClosed:
        return RunClosed(
            f"the run {self.run_id} is closed", next_step="open a run with another name"
        )

    def _insert(
        self, connection: Connection, rows: list[dict[str, Any]], vault: list[dict[str, Any]]
    ) -> None:
        tree = self._tree
        if tree is None:  # assign has just restored it
            raise RuntimeError("the tree is not loaded")
        full = tree.append(row["leaf_hash"] for row in rows)
        insert_rows(connection, _ENTRIES, rows)
        if vault:
            insert_rows(connection, _VAULT, vault)
        if full:
            tiles = [
                {
                    "log_number": self.number,
                    "level": tile.level,
                    "tile_index": tile.tile_index,
                    "hashes": tile.hashes,
                    "inner_nodes": tile.inner_nodes,
                }
                for tile in full
            ]
            insert_rows(connection, _TILES, tiles)
        connection.execute(
            update(_LOGS).where(_LOGS.c.number == self.number).values(size=tree.size)
        )

    def _row(self, item: Pending, index: int) -> dict[str, Any]:
        return {
            "log_number": self.number,
            "leaf_index": index,
            "writer_id": self.writer_id,
            "seq": item.seq,
            "kind": item.kind,
            "data": item.data,
            "leaf_hash": leaf_hash(item.data),
        }

    def _vault_row(self, sealed: Sealed, index: int) -> dict[str, Any]:
        return {
            "log_number": self.number,
            "leaf_index": index,
            "subject": sealed.subject,
            "ciphertext": sealed.ciphertext,
        }

    def _known(self, connection: Connection, tickets: Sequence[Ticket[Pending]]) -> dict[int, int]:
        """Return seq to leaf index of entries that an attempt of unknown outcome did store."""
        seqs = [item.seq for ticket in tickets for item in ticket.items]
        rows = connection.execute(
            select(_ENTRIES.c.seq, _ENTRIES.c.leaf_index).where(
                _ENTRIES.c.log_number == self.number,
                _ENTRIES.c.writer_id == self.writer_id,
                _ENTRIES.c.seq.between(min(seqs), max(seqs)),
            )
        )
        return {row.seq: row.leaf_index for row in rows}

    def forget_tree(self) -> None:
        """Drop the tree in memory; the next append reads it from the store."""
        self._tree = None

    # --- the end, and the registry's own entries -------------------------------------------

    def close(self) -> None:
        """End the run: sign its last head, and enter size and root in the registry log.

        Called again, it finishes a closing that was interrupted.
        """
        if self._registry is None:
            return
        if not self.closed:
            self.flush()
            transact(self._engine, self._sign_and_close)
            self._known_closed = True
        signed = self.published()
        if signed is None:  # signed before the flag was set, in the same transaction
            raise Forked(f"{self.origin} is closed, but has no signed tree head")
        fields: dict[str, Any] = {"run": self.run_id, "origin": self.origin}
        fields |= {"tree_size": signed.head.size, "root": signed.head.root.hex()}
        self._registry.announce(Event("run.closed", fields))

    def _sign_and_close(self, connection: Connection) -> None:
        """Set the flag in the head's own transaction: nothing comes between them."""
        self._sign(connection)
        connection.execute(update(_LOGS).where(_LOGS.c.number == self.number).values(closed=True))

    def announce(self, event: Event) -> None:
        """Enter an event in this registry log, unless it has one of this kind and run.

        Durable on return, and entered once however many processes try: asked and answered
        under the lock by which indices are given out. Each call is a writer of its own.
        """
        run_id = event.fields.get("run")
        if self._announces(event.kind, run_id):  # mostly so, and seen without a lock
            return
        writer = Log(
            self._engine,
            self._vault,
            self._writer,
            number=self.number,
            run_id=self.run_id,
            keys=self._keys,
            registry=None,
        )
        ticket = Ticket(self.run_id, [writer._encode(event, 0, now_text())])

        def work(connection: Connection) -> None:
            self._size(connection, lock=True)
            writer.forget_tree()  # an earlier attempt has grown it
            if not self._announces(event.kind, run_id):
                writer.assign(connection, [ticket], retry=False)

        transact(self._engine, work)

    def _announces(self, kind: str, run_id: str | None) -> bool:
        return any(entry.event.get("run") == run_id for entry in self.entries(kind=kind))
