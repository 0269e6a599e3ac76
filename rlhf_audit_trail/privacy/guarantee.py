"""Guarantees that were reached, and when they may be added.

An (epsilon, delta) alone means nothing: whose data may differ, in what way, and who is
looking belong to it. Two of them add only where all three agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from rlhf_audit_trail.privacy.curves import DELTA_UNITS, EPSILON_UNITS
from rlhf_audit_trail.privacy.errors import (
    ConflictingParameters,
    InvalidDelta,
    UnsafeAccounting,
)
from rlhf_audit_trail.privacy.exact import UP, ceil_units, exp_up

__all__ = ["RELATION", "UNIT", "Guarantee", "check_agreement"]

UNIT: Final = "annotator"  # all values of one annotator
RELATION: Final = "replace"  # a log shows its size: nobody can be added or removed unseen
_AGREEMENT: Final = Fraction(1, 100)


@dataclass(frozen=True)
class Guarantee:
    """An (epsilon, delta) together with what makes it mean something.

    Attributes:
        epsilon_units: of 10^-12, rounded up.
        delta_units: of 10^-18, rounded up.
        unit: whose data may differ.
        relation: `replace` (a log shows its size), or `add_remove` (Poisson-sampled training).
        view: against whom it holds, such as `public`.
    """

    epsilon_units: int
    delta_units: int
    unit: str = UNIT
    relation: str = RELATION
    view: str = "public"

    def check_comparable(self, other: Guarantee) -> None:
        """Return if both may be added.

        Raises:
            UnsafeAccounting: unit, relation or view differ.
        """
        for name in ("unit", "relation", "view"):
            if getattr(self, name) != getattr(other, name):
                raise UnsafeAccounting(
                    f"two guarantees differ in their {name}, so they must not be added",
                    next_step="bring both to the unit of one annotator and the relation replace",
                )

    def plus(self, other: Guarantee) -> Guarantee:
        """Return what both together promise: epsilons and deltas add.

        Raises:
            UnsafeAccounting: unit, relation or view differ.
        """
        self.check_comparable(other)
        return Guarantee(
            self.epsilon_units + other.epsilon_units,
            self.delta_units + other.delta_units,
            self.unit,
            self.relation,
            self.view,
        )

    def as_replace(self) -> Guarantee:
        """Return it under `replace`: removing one and adding another are two steps.

        (epsilon, delta) becomes (2 epsilon, (1 + e^epsilon) delta), by group privacy.

        Raises:
            InvalidDelta: the delta that results is no probability below 1.
        """
        if self.relation == RELATION:
            return self
        factor = UP.add(exp_up(Fraction(self.epsilon_units, EPSILON_UNITS)), 1)
        delta_units = ceil_units(UP.multiply(factor, self.delta_units), 1)
        if delta_units >= DELTA_UNITS:
            raise InvalidDelta("under the relation replace this guarantee says nothing")
        return Guarantee(2 * self.epsilon_units, delta_units, self.unit, RELATION, self.view)


def check_agreement(claimed: Fraction, found: Fraction, *, name: str = "epsilon") -> None:
    """Return if a claimed figure agrees with the one that follows from the noise.

    Raises:
        ConflictingParameters: they differ by more than 1 %.
    """
    if abs(claimed - found) > _AGREEMENT * found:
        raise ConflictingParameters(
            f"the {name} that was asked for and the one that the noise gives differ",
            next_step="give the noise or the epsilon, and let the other follow",
        )
