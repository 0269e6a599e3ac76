"""Gas is exact and repeatable, so its goals are tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import Result

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
    assert sum(result["met"] is True for result in values.values()) == 3
    assert not any(result["met"] is False for result in values.values())
    assert set(report["results"][0]) == {
        "name", "value", "unit", "reference", "ratio", "goal", "met",
    }  # fmt: skip
    assert {"machine", "versions", "commit"} < set(report)
    refusals = [name for name in values if name.startswith("refused: ")]
    assert len(refusals) == 6


def test_a_missed_goal_is_said():
    assert Result("x", 2.0, "gas", goal=1.0).met is False
    assert Result("x", 2.0, "gas", goal=2.0, reference=4.0).met is True
    assert Result("x", 2.0, "1/s", goal=3.0, lower_is_better=False).met is False
    assert Result("x", 2.0, "gas").met is None
    assert Result("x", 2.0, "gas", reference=4.0).ratio == 0.5
