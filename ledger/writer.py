"""The writer's threads: they take what callers hand over and commit it in groups.

While one group is being made durable the next one gathers, so one fsync serves many
entries, and no caller waits for the disk unless it asks its receipt.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar, cast, overload

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = ["AppendFailed", "Overloaded", "Receipt", "Receipts", "Ticket", "Writer", "WriterClosed"]

GROUP_ENTRIES_MAX: Final = 8_000  # as many as one statement takes
QUEUE_ENTRIES_MAX: Final = 16_384  # two commits' worth: more would only be memory
RETRY_DELAYS_S: Final = (0.05, 0.2, 1.0)
LOOK_AGAIN_S: Final = 0.005  # who does not ask a receipt waits for so long at most
PATIENT_ENTRIES_MAX: Final = 512  # so many are a group of their own

_logger = logging.getLogger(__name__)

Item = TypeVar("Item", bound=Sized)


class AppendFailed(AuditTrailError):
    """The store refused a group of entries; they are not durable."""


class Overloaded(AppendFailed):
    """More was handed over than the store takes; these entries were not taken."""


class WriterClosed(AuditTrailError):
    """The ledger was closed; nothing can be handed over any more."""


@dataclass(eq=False, slots=True)
class Ticket(Generic[Item]):
    """What one call handed over, and what became of it.

    Owned by the caller until submitted, then by the writer until `done` is set.

    Attributes:
        log: run id.
        items: the entries.
        patience_s: how long they may wait for others to be committed with, while nobody asks.
    """

    log: str
    items: Item
    patience_s: float = 0.0
    done: threading.Event = field(default_factory=threading.Event)
    indices: Sequence[int] = ()
    error: AuditTrailError | None = None
    helper: Writer[Item] | None = None
    count: int = field(init=False)  # of its entries

    def __post_init__(self) -> None:
        """Count, once: it is asked by everybody."""
        self.count = len(self.items)


@dataclass(frozen=True, slots=True)
class Receipt:
    """A claim on one entry; once it has an index, the entry survives power loss."""

    ticket: Ticket[Any]
    position: int

    def done(self) -> bool:
        """Whether the outcome is known."""
        return self.ticket.done.is_set()

    def result(self, timeout_s: float | None = None) -> int:
        """Wait for durability and return the leaf index.

        Raises:
            AppendFailed: the store refused the entry.
            TimeoutError: not known after `timeout_s` seconds.
        """
        if timeout_s is None and self.ticket.helper is not None and not self.done():
            self.ticket.helper.help()
        if not self.ticket.done.wait(timeout_s):
            raise TimeoutError(f"not durable after {timeout_s} s")
        if self.ticket.error is not None:
            raise self.ticket.error
        return self.ticket.indices[self.position]


@dataclass(frozen=True, slots=True)
class Receipts(Sequence[Receipt]):
    """The receipts of one call, made when they are asked for."""

    ticket: Ticket[Any] | None
    positions: range

    def __len__(self) -> int:
        """Count the entries."""
        return len(self.positions)

    @overload
    def __getitem__(self, number: int) -> Receipt: ...

    @overload
    def __getitem__(self, number: slice) -> Receipts: ...

    def __getitem__(self, number: int | slice) -> Receipt | Receipts:
        """Return one receipt, or some of them."""
        if isinstance(number, slice):
            return Receipts(self.ticket, self.positions[number])
        position = self.positions[number]  # raises IndexError, too, where there is no ticket
        return Receipt(cast("Ticket[Any]", self.ticket), position)

    def __iter__(self) -> Iterator[Receipt]:
        """Return them in the order of the events."""
        return (self[number] for number in range(len(self)))


class Writer(Generic[Item]):
    """Two threads that store tickets in the order they came.

    One prepares what the other commits: preparing computes, committing mostly waits for
    the disk, so each goes on while the other works. What needs no preparing to speak of is
    prepared by who hands it over, and a caller who waits for a receipt commits himself
    where the thread has not begun: a thread that must wake up costs more than small work.

    Patient tickets are kept until the first of them has waited long enough, or anything
    comes that is not patient: a caller who hands over little and often, and computes in
    between, is disturbed once in a while and not each time.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[Ticket[Item]], bool], None],
        lost: Callable[[Sequence[Ticket[Item]]], None],
        *,
        prepare: Callable[[Ticket[Item]], None] = lambda _: None,
        is_light: Callable[[Item], bool] = lambda _: True,
        started: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin with the first ticket.

        Args:
            commit: `commit(tickets, retry)` must make all of them durable in one transaction
                and set their indices, or raise; with `retry` it must first look for what an
                earlier attempt may have stored after all. It must prepare what is not.
            lost: told of tickets that could not be stored.
            prepare: does the computing for a ticket, once; what it raises is left to `commit`.
            is_light: whether the caller may as well prepare it.
            started: called before the first ticket is taken.
        """
        self._commit = commit
        self._lost = lost
        self._prepare = prepare
        self._is_light = is_light
        self._started = started
        self._at_work = threading.Lock()  # held while committing
        self._is_failing = False  # owned by _at_work
        # all below is owned by _lock
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._prepared = threading.Condition(self._lock)
        self._taken = threading.Condition(self._lock)
        self._closed = False
        self._raw: deque[Ticket[Item]] = deque()  # the first one is being prepared
        self._ready: deque[Ticket[Item]] = deque()
        self._patient: deque[Ticket[Item]] = deque()
        self._due_s: float | None = None  # until when they wait
        self._in_doubt: list[Ticket[Item]] = []  # a commit of these was interrupted
        self._entries = 0  # waiting in all of them
        self._queueing = 0  # callers who wait for room
        self._barriers: list[tuple[int, threading.Event]] = []
        self._handed_over = self._settled = 0  # tickets so far
        self._looks_soon = False  # the committing thread will, whether or not it is woken
        self._threads: list[threading.Thread] = []

    # --- callers ------------------------------------------------------------------------

    def submit(self, ticket: Ticket[Item], *, wait_s: float | None = None) -> None:
        """Hand over a ticket; waits only while the queue is full.

        Raises:
            Overloaded: it was still full after `wait_s` seconds; the ticket was not taken.
            WriterClosed: the ledger was closed.
        """
        count = ticket.count
        if is_light := self._is_light(ticket.items):
            self._prepare(ticket)
        with self._lock:

            def has_room() -> bool:
                return self._closed or self._entries + count <= max(QUEUE_ENTRIES_MAX, count)

            if not has_room() and not self._wait_for_room(has_room, wait_s):
                raise Overloaded(
                    f"{self._entries:,} entries wait for the store, and more came for {wait_s} s",
                    next_step="record less often, use a faster disk, or raise queue_wait_ms",
                )
            self._require_open()
            if not self._threads:  # not before: a process may fork first
                self._started()
                self._start("ledger-writer", self._committing)
            ticket.helper = self
            self._entries += count
            self._handed_over += 1
            if ticket.patience_s and self._entries < PATIENT_ENTRIES_MAX:
                self._patient.append(ticket)
                if self._due_s is None:
                    self._due_s = time.monotonic() + ticket.patience_s
                    self._prepared.notify()  # whoever sleeps until it is woken has an alarm now
                return
            self._urge()
            self._queue(ticket, is_light=is_light)

    def _urge(self) -> None:
        """Let the patient ones go on; with the lock held."""
        self._due_s = None
        while self._patient:
            ticket = self._patient.popleft()
            self._queue(ticket, is_light=self._is_light(ticket.items))

    def _queue(self, ticket: Ticket[Item], *, is_light: bool) -> None:
        """Put a ticket behind those that came before it; with the lock held."""
        if is_light and not self._raw:
            self._ready.append(ticket)
            if not self._looks_soon:
                self._prepared.notify()
            return
        if len(self._threads) == 1:
            self._start("ledger-preparer", self._preparing)
        self._raw.append(ticket)
        self._arrived.notify()

    def _wait_for_room(self, has_room: Callable[[], bool], wait_s: float | None) -> bool:
        """Return whether there is room after `wait_s` seconds at most; with the lock held."""
        self._urge()
        self._queueing += 1
        try:
            return self._taken.wait_for(has_room, wait_s)
        finally:
            self._queueing -= 1

    def help(self) -> None:
        """Commit what is ready, if nobody does; for a caller who would only wait for it."""
        if self._patient:
            with self._lock:
                self._urge()
        if not self._at_work.acquire(blocking=False):
            return
        try:
            group = self._take()
            if group:
                self._settle(group)
        finally:
            self._at_work.release()

    def flush(self) -> None:
        """Wait until everything handed over so far has an outcome.

        Raises:
            WriterClosed: the ledger was closed.
        """
        reached = threading.Event()
        with self._lock:
            self._require_open()
            if self._settled == self._handed_over:
                return
            self._urge()
            self._barriers.append((self._handed_over, reached))
        self.help()
        reached.wait()

    def close(self) -> None:
        """Finish what was handed over, then stop; calling it again does nothing."""
        with self._lock:
            self._urge()  # first: who prepares stops where all is prepared and no more will come
            self._closed = True
            for condition in (self._arrived, self._prepared, self._taken):
                condition.notify_all()
        for thread in self._threads:
            thread.join()

    def _require_open(self) -> None:
        if self._closed:
            raise WriterClosed("the ledger is closed", next_step="open it again")

    def _start(self, name: str, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    # --- our threads --------------------------------------------------------------------

    def _preparing(self) -> None:
        while True:
            with self._lock:
                while not self._raw and not self._closed:
                    self._arrived.wait()
                if not self._raw:
                    self._prepared.notify_all()
                    return
                ticket = self._raw[0]
            with suppress(Exception):  # commit meets it again, and tells
                self._prepare(ticket)
            with self._lock:
                self._ready.append(self._raw.popleft())
                self._prepared.notify()

    def _committing(self) -> None:
        while self._wait_for_work():
            with self._at_work:
                group = self._take()
                if group:
                    self._settle(group)

    def _wait_for_work(self) -> bool:
        """Return when tickets are ready, or False when none will come any more.

        While tickets come one by one and their callers commit them, it looks by itself from
        time to time: being woken by each of them would cost the callers more than the work.
        """
        with self._lock:
            while not self._ready and not self._in_doubt:
                left_s = None if self._due_s is None else self._due_s - time.monotonic()
                if left_s is not None and left_s <= 0:
                    self._urge()
                    continue
                if self._closed and not self._raw:
                    return False
                settled = self._settled
                is_woken = self._prepared.wait(LOOK_AGAIN_S if self._looks_soon else left_s)
                self._looks_soon = is_woken or self._settled != settled
            self._looks_soon = True
        return True

    def _take(self) -> list[Ticket[Item]]:
        """Return what is ready, up to a group; with `_at_work` held."""
        with self._lock:
            if self._in_doubt:
                return list(self._in_doubt)
            group: list[Ticket[Item]] = []
            count = 0
            while self._ready and count < GROUP_ENTRIES_MAX:
                ticket = self._ready.popleft()
                group.append(ticket)
                count += ticket.count
            self._entries -= count
            if self._queueing:
                self._taken.notify_all()
        return group

    def _settle(self, group: list[Ticket[Item]]) -> None:
        """Commit a group, trying again where the store may have recovered."""
        is_retry, self._in_doubt = bool(self._in_doubt), group
        for delay_s in (*RETRY_DELAYS_S, None):
            try:
                # interrupted here, by Ctrl-C in a caller who helps: the group stays in doubt
                self._commit(group, is_retry)
                self._is_failing = False
                break
            except Exception as error:  # noqa: BLE001 - the outcome is unknown whatever it was
                if delay_s is None:
                    self._fail(group, error)
                    break
                time.sleep(delay_s)
            is_retry = True
        self._in_doubt = []
        for ticket in group:
            ticket.done.set()
        with self._lock:
            self._settled += len(group)
            reached = [barrier for barrier in self._barriers if barrier[0] <= self._settled]
            for barrier in reached:
                self._barriers.remove(barrier)
                barrier[1].set()

    def _fail(self, group: list[Ticket[Item]], cause: Exception) -> None:
        error = AppendFailed(
            f"entries could not be stored: {type(cause).__name__}: {_first_line(cause)}",
            next_step="free disk space or repair the database; the loss is recorded as a gap",
        )
        for ticket in group:
            ticket.error = error
        if not self._is_failing:  # once for each time the store goes away
            self._is_failing = True
            _logger.error("%s", error)
        self._lost(group)


def _first_line(cause: Exception) -> str:
    """The driver's own words, without the statement and its parameters."""
    return str(getattr(cause, "orig", cause)).split("\n", 1)[0]
