"""Whether an annotator's budget admits a charge: whole numbers only.

Sums of floats change when events are reordered, and then two auditors disagree about who was
over budget. Here a cost is rounded up and a budget down, once each, to units of 10^-12
(epsilon), 2^-40 (rho) and 10^-18 (delta); adding and comparing integers is exact for ever.

A budget keeps three sums per annotator and admits a charge if, after it,

    delta <= its delta share, and (epsilon <= E or second <= its second cap).

`second` is what the rule says:

- `union`: rho of zero-concentrated privacy, capped by the largest rho that is (E, delta)-DP.
  *Valid*: on transcripts where the epsilons stay within E the privacy loss is at most E at
  every point; every other transcript is one of the mechanism that the rho filter alone would
  have let through, with the same probability. The two parts add up to (E, delta), whoever
  chooses charges adaptively (Rogers et al. 2016 and Whitehouse et al. 2023 for the two
  filters). A mechanism without a rho closes the second way for good, one without a pure
  epsilon the first.
- `fixed_rr`: the number of randomised responses with one fixed epsilon, capped exactly by
  Kairouz, Oh, Viswanath 2015. Anything else closes the second way.

The rule is fixed before an annotator's first charge: to choose it later, seeing which one
would admit more, is a third filter that nobody has proven.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from rlhf_audit_trail.privacy.cost import UNBOUNDED, Cost, checked_delta, checked_epsilon
from rlhf_audit_trail.privacy.curves import (
    DELTA_UNITS,
    EPSILON_MAX,
    EPSILON_UNITS,
    kov_count,
    kov_epsilon_units,
    rho_budget_units,
    zcdp_epsilon_units,
)
from rlhf_audit_trail.privacy.errors import (
    BudgetExhausted,
    InvalidDelta,
    InvalidEpsilon,
    InvalidParameter,
)
from rlhf_audit_trail.privacy.exact import ceil_units, floor_units
from rlhf_audit_trail.privacy.guarantee import Guarantee

__all__ = ["RULES", "Budget", "Spent"]

RULES: Final = ("union", "fixed_rr")


@dataclass(frozen=True)
class Spent:
    """What one annotator has been charged under one budget.

    Attributes:
        epsilon_units: of 10^-12, or `UNBOUNDED`.
        second_units: rho of 2^-40 (`union`) or a count (`fixed_rr`), or `UNBOUNDED`.
        delta_units: of 10^-18.
    """

    epsilon_units: int = 0
    second_units: int = 0
    delta_units: int = 0

    def plus(self, other: Spent) -> Spent:
        """Return the sum; no guarantee, once lost, comes back."""
        return Spent(
            min(self.epsilon_units + other.epsilon_units, UNBOUNDED),
            min(self.second_units + other.second_units, UNBOUNDED),
            min(self.delta_units + other.delta_units, UNBOUNDED),
        )

    def times(self, uses: int) -> Spent:
        """Return what so many uses add up to."""
        units = (self.epsilon_units, self.second_units, self.delta_units)
        return Spent(*(min(x * uses, UNBOUNDED) for x in units))


@dataclass(frozen=True)
class Budget:
    """What one annotator may be charged in all; unit: all their values, relation: replace.

    Attributes:
        epsilon_units: the cap E, of 10^-12.
        delta_units: the delta of the second way, of 10^-18.
        share_units: the delta set aside for mechanisms that carry one, of 10^-18. All in all
            (E, delta + share).
        response_units: under `fixed_rr`, the fixed epsilon of one response; else 0.
    """

    epsilon_units: int
    delta_units: int
    share_units: int = 0
    response_units: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.epsilon_units <= EPSILON_MAX * EPSILON_UNITS:
            raise InvalidEpsilon(f"a budget's epsilon must be above 0 and at most {EPSILON_MAX:,}")
        if min(self.delta_units, self.share_units, self.response_units) < 0:
            raise InvalidParameter("a budget's units are 0 or more")
        if self.delta_units + self.share_units >= DELTA_UNITS:
            raise InvalidDelta("a budget's delta must be below 1")

    @classmethod
    def of(
        cls,
        epsilon: Fraction | float | str,
        delta: Fraction | float | str,
        *,
        share: Fraction | float | str = 0,
        response: Fraction | float | str | None = None,
        reserved: Guarantee | None = None,
    ) -> Budget:
        """Make a budget from what people write, rounded down.

        Args:
            epsilon: the cap over everything.
            delta: over everything, too.
            share: the part of `delta` set aside for binomial counts.
            response: fixes the rule `fixed_rr`, with this epsilon per response.
            reserved: what a model trained on the same values will spend; taken off both.

        Raises:
            InvalidEpsilon, InvalidDelta: nothing is left after what was set aside.
            UnsafeAccounting: `reserved` is under another unit or relation.
        """
        epsilon_units = floor_units(checked_epsilon(epsilon), EPSILON_UNITS)
        delta_units = floor_units(checked_delta(delta), DELTA_UNITS)
        share_units = ceil_units(checked_delta(share), DELTA_UNITS)
        if reserved is not None:
            reserved.check_comparable(Guarantee(epsilon_units, delta_units))
            epsilon_units -= reserved.epsilon_units
            delta_units -= reserved.delta_units
        if epsilon_units <= 0:
            raise InvalidEpsilon("what is set aside leaves no epsilon")
        if delta_units < share_units:
            raise InvalidDelta("what is set aside is more than delta")
        one = 0
        if response is not None:
            one = ceil_units(checked_epsilon(response), EPSILON_UNITS)
        return cls(epsilon_units, delta_units - share_units, share_units, one)

    @property
    def rule(self) -> str:
        """How `second_units` are counted: `union` or `fixed_rr`."""
        return "fixed_rr" if self.response_units else "union"

    @property
    def second_cap_units(self) -> int:
        """The cap of the second way: rho of 2^-40, or a number of responses."""
        if self.response_units:
            return kov_count(self.response_units, self.epsilon_units, self.delta_units)
        return rho_budget_units(self.epsilon_units, self.delta_units)

    def charge(self, cost: Cost) -> Spent:
        """Return what one use of a mechanism adds to each sum under this rule."""
        second = cost.rho_units
        if self.response_units:
            fits = cost.is_response and cost.epsilon_units == self.response_units
            second = 1 if fits else UNBOUNDED
        return Spent(cost.epsilon_units, second, cost.delta_units)

    def admits(self, spent: Spent, cost: Cost) -> bool:
        """Tell whether one more use stays within the budget."""
        return self.holds(spent.plus(self.charge(cost)))

    def holds(self, spent: Spent) -> bool:
        """Tell whether these sums are within the budget."""
        return spent.delta_units <= self.share_units and (
            spent.epsilon_units <= self.epsilon_units or spent.second_units <= self.second_cap_units
        )

    def charged(self, spent: Spent, cost: Cost, *, annotator: str = "") -> Spent:
        """Return the sums after one more use.

        Raises:
            BudgetExhausted: the budget does not admit it.
        """
        after = spent.plus(self.charge(cost))
        if not self.holds(after):
            raise BudgetExhausted(annotator, needed=self.charge(cost), left=self.left(spent))
        return after

    def left(self, spent: Spent) -> Spent:
        """Return cap minus spent, never below 0; what is admitted is for `admits` to say."""
        return Spent(
            max(self.epsilon_units - spent.epsilon_units, 0),
            max(self.second_cap_units - spent.second_units, 0),
            max(self.share_units - spent.delta_units, 0),
        )

    def uses_left(self, spent: Spent, cost: Cost) -> int:
        """Return how many more uses of one mechanism are admitted, if nothing else is charged."""
        one, left = self.charge(cost), self.left(spent)
        ways = [0]
        if spent.epsilon_units <= self.epsilon_units:
            ways.append(left.epsilon_units // one.epsilon_units)
        if spent.second_units <= self.second_cap_units:
            ways.append(left.second_units // one.second_units)
        uses = max(ways)
        if one.delta_units:
            uses = min(uses, left.delta_units // one.delta_units)
        return uses if self.holds(spent) else 0

    def spent_epsilon_units(self, spent: Spent) -> int:
        """Return the epsilon that was spent, at this budget's delta: the better of the two ways.

        Rounded up, and never above the cap where the sums are within the budget. With the
        shares used, delta is `delta_units` + `spent.delta_units`. It is exact for charges that
        were settled beforehand; where later ones were chosen by what earlier ones showed, the cap
        alone is a guarantee, and this is a report.

        Raises:
            InvalidEpsilon: no finite epsilon is known for these sums.
        """
        ways = [spent.epsilon_units]
        if self.delta_units and spent.second_units < UNBOUNDED:
            with suppress(InvalidEpsilon):  # too much for the second way; the first may hold
                ways.append(self._second_epsilon_units(spent.second_units))
        if min(ways) >= UNBOUNDED:
            raise InvalidEpsilon("no finite epsilon is known for what was spent")
        return min(ways)

    def _second_epsilon_units(self, second_units: int) -> int:
        if self.response_units:
            return kov_epsilon_units(second_units, self.response_units, self.delta_units)
        return zcdp_epsilon_units(second_units, self.delta_units)
