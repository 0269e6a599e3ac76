"""The declared range of a reward, and where a reward lies in it: exactly, and always within."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import isfinite
from numbers import Integral, Real

from rlhf_audit_trail.privacy.errors import MissingSensitivity, NonFiniteValue
from rlhf_audit_trail.privacy.exact import rational

__all__ = ["Interval"]


@dataclass(frozen=True)
class Interval:
    """The declared range of a reward; what lies outside is clipped, silently.

    To refuse a value outside would tell everyone who sees the refusal that it was there.
    """

    low: Fraction
    high: Fraction

    @classmethod
    def of(cls, low: Fraction | float | str, high: Fraction | float | str) -> Interval:
        """Make an interval of two settings, each the rational it was written as."""
        return cls(rational(low, name="a bound"), rational(high, name="a bound"))

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise MissingSensitivity("the range of a reward is two numbers, low below high")

    @property
    def width(self) -> Fraction:
        """High minus low."""
        return self.high - self.low

    def position(self, value: float | Fraction) -> Fraction:
        """Return where a value lies, from 0 (low, or below it) to 1 (high, or above it).

        Raises:
            NonFiniteValue: as `ratio`.
        """
        return Fraction(*self.ratio(value))

    def ratio(self, value: float | Fraction) -> tuple[int, int]:
        """Return `position` as numerator and denominator, not in lowest terms.

        A float is taken at its exact binary value here: it is data, and not a setting. Numbers
        of NumPy are floats and integers like any other.

        Raises:
            NonFiniteValue: it is NaN, infinite or no number; the message does not hold it.
        """
        n, d = _exact_ratio(value)
        low, per, width, scale = self._grid
        above, whole = (n * per - low * d) * scale, d * per * width
        if above < 0:
            return 0, whole
        return min(above, whole), whole

    @cached_property
    def _grid(self) -> tuple[int, int, int, int]:
        """Low and width as numerators and denominators, once for every value to come."""
        return *self.low.as_integer_ratio(), *self.width.as_integer_ratio()

    def level(self, value: float | Fraction, steps: int) -> int:
        """Return the nearest of steps + 1 grid points, counted from `low`; halves go up."""
        return (self.position(value) * steps + Fraction(1, 2)).__floor__()

    def at(self, position: Fraction) -> Fraction:
        """Return the value at a position; estimates may lie outside [0, 1]."""
        return self.low + self.width * position

    def public(self) -> list[str]:
        """Return both ends as rationals."""
        return [str(self.low), str(self.high)]


def _exact_ratio(value: object) -> tuple[int, int]:
    if not isinstance(value, float):
        if isinstance(value, Fraction):
            return value.as_integer_ratio()
        if isinstance(value, bool) or not isinstance(value, Real):
            raise NonFiniteValue("a reward must be a number")
        if isinstance(value, Integral):
            return int(value), 1
        value = float(value)
    if not isfinite(value):
        raise NonFiniteValue("a reward must be finite")
    return value.as_integer_ratio()
