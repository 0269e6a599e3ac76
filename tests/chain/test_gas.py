"""Gas is exact and repeatable, so its goals are tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import Result
from benchmarks.gas import sample_digest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.chain


@pytest.mark.slow
def test_the_benchmark_meets_its_goals():
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks", "gas", "--json"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = json.loads(ran.stdout)
    values = {result["name"]: result for result in report["results"]}
    assert sum(result["met"] is True for result in values.values()) == 4
    assert not any(result["met"] is False for result in values.values())
    assert set(report["results"][0]) == {
        "name", "value", "unit", "reference", "ratio", "goal", "met",
    }  # fmt: skip
    assert {"machine", "versions", "commit"} < set(report)
    refusals = [name for name in values if name.startswith("refused: ")]
    assert len(refusals) == 6
    assert values["storage slots created by a first anchor"]["value"] == 2
    assert values["storage slots created by a later anchor"] == {
        "name": "storage slots created by a later anchor", "value": 0, "unit": "slots",
        "reference": None, "ratio": None, "goal": 0, "met": True,
    }  # fmt: skip
    checked = [value for name, value in values.items() if "plain Solidity" in name]
    assert len(checked) == 3
    assert all(value["ratio"] > 1.05 for value in checked)  # who checks the same pays more


def test_the_sample_is_the_published_one():
    assert sample_digest() == ("860f83fc46a8ef757708020864102a8071ebfcb2d8e31987ef0017063c3d1923")


def test_a_missed_goal_is_said():
    assert Result("x", 2.0, "gas", goal=1.0).met is False
    assert Result("x", 2.0, "gas", goal=2.0, reference=4.0).met is True
    assert Result("x", 2.0, "1/s", goal=3.0, lower_is_better=False).met is False
    assert Result("x", 2.0, "gas").met is None
    assert Result("x", 2.0, "gas", reference=4.0).ratio == 0.5
