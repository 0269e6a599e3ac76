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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Self

from rlhf_audit_trail.ledger.append_call import (
    REQUEST_BYTES_MAX,
    REQUEST_EVENTS_MAX,
    AppendCall,
    NotAnswered,
)
from rlhf_audit_trail.ledger.bearer import TOKEN_VARIABLE, require_permitted
from rlhf_audit_trail.ledger.drafts import check_size, draft
from rlhf_audit_trail.ledger.events import EntryTooLarge, Event, InvalidEvent, encode_value
from rlhf_audit_trail.ledger.forks import finish_at_exit, survive_forks
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.writer import AppendFailed, Overloaded, Receipt, Ticket, WriterClosed

__all__ = ["RemoteLog"]

QUEUE_EVENTS_MAX: Final = 16_384
QUEUE_BYTES_MAX: Final = 64 * 1024 * 1024
CLOSE_TIMEOUT_S: Final = 30.0
_PART_BYTES_MAX: Final = 1024 * 1024
_ENVELOPE_BYTES_MAX: Final = 1024
_SUBJECT_CHARACTERS_MAX: Final = 1_000
_PAUSE_S_FIRST: Final = 0.1
_PAUSE_S_MAX: Final = 10.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Part:
    """Events of one call that are sent together, each as its JSON."""

    events: Sequence[bytes]
    recorded_at: str
    size_bytes: int

    def __len__(self) -> int:
        return len(self.events)


