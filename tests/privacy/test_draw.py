"""Samplers against their laws: shape, variance, mean, sign, support; exactness at the edges.

Streams are seeded, so a test that passed passes always; one round uses the operating system.
"""

from __future__ import annotations

import ast
import inspect
import math
import multiprocessing
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise

import pytest
from scipy import stats

from rlhf_audit_trail.privacy import bits as bits_module
from rlhf_audit_trail.privacy import draw, exact
from rlhf_audit_trail.privacy.bits import BitSource, SeededBits, SystemBits, slot_seed
from rlhf_audit_trail.privacy.errors import InvalidEpsilon, InvalidParameter, NoiseProtocolError

ALPHA = 1e-7  # about forty tests: a false alarm at a change of seeds once in 250,000
EXPECTED_MIN = 10.0  # bins with fewer are merged, as the chi-square law wants

Draw = Callable[[BitSource], int]


def seeded(number: int) -> SeededBits:
    return SeededBits(slot_seed(b"\x07" * 32, b"\x0b" * 32, number))


def draws(sampler: Draw, count: int, *, seed: int = 0) -> list[int]:
    bits = seeded(seed)
    return [sampler(bits) for _ in range(count)]


def laplace_law(scale: float) -> dict[int, float]:
    return weighted(lambda x: math.exp(-abs(x) / scale), int(40 * scale) + 40)


def gaussian_law(variance: float) -> dict[int, float]:
    return weighted(lambda x: math.exp(-x * x / (2 * variance)), int(12 * variance**0.5) + 12)


def binomial_law(coins: int) -> dict[int, float]:
    half = coins // 2
    return {x: float(stats.binom.pmf(x + half, coins, 0.5)) for x in range(-half, half + 1)}


def weighted(weight: Callable[[int], float], reach: int) -> dict[int, float]:
    weights = {x: weight(x) for x in range(-reach, reach + 1)}
    total = math.fsum(weights.values())
    return {x: value / total for x, value in weights.items()}


def p_value(found: list[int], law: dict[int, float]) -> float:
    """Chi-square, neighbouring bins merged until each expects ten draws."""
    counts, observed, expected = Counter(found), [], []
    assert set(counts) <= set(law)
    seen = hoped = 0.0
    for x in sorted(law):
        seen += counts[x]
        hoped += law[x] * len(found)
        if hoped >= EXPECTED_MIN:
            observed.append(seen)
            expected.append(hoped)
            seen = hoped = 0.0
    observed[-1] += seen
    expected[-1] += hoped
    scale = sum(observed) / sum(expected)  # the law's tails beyond its table
    return float(stats.chisquare(observed, [value * scale for value in expected]).pvalue)


def moments(law: dict[int, float]) -> tuple[float, float]:
    variance = math.fsum(x * x * p for x, p in law.items())
    return variance, math.fsum(x**4 * p for x, p in law.items())


SYMMETRIC: list[tuple[str, Draw, dict[int, float]]] = [
    ("laplace 1", lambda b: draw.discrete_laplace(b, Fraction(1)), laplace_law(1)),
    ("laplace 1/3", lambda b: draw.discrete_laplace(b, Fraction(1, 3)), laplace_law(1 / 3)),
    ("laplace 7/2", lambda b: draw.discrete_laplace(b, Fraction(7, 2)), laplace_law(3.5)),
    ("laplace 40", lambda b: draw.discrete_laplace(b, Fraction(40)), laplace_law(40)),
    ("gaussian 1/4", lambda b: draw.discrete_gaussian(b, Fraction(1, 4)), gaussian_law(0.25)),
    ("gaussian 1", lambda b: draw.discrete_gaussian(b, Fraction(1)), gaussian_law(1)),
    ("gaussian 22/7", lambda b: draw.discrete_gaussian(b, Fraction(22, 7)), gaussian_law(22 / 7)),
    (
        "gaussian 36.31^2",
        lambda b: draw.discrete_gaussian(b, Fraction(3631, 100) ** 2),
        gaussian_law(36.31**2),
    ),
    ("binomial 2", lambda b: draw.centred_binomial(b, 2), binomial_law(2)),
    ("binomial 66", lambda b: draw.centred_binomial(b, 66), binomial_law(66)),
    ("binomial 1000", lambda b: draw.centred_binomial(b, 1000), binomial_law(1000)),
]


