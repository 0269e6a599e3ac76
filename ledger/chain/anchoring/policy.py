"""When to anchor: pure arithmetic over what a log has and what of it is anchored.

Aligned tree sizes, multiples of 256, cost less gas: their consistency proofs need no nodes from
inside a tile. So an anchor that is due waits for such a size, though never longer than the
settings say; what ends a run does not wait at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from rlhf_audit_trail.ledger.settings import AnchorSettings

__all__ = ["Growth", "Timing", "Wish"]


class Wish(Enum):
    """What the policy wants of a log now."""

    NOTHING = "nothing"
    ALIGNED = "aligned"
    NEWEST = "newest"


@dataclass(frozen=True)
class Growth:
    """How far a log has grown, and how far it is anchored.

    Attributes:
        size: count of durable entries.
        anchored_size: of the newest tree head seen on the chain.
        checkpoint_size: size of the log with the newest checkpoint entry in it; 0 for none.
        end_size: size of the log with the newest end of a run in it; 0 for none.
        is_closed: nothing more will come.
    """

    size: int
    anchored_size: int
    checkpoint_size: int = 0
    end_size: int = 0
    is_closed: bool = False


class Timing:
    """What has to be remembered of one log between two looks; times by a monotonic clock."""

    def __init__(self, settings: AnchorSettings) -> None:
        """Begin with nothing seen."""
        self._settings = settings
        self._waiting_since_s: float | None = None  # the oldest entry that is not anchored
        self._anchored_size = -1
        self._due_since_s: float | None = None

    def wish(self, growth: Growth, now_s: float) -> Wish:
        """Return what to anchor now."""
        if growth.anchored_size != self._anchored_size:
            self._anchored_size = growth.anchored_size
            self._waiting_since_s = self._due_since_s = None
        if growth.size <= growth.anchored_size:
            return Wish.NOTHING
        if self._waiting_since_s is None:
            self._waiting_since_s = now_s
        needed = self._needed_size(growth, now_s)
        if needed == 0:
            return Wish.NOTHING
        if self._due_since_s is None:
            self._due_since_s = now_s
        return self._how(growth, needed, now_s)

    def _needed_size(self, growth: Growth, now_s: float) -> int:
        """Return the size that an anchor must reach at least; 0 if none is due."""
        settings, anchored = self._settings, growth.anchored_size
        needed = 0
        if settings.at_run_end and max(growth.end_size, growth.is_closed * growth.size) > anchored:
            needed = growth.size
        if settings.at_checkpoints and growth.checkpoint_size > anchored:
            needed = max(needed, growth.checkpoint_size)
        if settings.every_entries and growth.size - anchored >= settings.every_entries:
            needed = max(needed, anchored + 1)
        waited_s = now_s - (now_s if self._waiting_since_s is None else self._waiting_since_s)
        if settings.every_s and waited_s >= settings.every_s:
            needed = max(needed, anchored + 1)
        return needed

    def _how(self, growth: Growth, needed: int, now_s: float) -> Wish:
        settings = self._settings
        is_end = settings.at_run_end and (
            growth.is_closed or growth.end_size > growth.anchored_size
        )
        waited_s = now_s - (now_s if self._due_since_s is None else self._due_since_s)
        # also where a larger tree was signed already: an aligned one below it never will be
        if is_end or settings.align_to == 1 or waited_s >= settings.align_delay_s_max:
            return Wish.NEWEST
        aligned = growth.size - growth.size % settings.align_to
        return Wish.ALIGNED if aligned >= needed else Wish.NOTHING