_Ticket = Ticket[_Part]


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
    ) -> None:
        """Send nothing yet.

        Args:
            url: where `rlhf-audit serve` is reached, for example `https://audit.acme.example`.
            run_id: a run that exists there.
            token: made by `rlhf-audit writer add NAME --run RUN`.
            timeout_s: after so long a request counts as lost, and is sent again.
            queue_wait_s: how long a call waits for room in the queue.
            is_private_network: nobody else listens between here and there: plain http will do.

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
        self._queued: deque[_Ticket] = deque()
        self._under_way: list[_Ticket] = []
        self._waiting_events = self._waiting_bytes = 0
        self._handed_over = self._settled = 0  # events so far
        self._failure: AuditTrailError | None = None  # not yet raised
        self._end: AuditTrailError | None = None  # nothing more can be sent

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
            Overloaded: the queue was full for `queue_wait_s` seconds; nothing was taken.
            BadToken, NotPermitted, LogMissing, RunClosed, ConflictingEntry, SequenceGap, Refused:
                the service has refused this writer; nothing more can be recorded.
            AppendFailed: earlier events were lost, told once; nothing was taken.
            WriterClosed: `close` was called.
        """
        recorded_at = _now_text()
        parts = _parts([self._encode(event, recorded_at) for event in events], recorded_at)
        tickets = [Ticket(self.run_id, part) for part in parts]
        with self._lock:
            self._raise_failure()
            self._await_room(sum(map(len, parts)), sum(part.size_bytes for part in parts))
            self._queued += tickets
            self._waiting_events += sum(map(len, parts))
            self._waiting_bytes += sum(part.size_bytes for part in parts)
            self._handed_over += sum(map(len, parts))
            self._start()
            self._changed.notify_all()
        return [Receipt(ticket, at) for ticket in tickets for at in range(len(ticket.items))]

    def _encode(self, event: Event, recorded_at: str) -> bytes:
        """Write an event as the service takes it, if the service would take it."""
        require_permitted(event, self.writer_id)
        # what number it gets is not known yet: about as many as were handed over before
        check_size(draft(event), self.run_id, self.writer_id, self._handed_over, recorded_at)
        if len(event.subject) > _SUBJECT_CHARACTERS_MAX:
            raise InvalidEvent(f"a subject's id has at most {_SUBJECT_CHARACTERS_MAX:,} characters")
        record = {"kind": event.kind, "fields": dict(event.fields), "sealed": dict(event.sealed)}
        data = encode_value({**record, "subject": event.subject})
        if len(data) > REQUEST_BYTES_MAX - _ENVELOPE_BYTES_MAX:
            raise EntryTooLarge(
                f"an event of {len(data):,} bytes; a request takes {REQUEST_BYTES_MAX:,} at most",
                next_step="store the large value elsewhere, and refer to its digest",
            )
        return data

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
            goal = self._handed_over
            if not self._changed.wait_for(lambda: self._settled >= goal, timeout_s):
                raise TimeoutError(f"not durable after {timeout_s} s")
            failure, self._failure = self._failure, None
        if failure is not None:
            raise failure.with_traceback(None)

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Send what is queued, then stop; calling it again does nothing.

        Raises:
            AppendFailed: no answer for some events in `timeout_s` seconds. They may be stored.
            AuditTrailError: what `record_many` would raise: events were lost.
        """
        with self._lock:
            if self._closed:
                return
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

    def _take(self) -> list[_Ticket]:
        """Return what is waiting, up to one request; nothing when the end was reached."""
        with self._lock:
            self._changed.wait_for(lambda: self._queued or self._closed)
            group = self._under_way = _first_of(self._queued)
            for ticket in group:
                self._queued.popleft()
                self._waiting_events -= len(ticket.items)
                self._waiting_bytes -= ticket.items.size_bytes
            self._changed.notify_all()
        return group

    def _send(self, group: list[_Ticket]) -> None:
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
            self._next_seq += len(indices)
            with self._lock:
                self._resolve(group, indices)

    def _deliver(self, group: list[_Ticket]) -> list[int]:
        """Return the indices of a group's events, sending them as often as it takes."""
        if self._end is not None:
            raise self._end.with_traceback(None)
        events = [event for ticket in group for event in ticket.items.events]
        recorded_at, pause_s, began_s = group[0].items.recorded_at, _PAUSE_S_FIRST, 0.0
        while True:
            try:
                indices = self._call.append(self.writer_id, self._next_seq, recorded_at, events)
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

    def _resolve(self, group: Iterable[_Ticket], indices: list[int]) -> None:
        """Give a group its indices; with the lock held."""
        begin = 0
        for ticket in group:
            end = begin + len(ticket.items)
            if not ticket.done.is_set():  # else given up on when the log was closed
                ticket.indices = indices[begin:end]
                self._settle(ticket)
            begin = end

    def _fail(self, group: Iterable[_Ticket], error: AuditTrailError) -> None:
        """Say of a group that it is lost; with the lock held."""
        lost = [ticket for ticket in group if not ticket.done.is_set()]
        for ticket in lost:
            ticket.error = error
            self._settle(ticket)
        if lost:
            self._failure = self._failure or error
            _logger.error("%s events were lost: %s", sum(len(x.items) for x in lost), error.message)
        if self._end is not None or self._closed:
            self._queued.clear()
            self._waiting_events = self._waiting_bytes = 0

    def _settle(self, ticket: _Ticket) -> None:
        ticket.done.set()
        self._settled += len(ticket.items)
        self._changed.notify_all()


def _first_of(queued: Iterable[_Ticket]) -> list[_Ticket]:
    """Return as many tickets as one request holds: of one time, the entries have it in common."""
    group: list[_Ticket] = []
    count = size_bytes = 0
    for ticket in queued:
        part = ticket.items
        count, size_bytes = count + len(part), size_bytes + part.size_bytes
        is_too_much = count > REQUEST_EVENTS_MAX or size_bytes > _PART_BYTES_MAX
        if group and (is_too_much or part.recorded_at != group[0].items.recorded_at):
            break
        group.append(ticket)
    return group


def _parts(events: Sequence[bytes], recorded_at: str) -> list[_Part]:
    """Cut events into what one request each holds."""
    parts: list[_Part] = []
    part: list[bytes] = []
    size_bytes = 0
    for event in events:
        is_full = len(part) == REQUEST_EVENTS_MAX or size_bytes + len(event) > _PART_BYTES_MAX
        if part and is_full:
            parts.append(_Part(part, recorded_at, size_bytes))
            part, size_bytes = [], 0
        part.append(event)
        size_bytes += len(event) + 1  # the comma
    return [*parts, _Part(part, recorded_at, size_bytes)] if part else parts


def _now_text() -> str:
    """Return the clock to a tenth of a second: what it has in common goes in one request."""
    now = datetime.now(UTC)
    return f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond // 100_000}Z"
