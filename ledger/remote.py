"""A run's log on another machine: the writing side of `Log`, over HTTP with a writer token.

    with RemoteLog("https://audit.acme.example", "run-42") as log:
        receipt = log.record(Event("metrics.logged", {"step": 1}, {"metrics": {"loss": 0.5}}))
        log.flush()
    print(receipt.result())

The token is read from RLHF_AUDIT_WRITER_TOKEN if it is not passed. Values are sealed by the
service, not here: the way to it must be TLS or a private network.

Calls hand over to a thread, which sends what has gathered and sends it again for as long as
nobody answers. The service knows each event by (writer id, sequence number): whatever was
lost on the way, each is there once, and a receipt's index is durable. Standard library only.
"""

from __future__ import annotations

import logging
import os
import random
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Final, Self

from rlhf_audit_trail.ledger.append_call import (
    AppendCall,
    NotAnswered,
)
from rlhf_audit_trail.ledger.bearer import TOKEN_VARIABLE
from rlhf_audit_trail.ledger.events import EntryTooLarge, Event, InvalidEvent
from rlhf_audit_trail.ledger.forks import finish_at_exit, survive_forks
from rlhf_audit_trail.ledger.progress import Progress
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.remote_parts import (
    PartTicket,
    encoded,
    first_of,
    gap_part,
    now_text,
    parts_of,
)
from rlhf_audit_trail.ledger.writer import AppendFailed, Overloaded, Receipt, Ticket, WriterClosed

__all__ = ["RemoteLog"]

QUEUE_EVENTS_MAX: Final = 16_384
QUEUE_BYTES_MAX: Final = 64 * 1024 * 1024
CLOSE_TIMEOUT_S: Final = 30.0
_PAUSE_S_FIRST: Final = 0.1
_PAUSE_S_MAX: Final = 10.0

_logger = logging.getLogger(__name__)


