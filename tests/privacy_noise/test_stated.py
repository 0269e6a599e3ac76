"""Mechanisms read back from an entry: all that is written is read, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_audit_trail.privacy.aggregates import Histogram, MeanSum
from rlhf_audit_trail.privacy.errors import TamperedParameters
from rlhf_audit_trail.privacy.interval import Interval
from rlhf_audit_trail.privacy.mechanisms import (
    Binomial,
    DiscreteGaussian,
    Geometric,
    Mechanism,
    RandomisedResponse,
    RoundedResponse,
)
from rlhf_audit_trail.privacy.stated import check_sensitivity, mechanism_of, same_code, statistic_of

EPSILONS = st.fractions(min_value="1/1000", max_value=40, max_denominator=10**6)
MECHANISMS = st.one_of(
    st.builds(RandomisedResponse, EPSILONS, st.integers(2, 1000)),
    st.builds(
        RoundedResponse,
        EPSILONS,
        st.tuples(st.fractions(max_denominator=10**9), st.fractions(min_value="1/10", max_denominator=99)).map(
            lambda ends: Interval(ends[0], ends[0] + ends[1])
        ),
    ),
    st.builds(Geometric, EPSILONS, st.integers(1, 1000)),
    st.builds(DiscreteGaussian, st.fractions(min_value=9, max_value=10**9), st.integers(1, 10**6)),
)  # fmt: skip
EXAMPLES = (
    RandomisedResponse(Fraction(1, 4), 5),
    RoundedResponse(Fraction(1), Interval.of(-1, 1)),
    Geometric(Fraction(1, 10), 2),
    DiscreteGaussian(Fraction(1319), 2),
    Binomial(128, Fraction(1), Fraction(1, 10**6)),
)
STATISTICS = (MeanSum(Interval.of(0, 1)), Histogram(5, 2))


@settings(max_examples=150, deadline=None)
@given(MECHANISMS)
def test_what_is_written_is_read(mechanism: Mechanism) -> None:
    fields = json.loads(json.dumps(mechanism.public()))
    found = mechanism_of(fields)
    assert (found, type(found)) == (mechanism, type(mechanism))
    assert same_code(fields)


@pytest.mark.parametrize("statistic", STATISTICS, ids=repr)
def test_statistics_are_read_too(statistic: MeanSum | Histogram) -> None:
    fields = json.loads(json.dumps(statistic.public()))
    assert statistic_of(fields) == statistic
    free = [changed for changed in changes(fields) if type(changed.get("cells")) is not int]
    for changed in free if "cells" in fields else changes(fields):
        with pytest.raises(TamperedParameters):
            statistic_of(changed)


def changes(fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every field changed in each of many ways, missing, and one more."""
    for key, value in fields.items():
        yield {k: v for k, v in fields.items() if k != key}
        if isinstance(value, dict):
            yield from ({**fields, key: inner} for inner in changes(value))
        others: list[Any] = [None, "", [], {}, True, 0, -1, 1.5, "x", "1e9", "NaN", f"{value}0"]
        if isinstance(value, int):
            others += [value + 1, value - 1, float(value), str(value), 10**5000]
        if isinstance(value, str) and value.isdigit():
            others += [str(int(value) + 1), str(int(value) - 1), "0" + value, " " + value]
            others += ["٣", "9" * 5000, f"{value}/1"]
        yield from ({**fields, key: other} for other in others if other != value)
    yield {**fields, "more": 1}


@pytest.mark.parametrize("mechanism", EXAMPLES, ids=lambda mechanism: mechanism.name)
def test_every_change_is_noticed(mechanism: Mechanism) -> None:
    fields = json.loads(json.dumps(mechanism.public()))
    tried = [changed for changed in changes(fields) if changed.get("code_digest", 0) != "0" * 64]
    for changed in tried:
        with pytest.raises(TamperedParameters) as refused:
            mechanism_of(changed)
        assert refused.value.next_step
    assert len(tried) > 100


@pytest.mark.parametrize("fields", [None, [], "x", {}, {"name": {}}, {"name": "geometric"}])
def test_what_is_no_mechanism_is_refused(fields: Any) -> None:
    with pytest.raises(TamperedParameters):
        mechanism_of(fields)


def test_other_code_is_reported_and_not_refused() -> None:
    fields = EXAMPLES[0].public() | {"code_digest": "ab" * 32}
    assert mechanism_of(fields) == EXAMPLES[0]
    assert not same_code(fields)


def test_noise_for_a_smaller_sensitivity_is_noticed() -> None:
    cells = Histogram(5, 2)  # L1 4, L2 squared 8
    for enough in (Geometric(Fraction(1), 4), DiscreteGaussian(Fraction(9), 8)):
        assert check_sensitivity(enough, cells) is enough
    for small in (Geometric(Fraction(1), 3), DiscreteGaussian(Fraction(9), 7), EXAMPLES[0]):
        with pytest.raises(TamperedParameters):
            check_sensitivity(small, cells)
