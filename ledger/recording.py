"""Recording into a log: what callers hand over, and what is lost of it.

How it is stored stands in `assigning`, how a log ends in `appending`.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine

from rlhf_audit_trail.ledger.assigning import AssigningLog, BatchTicket
from rlhf_audit_trail.ledger.batches import Batch
from rlhf_audit_trail.ledger.budgets import Terms
from rlhf_audit_trail.ledger.drafts import (
    SURELY_FITS,
    DraftColumns,
    Drafts,
    EventColumns,
    check_size,
    draft,
    drafts_of,
)
from rlhf_audit_trail.ledger.events import Event, InvalidEvent
from rlhf_audit_trail.ledger.keyring import LogKeyRing
from rlhf_audit_trail.ledger.losses import Losses
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.signing import now_text
from rlhf_audit_trail.ledger.store.spans import next_seq
from rlhf_audit_trail.ledger.vault import Vault
from rlhf_audit_trail.ledger.writer import Overloaded, Receipt, Receipts, Ticket, Writer

__all__ = ["LossPolicy", "RecordingLog"]

_WRITER_ID: Final = re.compile(r"[0-9a-f]{32}")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z", re.ASCII)
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LossPolicy:
    """What happens to entries that the store does not take.

    Attributes:
        is_strict: raise at the next call; otherwise the loss is only logged. Either way a
            `gap` event counts what is missing.
        queue_wait_s: how long a call waits for room in the queue.
    """

    is_strict: bool = False
    queue_wait_s: float = 5.0


class RecordingLog(AssigningLog):
    """A log that takes what callers hand over, and counts what is lost of it."""

    def __init__(
        self,
        engine: Engine,
        vault: Vault,
        writer: Writer[Batch],
        *,
        number: int,
        run_id: str,
        keys: LogKeyRing,
        policy: LossPolicy = LossPolicy(),
        counters: Path | None = None,
    ) -> None:
        """Record into the log whose row has this `number`, by this writer."""
        super().__init__(engine, vault, number=number, run_id=run_id, keys=keys)
        self.writer_id = secrets.token_hex(16)
        self._writer = writer
        self._policy = policy
        self._patience_s, self._patient_kinds = 0.0, frozenset[str]()
        self._lock = threading.Lock()  # owns _next_seq; held while the writer's queue is full
        self._next_seq = 0
        self._losses = Losses(counters, run_id)
        self._failure: AuditTrailError | None = None  # under the strict policy, not yet raised
        self._is_dropping = False  # owned by _lock

    @property
    def is_strict(self) -> bool:
        """Whether a lost entry raises at the next call."""
        return self._policy.is_strict

    # --- record -----------------------------------------------------------------------

    def record(self, event: Event) -> Receipt:
        """Hand over one event; see `record_many`."""
        return self.record_many([event])[0]

    def record_many(self, events: Iterable[Event]) -> Receipts:
        """Hand over events to be made durable, in order; all are checked before any is taken.

        Raises:
            InvalidEvent, EntryTooLarge: an event does not fit; nothing was recorded.
            RunClosed: the run has ended.
            Overloaded, AppendFailed: under the strict policy, these entries were not taken, or
                earlier ones were lost.
        """
        return self._hand_over(drafts_of(events))

    def record_columns(self, columns: EventColumns) -> Receipts:
        """Hand over many events given as columns; as `record_many`, at a fraction of the cost."""
        return self._hand_over(columns.drafts())

    def append_as(
        self, writer_id: str, first_seq: int, events: Sequence[Event], recorded_at: str
    ) -> list[int]:
        """Make another writer's events durable, and return their leaf indices in order.

        What is stored already under the same writer and numbers keeps its index.

        Args:
            writer_id: 32 hex digits, new for each start of the other process.
            first_seq: the sequence number of the first event; the rest follow.
            events: one or more.
            recorded_at: the other's clock, the same when it sends again.

        Raises:
            InvalidEvent, EntryTooLarge, RunClosed: as `record_many`.
            ConflictingEntry: one of the numbers stands for another entry; nothing was stored.
            SequenceGap: entries before these are missing; nothing was stored.
            AppendFailed: the store refused them.
        """
        if not (_WRITER_ID.fullmatch(writer_id) and _TIME.fullmatch(recorded_at)):
            raise InvalidEvent(
                "a writer id has 32 hex digits, and a time the form of RFC 3339, UTC"
            )
        drafts = [draft(event) for event in events]
        if not drafts or not 0 <= first_seq < 2**63 - len(drafts):
            raise InvalidEvent("there must be events, and their numbers be below 2**63")
        self._require_open()
        batch = Batch(writer_id, first_seq, recorded_at, drafts, is_foreign=True)
        if any(item.paths for item in drafts):
            # before a secret is made for a person who has none any more
            with self._engine.connect() as connection:
                known = self._stored_of(connection, batch)
            if len(known) == len(batch):
                return [known[seq] for seq in range(first_seq, first_seq + len(batch))]
        ticket = self._checked(batch)
        self._writer.submit(ticket, wait_s=self._policy.queue_wait_s)
        Receipt(ticket, 0).result()
        return list(ticket.indices)

    def record_on(self, terms: Terms, events: Sequence[Event]) -> range:
        """Make events durable together with what they cost, and return their leaf indices.

        One transaction holds the charge and the entries. Each call is a writer of its own: what
        is refused leaves no hole in anybody's numbers.

        Raises:
            InvalidEvent, EntryTooLarge, RunClosed: as `record_many`.
            LogMoved, or what `terms` raise: nothing was recorded or charged.
            AppendFailed: the store refused them; after a failure of the way to it they may be
                there, with their charge.
        """
        self._require_open()
        drafts = [draft(event) for event in events]
        batch = Batch(secrets.token_hex(16), 0, now_text(), drafts, terms=terms)
        ticket = self._checked(batch)
        self._writer.submit(ticket, wait_s=self._policy.queue_wait_s)
        first = Receipt(ticket, 0).result()
        return range(first, first + len(drafts))

    def lose(self, count: int, reason: str) -> None:
        """Count events that were observed but could not be captured; a `gap` event tells."""
        with self._lock:
            self._losses.add([self._loss(self._next_seq, count, reason)])
            self._next_seq += count

    def _require_open(self) -> None:
        self.require_writable()
        if self._known_closed:  # what another process closed is found by the writer
            raise self._refusal()
        if self._failure is not None:
            error, self._failure = self._failure, None
            raise error

    def _hand_over(self, drafts: Drafts) -> Receipts:
        """Give sequence numbers and submit, known losses first; return the drafts' receipts."""
        self._require_open()
        with self._lock:
            self._tell_losses()
            ticket = self._submit(drafts) if len(drafts) else None
        return Receipts(ticket, range(len(drafts)))

    def _tell_losses(self) -> None:
        """Hand over `gap` events for what is missing; with the lock held."""
        self._losses.find_dead_writers(self._stored_count, self._told_gaps)
        losses = self._losses.take()
        if losses:
            try:
                self._submit([draft(Event("gap", loss)) for loss in losses])
            except BaseException:
                self._losses.add(losses)
                raise

    def _submit(self, drafts: Drafts) -> BatchTicket:
        """Hand over drafts; with the lock held."""
        ticket = self._checked(Batch(self.writer_id, self._next_seq, now_text(), drafts))
        # first the count: who is killed in between has lost them
        self._losses.count(self.writer_id, self._next_seq + len(drafts))
        try:
            self._writer.submit(ticket, wait_s=self._policy.queue_wait_s)
        except Overloaded as error:
            if self._policy.is_strict:
                raise
            ticket.error = error
            ticket.done.set()
            self.note_loss(ticket)
            if not self._is_dropping:  # once for each time the store falls behind
                _logger.warning("%s: entries are dropped, and counted: %s", self.origin, error)
            self._is_dropping = True
        else:
            self._is_dropping = False
        self._next_seq += len(drafts)
        return ticket

    def _checked(self, batch: Batch) -> BatchTicket:
        if not isinstance(batch.drafts, list):  # the longest one tells of all
            longest = batch.drafts.longest()
            if len(longest.public) > SURELY_FITS:
                check_size(longest, self.run_id, batch.writer_id, batch.last_seq, batch.recorded_at)
            return Ticket(self.run_id, batch, self._patience_with(batch.drafts))
        for seq, item in enumerate(batch.drafts, batch.first_seq):
            if len(item.public) > SURELY_FITS:
                check_size(item, self.run_id, batch.writer_id, seq, batch.recorded_at)
        return Ticket(self.run_id, batch, self._patience_with(batch.drafts))

    def be_patient(self, patience_s: float, kinds: frozenset[str]) -> None:
        """Let entries of these kinds wait for more to come, while nobody asks for a receipt.

        One commit for all of them disturbs the caller's own work less than many.
        """
        self._patience_s, self._patient_kinds = patience_s, kinds

    def _patience_with(self, drafts: Drafts) -> float:
        if not self._patience_s or isinstance(drafts, DraftColumns):
            return 0.0
        kinds = [item.kind for item in drafts] if isinstance(drafts, list) else drafts.kinds
        return self._patience_s if self._patient_kinds.issuperset(kinds) else 0.0

    def flush(self) -> None:
        """Wait until everything handed over so far is durable or known to have failed.

        What failed is recorded as a gap now, if the store takes entries again.

        Raises:
            AppendFailed: under the strict policy, entries were lost.
        """
        self._writer.flush()
        if self._losses:
            with self._lock:
                self._tell_losses()
            self._writer.flush()
        self._losses.settle()
        if self._failure is not None:
            error, self._failure = self._failure, None
            raise error

    def end(self) -> None:
        """The writer has stopped: let go of what counts its entries."""
        self._losses.close()

    def begin_anew(self, writer: Writer[Batch]) -> None:
        """In a forked child: be a writer of its own; what the parent holds is the parent's."""
        self._lock = threading.Lock()
        self._writer = writer
        self.writer_id, self._next_seq = secrets.token_hex(16), 0
        self._losses = self._losses.of_child()
        self._failure = None
        self.forget_tree()

    def note_loss(self, ticket: BatchTicket) -> None:
        """Remember what could not be stored; the next record begins with a `gap` event."""
        batch = ticket.items
        if batch.is_foreign or batch.terms:  # its writer has been told
            return
        reason = ticket.error.message if ticket.error else "unknown"
        # gap events among the lost are not recorded either: what they told is still to be told
        drafts = batch.drafts if isinstance(batch.drafts, list) else ()
        gaps = [json.loads(f"{{{x.public[1:]}}}") for x in drafts if x.kind == "gap"]
        self._losses.add([*gaps, self._loss(batch.first_seq, len(batch), reason)])
        if self._policy.is_strict:
            self._failure = ticket.error

    def _loss(self, first_seq: int, count: int, reason: str) -> dict[str, Any]:
        fields = {"of_writer": self.writer_id, "first_seq": first_seq}
        return fields | {"last_seq": first_seq + count - 1, "count": count, "reason": reason}

    def _stored_count(self, writer_id: str) -> int:
        """Return how many sequence numbers of a writer are known to be stored or told lost."""
        with self._engine.connect() as connection:
            return next_seq(connection, self.number, writer_id)

    def _told_gaps(self) -> list[dict[str, Any]]:
        return [entry.event for entry in self.entries(kind="gap")]
