"""The writer thread: takes what callers hand over and commits it in groups.

While one group is being made durable the next one gathers, so one fsync serves many
entries, and no caller waits for the disk unless it asks its receipt.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = ["AppendFailed", "Receipt", "Ticket", "Writer", "WriterClosed"]

GROUP_ENTRIES_MAX: Final = 1_000  # beyond it, larger groups gained nothing measurable
QUEUE_TICKETS_MAX: Final = 10_000  # a full queue makes the caller wait: nothing is dropped
RETRY_DELAYS_S: Final = (0.05, 0.2, 1.0)

_logger = logging.getLogger(__name__)

Item = TypeVar("Item")


class AppendFailed(AuditTrailError):
    """The store refused a group of entries; they are not durable."""


class WriterClosed(AuditTrailError):
    """The ledger was closed; nothing can be handed over any more."""


@dataclass
class Ticket(Generic[Item]):
    """What one call handed over, and what became of it.

    Owned by the caller until submitted, then by the writer until `done` is set.
    """

    log: str
    items: Sequence[Item]
    done: threading.Event = field(default_factory=threading.Event)
    indices: Sequence[int] = ()
    error: AuditTrailError | None = None


@dataclass(frozen=True)
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
        if not self.ticket.done.wait(timeout_s):
            raise TimeoutError(f"not durable after {timeout_s} s")
        if self.ticket.error is not None:
            raise self.ticket.error
        return self.ticket.indices[self.position]


class Writer(Generic[Item]):
    """One thread that commits tickets in the order they came.

    `commit(tickets, retry)` must make all of them durable in one transaction and set
    their indices, or raise; with `retry` it must first look for what an earlier, failed
    attempt may have stored after all.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[Ticket[Item]], bool], None],
        lost: Callable[[Sequence[Ticket[Item]]], None],
    ) -> None:
        """Start the thread; `lost` is told of tickets that could not be stored."""
        self._commit = commit
        self._lost = lost
        self._queue: queue.Queue[Ticket[Item] | None] = queue.Queue(QUEUE_TICKETS_MAX)
        self._closed = False
        self._is_failing = False
        self._lock = threading.Lock()  # orders submissions against close
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self._thread.start()

    def submit(self, ticket: Ticket[Item]) -> None:
        """Hand over a ticket; waits only while the queue is full."""
        with self._lock:
            if self._closed:
                raise WriterClosed("the ledger is closed", next_step="open it again")
            self._queue.put(ticket)

    def flush(self) -> None:
        """Wait until everything handed over so far has an outcome."""
        barrier: Ticket[Item] = Ticket("", ())
        self.submit(barrier)
        barrier.done.wait()

    def close(self) -> None:
        """Finish what was handed over, then stop; calling it again does nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        ended = False
        while not ended:
            group: list[Ticket[Item]] = []
            ended = not self._take(group)
            if group:
                self._settle(group)

    def _take(self, group: list[Ticket[Item]]) -> bool:
        """Fill a group with what is waiting; return False when the end was reached."""
        count, ticket = 0, self._queue.get()
        while ticket is not None:
            group.append(ticket)
            count += len(ticket.items)
            if count >= GROUP_ENTRIES_MAX:
                return True
            try:
                ticket = self._queue.get_nowait()
            except queue.Empty:
                return True
        return False

    def _settle(self, group: list[Ticket[Item]]) -> None:
        """Commit a group, trying again where the store may have recovered."""
        try:
            for attempt, delay_s in enumerate((*RETRY_DELAYS_S, None)):
                try:
                    self._commit(group, attempt > 0)
                    self._is_failing = False
                    break
                except Exception as error:  # noqa: BLE001 - the outcome is unknown whatever it was
                    if delay_s is None:
                        self._fail(group, error)
                        break
                    time.sleep(delay_s)
        finally:
            for ticket in group:
                ticket.done.set()

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
