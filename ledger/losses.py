"""What is missing and has not been told yet: this writer's losses, and those of dead ones."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf_audit_trail.ledger.counters import Counter, DeadWriter, dead_writers

__all__ = ["Losses"]

_logger = logging.getLogger(__name__)


class Losses:
    """The public fields of `gap` events to come; safe to share between threads."""

    def __init__(self, directory: Path | None, run_id: str) -> None:
        """Nothing was lost yet; `directory` is where writers count, if they do."""
        self._directory = directory
        self._run_id = run_id
        self._counter: Counter | None = None
        self._dead: list[DeadWriter] = []  # told, but perhaps not durably
        self._lock = threading.Lock()
        self._losses: list[dict[str, Any]] = []

    def __bool__(self) -> bool:
        """Whether there is something to tell."""
        return bool(self._losses)

    def add(self, losses: Iterable[Mapping[str, Any]]) -> None:
        """Remember losses; one that continues the one before makes it longer."""
        with self._lock:
            for loss in losses:
                before = self._losses[-1] if self._losses else None
                if (
                    before
                    and before["of_writer"] == loss["of_writer"]
                    and before["last_seq"] + 1 == loss["first_seq"]
                ):
                    before["last_seq"] = loss["last_seq"]
                    before["count"] += loss["count"]
                else:
                    self._losses.append(dict(loss))

    def take(self) -> list[dict[str, Any]]:
        """Return all of them and forget them."""
        with self._lock:
            losses, self._losses = self._losses, []
        return losses

    # --- across the end of a process ----------------------------------------------------

    def count(self, writer_id: str, handed_over: int) -> None:
        """Keep how many sequence numbers a writer of this process has given out."""
        if self._counter is None and self._directory is not None:
            try:
                self._counter = Counter(self._directory, self._run_id, writer_id)
            except (OSError, ValueError) as why:  # it helps the next process: go on without
                _logger.warning("%s: what a kill would lose is not counted: %s", self._run_id, why)
                self._directory = None
        if self._counter is not None:
            self._counter.put(handed_over)

    def find_dead_writers(
        self,
        stored: Callable[[str], int],
        told: Callable[[], Iterable[Mapping[str, Any]]],
    ) -> None:
        """Add what was handed over by processes that have ended, and is nowhere.

        Looks once, before this writer's first entry.

        Args:
            stored: writer id to how many of its sequence numbers are in the log.
            told: fields of the `gap` events that are in the log.
        """
        if self._directory is None or self._counter is not None:
            return
        for writer in dead_writers(self._directory, self._run_id):
            known = stored(writer.writer_id)
            for gap in told() if known < writer.count else ():
                if gap["of_writer"] == writer.writer_id:
                    known = max(known, gap["last_seq"] + 1)
            self._dead.append(writer)
            if known < writer.count:
                self.add([_loss_of(writer, known)])

    def settle(self) -> None:
        """All that was handed over has an outcome: the dead are told of, and can go."""
        if self._losses:
            return
        for writer in self._dead:
            writer.bury()
        self._dead.clear()

    def of_child(self) -> Losses:
        """Return, in a forked child, an empty one; the parent's counter keeps its lock."""
        for writer in self._dead:
            writer.release()
        if self._counter is not None:
            self._counter.close(remove=False)
        return Losses(self._directory, self._run_id)

    def close(self) -> None:
        """End counting; the file stays where something was not told."""
        self.settle()
        for writer in self._dead:
            writer.release()
        self._dead.clear()
        if self._counter is not None:
            self._counter.close(remove=not self._losses)
            self._counter = None


def _loss_of(writer: DeadWriter, stored: int) -> dict[str, Any]:
    reason = "its process ended before they were durable"
    if not writer.is_exact:
        reason = "its machine stopped before they were durable; at least so many"
    return {
        "of_writer": writer.writer_id,
        "first_seq": stored,
        "last_seq": writer.count - 1,
        "count": writer.count - stored,
        "reason": reason,
    }
