"""What a chain holds of a log, beside what the log shows: one history, and not long ago.

The contract takes only trees that extend the one before, so its newest head stands for all
earlier ones. Asking a chain is done elsewhere: this runs on the auditor's install.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError, Inconsistent, PolicyUnmet
from rlhf_audit_trail.ledger.proof.tree_head import TreeHead
from rlhf_audit_trail.ledger.public_log import PublicLog
from rlhf_audit_trail.ledger.tiles import GrowingTree

__all__ = ["AnchorSource", "AnchorUnknown", "AnchorWatch", "Anchored", "require_same_history"]


class AnchorUnknown(AuditTrailError):
    """The chain gave no answer; what it holds is unknown for now."""


@dataclass(frozen=True)
class Anchored:
    """The newest tree head that a contract holds of a log, as one node tells it.

    Attributes:
        size: entries; 0 if nothing was anchored yet.
        root: 32 bytes.
        anchored_at_s: time of its block, POSIX seconds.
        place: where a stranger finds it: chain, contract, publisher, log id, block.
    """

    size: int
    root: bytes
    anchored_at_s: int
    place: dict[str, Any]

    def evidence(self) -> dict[str, Any]:
        """Return it as JSON for a stranger."""
        record = {"tree_size": self.size, "root": self.root.hex()}
        return self.place | record | {"anchored_at_s": self.anchored_at_s}


class AnchorSource(Protocol):
    """Whoever can ask a chain about one log."""

    def newest(self) -> Anchored:
        """Return the newest anchored head.

        Raises:
            AnchorUnknown: no answer for now.
            AuditTrailError: what answers is not the chain or contract that was pinned.
        """


@dataclass(frozen=True)
class AnchorWatch:
    """What is demanded of a log's anchors.

    Attributes:
        source: asks the chain.
        age_s_max: how old the newest anchor may be while the log grows; None for any age.
        now_s: the clock, POSIX seconds.
    """

    source: AnchorSource
    age_s_max: float | None = None
    now_s: Callable[[], float] = field(default=time.time)

    def unmet(self, found: Anchored, head: TreeHead) -> PolicyUnmet | None:
        """Return what is missing where nothing contradicts: an anchor that is young enough.

        Entries after the newest anchor are no fault before it is too old; a log that did not
        grow since needs no new one.
        """
        if self.age_s_max is None or found.size == head.size:
            return None
        if found.size == 0:
            return PolicyUnmet(f"{head.origin} is not anchored", expected="an anchor")
        age_s = self.now_s() - found.anchored_at_s
        if age_s <= self.age_s_max:
            return None
        return PolicyUnmet(
            f"the newest anchor of {head.origin} is too old",
            expected=f"at most {self.age_s_max:,.0f} s",
            actual=f"{age_s:,.0f} s, and {head.size - found.size:,} entries since",
        )


def require_same_history(found: Anchored, head: TreeHead, log: PublicLog) -> None:
    """Show that the log holds all of what was anchored.

    The anchor must have been read before the head was fetched: a log publishes first.

    Raises:
        Inconsistent: the log shows fewer entries, or others.
        MalformedBundle, NotServed, Unreachable: its tiles cannot be read.
    """
    if found.size > head.size:
        raise Inconsistent(
            f"{head.origin} shows fewer entries than were anchored",
            expected=f"at least {found.size:,}",
            actual=f"{head.size:,}",
        )
    if found.size == 0:
        return
    root = head.root
    if found.size < head.size:
        root = GrowingTree.restore(found.size, log.reader(head.size)).root()
    if root != found.root:
        raise Inconsistent(
            f"{head.origin} shows another tree of {found.size:,} entries than was anchored",
            expected=found.root.hex(),
            actual=root.hex(),
        )
