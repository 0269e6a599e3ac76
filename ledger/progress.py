"""Where a run stands, for whoever goes on with it: its size, and how far its counters came.

Standard library only: the same record is made where the log is, and read on another machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self

from rlhf_audit_trail.ledger.append_call import NotAnswered
from rlhf_audit_trail.ledger.proof.tree_head import SignedTreeHead

__all__ = ["Progress", "progress_of"]

_WRITERS_MAX: Final = 256  # that may record at once, each with its own view of the counter
_TEXT_MAX: Final = 1_000


class _Entry(Protocol):
    @property
    def leaf_index(self) -> int: ...
    @property
    def event(self) -> dict[str, Any]: ...


class _ReadableLog(Protocol):
    @property
    def origin(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def closed(self) -> bool: ...
    def published(self) -> SignedTreeHead | None: ...
    def entries(self, start: int = 0, *, kind: str = "") -> Iterable[_Entry]: ...
    def newest(self, kind: str) -> _Entry | None: ...


@dataclass(frozen=True)
class Progress:
    """What a recorder needs to go on.

    Attributes:
        size: durable entries.
        is_closed: whether the run takes no more.
        policy_step: policy updates recorded so far.
        batch: batches of annotations recorded so far.
        tree_head: text of the newest signed tree head; of the empty tree if there is none.
    """

    size: int
    is_closed: bool
    policy_step: int
    batch: int
    tree_head: str

    @classmethod
    def parse(cls, said: dict[str, Any]) -> Self:
        """Read what a service answered; raises NotAnswered for something else."""
        numbers = [said.get(name) for name in ("size", "policy_step", "batch")]
        is_closed, head = said.get("is_closed"), said.get("tree_head")
        is_whole = all(type(x) is int and x >= 0 for x in numbers) and type(is_closed) is bool
        if not is_whole or not isinstance(head, str) or len(head) > _TEXT_MAX:
            raise NotAnswered(
                "the answer does not say where the run stands",
                next_step="check that the service is as new as this software",
            )
        size, policy_step, batch = (int(x or 0) for x in numbers)
        return cls(size, is_closed is True, policy_step, batch, head)


def progress_of(log: _ReadableLog) -> Progress:
    """Look in a stored log how far it came."""
    size, signed = log.size, log.published()
    head = signed.head.text if signed else f"{log.origin}\n0\n"
    return Progress(
        size,
        log.closed,
        _newest(log, "policy.update", "policy_step"),
        _newest(log, "annotation.recorded", "batch"),
        head,
    )


def _newest(log: _ReadableLog, kind: str, name: str) -> int:
    """Return how far a counter came; it grows, so its newest entries tell."""
    last = log.newest(kind)
    if last is None:
        return 0
    near = log.entries(max(0, last.leaf_index - _WRITERS_MAX), kind=kind)
    return max([int(entry.event[name]) for entry in near], default=0)