@pytest.mark.parametrize(("sampler", "law"), [row[1:] for row in SYMMETRIC], ids=[row[0] for row in SYMMETRIC])  # fmt: skip
def test_noise_has_its_law(sampler: Draw, law: dict[int, float]) -> None:
    """Variance is looked at on its own: it finds wrong Gaussians that shape tests let pass."""
    count = 30_000
    found = draws(sampler, count)
    assert p_value(found, law) > ALPHA
    variance, fourth = moments(law)
    z = stats.norm.isf(ALPHA / 2)
    assert abs(sum(found) / count) < z * math.sqrt(variance / count)
    spread = math.sqrt((fourth - variance**2) / count)
    assert abs(sum(x * x for x in found) / count - variance) <= z * spread + 1e-9
    signed = [x for x in found if x]
    assert stats.binomtest(sum(x > 0 for x in signed), len(signed)).pvalue > ALPHA


@pytest.mark.parametrize("wrong", [Fraction(93, 100), Fraction(107, 100)])
def test_a_noise_of_slightly_wrong_width_is_noticed(wrong: Fraction) -> None:
    """The tests above have power: 7 % in the variance of a Gaussian does not pass them."""
    found = draws(lambda b: draw.discrete_gaussian(b, 25 * wrong), 30_000)
    law = gaussian_law(25)
    variance, fourth = moments(law)
    z = abs(sum(x * x for x in found) / len(found) - variance)
    z /= math.sqrt((fourth - variance**2) / len(found))
    assert z > stats.norm.isf(ALPHA / 2)


def test_the_operating_system_s_bits_draw_the_same_law() -> None:
    bits = SystemBits()
    found = [draw.discrete_gaussian(bits, Fraction(9)) for _ in range(10_000)]
    assert p_value(found, gaussian_law(9)) > 1e-12


@pytest.mark.parametrize(("levels", "epsilon"), [(2, "1"), (2, "1/10"), (3, "2"), (5, "1/4"), (7, "4")])  # fmt: skip
def test_randomised_response_keeps_and_flips_as_it_says(levels: int, epsilon: str) -> None:
    threshold = draw.keep_threshold(Fraction(epsilon), levels)
    keep = threshold / 2**64
    for value in range(levels):
        found = draws(
            lambda b, v=value: draw.randomised_response(b, v, levels=levels, threshold=threshold),
            20_000,
            seed=value,
        )
        law = {x: keep if x == value else (1 - keep) / (levels - 1) for x in range(levels)}
        assert p_value(found, law) > ALPHA


@pytest.mark.parametrize("position", [Fraction(0), Fraction(1), Fraction(1, 3), Fraction(0.7)])
def test_a_rounded_response_has_the_mean_of_its_position(position: Fraction) -> None:
    threshold = draw.keep_threshold(Fraction(1), 2)
    found = draws(
        lambda b: draw.rounded_response(b, *position.as_integer_ratio(), threshold=threshold),
        30_000,
    )
    keep = threshold / 2**64
    expected = (1 - keep) + float(position) * (2 * keep - 1)
    assert stats.binomtest(sum(found), len(found), expected).pvalue > ALPHA


@pytest.mark.parametrize("rational", [(1, 3), (2, 3), (1, 2**64 + 1), (999, 1000), (1, 1), (0, 1)])
def test_a_bernoulli_draw_has_its_probability(rational: tuple[int, int]) -> None:
    found = sum(draws(lambda b: int(draw.bernoulli(b, *rational)), 20_000))
    assert stats.binomtest(found, 20_000, rational[0] / rational[1]).pvalue > ALPHA


@pytest.mark.parametrize("exponent", [(0, 1), (1, 10), (1, 1), (5, 2), (3, 1)])
def test_a_bernoulli_draw_of_an_exponential_has_its_probability(exponent: tuple[int, int]) -> None:
    found = sum(draws(lambda b: int(draw.bernoulli_exp(b, *exponent)), 20_000))
    expected = math.exp(-exponent[0] / exponent[1])
    assert stats.binomtest(found, 20_000, expected).pvalue > ALPHA


@pytest.mark.parametrize("count", [1, 2, 3, 10, 1000])
def test_a_uniform_draw_is_uniform(count: int) -> None:
    found = draws(lambda b: draw.below(b, count), 20_000)
    assert set(found) <= set(range(count))
    assert count == 1 or p_value(found, dict.fromkeys(range(count), 1 / count)) > ALPHA


