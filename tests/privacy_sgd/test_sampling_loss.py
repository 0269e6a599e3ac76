"""The accountant against published figures, exact curves and another library's results."""

from __future__ import annotations

import math

import pytest

from rlhf_audit_trail.privacy.dp_sgd import rdp_epsilon
from rlhf_audit_trail.privacy.errors import InvalidDelta, InvalidParameter
from rlhf_audit_trail.privacy.sampling_loss import Steps, composed_epsilon

# sigma, q, steps, delta; by dp-accounting 0.6.0 (interval 1e-4): add_remove, replace
GOOGLE = [
    (1.0, 0.01, 1000, 1e-5, 1.82824, 2.84345),
    (0.8, 0.005, 1000, 1e-6, 2.00411, 2.40241),
    (2.0, 0.1, 500, 1e-6, 6.217, 12.499),
]
# of one release without sampling, exactly (Balle, Wang 2018)
GAUSSIAN = [(1.0, 4.37717809568), (1.1, 3.92125025286), (2.0, 1.99309140442)]
# by Opacus' Renyi accountant
RDP = [
    (1.0, 0.01, 1000, 1e-5, 2.10137),
    (0.8, 0.005, 1000, 1e-6, 2.62654),
    (1.5, 0.04, 2250, 1e-5, 7.32911117143),
]


@pytest.mark.parametrize(("sigma", "rate", "steps", "delta", "one", "other"), GOOGLE)
def test_epsilon_agrees_with_another_library(
    sigma: float, rate: float, steps: int, delta: float, one: float, other: float
):
    history = (Steps(sigma, rate, steps),)
    assert composed_epsilon(history, delta) == pytest.approx(one, rel=1e-4)
    paired = composed_epsilon(history, delta, relation="replace_paired")
    assert paired == pytest.approx(other, rel=1e-4)
    # what is claimed needs no pair, and costs more
    assert paired < composed_epsilon(history, delta, relation="replace") < math.inf


@pytest.mark.parametrize(("sigma", "exact"), GAUSSIAN)
def test_a_single_release_is_the_exact_gaussian_and_never_below_it(sigma: float, exact: float):
    found = composed_epsilon((Steps(sigma, 1.0, 1),), 1e-5)
    assert exact <= found <= exact * (1 + 1e-6)


@pytest.mark.parametrize("steps", [4, 100])
def test_gaussians_compose_exactly(steps: int):
    # so many steps of noise sigma are one of sigma over the root of their number
    found = composed_epsilon((Steps(2.0 * math.sqrt(steps), 1.0, steps),), 1e-5)
    assert 1.99309140442 <= found <= 1.99309140442 * (1 + 1e-4)


@pytest.mark.parametrize(("sigma", "rate", "steps", "delta", "expected"), RDP)
def test_the_online_accountant_gives_the_known_figures(
    sigma: float, rate: float, steps: int, delta: float, expected: float
):
    assert rdp_epsilon((Steps(sigma, rate, steps),), delta) == pytest.approx(expected, abs=6e-6)


def test_an_annotator_with_many_examples_costs_steeply_more():
    history = (Steps(1.0, 0.01, 1000),)
    found = [composed_epsilon(history, 1e-5, examples=k) for k in (1, 2, 50)]
    assert found[0] == pytest.approx(1.82824, rel=1e-4)
    assert found[1] > 2 * found[0]
    assert found[2] == pytest.approx(291, rel=2e-3)


def test_a_preference_clipped_as_two_rows_costs_what_half_the_noise_does():
    # both rows move one sum, together by two norms: 1.83 would be reported, and 13.4 is true
    found = composed_epsilon((Steps(0.5, 0.01, 1000),), 1e-5)
    assert found == pytest.approx(13.36, rel=1e-3)


def test_histories_of_several_parts_add_up():
    apart = (Steps(1.0, 0.01, 400), Steps(2.0, 0.02, 10), Steps(1.0, 0.01, 600))
    less, more = (Steps(1.0, 0.01, 1000),), (*apart, Steps(1.0, 0.01, 500))
    assert composed_epsilon(less, 1e-5) < composed_epsilon(apart, 1e-5)
    assert composed_epsilon(apart, 1e-5) < composed_epsilon(more, 1e-5)


def test_nothing_costs_nothing_and_too_small_a_delta_is_refused():
    assert composed_epsilon((), 1e-5) == 0
    for delta in (0.0, 1.0, 1e-14):
        with pytest.raises(InvalidDelta):
            composed_epsilon((Steps(1.0, 0.01, 1000),), delta)
    with pytest.raises(InvalidParameter):
        composed_epsilon((Steps(1.0, 0.01, 1000),), 1e-5, relation="gdp")
    for wrong in ((0.0, 0.1, 1), (1.0, 0.0, 1), (1.0, 1.5, 1), (math.nan, 0.1, 1)):
        with pytest.raises(InvalidParameter):
            Steps(*wrong)
