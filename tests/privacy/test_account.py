"""Costs and budgets: what the integers admit, exact arithmetic admits; and hardly less."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import mpmath
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.privacy import errors
from rlhf_audit_trail.privacy.account import Budget, Spent
from rlhf_audit_trail.privacy.cost import (
    UNBOUNDED,
    Cost,
    checked_delta,
    checked_epsilon,
    gaussian_cost,
    pure_cost,
    response_cost,
)
from rlhf_audit_trail.privacy.curves import DELTA_UNITS, EPSILON_UNITS, RHO_UNITS
from rlhf_audit_trail.privacy.errors import (
    BudgetExhausted,
    ConflictingParameters,
    InvalidDelta,
    InvalidEpsilon,
    InvalidParameter,
    PrivacyError,
    UnsafeAccounting,
)
from rlhf_audit_trail.privacy.guarantee import Guarantee, check_agreement
from rlhf_audit_trail.privacy.mechanisms import Binomial

EPSILONS = st.sampled_from(["0.05", "0.1", "0.25", "1/3", "1", "2"]).map(Fraction)
CHARGES = st.one_of(
    st.tuples(st.just("response"), EPSILONS),
    st.tuples(st.just("pure"), EPSILONS),
    st.tuples(st.just("gaussian"), st.sampled_from([Fraction(100), Fraction(13184161, 10000), Fraction(7, 3)])),
    st.tuples(st.just("binomial"), EPSILONS),
)  # fmt: skip
BUDGETS = st.sampled_from([("1", "1e-6", "1e-7"), ("3", "1e-6", "0"), ("10", "1e-5", "1e-6"), ("0.5", "1e-9", "1e-10")])  # fmt: skip
COIN_DELTA = Fraction(1, 10**8)


def cost_of(kind: str, parameter: Fraction) -> Cost:
    if kind == "response":
        return response_cost(parameter)
    if kind == "pure":
        return pure_cost(parameter)
    if kind == "gaussian":
        return gaussian_cost(parameter, 1)
    units = -(-parameter.numerator * EPSILON_UNITS // parameter.denominator)
    return Cost(units, UNBOUNDED, int(COIN_DELTA * DELTA_UNITS))


class ExactFilter:
    """The rule of section 6 in unrounded arithmetic: rationals, and mpmath where none exist."""

    def __init__(self, epsilon: str, delta: str, share: str) -> None:
        self.cap, self.share = Fraction(epsilon), Fraction(share)
        self.rho_cap = rho_cap(self.cap, Fraction(delta) - self.share)
        self.epsilon, self.delta, self.rho = Fraction(0), Fraction(0), mpmath.mpf(0)
        self.pure = self.concentrated = True

    def after(self, kind: str, parameter: Fraction) -> ExactFilter:
        found = object.__new__(ExactFilter)
        found.__dict__.update(self.__dict__)
        value = mpmath.mpf(parameter.numerator) / parameter.denominator
        if kind == "gaussian":
            found.pure = False
            found.rho += 1 / (2 * value)
            return found
        found.epsilon += parameter
        if kind == "binomial":
            found.concentrated = False
            found.delta += COIN_DELTA
        else:
            found.rho += value * mpmath.tanh(value / 2) if kind == "response" else value**2 / 2
        return found

    def holds(self, *, slack_units: int = 0) -> bool:
        epsilon = self.pure and self.epsilon + Fraction(slack_units, EPSILON_UNITS) <= self.cap
        rho = self.concentrated and self.rho + mpmath.mpf(slack_units) / RHO_UNITS <= self.rho_cap
        return self.delta <= self.share and bool(epsilon or rho)


def rho_cap(epsilon: Fraction, delta: Fraction) -> mpmath.mpf:
    """The largest rho of the CKS conversion, by maximising over the order directly."""
    e, d = (mpmath.mpf(x.numerator) / x.denominator for x in (epsilon, delta))

    def rho(log_more: mpmath.mpf) -> mpmath.mpf:
        more = mpmath.exp(log_more)
        a = 1 + more
        return (e + (mpmath.log(d) - more * mpmath.log(more / a) + mpmath.log(a)) / more) / a

    low, high = mpmath.mpf(-5), mpmath.mpf(12)
    golden = (mpmath.sqrt(5) - 1) / 2
    for _ in range(100):
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if rho(left) > rho(right) else (left, high)
    return rho((low + high) / 2)


@settings(deadline=None, max_examples=150)
@given(BUDGETS, st.lists(CHARGES, max_size=60))
def test_the_filter_is_the_rule(setting: tuple[str, str, str], charges: list[tuple[str, Fraction]]) -> None:  # fmt: skip
    """Sound: never over. Complete: refused only within a few units of the cap."""
    with mpmath.workdps(40):
        budget = Budget.of(setting[0], setting[1], share=setting[2])
        exact, spent = ExactFilter(*setting), Spent()
        for number, (kind, parameter) in enumerate(charges):
            cost, after = cost_of(kind, parameter), exact.after(kind, parameter)
            if budget.admits(spent, cost):
                spent, exact = budget.charged(spent, cost), after
                assert exact.holds()
            else:
                assert not after.holds(slack_units=number + 3)
                with pytest.raises(BudgetExhausted):
                    budget.charged(spent, cost)


@settings(deadline=None, max_examples=60)
@given(st.lists(CHARGES, max_size=40), st.randoms())
def test_sums_do_not_depend_on_order(charges: list[tuple[str, Fraction]], random: Any) -> None:
    budget = Budget.of(10, 1e-6)
    shuffled = random.sample(charges, len(charges))
    totals = []
    for order in (charges, shuffled):
        spent = Spent()
        for charge in order:
            spent = spent.plus(budget.charge(cost_of(*charge)))
        totals.append(spent)
    assert totals[0] == totals[1]


@settings(deadline=None, max_examples=60)
@given(BUDGETS, st.lists(CHARGES, max_size=20), CHARGES)
def test_the_uses_left_are_those_that_are_admitted(setting: tuple[str, str, str], before: list[tuple[str, Fraction]], one: tuple[str, Fraction]) -> None:  # fmt: skip
    budget = Budget.of(setting[0], setting[1], share=setting[2])
    spent, cost = Spent(), cost_of(*one)
    for charge in before:
        if budget.admits(spent, cost_of(*charge)):
            spent = budget.charged(spent, cost_of(*charge))
    count = budget.uses_left(spent, cost)
    for _ in range(min(count, 300)):
        spent = budget.charged(spent, cost)
    if count <= 300:
        assert not budget.admits(spent, cost)
        assert budget.uses_left(spent, cost) == 0


def test_a_hundred_charges_of_a_tenth_make_exactly_ten() -> None:
    """With binary units the last is refused, by rounding."""
    budget, spent = Budget.of(10, 0), Spent()
    for _ in range(100):
        spent = budget.charged(spent, pure_cost(Fraction(1, 10)))
    assert spent.epsilon_units == budget.epsilon_units
    with pytest.raises(BudgetExhausted):
        budget.charged(spent, pure_cost(Fraction(1, EPSILON_UNITS)))


def test_a_gaussian_closes_the_first_way_and_coins_the_second() -> None:
    budget = Budget.of(3, "1.1e-6", share="1e-7")
    gaussian, coins = (
        gaussian_cost(Fraction(3631, 100) ** 2, 1),
        cost_of("binomial", Fraction(1, 10)),
    )
    after_gaussian = budget.charged(Spent(), gaussian)
    assert after_gaussian.epsilon_units == UNBOUNDED
    assert budget.admits(after_gaussian, gaussian)
    assert not budget.admits(after_gaussian, coins)
    after_coins = budget.charged(Spent(), coins)
    assert after_coins.second_units == UNBOUNDED
    assert not budget.admits(after_coins, gaussian)
    assert budget.uses_left(Spent(), coins) == 10  # its share of delta ends before its epsilon


def test_coins_without_a_share_are_refused() -> None:
    binomial = Binomial(262_144, Fraction("0.0201"), Fraction(1, 10**10))
    with pytest.raises(BudgetExhausted):
        Budget.of(3, 1e-6).charged(Spent(), binomial.cost)
    assert Budget.of(3, 1e-6, share=1e-9).uses_left(Spent(), binomial.cost) == 10


def test_under_a_fixed_response_anything_else_passes_by_its_epsilon_only() -> None:
    budget = Budget.of(10, 1e-6, response="0.1")
    assert (budget.rule, budget.second_cap_units) == ("fixed_rr", 346)
    one, other = response_cost(Fraction(1, 10)), pure_cost(Fraction(1, 10))
    assert budget.uses_left(Spent(), one) == 346
    assert budget.uses_left(Spent(), other) == 100
    assert budget.uses_left(Spent(), response_cost(Fraction(1, 20))) == 200
    mixed = budget.charged(Spent(), other)
    assert mixed.second_units == UNBOUNDED
    assert budget.uses_left(mixed, one) == 99
    many = Spent(200 * one.epsilon_units, 200)
    assert budget.admits(many, one)
    assert not budget.admits(many, other)


def test_what_was_spent_is_the_better_of_both_ways() -> None:
    union = Budget.of(10, 1e-6)
    half = Spent(100 * EPSILON_UNITS, RHO_UNITS // 2)
    assert union.spent_epsilon_units(half) == pytest.approx(5.22153444453e12, rel=1e-11)
    assert union.spent_epsilon_units(Spent(EPSILON_UNITS, RHO_UNITS // 2)) == EPSILON_UNITS
    fixed = Budget.of(10, 1e-6, response="0.1")
    hundred = Spent(10 * EPSILON_UNITS, 100)
    assert fixed.spent_epsilon_units(hundred) == pytest.approx(4.774567588e12, rel=1e-10)
    assert fixed.spent_epsilon_units(Spent()) == 0
    large = Spent(900 * EPSILON_UNITS, 10**6 * RHO_UNITS)
    assert union.spent_epsilon_units(large) == 900 * EPSILON_UNITS
    with pytest.raises(InvalidEpsilon):
        union.spent_epsilon_units(Spent(UNBOUNDED, UNBOUNDED))


@settings(deadline=None, max_examples=40)
@given(st.lists(CHARGES.filter(lambda c: c[0] != "binomial"), max_size=40))
def test_spent_is_never_above_the_cap_while_the_budget_holds(charges: list[tuple[str, Fraction]]) -> None:  # fmt: skip
    budget, spent = Budget.of(3, 1e-6), Spent()
    for charge in charges:
        if budget.admits(spent, cost_of(*charge)):
            spent = budget.charged(spent, cost_of(*charge))
    assert budget.spent_epsilon_units(spent) <= budget.epsilon_units
    left = budget.left(spent)
    assert min(left.epsilon_units, left.second_units, left.delta_units) >= 0


def test_lost_guarantees_do_not_come_back_and_do_not_overflow() -> None:
    endless = Spent(UNBOUNDED, UNBOUNDED, UNBOUNDED)
    assert endless.plus(endless) == endless
    assert 2 * UNBOUNDED < 2**63
    budget = Budget.of(1000, 0.5)
    assert not budget.holds(endless)
    assert budget.left(endless) == Spent()
    assert budget.uses_left(endless, pure_cost(Fraction(1))) == 0


def test_what_a_model_will_spend_is_set_aside() -> None:
    model = Guarantee(4 * EPSILON_UNITS, DELTA_UNITS // 10**7)
    budget = Budget.of(10, 1e-6, reserved=model)
    assert (budget.epsilon_units, budget.delta_units) == (
        6 * EPSILON_UNITS,
        9 * DELTA_UNITS // 10**7,
    )
    with pytest.raises(InvalidEpsilon):
        Budget.of(4, 1e-6, reserved=model)
    with pytest.raises(InvalidDelta):
        Budget.of(10, 1e-8, reserved=model)
    for other in ("unit", "relation", "view"):
        wrong = Guarantee(1, 1, **{other: "add_remove"})
        with pytest.raises(UnsafeAccounting, match=other):
            Budget.of(10, 1e-6, reserved=wrong)


def test_guarantees_add_only_when_they_mean_the_same() -> None:
    one = Guarantee(EPSILON_UNITS, 10)
    assert one.plus(one) == Guarantee(2 * EPSILON_UNITS, 20)
    training = Guarantee(EPSILON_UNITS, 10**12, relation="add_remove")
    with pytest.raises(UnsafeAccounting, match="relation"):
        one.plus(training)
    turned = training.as_replace()
    assert turned.epsilon_units == 2 * EPSILON_UNITS
    assert turned.delta_units == 3718281828460  # (1 + e) 10^12, rounded up
    assert one.plus(turned).relation == "replace"
    assert turned.as_replace() is turned
    with pytest.raises(InvalidDelta):
        Guarantee(100 * EPSILON_UNITS, 1, relation="add_remove").as_replace()


def test_a_claim_within_one_per_cent_agrees() -> None:
    check_agreement(Fraction(101, 100), Fraction(1))
    for claimed in (Fraction(1011, 1000), Fraction(989, 1000)):
        with pytest.raises(ConflictingParameters):
            check_agreement(claimed, Fraction(1))


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "x", None, 1001, 1e-13, 1e400, pytest.param(10**400, id="huge")])  # fmt: skip
def test_an_epsilon_out_of_range_is_refused(value: Any) -> None:
    with pytest.raises(InvalidEpsilon, match="epsilon"):
        checked_epsilon(value)


@pytest.mark.parametrize("value", [-1e-9, 1, 2, float("nan"), True, "x", None])
def test_a_delta_out_of_range_is_refused(value: Any) -> None:
    with pytest.raises(InvalidDelta, match="delta"):
        checked_delta(value)


@pytest.mark.parametrize("units", [(-1, 1, 0), (1, 0, 0), (0, 1, 0), (1, 1, 1), (2**62, 1, 0), (1.5, 1, 0)])  # fmt: skip
def test_a_cost_that_means_nothing_is_refused(units: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidParameter):
        Cost(*units)


@pytest.mark.parametrize(("error", "fields"), [(InvalidEpsilon, (0, 1)), (InvalidEpsilon, (1001 * EPSILON_UNITS, 1)), (InvalidParameter, (1, -1)), (InvalidDelta, (1, DELTA_UNITS))])  # fmt: skip
def test_a_budget_that_means_nothing_is_refused(error: type[Exception], fields: tuple[int, int]) -> None:  # fmt: skip
    with pytest.raises(error):
        Budget(*fields)


def test_a_refusal_says_neither_who_nor_how_much() -> None:
    budget = Budget.of(1, 0)
    with pytest.raises(BudgetExhausted) as found:
        budget.charged(Spent(7, 7), pure_cost(Fraction(2)), annotator="anna@example.org")
    refusal = found.value
    assert refusal.annotator == "anna@example.org"
    assert refusal.needed == budget.charge(pure_cost(Fraction(2)))
    assert refusal.left == budget.left(Spent(7, 7))
    assert not any(character.isdigit() for character in str(refusal))
    assert "anna" not in str(refusal)


def test_every_refusal_of_the_part_is_one_tree() -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, PrivacyError if name != "PrivacyWarning" else UserWarning)
    assert issubclass(PrivacyError, AuditTrailError)
