"""What one writer could not store and has not told yet."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["Losses"]


class Losses:
    """The public fields of `gap` events to come; safe to share between threads."""

    def __init__(self) -> None:
        """Nothing was lost yet."""
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
                if before and before["last_seq"] + 1 == loss["first_seq"]:
                    before["last_seq"] = loss["last_seq"]
                    before["count"] += loss["count"]
                else:
                    self._losses.append(dict(loss))

    def take(self) -> list[dict[str, Any]]:
        """Return all of them and forget them."""
        with self._lock:
            losses, self._losses = self._losses, []
        return losses
