"""Batches decide as single charges do; counts are exact where floats would not be."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_audit_trail.privacy.account import Budget, Spent
from rlhf_audit_trail.privacy.cost import (
    UNBOUNDED,
    Cost,
    gaussian_cost,
    pure_cost,
    response_cost,
)
from rlhf_audit_trail.privacy.errors import InvalidParameter
from rlhf_audit_trail.privacy.stream import StreamFilter, use_counts

COSTS = (
    response_cost(Fraction(1, 10)),
    pure_cost(Fraction(1, 3)),
    gaussian_cost(Fraction(30), 1),
    Cost(10**11, UNBOUNDED, 3 * 10**11),
)
BUDGETS = (
    Budget.of(1, 1e-6),
    Budget.of(2, "2e-6", share="1e-6"),
    Budget.of(1, 1e-6, response="0.1"),
    Budget.of(10, 0),
)


def one_by_one(budget: Budget, annotators: list[int], mechanisms: list[int]) -> tuple[list[bool], dict[int, Spent]]:  # fmt: skip
    spent: dict[int, Spent] = {}
    decisions = []
    for who, what in zip(annotators, mechanisms, strict=True):
        before = spent.get(who, Spent())
        decisions.append(budget.admits(before, COSTS[what]))
        spent[who] = budget.charged(before, COSTS[what]) if decisions[-1] else before
    return decisions, spent


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(BUDGETS),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=200),
    st.lists(st.integers(0, 200), max_size=5),
)
def test_batches_decide_as_single_charges_do(budget: Budget, events: list[tuple[int, int]], cuts: list[int]) -> None:  # fmt: skip
    annotators, mechanisms = [event[0] for event in events], [event[1] for event in events]
    expected, spent = one_by_one(budget, annotators, mechanisms)
    stream, found = StreamFilter(budget, COSTS, n_annotators=4), []
    edges = [0, *sorted(cuts), len(events)]
    for start, stop in pairwise(edges):
        part = slice(start, min(stop, len(events)))
        found += stream.charge(np.array(annotators[part], np.int64), np.array(mechanisms[part], np.int64)).tolist()  # fmt: skip
    assert found == expected
    assert {who: stream.spent(who) for who in spent} == spent


def test_a_crowd_and_one_tireless_annotator() -> None:
    rng = np.random.default_rng(5)
    annotators = np.concatenate([rng.integers(0, 500, 20_000), np.full(2_000, 7)])
    rng.shuffle(annotators)
    mechanisms = rng.integers(0, 4, len(annotators))
    for budget in BUDGETS:
        stream = StreamFilter(budget, COSTS, n_annotators=500)
        found = stream.charge(annotators, mechanisms).tolist()
        expected, spent = one_by_one(budget, annotators.tolist(), mechanisms.tolist())
        assert found == expected
        assert all(stream.spent(who) == sums for who, sums in spent.items())


def test_costs_near_the_largest_do_not_overflow() -> None:
    costs = (Cost(2**60, 2**60), Cost(UNBOUNDED, 1), Cost(1, UNBOUNDED))
    budget = Budget.of(1000, 0.5)
    rng = np.random.default_rng(6)
    annotators, mechanisms = rng.integers(0, 3, 500), rng.integers(0, 3, 500)
    stream, spent = StreamFilter(budget, costs, n_annotators=3), [Spent()] * 3
    for who, what, admitted in zip(annotators, mechanisms, stream.charge(annotators, mechanisms), strict=True):  # fmt: skip
        assert budget.admits(spent[who], costs[what]) == admitted
        if admitted:
            spent[who] = budget.charged(spent[who], costs[what])
    assert [stream.spent(who) for who in range(3)] == spent


def test_a_filter_goes_on_where_the_last_one_stopped() -> None:
    budget = Budget.of(1, 0)
    first = StreamFilter(budget, COSTS[:1], n_annotators=2)
    assert first.charge(np.zeros(6, np.int64), np.zeros(6, np.int64)).all()
    second = StreamFilter(budget, COSTS[:1], n_annotators=2)
    second.restore(0, first.spent(0))
    assert second.charge(np.zeros(6, np.int64), np.zeros(6, np.int64)).sum() == 4


def test_uses_are_counted_exactly_in_any_order() -> None:
    rng = np.random.default_rng(7)
    annotators, mechanisms = rng.integers(0, 50, 5_000), rng.integers(0, 3, 5_000)
    counts = use_counts(annotators, mechanisms, n_annotators=50, n_mechanisms=3)
    expected = np.zeros((50, 3), np.int64)
    np.add.at(expected, (annotators, mechanisms), 1)
    assert (counts == expected).all()
    order = rng.permutation(5_000)
    assert (use_counts(annotators[order], mechanisms[order], n_annotators=50, n_mechanisms=3) == counts).all()  # fmt: skip
    single = use_counts(annotators, np.zeros_like(mechanisms), n_annotators=50, n_mechanisms=1)
    assert (single[:, 0] == counts.sum(axis=1)).all()


@pytest.mark.parametrize(
    ("annotators", "mechanisms"),
    [
        (np.array([2]), np.array([0])),
        (np.array([-1]), np.array([0])),
        (np.array([0]), np.array([4])),
        (np.array([0]), np.array([-1])),
        (np.array([0, 1]), np.array([0])),
        (np.array([0.0]), np.array([0])),
        (np.array([0], np.int32), np.array([0])),
        (np.array([0], np.uint64), np.array([0])),
        (np.array([[0]]), np.array([[0]])),
    ],
)
def test_numbers_of_nobody_are_refused(annotators: np.ndarray, mechanisms: np.ndarray) -> None:
    stream = StreamFilter(BUDGETS[0], COSTS, n_annotators=2)
    with pytest.raises(InvalidParameter):
        stream.charge(annotators, mechanisms)
    assert stream.spent(0) == stream.spent(1) == Spent()


def test_a_table_that_would_fill_the_memory_is_refused() -> None:
    nobody = np.zeros(0, np.int64)
    with pytest.raises(InvalidParameter, match="large"):
        use_counts(nobody, nobody, n_annotators=2**24, n_mechanisms=5)


def test_only_the_stream_needs_numpy() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'numpy', 'scipy', 'sqlmodel', 'opacus'):\n"
        "    sys.modules[name] = None\n"
        "import rlhf_audit_trail.privacy.choosing, rlhf_audit_trail.privacy.empirical\n"
        "from rlhf_audit_trail.privacy import PrivacyConfig\n"
        "print(rlhf_audit_trail.privacy.choosing.budget_for(PrivacyConfig()).epsilon_units)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3000000000000"]
