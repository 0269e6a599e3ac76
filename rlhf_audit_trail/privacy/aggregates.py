"""Statistics over many annotators, as integers whose sensitivity is known.

Each says how far one annotator, all of whose values may be replaced, can move it; who takes
part stays fixed. The statistics themselves are raw: only what a mechanism makes of
them may leave.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

from rlhf_audit_trail.privacy.errors import InvalidParameter, MissingSensitivity
from rlhf_audit_trail.privacy.interval import Interval

__all__ = ["DISTINCT_MIN", "GRID_STEPS", "Histogram", "MeanSum", "enough_annotators"]

GRID_STEPS: Final = (
    256  # rounding to it moves one annotator's mean by 1/512 of the interval at most
)
DISTINCT_MIN: Final = 20  # below it the mode minimal prints no aggregate at all
_STEPS_MAX: Final = 1024  # sigma grows with it, and with sigma the work of an exact tail


@dataclass(frozen=True)
class MeanSum:
    """The sum over annotators of each one's mean reward, on a grid.

    Attributes:
        interval: the declared range of a reward.
        steps: of the grid: a mean becomes 0 (low) to `steps` (high).
    """

    interval: Interval
    steps: int = GRID_STEPS

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= _STEPS_MAX:
            raise InvalidParameter(f"a grid has 1 to {_STEPS_MAX} steps")

    @property
    def sensitivity_l1(self) -> int:
        """Of the sum, in steps: one mean goes from one end to the other."""
        return self.steps

    @property
    def sensitivity_squared(self) -> int:
        """Of the L2 sensitivity; there is one cell."""
        return self.steps**2

    def statistic(self, values: Mapping[str, Sequence[float]]) -> list[int]:
        """Return the sum, in steps, of every annotator's mean of clipped rewards.

        Args:
            values: by annotator; somebody without a value is not a participant.

        Raises:
            InvalidParameter: an annotator has no value.
            NonFiniteValue: a reward is no finite number.
        """
        total = 0
        for rewards in values.values():
            if not rewards:
                raise InvalidParameter("a participant has at least one value")
            # clipped one by one: a mean of clipped values is within the interval anyway
            positions = sum(map(self.interval.position, rewards), Fraction(0))
            total += (positions / len(rewards) * self.steps + Fraction(1, 2)).__floor__()
        return [total]

    def mean(self, released: int, participants: int) -> Fraction:
        """Return the mean reward per annotator from a released sum; their number is public."""
        if participants < 1:
            raise InvalidParameter("a mean is over at least one participant")
        return self.interval.at(Fraction(released, participants * self.steps))

    def public(self) -> dict[str, Any]:
        """Return what the statistic is, as JSON types."""
        return {
            "statistic": "mean_sum",
            "bounds": self.interval.public(),
            "steps": self.steps,
            "sensitivity_l1": self.sensitivity_l1,
            "sensitivity_l2_squared": self.sensitivity_squared,
        }


@dataclass(frozen=True)
class Histogram:
    """How often each of some cells was chosen, at most `contributions` times by one annotator.

    Attributes:
        cells: how many there are; values are 0 to cells - 1.
        contributions: c; of somebody's further values, the first c in order count.
    """

    cells: int
    contributions: int = 1

    def __post_init__(self) -> None:
        if self.cells < 1:
            raise InvalidParameter("a histogram has cells")
        if self.contributions < 1:
            raise MissingSensitivity("one annotator contributes a bounded number of values")

    @property
    def sensitivity_l1(self) -> int:
        """2c: c values leave some cells and enter others."""
        return 2 * self.contributions

    @property
    def sensitivity_squared(self) -> int:
        """2c^2: at worst all c leave one cell and enter one other."""
        return 2 * self.contributions**2

    def statistic(self, values: Mapping[str, Sequence[int]]) -> list[int]:
        """Return the counts, in the order of the cells.

        Raises:
            InvalidParameter: a value is not one of the cells.
        """
        counts: Counter[int] = Counter()
        for chosen in values.values():
            counts.update(chosen[: self.contributions])
        if any(not 0 <= cell < self.cells for cell in counts):
            raise InvalidParameter("a value is not one of the cells")
        return [counts[cell] for cell in range(self.cells)]

    def public(self) -> dict[str, Any]:
        """Return what the statistic is, as JSON types."""
        return {
            "statistic": "histogram",
            "cells": self.cells,
            "contributions": self.contributions,
            "sensitivity_l1": self.sensitivity_l1,
            "sensitivity_l2_squared": self.sensitivity_squared,
        }


def enough_annotators(participants: int) -> bool:
    """Tell whether the mode minimal may print an aggregate. This is no privacy guarantee."""
    return participants >= DISTINCT_MIN
