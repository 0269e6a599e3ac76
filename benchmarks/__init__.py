"""Benchmarks: one question per file, each answered by `python -m benchmarks NAME`.

A benchmark module has `run() -> Sequence[Result]`. Times are noisy on shared machines, so read
ratios; gas and counts are exact.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Result"]


@dataclass(frozen=True)
class Result:
    """One measured value.

    Attributes:
        name: what was measured.
        value: the measurement, in `unit`; None where this machine has not what it needs.
        unit: such as gas, s, entries/s.
        reference: what it is compared with, measured in the same run; None if nothing fits.
        goal: the bar; None if there is none.
        lower_is_better: which side of the goal is good.
    """

    name: str
    value: float | None
    unit: str
    reference: float | None = None
    goal: float | None = None
    lower_is_better: bool = True

    @property
    def ratio(self) -> float | None:
        """Value over reference."""
        if not self.reference or self.value is None:
            return None
        return round(self.value / self.reference, 4)

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without a goal, and where nothing was measured."""
        if self.goal is None or self.value is None:
            return None
        return self.value <= self.goal if self.lower_is_better else self.value >= self.goal
