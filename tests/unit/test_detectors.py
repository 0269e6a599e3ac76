"""Detectors: each rule fires on what it is for and is silent otherwise; alerts recompute."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest

from rlhf_audit_trail.detectors import (
    DEFAULT_RULES,
    AlertDiffers,
    AlertNotJudged,
    Detectors,
    InvalidRule,
    Rule,
    recompute,
)
from rlhf_audit_trail.detectors.dip import dip, scaled_dip
from rlhf_audit_trail.detectors.judging import _TESTS
from rlhf_audit_trail.detectors.observing import METRICS, observation
from rlhf_audit_trail.detectors.rule import TESTS
from rlhf_audit_trail.detectors.shape import batch_shape
from rlhf_audit_trail.ledger.events import Event

STEPS = 80
RNG = random.Random(5)


def noisy(level: float, spread: float = 0.05) -> float:
    return level * (1 + RNG.uniform(-spread, spread))


def figures(**changed: Any) -> list[dict[str, Any]]:
    """An ordinary run, but for some series: functions of the step."""
    usual = {
        "entropy": lambda _: noisy(2.5),
        "kl": lambda step: noisy(5 * (1 - math.exp(-step / 10))),
        "reward": lambda step: noisy(1 - math.exp(-step / 20), 0.2),
        "reward_std": lambda _: noisy(0.3),
        "loss": lambda _: noisy(0.5),
        "grad_norm": lambda _: noisy(1.0, 0.3),
        "completions/mean_length": lambda _: noisy(40),
        "completions/clipped_ratio": lambda _: noisy(0.1),
        "frac_reward_zero_std": lambda _: noisy(0.2),
        "logps/chosen": lambda _: -noisy(60),
    }
    series = usual | changed
    return [{name: value(step) for name, value in series.items()} for step in range(STEPS)]


def alerts_of(rows: Sequence[dict[str, Any]]) -> list[Event]:
    detectors = Detectors()
    found = []
    for step, row in enumerate(rows):
        plain = {k: "NaN" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
        found += detectors.look_at([Event("metrics.logged", {"step": step}, {"metrics": plain})])
    return found


def test_an_ordinary_run_raises_nothing() -> None:
    for _ in range(20):
        assert alerts_of(figures()) == []


@pytest.mark.parametrize(
    ("name", "series", "severity"),
    [
        ("entropy_collapse", {"entropy": lambda s: 2.5 if s < 25 else 0.3}, "critical"),
        ("kl_spike", {"kl": lambda s: noisy(5) if s < 60 else 40.0}, "critical"),
        ("reward_variance", {"reward_std": lambda s: 0.3 if s < 40 else 0.6}, "warning"),
        ("non_finite_loss", {"loss": lambda s: math.nan if s == 3 else 0.5}, "critical"),
        ("grad_norm_spike", {"grad_norm": lambda s: noisy(1, 0.3) if s < 60 else 9.0}, "critical"),
        ("reward_monotone", {"reward": lambda s: 0.5 + s / 100}, "warning"),
        ("reward_monotone", {"reward": lambda s: 0.5 - s / 100}, "critical"),
        ("length_drift", {"completions/mean_length": lambda s: 40 + s}, "critical"),
        ("truncation", {"completions/clipped_ratio": lambda s: min(1.0, s / 40)}, "critical"),
        ("frac_reward_zero_std", {"frac_reward_zero_std": lambda s: s / STEPS}, "warning"),
        ("chosen_logps_falling", {"logps/chosen": lambda s: -60 - s}, "critical"),
        (
            "score_rises_with_kl",
            {"reward": lambda s: s**1.2 + 3 * (s % 2), "kl": lambda s: 1.5 * s + s % 2},
            "critical",
        ),
    ],
)
def test_each_rule_finds_what_it_is_for(name: str, series: dict[str, Any], severity: str) -> None:
    found = [alert for alert in alerts_of(figures(**series)) if alert.fields["name"] == name]
    assert severity in {alert.fields["severity"] for alert in found}
    assert len(found) <= 2  # a warning, a critical one; then it keeps still
    for alert in found:
        stored = json.loads(json.dumps({**alert.fields, **alert.sealed}))
        judged = recompute(stored, stored["inputs"])
        assert judged.severity == alert.fields["severity"]
        assert "inputs" not in alert.fields
        assert not any(char.isdigit() for char in alert.fields["detail"])  # figures are sealed


def rollout(scores: Sequence[float], **more: Any) -> Event:
    prompts = [f"p{row // 4}" for row in range(len(scores))]
    mean = sum(scores) / len(scores)
    std = math.sqrt(sum((score - mean) ** 2 for score in scores) / len(scores))
    shape = batch_shape(prompts, scores, more.pop("ends", None))
    sealed = {"reward_mean": mean, "reward_std": std, "figures": {"shape": shape, **more}}
    return Event("rollout.scored", {"policy_step": 1}, sealed)


def test_rewards_that_fall_into_two_groups() -> None:
    rng, detectors = random.Random(1), Detectors()
    one = [rollout([rng.gauss(0.5, 0.2) for _ in range(64)]) for _ in range(30)]
    assert detectors.look_at(one) == []
    two = [rollout([rng.gauss(i % 2, 0.05) for i in range(64)]) for _ in range(10)]
    assert "reward_bimodal" in {alert.fields["name"] for alert in detectors.look_at(two)}


def test_rewards_that_had_two_groups_from_the_beginning() -> None:
    rng = random.Random(1)
    right_or_wrong = [rollout([float(rng.random() < 0.5) for _ in range(64)]) for _ in range(60)]
    assert Detectors().look_at(right_or_wrong) == []


def test_advantages_that_spread() -> None:
    detectors, rng = Detectors(), random.Random(1)
    scores = [[rng.gauss(0.5, 0.2) for _ in range(64)] for _ in range(30)]
    assert detectors.look_at([rollout(x, advantage={"std": 1.0}) for x in scores]) == []
    (alert,) = detectors.look_at([rollout(scores[0], advantage={"std": 4.0})])
    assert (alert.fields["name"], alert.fields["severity"]) == ("advantage_std", "warning")


def test_a_batch_has_a_shape() -> None:
    ends = ["length", "stop", "length", "length"]
    found = batch_shape(["a"] * 4, [1.0] * 4, ends)
    assert found == {"frac_reward_zero_std": 1.0, "truncated_share": 0.75}
    assert batch_shape(["a", "b"], [1.0, None], None) == {}
    assert batch_shape([], [], []) == {}
    assert "reward_dip" in batch_shape([{"role": "user"}] * 20, [0.5] * 10 + [0.1] * 10, None)


def test_the_dip_of_known_samples() -> None:
    assert dip([0.0, 0.0, 1.0, 1.0]) == pytest.approx(0.25)
    assert dip([1.0, 2.0, 3.0, 4.0]) == pytest.approx(1 / 8)  # the least there is: 1/(2n)
    assert dip([5.0] * 30) == 0.0
    assert scaled_dip([0.0, 1.0] * 5_000) == pytest.approx(math.sqrt(256) / 4)
    # computed by the package diptest 0.12.0
    sample = sorted(round(math.sin(i) * 10, 3) for i in range(40))
    assert dip(sample) == pytest.approx(DIP_OF_SINES, abs=1e-12)


DIP_OF_SINES = 0.06473362552403768


def test_figures_are_counted_from_one_kind_of_event_only() -> None:
    detectors = Detectors()
    for step in range(30):
        detectors.look_at(
            [
                Event("rollout.scored", {"policy_step": step}, {"kl_mean": 1.0}),
                Event("metrics.logged", {"step": step}, {"metrics": {"kl": 50.0 * step}}),
            ]
        )
    watched = {item.rule.name: item for item in detectors._watched}
    assert watched["kl_spike"].seen == 30
    assert {row[0] for row in watched["kl_spike"].recent} == {1.0}


@pytest.mark.parametrize(
    ("kind", "fields", "sealed"),
    [
        ("policy.update", {"policy_step": 3}, {"statistics": "text"}),
        ("metrics.logged", {"step": "x"}, {"metrics": [1]}),
        ("metrics.logged", {}, {"metrics": {"kl": True, "loss": None, "entropy": "high"}}),
        ("rollout.scored", {}, {"figures": {"shape": 1, "advantage": []}}),
        ("rollout.scored", {}, {}),
    ],
)
def test_values_that_are_no_figures_are_passed_over(
    kind: str, fields: dict[str, Any], sealed: dict[str, Any]
) -> None:
    found = observation(kind, fields, sealed)
    assert found is not None
    assert not found.figures
    assert Detectors().look_at([Event(kind, fields, sealed)]) == []


def test_huge_figures_end_no_training() -> None:
    rows = figures(grad_norm=lambda s: 1e308 if s > 40 else 1.0, kl=lambda s: 1e200 * (s > 50))
    for alert in alerts_of(rows):
        json.dumps(alert.sealed, allow_nan=False)


def alert_of_lengths() -> tuple[dict[str, Any], dict[str, Any]]:
    found = alerts_of(figures(**{"completions/mean_length": lambda s: 40.0 + s}))
    alert = next(alert for alert in found if alert.fields["name"] == "length_drift")
    return json.loads(json.dumps(dict(alert.fields))), json.loads(
        json.dumps(alert.sealed["inputs"])
    )


@pytest.mark.parametrize(
    "forge",
    [
        lambda public, _: public.update(severity="critical"),
        lambda public, _: public.update(name="kl_spike"),
        lambda public, _: public["rule"].update(warning=1.2),
        lambda public, _: public["rule"].update(warning=3.0, critical=4.0),
        lambda _, inputs: inputs["recent"].clear(),
        lambda _, inputs: inputs.update(statistic=1.0),
        lambda _, inputs: inputs["baseline"].append([40.0]),
        lambda _, inputs: inputs.update(recent=[[1.0, 2.0]]),
        lambda _, inputs: inputs.update(recent=["abc"]),
        lambda _, inputs: inputs.update(recent=[7]),
        lambda _, inputs: inputs.pop("baseline"),
    ],
)  # fmt: skip
def test_a_changed_alert_does_not_recompute(forge: Any) -> None:
    public, inputs = alert_of_lengths()
    recompute(public, inputs)
    before = json.dumps([public, inputs])
    forge(public, inputs)
    assert json.dumps([public, inputs]) != before
    if public["rule"]["warning"] == 1.2:  # the same result: only the run's settings tell
        recompute(public, inputs)
        return
    with pytest.raises(AlertDiffers):
        recompute(public, inputs)


def test_an_alert_without_a_rule_cannot_be_recomputed() -> None:
    with pytest.raises(AlertNotJudged):
        recompute({"name": "x", "severity": "warning"}, {})


@pytest.mark.parametrize(
    "change",
    [
        {"formulas": 2},
        {"test": "guess"},
        {"window": 0},
        {"window": 10_000},
        {"warning": math.nan},
        {"baseline": True},
        {"metrics": "kl"},
        {"metrics": []},
        {"name": 5},
        {"surplus": 1},
    ],
)
def test_rules_that_cannot_be_judged_are_refused(change: dict[str, Any]) -> None:
    record = DEFAULT_RULES[0].to_dict()
    assert Rule.from_dict(record) == DEFAULT_RULES[0]
    with pytest.raises(InvalidRule):
        Rule.from_dict(record | change)


def test_rules_name_what_exists() -> None:
    assert set(TESTS) == set(_TESTS)
    assert {name for rule in DEFAULT_RULES for name in rule.metrics} <= set(METRICS)
    assert len({rule.name for rule in DEFAULT_RULES}) == len(DEFAULT_RULES) == 13
