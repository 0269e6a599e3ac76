"""The mechanisms by which values of annotators leave: what each is, costs and says of itself.

A mechanism is frozen, and all of it is public: rationals, bounds, sensitivity, integer costs.
Its `public()` is what a `dp.mechanism` entry holds, and with a seed it is all an auditor
needs to draw again. Values enter only `release` and its like, and their results leave only
after the charge.

Relation: replace; unit: all values of one annotator. Participation is fixed and public,
because a log shows its size.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Final

from rlhf_audit_trail.privacy.bits import DRBG_NAME, WORD_BITS, BitSource
from rlhf_audit_trail.privacy.cost import (
    UNBOUNDED,
    Cost,
    checked_delta,
    checked_epsilon,
    gaussian_cost,
    pure_cost,
    response_cost,
)
from rlhf_audit_trail.privacy.curves import (
    DELTA_UNITS,
    EPSILON_UNITS,
    binomial_delta_units,
)
from rlhf_audit_trail.privacy.draw import (
    SCALE_MAX,
    VARIANCE_MAX,
    centred_binomial,
    discrete_gaussian,
    discrete_laplace,
    keep_threshold,
    randomised_response,
    rounded_response,
)
from rlhf_audit_trail.privacy.errors import (
    ConflictingParameters,
    InvalidParameter,
    MissingSensitivity,
)
from rlhf_audit_trail.privacy.exact import ceil_units, rational
from rlhf_audit_trail.privacy.guarantee import RELATION, UNIT
from rlhf_audit_trail.privacy.interval import Interval

__all__ = [
    "Binomial",
    "DiscreteGaussian",
    "Geometric",
    "Mechanism",
    "RandomisedResponse",
    "RoundedResponse",
    "code_digest",
]

_WORDS: Final = 1 << WORD_BITS
_DRAWING: Final = ("bits.py", "draw.py", "exact.py")
_SENSITIVITY_MAX: Final = 1 << 40


@dataclass(frozen=True)
class Mechanism(ABC):
    """What all mechanisms have in common.

    Attributes:
        cost: of one use, charged before anything is drawn.
    """

    name: ClassVar[str]
    cost: Cost = field(init=False)

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """Return the parameters of this kind of mechanism: JSON types, rationals as text."""

    def public(self) -> dict[str, Any]:
        """Return the fields of a `dp.mechanism` entry: everything that decides a draw.

        Integers above 2^53 are text, since JSON readers round them; so are rationals.
        """
        cost = self.cost
        return {
            "name": self.name,
            "parameters": self.parameters(),
            "unit": UNIT,
            "relation": RELATION,
            "epsilon_units": _units(cost.epsilon_units),
            "rho_units": _units(cost.rho_units),
            "delta_units": str(cost.delta_units),
            "drbg": DRBG_NAME,
            "code_digest": code_digest(),
        }

    def _set_cost(self, cost: Cost) -> None:
        object.__setattr__(self, "cost", cost)  # frozen for everyone else


@dataclass(frozen=True)
class RandomisedResponse(Mechanism):
    """One of k answers, kept with probability T / 2^64, else another one (Warner 1965).

    Attributes:
        epsilon: of one answer; kept from above by T, which is rounded down.
        levels: how many answers there are, k >= 2.
        threshold: T.
    """

    epsilon: Fraction
    levels: int = 2
    threshold: int = field(init=False)
    name: ClassVar[str] = "randomised_response"

    def __post_init__(self) -> None:
        epsilon = checked_epsilon(self.epsilon)
        object.__setattr__(self, "epsilon", epsilon)
        object.__setattr__(self, "threshold", keep_threshold(epsilon, self.levels))
        self._set_cost(response_cost(epsilon))

    @property
    def keep(self) -> Fraction:
        """The probability, exactly, that an answer is the truth."""
        return Fraction(self.threshold, _WORDS)

    @property
    def other(self) -> Fraction:
        """The probability, exactly, of each answer that is not the truth."""
        return (1 - self.keep) / (self.levels - 1)

    def respond(self, bits: BitSource, value: int) -> int:
        """Draw the answer for a value from 0 to levels - 1."""
        return randomised_response(bits, value, levels=self.levels, threshold=self.threshold)

    def estimated_counts(self, counts: Sequence[int]) -> list[Fraction]:
        """Return unbiased estimates of how often each value occurred, from the answers' counts.

        Raises:
            InvalidParameter: there are not `levels` counts.
        """
        if len(counts) != self.levels:
            raise InvalidParameter("there is one count for each level")
        expected = sum(counts) * self.other
        return [(count - expected) / (self.keep - self.other) for count in counts]

    def parameters(self) -> dict[str, Any]:
        """Return epsilon, k and T; the probabilities follow from T alone."""
        return {
            "epsilon": str(self.epsilon),
            "levels": self.levels,
            "threshold": str(self.threshold),
        }


@dataclass(frozen=True)
class RoundedResponse(Mechanism):
    """A reward rounded to one end of its interval without bias, then randomised response.

    The better choice for many levels at a small epsilon (`choosing.response_for`).

    Attributes:
        epsilon: of one answer.
        interval: the declared range of a reward.
        threshold: T, as in `RandomisedResponse` with two levels.
    """

    epsilon: Fraction
    interval: Interval
    threshold: int = field(init=False)
    name: ClassVar[str] = "rounded_response"

    def __post_init__(self) -> None:
        epsilon = checked_epsilon(self.epsilon)
        object.__setattr__(self, "epsilon", epsilon)
        object.__setattr__(self, "threshold", keep_threshold(epsilon, 2))
        self._set_cost(response_cost(epsilon))

    def respond(self, bits: BitSource, value: float | Fraction) -> int:
        """Draw the answer, 0 or 1, for a reward."""
        return rounded_response(bits, *self.interval.ratio(value), threshold=self.threshold)

    def estimated(self, answer: int) -> Fraction:
        """Return the unbiased estimate of the reward; it lies outside the interval.

        E[answer] = (1 - t) + p (2t - 1) for a position p and t = T / 2^64.
        """
        keep = Fraction(self.threshold, _WORDS)
        return self.interval.at((answer - (1 - keep)) / (2 * keep - 1))

    def parameters(self) -> dict[str, Any]:
        """Return epsilon, T and the bounds."""
        return {
            "epsilon": str(self.epsilon),
            "threshold": str(self.threshold),
            "bounds": self.interval.public(),
        }


@dataclass(frozen=True)
class Geometric(Mechanism):
    """An integer statistic plus discrete Laplace noise: pure epsilon (Ghosh et al. 2009).

    Attributes:
        epsilon: of one release.
        sensitivity: how far one annotator moves the statistic, L1 over all its cells.
    """

    epsilon: Fraction
    sensitivity: int = 1
    name: ClassVar[str] = "geometric"

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", checked_epsilon(self.epsilon))
        _check_sensitivity(self.sensitivity)
        # refused here and not when drawing, since a charge comes between
        if self.scale.numerator > SCALE_MAX:
            raise InvalidParameter("epsilon has too many digits for a scale in 64 bits")
        self._set_cost(pure_cost(self.epsilon))

    @property
    def scale(self) -> Fraction:
        """Sensitivity over epsilon; noise x has probability proportional to e^(-|x| / scale)."""
        return self.sensitivity / self.epsilon

    def release(self, bits: BitSource, statistic: Sequence[int]) -> list[int]:
        """Add noise to each cell, in order."""
        return [cell + discrete_laplace(bits, self.scale) for cell in statistic]

    def parameters(self) -> dict[str, Any]:
        """Return epsilon, the L1 sensitivity and the scale."""
        return {
            "epsilon": str(self.epsilon),
            "sensitivity_l1": self.sensitivity,
            "scale": str(self.scale),
        }


@dataclass(frozen=True)
class DiscreteGaussian(Mechanism):
    """An integer statistic plus discrete Gaussian noise (Canonne, Kamath, Steinke 2020).

    Attributes:
        variance: sigma^2, rounded up by whoever chose it (`choosing.gaussian_for`).
        sensitivity_squared: of the L2 sensitivity over all cells, in grid steps squared.
    """

    variance: Fraction
    sensitivity_squared: int = 1
    name: ClassVar[str] = "discrete_gaussian"

    def __post_init__(self) -> None:
        variance = rational(self.variance, name="variance")
        if not 0 < variance <= VARIANCE_MAX:
            raise InvalidParameter("a variance is above 0, and at most 2^126")
        _check_sensitivity(self.sensitivity_squared)
        object.__setattr__(self, "variance", variance)
        self._set_cost(gaussian_cost(variance, self.sensitivity_squared))

    def release(self, bits: BitSource, statistic: Sequence[int]) -> list[int]:
        """Add noise to each cell, in order."""
        return [cell + discrete_gaussian(bits, self.variance) for cell in statistic]

    def parameters(self) -> dict[str, Any]:
        """Return sigma^2 and the squared L2 sensitivity."""
        return {
            "variance": str(self.variance),
            "sensitivity_l2_squared": self.sensitivity_squared,
        }


@dataclass(frozen=True)
class Binomial(Mechanism):
    """A count plus fair coins, less half of them: noise that can be proven coin by coin.

    Attributes:
        coins: how many, an even number.
        epsilon: of one release, at `delta`.
        delta: at least what the exact sum gives.
        sensitivity: how far one annotator moves the count.
    """

    coins: int
    epsilon: Fraction
    delta: Fraction
    sensitivity: int = 1
    name: ClassVar[str] = "binomial"

    def __post_init__(self) -> None:
        epsilon, delta = checked_epsilon(self.epsilon), checked_delta(self.delta)
        object.__setattr__(self, "epsilon", epsilon)
        object.__setattr__(self, "delta", delta)
        _check_sensitivity(self.sensitivity)
        delta_units = ceil_units(delta, DELTA_UNITS)
        if binomial_delta_units(epsilon, self.coins, self.sensitivity) > delta_units:
            raise ConflictingParameters(
                "so few coins do not reach this epsilon and delta",
                next_step="toss more coins, or claim less",
            )
        self._set_cost(Cost(ceil_units(epsilon, EPSILON_UNITS), UNBOUNDED, delta_units))

    def release(self, bits: BitSource, count: int) -> int:
        """Add noise to a count."""
        return count + centred_binomial(bits, self.coins)

    def parameters(self) -> dict[str, Any]:
        """Return coins, epsilon, delta and sensitivity."""
        return {
            "coins": self.coins,
            "epsilon": str(self.epsilon),
            "delta": str(self.delta),
            "sensitivity": self.sensitivity,
        }


@cache
def code_digest() -> str:
    """Return SHA-256, in hex, over the source of the samplers.

    Hashed are, for bits.py, draw.py and exact.py in this order, the file's name, a zero
    byte, its length as 8 bytes big-endian, and its bytes.
    """
    digest = hashlib.sha256()
    for name in _DRAWING:
        source = (Path(__file__).parent / name).read_bytes()
        digest.update(name.encode() + b"\0" + len(source).to_bytes(8) + source)
    return digest.hexdigest()


def _units(units: int) -> str | None:
    return None if units == UNBOUNDED else str(units)


def _check_sensitivity(value: object) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not 1 <= value <= _SENSITIVITY_MAX:  # type: ignore[operator]
        raise MissingSensitivity("a sensitivity is a whole number of grid steps, 1 or more")
