"""What a replay finds: sums by participant, counts, and what is not as it must be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from rlhf_audit_trail.privacy.account import Budget, Spent
from rlhf_audit_trail.privacy.cost import Cost
from rlhf_audit_trail.privacy.errors import PrivacyError, SpendDiffers

__all__ = ["Difference", "Replay"]


@dataclass(frozen=True)
class Difference:
    """Something that is not as it must be.

    Attributes:
        leaf_index: of the entry.
        error: what it is, by its class.
    """

    leaf_index: int
    error: PrivacyError

    def __str__(self) -> str:
        return f"entry {self.leaf_index}: {type(self.error).__name__}: {self.error.message}"


@dataclass
class Replay:
    """What a replay gives.

    Attributes:
        sums: pseudonym to what was spent in this run, of participants whose lists were opened.
        charges: costs of all charges in order, with the number of participants.
        budgets: that the charges name.
        rules: pseudonym to the response units of the rule under which that is counted: of the
            first charge in this run.
        labels: what single labels cost in order, with how many of them were charged.
        privatised: how many labels have an answer, and
        skipped: how many were given up.
        unopened: how many charges have a list that was not opened.
        pending: charges that are neither released nor given up; the next call finishes them.
        releases: how many there are.
        differences: in the order in which they were found.
    """

    sums: dict[str, Spent] = field(default_factory=dict, repr=False)
    charges: list[tuple[Cost, int]] = field(default_factory=list)
    budgets: list[Budget] = field(default_factory=list)
    rules: dict[str, int] = field(default_factory=dict, repr=False)
    labels: list[tuple[Cost, int]] = field(default_factory=list)
    privatised: int = 0
    skipped: int = 0
    unopened: int = 0
    pending: int = 0
    releases: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def labels_waiting(self) -> int:
        """How many labels were charged, and have neither an answer nor been given up."""
        return sum(count for _, count in self.labels) - self.privatised - self.skipped

    def differ(self, index: int, error: PrivacyError) -> None:
        """Note what an entry has wrong."""
        self.differences.append(Difference(index, error))

    def charge(self, names: Iterable[str], budget: Budget, cost: Cost, index: int) -> None:
        """Add one use for each name, as often as it is named."""
        is_over = False
        for name in names:
            rule = self.rules.setdefault(name, budget.response_units)
            own = budget if rule == budget.response_units else replace(budget, response_units=rule)
            self.sums[name] = self.sums.get(name, Spent()).plus(own.charge(cost))
            is_over |= not own.holds(self.sums[name])
        if is_over:
            self.differ(index, SpendDiffers("a charge exceeds the budget that it names"))

    def check(self) -> Replay:
        """Return itself if nothing differs.

        Raises:
            PrivacyError: the first difference, by its own class.
        """
        for difference in self.differences:
            raise difference.error
        return self