class Words:
    """A source of chosen words, which ends."""

    def __init__(self, *words: int) -> None:
        self._words: Iterator[int] = iter(words)

    def word(self) -> int:
        return next(self._words)

    def left(self) -> int:
        return sum(1 for _ in self._words)


def test_a_tie_between_a_word_and_a_probability_is_broken_by_the_next_digit() -> None:
    """1/3 in base 2^64 is 0.(2^64 - 1)/3 for ever: only further words decide."""
    third = (2**64 - 1) // 3
    assert draw.bernoulli(Words(third, third, third - 1), 1, 3)
    assert not draw.bernoulli(Words(third, third, third + 1), 1, 3)
    assert not draw.bernoulli(Words(2**63), 1, 2)  # exactly one half is not below it
    assert draw.bernoulli(Words(2**63 - 1), 1, 2)
    assert not draw.bernoulli(Words(0), 0, 1)
    assert draw.bernoulli(Words(2**64 - 1), 1, 1)


def test_a_uniform_draw_refuses_the_uneven_rest() -> None:
    words = Words(2**64 - 1, 2**64 - 2, 5)
    assert draw.below(words, 2**63 + 1) == 5
    assert draw.below(Words(2**64 - 1), 2**64) == 2**64 - 1
    assert draw.below(Words(), 1) == 0


def test_the_last_word_s_coins_are_its_highest_bits() -> None:
    assert draw.centred_binomial(Words(2**64 - 1, 2**62 - 1), 66) == 64 - 33
    assert draw.centred_binomial(Words(0, 2**63), 66) == 1 - 33


@pytest.mark.parametrize("levels", [2, 5])
def test_control_flow_does_not_depend_on_the_value(levels: int) -> None:
    """Replayed on a neighbour with the same randomness, a response takes the same words."""
    threshold = draw.keep_threshold(Fraction(1, 4), levels)
    for number in range(200):
        taken = set()
        for value in range(levels):
            bits = seeded(number)
            draw.randomised_response(bits, value, levels=levels, threshold=threshold)
            taken.add(bits.word())
        assert len(taken) == 1


def test_every_output_of_one_input_is_an_output_of_its_neighbour() -> None:
    """Support on the grid is the same; with floats, 43 % of outputs give the input away."""
    for sampler in (
        lambda b: draw.discrete_laplace(b, Fraction(2)),
        lambda b: draw.discrete_gaussian(b, Fraction(4)),
    ):
        noise = draws(sampler, 20_000)
        zero, one = {0 + x for x in noise}, {1 + x for x in noise}
        assert all(type(x) is int for x in noise)
        assert set(range(-5, 6)) <= zero & one
    threshold = draw.keep_threshold(Fraction(4), 5)
    for value in (0, 4):
        found = draws(
            lambda b, v=value: draw.randomised_response(b, v, levels=5, threshold=threshold), 20_000
        )
        assert set(found) == set(range(5))


def test_no_float_takes_part_in_a_draw() -> None:
    for module in (draw, bits_module, exact):
        tree = ast.parse(inspect.getsource(module))
        floats = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, float)]  # fmt: skip
        division = [n for n in ast.walk(tree) if isinstance(n, ast.Div)]
        assert floats == []
        # the only divisions are of rationals: a threshold's, and units'
        assert len(division) <= 1
    names = {n.id for n in ast.walk(ast.parse(inspect.getsource(draw))) if isinstance(n, ast.Name)}
    assert not names & {"float", "random", "math", "numpy"}


# --- slots and processes ----------------------------------------------------------------


def test_slots_are_independent() -> None:
    """Neighbouring slots, and slots of two coins: no correlation, and answers without a pattern."""
    count = 20_000
    first = [draw.discrete_gaussian(seeded(slot), Fraction(100)) for slot in range(count)]
    r = stats.pearsonr(first[:-1], first[1:])
    assert r.pvalue > ALPHA
    assert p_value(first, gaussian_law(100)) > ALPHA
    signs = Counter(pairwise(x & 1 for x in first))
    table = [[signs[a, b] for b in (0, 1)] for a in (0, 1)]
    assert stats.chi2_contingency(table).pvalue > ALPHA
    other_coin = [
        draw.discrete_gaussian(
            SeededBits(slot_seed(b"\x07" * 32, b"\x0c" * 32, slot)), Fraction(100)
        )
        for slot in range(2000)
    ]
    assert stats.pearsonr(first[:2000], other_coin).pvalue > ALPHA


