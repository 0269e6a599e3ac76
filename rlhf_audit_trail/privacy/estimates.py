"""What follows from a released statistic: the estimate, exactly, and how far noise moves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import sqrt
from typing import Any, Final

from rlhf_audit_trail.privacy.aggregates import Histogram, MeanSum
from rlhf_audit_trail.privacy.errors import InvalidParameter
from rlhf_audit_trail.privacy.mechanisms import DiscreteGaussian, Geometric, Mechanism

__all__ = ["derived", "estimate", "mechanism_fields", "statistic_name"]

_FIELDS: Final = (
    "name", "parameters", "unit", "relation", "epsilon_units", "rho_units", "delta_units",
    "drbg", "code_digest",
)  # fmt: skip


def derived(
    statistic: MeanSum | Histogram, mechanism: Mechanism, value: Sequence[int], participants: int
) -> dict[str, Any]:
    """Return the fields of a `dp.release` that follow from its value and public parameters.

    Rationals are text; standard deviations are the nearest floats.

    Raises:
        InvalidParameter: statistics are not released by this mechanism.
    """
    std = sqrt(_variance(mechanism))
    said: dict[str, Any] = {"counts": list(map(str, value))}
    scale = Fraction(1)
    if isinstance(statistic, MeanSum):
        said = {"mean": str(estimate(statistic, value, participants))}
        scale = statistic.interval.width / (participants * statistic.steps)
    noise = {"variance": str(_variance(mechanism)), "std": std, "estimate_std": std * float(scale)}
    return {"estimate": said, "noise": noise}


def estimate(
    statistic: MeanSum | Histogram, value: Sequence[int], participants: int
) -> Fraction | tuple[int, ...]:
    """Return the mean, or the counts, that a released value gives."""
    if isinstance(statistic, MeanSum):
        return statistic.mean(value[0], participants)
    return tuple(value)


def mechanism_fields(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a `dp.mechanism` entry says of the mechanism, without the entry's frame."""
    return {name: event[name] for name in _FIELDS if name in event}


def statistic_name(statistic: MeanSum | Histogram) -> str:
    """Return how entries call it."""
    return str(statistic.public()["statistic"])


def _variance(mechanism: Mechanism) -> Fraction:
    """Return a bound of the noise's variance: of a discrete Gaussian its parameter."""
    if isinstance(mechanism, DiscreteGaussian):
        return mechanism.variance
    if isinstance(mechanism, Geometric):
        return 2 * mechanism.scale**2  # of the continuous law, which is wider
    raise InvalidParameter("statistics are released by Gaussian or geometric noise")
