"""From settings to mechanisms and budgets: the parameters a mode implies, always rounded up.

Everything chosen here depends on public settings only.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from typing import Final

from rlhf_audit_trail.privacy.account import Budget
from rlhf_audit_trail.privacy.aggregates import Histogram, MeanSum
from rlhf_audit_trail.privacy.config import PrivacyConfig
from rlhf_audit_trail.privacy.cost import checked_delta, checked_epsilon
from rlhf_audit_trail.privacy.curves import (
    DELTA_UNITS,
    EPSILON_UNITS,
    RHO_UNITS,
    binomial_delta_units,
    gaussian_delta,
    gaussian_delta_units,
    rho_budget_units,
    smallest,
)
from rlhf_audit_trail.privacy.draw import COINS_MAX
from rlhf_audit_trail.privacy.errors import (
    ConflictingParameters,
    InvalidDelta,
    InvalidEpsilon,
    MissingSensitivity,
)
from rlhf_audit_trail.privacy.exact import floor_units
from rlhf_audit_trail.privacy.guarantee import Guarantee
from rlhf_audit_trail.privacy.interval import Interval
from rlhf_audit_trail.privacy.mechanisms import (
    Binomial,
    DiscreteGaussian,
    RandomisedResponse,
    RoundedResponse,
)

__all__ = [
    "binomial_for",
    "budget_for",
    "gaussian_for",
    "label_mechanism",
    "release_mechanism",
    "response_for",
    "response_std",
]

_SIGMA_STEPS: Final = 100  # sigma over sensitivity is a whole number of hundredths
_SIGMA_MAX: Final = 10_000
_EXACT_VARIANCE_MAX: Final = 10**9  # its tail is some 300,000 terms, half a second


def budget_for(config: PrivacyConfig, *, reserved: Guarantee | None = None) -> Budget | None:
    """Return every annotator's budget under these settings; None where the mode claims nothing.

    In `strong` all labels have one epsilon, so the exact composition of randomised response
    caps them (`fixed_rr`); in `moderate` releases differ, and the union of both filters does.
    """
    if config.total_epsilon is None:
        return None
    strong = config.annotator_privacy_mode == "strong"
    return Budget.of(
        config.total_epsilon,
        config.delta,
        response=config.epsilon_per_round if strong else None,
        reserved=reserved,
    )


def label_mechanism(config: PrivacyConfig) -> RandomisedResponse | RoundedResponse:
    """Return by what one reward is privatised at entry (`strong`, or `release_values`).

    Raises:
        ConflictingParameters: the mode has no epsilon to spend.
        MissingSensitivity: the range of a reward is not declared.
    """
    return response_for(_one_epsilon(config), _interval(config), levels=config.reward_levels)


def release_mechanism(
    config: PrivacyConfig, statistic: MeanSum | Histogram | None = None
) -> DiscreteGaussian:
    """Return by what one aggregate is released; by default the mean reward.

    Raises:
        ConflictingParameters: the mode has no epsilon to spend.
        MissingSensitivity: the range of a reward is not declared.
    """
    found = statistic or MeanSum(_interval(config))
    return gaussian_for(
        _one_epsilon(config),
        checked_delta(config.delta),
        sensitivity_squared=found.sensitivity_squared,
    )


def _one_epsilon(config: PrivacyConfig) -> Fraction:
    if config.epsilon_per_round is None:
        raise ConflictingParameters(
            "the mode minimal has no epsilon to spend", next_step="choose moderate or strong"
        )
    return checked_epsilon(config.epsilon_per_round, name="epsilon_per_round")


def _interval(config: PrivacyConfig) -> Interval:
    if config.reward_bounds is None:
        raise MissingSensitivity(
            "noise cannot be scaled: the range of a reward is not declared",
            next_step="declare it, for example reward_bounds=(0.0, 1.0)",
        )
    return Interval.of(*config.reward_bounds)


def response_for(
    epsilon: Fraction, interval: Interval, *, levels: int | None
) -> RandomisedResponse | RoundedResponse:
    """Return the randomised response whose unbiased estimate of a reward varies least.

    Among equally spaced levels the answer itself may be randomised; where rounding to the ends of
    the interval first is better, or rewards have no levels, it is done.
    """
    rounded = RoundedResponse(epsilon, interval)
    if levels is None:
        return rounded
    direct = RandomisedResponse(epsilon, levels)
    return direct if response_std(direct) < response_std(rounded) else rounded


def response_std(mechanism: RandomisedResponse | RoundedResponse) -> float:
    """Return the worst standard deviation of an unbiased estimate, the interval being [0, 1]."""
    if isinstance(mechanism, RoundedResponse):
        keep = mechanism.threshold / 2**64
        return 0.5 / (2 * keep - 1)
    keep, other, k = float(mechanism.keep), float(mechanism.other), mechanism.levels
    first = k / 2  # the sums over the levels i / (k - 1) and over their squares
    second = k * (2 * k - 1) / (6 * (k - 1))
    gap = keep - other
    positions = (i / (k - 1) for i in range(k))
    worst = max(gap * v * v + other * second - (gap * v + other * first) ** 2 for v in positions)
    return math.sqrt(max(worst, 0.0)) / gap


@lru_cache(maxsize=256)
def gaussian_for(
    epsilon: Fraction, delta: Fraction, *, sensitivity_squared: int = 1
) -> DiscreteGaussian:
    """Return a discrete Gaussian, hardly too wide, one release of which is (epsilon, delta)-DP.

    For one cell sigma is a whole number of hundredths of the sensitivity, and the exact tail
    decides. Several cells, whose sensitivity is no whole number, and very wide noise, whose
    tail would take long to add up, are settled by rho.

    Raises:
        InvalidDelta: delta is 0, which no Gaussian reaches.
        InvalidEpsilon: sigma would be above 10,000 sensitivities.
    """
    if delta <= 0:
        raise InvalidDelta("delta is 0, but Gaussian noise never reaches that")
    guess = _guess(epsilon, delta)
    sensitivity = math.isqrt(sensitivity_squared)
    if sensitivity**2 == sensitivity_squared:
        for hundredths in range(guess, _SIGMA_MAX * _SIGMA_STEPS):
            variance = Fraction(hundredths * sensitivity, _SIGMA_STEPS) ** 2
            if variance > _EXACT_VARIANCE_MAX:
                break
            if gaussian_delta_units(epsilon, variance, sensitivity) <= delta * DELTA_UNITS:
                return DiscreteGaussian(variance, sensitivity_squared)
    budget = rho_budget_units(floor_units(epsilon, EPSILON_UNITS), floor_units(delta, DELTA_UNITS))
    variance = Fraction(sensitivity_squared * RHO_UNITS, 2 * budget)
    return DiscreteGaussian(variance, sensitivity_squared)


def _guess(epsilon: Fraction, delta: Fraction) -> int:
    """Return sigma over sensitivity, in hundredths, by the continuous Gaussian's curve."""
    target, limit = float(delta), _SIGMA_MAX * _SIGMA_STEPS
    found = smallest(lambda n: gaussian_delta(float(epsilon), n / _SIGMA_STEPS) <= target, 1, limit)
    if found == limit:
        raise InvalidEpsilon("epsilon is too small for any noise that is added here")
    return found


def binomial_for(epsilon: Fraction, delta: Fraction, *, sensitivity: int = 1) -> Binomial:
    """Return a count's noise of the fewest coins, a power of two, that is (epsilon, delta)-DP.

    Raises:
        InvalidEpsilon: 2^20 coins are not enough.
    """
    delta_units, coins = floor_units(delta, DELTA_UNITS), 2
    while binomial_delta_units(epsilon, coins, sensitivity) > delta_units:
        coins *= 2
        if coins > COINS_MAX:
            raise InvalidEpsilon("epsilon is too small for 2^20 coins")
    return Binomial(coins, epsilon, delta, sensitivity)
