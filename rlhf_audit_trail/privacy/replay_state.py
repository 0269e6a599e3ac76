"""Where a replay stands: rounds and charges, from the entries that it has taken."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlhf_audit_trail.privacy.account import Budget
from rlhf_audit_trail.privacy.aggregates import Histogram, MeanSum
from rlhf_audit_trail.privacy.cost import Cost
from rlhf_audit_trail.privacy.mechanisms import Mechanism

__all__ = ["ReplayedRound", "ReplayedSpend"]


@dataclass
class ReplayedSpend:
    """A charge of a round, as its entries have it so far."""

    index: int
    slots: list[int]
    coin_index: int
    participants: int
    parts: int
    statistic: MeanSum | Histogram
    mechanism: Mechanism
    budget: Budget
    cost: Cost
    range: tuple[int, int]
    exhausted: int  # how many annotators were left out, as it says
    released_at: int = -1
    skipped_at: int = -1
    names: list[str] | None = field(default_factory=list)


@dataclass
class ReplayedRound:
    """A round, as its entries have it so far."""

    number: int
    index: int
    slots: int
    first_index: int
    next_slot: int = 0
    coin_index: int = -1
    tree_size: int = 0
    spends: dict[int, ReplayedSpend] = field(default_factory=dict)
