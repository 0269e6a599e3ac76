"""What mechanisms say of themselves, and that it decides everything they draw."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import statistics
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_audit_trail import privacy
from rlhf_audit_trail.ledger.events import encode_value
from rlhf_audit_trail.privacy.aggregates import Histogram, MeanSum, enough_annotators
from rlhf_audit_trail.privacy.bits import SeededBits
from rlhf_audit_trail.privacy.choosing import (
    binomial_for,
    budget_for,
    gaussian_for,
    label_mechanism,
    release_mechanism,
    response_for,
    response_std,
)
from rlhf_audit_trail.privacy.config import PrivacyConfig
from rlhf_audit_trail.privacy.cost import UNBOUNDED, gaussian_cost
from rlhf_audit_trail.privacy.curves import (
    DELTA_UNITS,
    EPSILON_UNITS,
    gaussian_delta,
    zcdp_epsilon_units,
)
from rlhf_audit_trail.privacy.draw import keep_threshold
from rlhf_audit_trail.privacy.errors import (
    ConflictingParameters,
    InvalidDelta,
    InvalidEpsilon,
    InvalidParameter,
    MissingSensitivity,
    NonFiniteValue,
    PrivacyError,
)
from rlhf_audit_trail.privacy.guarantee import Guarantee
from rlhf_audit_trail.privacy.interval import Interval
from rlhf_audit_trail.privacy.mechanisms import (
    Binomial,
    DiscreteGaussian,
    Geometric,
    Mechanism,
    RandomisedResponse,
    RoundedResponse,
    code_digest,
)

UNIT_INTERVAL = Interval.of(0, 1)
MILLIONTH = Fraction(1, 10**6)
ALL: tuple[Mechanism, ...] = (
    RandomisedResponse(Fraction(1, 4), 5),
    RoundedResponse(Fraction(1, 4), Interval.of(-1, "2.5")),
    Geometric(Fraction(1, 2), 2),
    DiscreteGaussian(Fraction(13184161, 10000)),
    Binomial(262_144, Fraction("0.0201"), Fraction(1, 10**10)),
)


def bits(number: int = 0) -> SeededBits:
    return SeededBits(number.to_bytes(32))


@pytest.mark.parametrize("mechanism", ALL, ids=lambda m: m.name)
def test_the_public_description_is_json_and_complete(mechanism: Mechanism) -> None:
    public = mechanism.public()
    assert json.loads(encode_value(public)) == public
    assert set(public) == {
        "name", "parameters", "unit", "relation", "epsilon_units", "rho_units", "delta_units", "drbg", "code_digest",
    }  # fmt: skip
    assert (public["unit"], public["relation"]) == ("annotator", "replace")
    numbers = [value for value in public["parameters"].values() if isinstance(value, int)]
    assert all(number < 2**53 for number in numbers)


def test_a_description_tells_costs_and_parameters() -> None:
    response, _, geometric, gaussian, binomial = (mechanism.public() for mechanism in ALL)
    assert response["parameters"] == {
        "epsilon": "1/4",
        "levels": 5,
        "threshold": str(keep_threshold(Fraction(1, 4), 5)),
    }
    assert response["epsilon_units"] == "250000000000"
    assert geometric["rho_units"] == str(2**40 // 8)
    assert (gaussian["epsilon_units"], gaussian["parameters"]["variance"]) == (
        None,
        "13184161/10000",
    )
    assert (binomial["rho_units"], binomial["delta_units"]) == (None, str(10**8))


def test_the_code_digest_is_of_the_samplers_source() -> None:
    digest = hashlib.sha256()
    for name in ("bits.py", "draw.py", "exact.py"):
        source = (Path(privacy.__file__).parent / name).read_bytes()
        digest.update(name.encode() + b"\0" + len(source).to_bytes(8, "big") + source)
    assert code_digest() == digest.hexdigest()


@pytest.mark.parametrize("mechanism", ALL, ids=lambda m: m.name)
def test_a_mechanism_is_frozen(mechanism: Mechanism) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        mechanism.cost = gaussian_cost(Fraction(1), 1)  # type: ignore[misc]


def test_the_same_seed_releases_the_same_and_another_one_does_not() -> None:
    for mechanism in (ALL[2], ALL[3]):
        first = mechanism.release(bits(1), [5] * 8)  # type: ignore[attr-defined]
        assert first == mechanism.release(bits(1), [5] * 8)  # type: ignore[attr-defined]
        assert first != mechanism.release(bits(2), [5] * 8)  # type: ignore[attr-defined]
        shifted = mechanism.release(bits(1), [6] * 8)  # type: ignore[attr-defined]
        assert [b - a for a, b in zip(first, shifted, strict=True)] == [1] * 8


# --- values -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, None, "0.5", 1j, Decimal("0.5"), np.float32("nan"), np.True_])  # fmt: skip
def test_a_reward_that_is_no_finite_number_is_refused_without_being_shown(value: Any) -> None:
    with pytest.raises(NonFiniteValue) as found:
        UNIT_INTERVAL.position(value)
    assert str(value) not in str(found.value)


@pytest.mark.parametrize(
    "value",
    [
        -5,
        -1e308,
        5,
        1e308,
        pytest.param(10**400, id="huge"),
        Fraction(7, 3),
        np.float32(9),
        np.int64(-3),
    ],
)
def test_a_reward_out_of_bounds_is_clipped_in_silence(value: Any) -> None:
    assert UNIT_INTERVAL.position(value) == (1 if value > 0 else 0)


def test_a_reward_in_bounds_is_taken_exactly() -> None:
    interval = Interval.of(-1, 1)
    assert interval.position(0.1) == (Fraction(0.1) + 1) / 2
    assert interval.position(5e-324) > Fraction(1, 2)
    assert [interval.level(value, 4) for value in (-1, -0.75, -0.76, 0, 1)] == [0, 1, 0, 2, 4]


@pytest.mark.parametrize("bounds", [(1, 0), (1, 1), (0, math.inf), ("a", 1)])
def test_an_interval_has_two_ends(bounds: tuple[Any, Any]) -> None:
    with pytest.raises(PrivacyError):
        Interval.of(*bounds)


def test_an_estimate_has_no_bias_exactly() -> None:
    """In rationals: the mean over both answers, weighted as they are drawn, is the reward."""
    mechanism = RoundedResponse(Fraction(1, 4), Interval.of(-1, 3))
    keep = Fraction(mechanism.threshold, 2**64)
    for reward in (Fraction(-1), Fraction(1, 7), Fraction(3)):
        p = mechanism.interval.position(reward)
        one = p * keep + (1 - p) * (1 - keep)
        assert one * mechanism.estimated(1) + (1 - one) * mechanism.estimated(0) == reward


def test_estimated_counts_have_no_bias_exactly() -> None:
    mechanism = RandomisedResponse(Fraction(1, 2), 4)
    truth = [40, 0, 10, 50]
    scale = 2**64 * 3
    expected = [
        sum(n * (mechanism.keep if i == j else mechanism.other) for i, n in enumerate(truth))
        for j in range(4)
    ]
    whole = [int(count * scale) for count in expected]
    assert [estimate / scale for estimate in mechanism.estimated_counts(whole)] == truth
    with pytest.raises(InvalidParameter):
        mechanism.estimated_counts([1, 2])


def test_estimates_of_drawn_answers_are_near_the_truth() -> None:
    mechanism, stream = RoundedResponse(Fraction(1), UNIT_INTERVAL), bits(3)
    found = [float(mechanism.estimated(mechanism.respond(stream, 0.3))) for _ in range(20_000)]
    assert statistics.fmean(found) == pytest.approx(0.3, abs=0.05)
    assert statistics.pstdev(found) <= response_std(mechanism) * 1.01


# --- aggregates -------------------------------------------------------------------------

PEOPLE = st.dictionaries(
    st.sampled_from("abcdefgh"), st.lists(st.floats(-2, 2), min_size=1, max_size=4), min_size=1
)


@settings(deadline=None, max_examples=150)
@given(PEOPLE, st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=4))
def test_one_annotator_moves_a_sum_of_means_by_its_sensitivity_at_most(people: dict[str, list[float]], other: list[float]) -> None:  # fmt: skip
    statistic = MeanSum(UNIT_INTERVAL, steps=64)
    (before,) = statistic.statistic(people)
    someone = min(people)
    (after,) = statistic.statistic(people | {someone: other})
    assert abs(before - after) <= statistic.sensitivity_l1 == 64
    (low,), (high,) = (statistic.statistic(people | {someone: [v]}) for v in (-9.0, 9.0))
    assert high - low == 64  # and it is reached


@settings(deadline=None, max_examples=150)
@given(
    st.dictionaries(st.sampled_from("abcdef"), st.lists(st.integers(0, 4), max_size=6), min_size=1),
    st.lists(st.integers(0, 4), max_size=6),
    st.integers(1, 3),
)
def test_one_annotator_moves_a_histogram_by_its_sensitivity_at_most(people: dict[str, list[int]], other: list[int], c: int) -> None:  # fmt: skip
    statistic = Histogram(5, contributions=c)
    before = statistic.statistic(people)
    after = statistic.statistic(people | {min(people): other})
    moved = [abs(a - b) for a, b in zip(before, after, strict=True)]
    assert sum(moved) <= statistic.sensitivity_l1 == 2 * c
    assert sum(x * x for x in moved) <= statistic.sensitivity_squared == 2 * c * c


def test_a_mean_is_read_back_from_its_sum() -> None:
    statistic = MeanSum(Interval.of(-1, 1), steps=100)
    people = {"a": [1.0, 1.0], "b": [-1.0], "c": [0.5], "d": [0.5, -0.5]}
    assert statistic.mean(statistic.statistic(people)[0], 4) == pytest.approx(0.125, abs=0.01)
    assert statistic.public()["sensitivity_l2_squared"] == 10_000
    assert Histogram(3).public()["sensitivity_l1"] == 2


@pytest.mark.parametrize(
    ("error", "wrong"),
    [
        (InvalidParameter, lambda: MeanSum(UNIT_INTERVAL, steps=0)),
        (InvalidParameter, lambda: MeanSum(UNIT_INTERVAL, steps=5000)),
        (InvalidParameter, lambda: MeanSum(UNIT_INTERVAL).statistic({"a": []})),
        (InvalidParameter, lambda: MeanSum(UNIT_INTERVAL).mean(1, 0)),
        (NonFiniteValue, lambda: MeanSum(UNIT_INTERVAL).statistic({"a": [math.nan]})),
        (InvalidParameter, lambda: Histogram(0)),
        (MissingSensitivity, lambda: Histogram(2, contributions=0)),
        (InvalidParameter, lambda: Histogram(2).statistic({"a": [2]})),
        (InvalidParameter, lambda: Histogram(2).statistic({"a": [-1]})),
        (InvalidParameter, lambda: RandomisedResponse(Fraction(1), 1)),
        (InvalidEpsilon, lambda: RandomisedResponse(Fraction(0), 2)),
        (InvalidEpsilon, lambda: Geometric(Fraction(-1))),
        (MissingSensitivity, lambda: Geometric(Fraction(1), 0)),
        (MissingSensitivity, lambda: Geometric(Fraction(1), sensitivity=True)),
        (MissingSensitivity, lambda: DiscreteGaussian(Fraction(1), 0)),
        (InvalidParameter, lambda: DiscreteGaussian(Fraction(0))),
        (InvalidParameter, lambda: DiscreteGaussian(Fraction(2**127))),
        (InvalidParameter, lambda: Geometric(Fraction(3**50, 3**50 + 1))),
        (ConflictingParameters, lambda: Binomial(262_144, Fraction("0.02"), Fraction(1, 10**10))),
        (InvalidParameter, lambda: RandomisedResponse(Fraction(1), 2).respond(bits(), 2)),
    ],
)
def test_what_has_no_bounded_influence_is_refused(error: type[Exception], wrong: Any) -> None:
    with pytest.raises(error):
        wrong()


def test_few_annotators_are_too_few() -> None:
    assert (enough_annotators(19), enough_annotators(20)) == (False, True)


# --- from settings ----------------------------------------------------------------------


def test_moderate_releases_with_the_sigma_of_the_page() -> None:
    config = PrivacyConfig(reward_bounds=(0, 1))
    mechanism = release_mechanism(config)
    assert mechanism.sensitivity_squared == 256**2
    assert mechanism.variance == (Fraction(3631, 100) * 256) ** 2
    budget = budget_for(config)
    assert budget is not None
    assert (budget.rule, budget.epsilon_units) == ("union", 3 * EPSILON_UNITS)
    assert mechanism.cost == gaussian_cost(Fraction(3631, 100) ** 2, 1)  # whatever the grid
    reserved = Guarantee(EPSILON_UNITS, 0)
    assert budget_for(config, reserved=reserved).epsilon_units == 2 * EPSILON_UNITS  # type: ignore[union-attr]


def test_strong_allows_sixty_labels_or_ten() -> None:
    for epsilon, labels in ((None, 60), (1.0, 10)):
        config = PrivacyConfig(annotator_privacy_mode="strong", reward_bounds=(0, 1), epsilon_per_round=epsilon)  # fmt: skip
        budget = budget_for(config)
        assert budget is not None
        assert (budget.rule, budget.second_cap_units) == ("fixed_rr", labels)
        assert budget.charge(label_mechanism(config).cost).second_units == 1


def test_minimal_has_neither_budget_nor_noise() -> None:
    config = PrivacyConfig(annotator_privacy_mode="minimal", reward_bounds=(0, 1))
    assert budget_for(config) is None
    for choose in (label_mechanism, release_mechanism):
        with pytest.raises(ConflictingParameters):
            choose(config)
    with pytest.raises(MissingSensitivity):
        release_mechanism(PrivacyConfig())


@pytest.mark.parametrize(("epsilon", "direct", "rounded"), [("1", 1.47, 1.08), ("4", 0.19, 0.52)])
def test_the_better_response_is_chosen(epsilon: str, direct: float, rounded: float) -> None:
    e = Fraction(epsilon)
    assert response_std(RandomisedResponse(e, 5)) == pytest.approx(direct, abs=0.005)
    assert response_std(RoundedResponse(e, UNIT_INTERVAL)) == pytest.approx(rounded, abs=0.005)
    chosen = response_for(e, UNIT_INTERVAL, levels=5)
    assert isinstance(chosen, RandomisedResponse if direct < rounded else RoundedResponse)
    assert isinstance(response_for(e, UNIT_INTERVAL, levels=None), RoundedResponse)


def test_a_histogram_s_noise_is_settled_by_rho() -> None:
    found = gaussian_for(Fraction(1), MILLIONTH, sensitivity_squared=2)
    epsilon = zcdp_epsilon_units(found.cost.rho_units, DELTA_UNITS // 10**6)
    assert 0.999 * EPSILON_UNITS < epsilon <= EPSILON_UNITS
    with pytest.raises(InvalidDelta):
        gaussian_for(Fraction(1), Fraction(0))
    with pytest.raises(InvalidEpsilon):
        gaussian_for(Fraction(1, 10**9), MILLIONTH)


def test_very_wide_noise_is_settled_by_rho_and_hardly_wider() -> None:
    found = gaussian_for(Fraction(1, 1000), MILLIONTH, sensitivity_squared=1024**2)
    epsilon = zcdp_epsilon_units(found.cost.rho_units, DELTA_UNITS // 10**6)
    assert 0.99 * EPSILON_UNITS < 1000 * epsilon <= 1.001 * EPSILON_UNITS
    sigma = math.sqrt(found.variance) / 1024
    assert gaussian_delta(0.001, sigma) <= 1e-6 < gaussian_delta(0.001, sigma / 1.3)


def test_coins_are_the_fewest_of_a_power_of_two() -> None:
    found = binomial_for(Fraction(1, 10), Fraction(1, 10**8))
    assert found.cost.rho_units == UNBOUNDED
    with pytest.raises(ConflictingParameters):
        Binomial(found.coins // 2, found.epsilon, found.delta)
    with pytest.raises(InvalidEpsilon):
        binomial_for(Fraction(1, 1000), Fraction(1, 10**10))