class RemoteLog:
    """Records events in a run of another machine's ledger; safe to share between threads.

    A forked child is a writer of its own, and what the parent had queued is the parent's to
    send. At the end of the process, what is queued is still sent, for half a minute at most.
    """

    def __init__(
        self,
        url: str,
        run_id: str,
        token: str | None = None,
        *,
        timeout_s: float = 60.0,
        queue_wait_s: float = 5.0,
        is_private_network: bool = False,
        is_strict: bool = True,
    ) -> None:
        """Send nothing yet.

        Args:
            url: where `rlhf-audit serve` is reached, for example `https://audit.acme.example`.
            run_id: a run that exists there.
            token: made by `rlhf-audit writer add NAME --run RUN`.
            timeout_s: after so long a request counts as lost, and is sent again.
            queue_wait_s: how long a call waits for room in the queue.
            is_private_network: nobody else listens between here and there: plain http will do.
            is_strict: raise where events are lost. Otherwise that is logged, and told by a `gap`
                event; a writer that the service refuses altogether hears of it either way.

        Raises:
            BadAddress, InsecureAddress: nothing is sent to such an address.
            BadToken: there is none, or it has not the form of one.
        """
        self.run_id = run_id
        self._call = AppendCall(
            url,
            run_id,
            os.environ.get(TOKEN_VARIABLE, "") if token is None else token,
            timeout_s=timeout_s,
            is_private_network=is_private_network,
        )
        self._queue_wait_s = queue_wait_s
        self._is_strict = is_strict
        self._closed = False
        self._begin()
        survive_forks(self)

    def _begin(self) -> None:
        self.writer_id = secrets.token_hex(16)
        self._stop = threading.Event()  # waiting for an answer is over
        self._next_seq = 0  # owned by the thread
        # all below is owned by _lock
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._queued: deque[PartTicket] = deque()
        self._under_way: list[PartTicket] = []
        self._waiting_events = self._waiting_bytes = 0
        self._handed_over = self._settled = 0  # events so far
        self._failure: AuditTrailError | None = None  # not yet raised
        self._end: AuditTrailError | None = None  # nothing more can be sent
        self._lost = 0  # events of which no gap tells yet
        self._why_lost = ""

    def __repr__(self) -> str:
        """Tell where entries go; not the token."""
        return f"RemoteLog({self._call.url!r}, writer_id={self.writer_id!r})"

    # --- record -----------------------------------------------------------------------

    def record(self, event: Event) -> Receipt:
        """Hand over one event; see `record_many`."""
        return self.record_many([event])[0]

    def record_many(self, events: Iterable[Event]) -> list[Receipt]:
        """Hand over events to be made durable, in order; all are checked before any is taken.

        Entries will tell the time of this call, to a tenth of a second.

        Raises:
            InvalidEvent, EntryTooLarge, NotPermitted: an event does not fit; nothing was taken.
            Overloaded: the queue was full for `queue_wait_s` seconds; nothing was taken. Unless
                it is strict, only the receipts say so.
            BadToken, NotPermitted, LogMissing, RunClosed, ConflictingEntry, SequenceGap, Refused:
                the service has refused this writer; nothing more can be recorded.
            AppendFailed: earlier events were lost, told once; nothing was taken.
            WriterClosed: `close` was called.
        """
        recorded_at = now_text()
        frame = {"run_id": self.run_id, "writer_id": self.writer_id, "recorded_at": recorded_at}
        written = [encoded(event, **frame, seq_about=self._handed_over) for event in events]
        parts = parts_of(written, recorded_at)
        tickets = [Ticket(self.run_id, part) for part in parts]
        with self._lock:
            self._raise_failure()
            try:
                self._await_room(sum(map(len, parts)), sum(part.size_bytes for part in parts))
            except Overloaded as error:
                if self._is_strict:
                    raise
                self._drop(tickets, error)
            else:
                self._enqueue([*self._gap(), *tickets])
        return [Receipt(ticket, at) for ticket in tickets for at in range(len(ticket.items))]

    def lose(self, count: int, reason: str) -> None:
        """Count events that were observed but could not be captured; a `gap` event tells."""
        with self._lock:
            self._lost, self._why_lost = self._lost + count, reason

    def _enqueue(self, tickets: Iterable[PartTicket]) -> None:
        """Queue tickets; with the lock held."""
        for ticket in tickets:
            self._queued.append(ticket)
            self._waiting_events += len(ticket.items)
            self._waiting_bytes += ticket.items.size_bytes
            self._handed_over += len(ticket.items)
        self._start()
        self._changed.notify_all()

    def _gap(self) -> list[PartTicket]:
        """Return what tells of events that were lost; with the lock held."""
        lost, self._lost = self._lost, 0
        return [Ticket(self.run_id, gap_part(lost, self._why_lost))] if lost else []

    def _drop(self, tickets: Iterable[PartTicket], error: AuditTrailError) -> None:
        """Count tickets that are not taken; with the lock held."""
        for ticket in tickets:
            ticket.error = error
            ticket.done.set()
            if not self._lost:  # once for each time that the service falls behind
                _logger.warning("events are dropped, and counted: %s", error.message)
            self._lost, self._why_lost = self._lost + len(ticket.items), error.message

    def _raise_failure(self) -> None:
        """Raise what has to be told; with the lock held."""
        if self._closed:
            raise WriterClosed("the remote log is closed", next_step="make a new one")
        failure, self._failure = self._failure or self._end, None
        if failure is not None:
            raise failure.with_traceback(None)

    def _await_room(self, events: int, size_bytes: int) -> None:
        def has_room() -> bool:
            is_over = self._closed or self._end is not None
            fits = self._waiting_events + events <= QUEUE_EVENTS_MAX
            fits = fits and self._waiting_bytes + size_bytes <= QUEUE_BYTES_MAX
            return is_over or fits or self._waiting_events == 0

        if not self._changed.wait_for(has_room, self._queue_wait_s):
            raise Overloaded(
                f"{self._waiting_events:,} events wait for the service, and more came "
                f"for {self._queue_wait_s:g} s",
                next_step="see that the service answers, record less often, or wait longer",
            )
        self._raise_failure()

    # --- the end ------------------------------------------------------------------------

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until everything handed over so far is durable or known to have failed.

        Raises:
            TimeoutError: not known after `timeout_s` seconds.
            AuditTrailError: what `record_many` would raise: events were lost.
        """
        with self._lock:
            if self._lost and self._end is None and not self._closed:
                self._enqueue(self._gap())
            goal = self._handed_over
            if not self._changed.wait_for(lambda: self._settled >= goal, timeout_s):
                raise TimeoutError(f"not durable after {timeout_s} s")
            failure, self._failure = self._failure, None
        if failure is not None:
            raise failure.with_traceback(None)

    def progress(self) -> Progress:
        """Ask where the run stands, without what is still queued; raises as `AppendCall`."""
        return Progress.parse(self._call.progress())

    def publish(self) -> None:
        """Have the service sign a tree head over what is durable; raises as `progress`."""
        self._call.publish()

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Send what is queued, then stop; calling it again does nothing.

        Raises:
            AppendFailed: no answer for some events in `timeout_s` seconds. They may be stored.
            AuditTrailError: what `record_many` would raise: events were lost.
        """
        with self._lock:
            if self._closed:
                return
            if self._lost and self._end is None:
                self._enqueue(self._gap())
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._settled == self._handed_over, timeout_s)
            self._stop.set()
            left = self._under_way + list(self._queued)
            if left:
                count = sum(len(ticket.items) for ticket in left)
                self._fail(left, AppendFailed(
                    f"no answer about {count:,} events until the remote log was closed",
                    next_step="look into the log for this writer: they may be stored all the same",
                ))  # fmt: skip
            failure, self._failure = self._failure, None
        if failure is not None:
            raise failure.with_traceback(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- forks ----------------------------------------------------------------------------

    def hold_still(self) -> None:
        """Before a fork: nothing is half handed over."""
        self._lock.acquire()

    def go_on(self) -> None:
        """In the parent, after a fork."""
        self._lock.release()

    def begin_anew(self) -> None:
        """In a forked child: be a writer of its own; what the parent holds is the parent's."""
        self._begin()

    # --- the thread -----------------------------------------------------------------------

    def _start(self) -> None:
        """Start the thread with the first event, and not before: a process may fork first."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="remote-log", daemon=True)
            finish_at_exit(self)
            self._thread.start()

    def _run(self) -> None:
        while group := self._take():
            self._send(group)

    def _take(self) -> list[PartTicket]:
        """Return what is waiting, up to one request; nothing when the end was reached."""
        with self._lock:
            self._changed.wait_for(lambda: self._queued or self._closed)
            group = self._under_way = first_of(self._queued)
            for ticket in group:
                self._queued.popleft()
                self._waiting_events -= len(ticket.items)
                self._waiting_bytes -= ticket.items.size_bytes
            self._changed.notify_all()
        return group

    def _send(self, group: list[PartTicket]) -> None:
        """Send a group until its outcome is known."""
        try:
            indices = self._deliver(group)
        except (InvalidEvent, EntryTooLarge) as error:  # nothing of it was stored
            if len(group) > 1:
                for ticket in group:  # the others shall not suffer for one
                    self._send([ticket])
                return
            with self._lock:
                self._fail(group, error)
        except AuditTrailError as error:
            with self._lock:
                self._end = error
                self._fail([*group, *self._queued], error)
        else:
            self._next_seq += len(indices) + group[0].items.lost
            with self._lock:
                self._resolve(group, indices)

    def _deliver(self, group: list[PartTicket]) -> list[int]:
        """Return the indices of a group's events, sending them as often as it takes."""
        if self._end is not None:
            raise self._end.with_traceback(None)
        first_seq, events = group[0].items.request(self.writer_id, self._next_seq)
        events = [*events, *(event for ticket in group[1:] for event in ticket.items.events)]
        recorded_at, pause_s, began_s = group[0].items.recorded_at, _PAUSE_S_FIRST, 0.0
        while True:
            try:
                indices = self._call.append(self.writer_id, first_seq, recorded_at, events)
            except NotAnswered as error:
                if not began_s:  # once for each time that the service goes away
                    began_s = time.monotonic()
                    _logger.warning("%s; sending again until it answers", error.message)
                # at random: many machines shall not come back in one moment
                if self._stop.wait(pause_s * random.uniform(0.5, 1.0)):  # noqa: S311 - no secret
                    raise AppendFailed(error.message, next_step=error.next_step) from error
                pause_s = min(2 * pause_s, _PAUSE_S_MAX)
            else:
                if began_s:
                    _logger.warning("answered again after %.1f s", time.monotonic() - began_s)
                return indices

    def _resolve(self, group: Iterable[PartTicket], indices: list[int]) -> None:
        """Give a group its indices; with the lock held."""
        begin = 0
        for ticket in group:
            end = begin + len(ticket.items)
            if not ticket.done.is_set():  # else given up on when the log was closed
                ticket.indices = indices[begin:end]
                self._settle(ticket)
            begin = end

    def _fail(self, group: Iterable[PartTicket], error: AuditTrailError) -> None:
        """Say of a group that it is lost; with the lock held."""
        lost = [ticket for ticket in group if not ticket.done.is_set()]
        for ticket in lost:
            ticket.error = error
            self._settle(ticket)
        if lost:
            count = sum(len(ticket.items) for ticket in lost)
            _logger.error("%s events were lost: %s", count, error.message)
            if self._is_strict or self._end is not None:
                self._failure = self._failure or error
            else:
                self._lost, self._why_lost = self._lost + count, error.message
        if self._end is not None or self._closed:
            self._queued.clear()
            self._waiting_events = self._waiting_bytes = 0

    def _settle(self, ticket: PartTicket) -> None:
        ticket.done.set()
        self._settled += len(ticket.items)
        self._changed.notify_all()