def test_a_slot_s_noise_depends_on_secret_coin_and_number() -> None:
    base = slot_seed(b"a" * 32, b"b" * 32, 0)
    assert len({base, slot_seed(b"b" * 32, b"a" * 32, 0), slot_seed(b"a" * 32, b"b" * 32, 1)}) == 3
    for secret, coin, slot in ((b"a" * 31, b"b" * 33, 0), (b"a" * 32, b"b" * 31, 0), (b"a" * 32, b"b" * 32, -1), (b"a" * 32, b"b" * 32, 2**64)):  # fmt: skip
        with pytest.raises(NoiseProtocolError):
            slot_seed(secret, coin, slot)
    with pytest.raises(NoiseProtocolError):
        SeededBits(bytearray(32))  # type: ignore[arg-type]  # could be changed later


def _after_fork(queue: multiprocessing.SimpleQueue[list[int]], bits: SystemBits) -> None:
    queue.put([bits.word() for _ in range(4)])


def test_forked_processes_draw_different_noise() -> None:
    bits = SystemBits()
    bits.word()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    workers = [context.Process(target=_after_fork, args=(queue, bits)) for _ in range(2)]
    for worker in workers:
        worker.start()
    words = [*queue.get(), *queue.get(), *(bits.word() for _ in range(4))]
    for worker in workers:
        worker.join(timeout=30)
    assert len(set(words)) == 12


def test_a_user_s_seed_changes_nothing() -> None:
    code = (
        "import random; random.seed(42)\n"
        "from rlhf_audit_trail.privacy.bits import SystemBits\n"
        "print(*[SystemBits().word() for _ in range(4)])"
    )
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, env=environment
        ).stdout
        for _ in range(2)
    ]
    assert runs[0] != runs[1]


# --- thresholds and refusals ------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 3, 10, 1000])
@pytest.mark.parametrize("epsilon", ["1/1000000", "1/10", "1/4", "1", "5/2", "12", "50"])
def test_a_threshold_is_the_largest_that_keeps_its_epsilon(levels: int, epsilon: str) -> None:
    """ln(T (k - 1) / (2^64 - T)) is not above epsilon, and one more would be: both proven."""
    e = Fraction(epsilon)
    threshold = draw.keep_threshold(e, levels)
    ratio = Fraction(threshold * (levels - 1), 2**64 - threshold)
    assert exact.ln_up(ratio) <= exact.bounds(e)[1]
    if threshold + 1 < 2**64:
        above = Fraction((threshold + 1) * (levels - 1), 2**64 - threshold - 1)
        assert exact.ln_down(above) > exact.bounds(e)[0]


@pytest.mark.parametrize("epsilon", [Fraction(0), Fraction(-1), Fraction(1, 10**19)])
def test_an_epsilon_that_64_bits_cannot_keep_is_refused(epsilon: Fraction) -> None:
    with pytest.raises(InvalidEpsilon):
        draw.keep_threshold(epsilon, 3)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda b: draw.below(b, 0),
        lambda b: draw.below(b, 2**64 + 1),
        lambda b: draw.bernoulli(b, 2, 1),
        lambda b: draw.bernoulli(b, -1, 2),
        lambda b: draw.bernoulli(b, 0, 0),
        lambda b: draw.bernoulli_exp(b, -1, 2),
        lambda b: draw.bernoulli_exp(b, 1, 0),
        lambda b: draw.discrete_laplace(b, Fraction(0)),
        lambda b: draw.discrete_laplace(b, Fraction(2**64 + 1)),
        lambda b: draw.discrete_gaussian(b, Fraction(-1)),
        lambda b: draw.discrete_gaussian(b, Fraction(2**127)),
        lambda b: draw.centred_binomial(b, 3),
        lambda b: draw.centred_binomial(b, 0),
        lambda b: draw.centred_binomial(b, 2**20 + 2),
        lambda b: draw.randomised_response(b, 2, levels=2, threshold=2**63),
        lambda b: draw.randomised_response(b, -1, levels=2, threshold=2**63),
        lambda b: draw.rounded_response(b, 3, 2, threshold=2**63),
        lambda _: draw.keep_threshold(Fraction(1), 1),
        lambda _: draw.keep_threshold(Fraction(1), 2**20 + 1),
    ],
)
def test_what_has_no_law_is_refused(wrong: Draw) -> None:
    with pytest.raises(InvalidParameter):
        wrong(seeded(0))
