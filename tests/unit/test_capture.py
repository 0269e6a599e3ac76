"""Capture: whatever library a number comes from, it becomes a plain one, or a named finding."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_audit_trail.capture import (
    InvalidColumn,
    InvalidMetric,
    NonFiniteValue,
    UnequalLengths,
    check_lengths,
    environment,
    file_digest,
    loose_numbers,
    number_column,
    person_column,
    plain_value,
    row_count,
    text_column,
)


@pytest.mark.parametrize(
    "values",
    [
        [1, 0.5, True],
        (1, 0.5, 1),
        np.array([1, 0.5, 1]),
        np.array([1, 0.5, 1], dtype=np.float16),
        torch.tensor([1, 0.5, 1], dtype=torch.bfloat16),
        torch.tensor([1, 0.5, 1], requires_grad=True),
        [np.float32(1), torch.tensor(0.5), Fraction(1)],
        [np.int64(1), np.array([0.5]), np.uint8(1)],
        (value for value in (1, 0.5, 1)),
    ],
)
def test_numbers_of_every_library_become_plain(values: Any) -> None:
    column = number_column("rewards", values)
    assert column == [1, 0.5, 1]
    assert all(type(value) in (int, float) for value in column)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_names_its_rows(odd: float) -> None:
    with pytest.raises(NonFiniteValue, match=r"rewards is NaN or infinite in row 1, 3 "):
        number_column("rewards", np.array([0.0, odd, 1.0, odd]))
    assert len(loose_numbers("rewards", [0.0, odd])) == 2


def test_many_bad_rows_are_counted_not_listed() -> None:
    with pytest.raises(NonFiniteValue, match=r"9 and 90 more"):
        number_column("rewards", [math.nan] * 100)


@pytest.mark.parametrize("values", ["0.5", 0.5, torch.tensor(0.5), None])
def test_a_column_is_a_sequence(values: Any) -> None:
    with pytest.raises(InvalidColumn, match="one value per row"):
        number_column("rewards", values)


@pytest.mark.parametrize("values", [[0.5, "1"], [0.5, None], np.ones((2, 2)), [0.5, [1]]])
def test_what_is_no_number_names_its_row(values: Any) -> None:
    with pytest.raises(InvalidColumn, match="no number in row"):
        number_column("rewards", values)


def test_messages_never_quote_a_value() -> None:
    with pytest.raises(InvalidColumn) as caught:
        text_column("prompts", ["fine", 271828])
    assert "271828" not in str(caught.value)
    assert "row 1" in str(caught.value)


def test_people_are_text_and_nobody_is_nobody() -> None:
    assert person_column("annotator_ids", np.array([7, 8])) == ["7", "8"]
    assert person_column("annotator_ids", ["anna", None, ""]) == ["anna", "", ""]


def test_unequal_columns_name_the_first_incomplete_row() -> None:
    assert check_lengths(prompts=["a"], rewards=[1.0]) == 1
    with pytest.raises(UnequalLengths, match=r"prompts 3, rewards 2; row 2 is incomplete"):
        check_lengths(prompts=["a", "b", "c"], rewards=[1.0, 2.0])
    with pytest.raises(UnequalLengths, match="row 1 to 4 is incomplete"):
        check_lengths(prompts=["a"] * 5, rewards=[1.0])


def test_metrics_become_json_and_odd_numbers_become_text() -> None:
    odd: list[str] = []
    plain = plain_value(
        "metrics",
        {
            "loss": torch.tensor(0.25),
            "steps": np.int32(3),
            "exact": Decimal("0.5"),
            "share": Fraction(1, 4),
            "by_layer": np.array([1.0, math.nan]),
            "deep": {"kl": [math.inf, -math.inf]},
            "note": None,
            "name": "NaN",
            "done": True,
        },
        odd,
    )
    assert json.loads(json.dumps(plain, allow_nan=False)) == {
        "loss": 0.25,
        "steps": 3,
        "exact": 0.5,
        "share": 0.25,
        "by_layer": [1.0, "NaN"],
        "deep": {"kl": ["Infinity", "-Infinity"]},
        "note": None,
        "name": "NaN",
        "done": True,
    }
    assert odd == ["metrics[1]", "metrics[0]", "metrics[1]"], "keys may name people"


def test_a_metric_of_another_type_is_refused_by_name() -> None:
    with pytest.raises(InvalidMetric, match="a value of metrics is of type object") as caught:
        plain_value("metrics", {"ann@example.org": object()})
    assert "ann@" not in str(caught.value)


@pytest.mark.parametrize(
    ("batch", "rows"),
    [
        (None, 0),
        ([1, 2], 2),
        ({"input_ids": torch.zeros(3, 5)}, 3),
        ({"step": 4, "text": ["a"]}, 1),
        (7, 0),
    ],
)
def test_rows_of_a_batch(batch: Any, rows: int) -> None:
    assert row_count(batch) == rows


def test_the_environment_names_versions_and_nothing_of_the_machine() -> None:
    found = environment()
    assert found["packages"]["torch"].startswith("2.")
    assert len(found.get("code_digest", "0" * 64)) == 64
    assert str(Path.home()) not in json.dumps(found)


def test_a_folder_digest_depends_on_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_bytes(b"2")
    before = file_digest(tmp_path)
    (tmp_path / "sub" / "b").rename(tmp_path / "sub" / "c")
    after = file_digest(tmp_path)
    assert before != after
    assert file_digest(tmp_path / "a") != before


@pytest.mark.parametrize("huge", [10**400, -(10**400)])
def test_a_whole_number_beyond_every_float_counts_as_infinite(huge: int) -> None:
    with pytest.raises(NonFiniteValue):
        number_column("rewards", [0.5, huge])
    odd: list[str] = []
    assert plain_value("metrics", huge, odd) == ("Infinity" if huge > 0 else "-Infinity")
    assert odd == ["metrics"]
