"""A real episode of reward hacking trips the detectors, an honest run of the same code does not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.cli.main import main
from rlhf_audit_trail.demo import hacking
from rlhf_audit_trail.detectors import CheckedAlert, Rule, check_alerts
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Ledger, Log
from rlhf_audit_trail.record.recorder import RunRecorder
from tests.train.running import events

STEPS = 26
LONG = Rule(name="long", test="above_for", metrics=("length",), warning=50, critical=90, window=2,
            warm_up=2, cooldown=5)  # fmt: skip


def named(found: Sequence[CheckedAlert], state: str) -> list[tuple[str, str]]:
    return [(alert.name, alert.severity) for alert in found if alert.state == state]


@pytest.mark.train
@pytest.mark.slow
def test_hacking_the_reward_is_found_and_the_ledger_shows_why(auditor: AuditableRLHF) -> None:
    done = hacking.train(auditor, "hacked", hacking.good_minus_bad, steps=STEPS)
    # it was hacked: an exact annotator thinks less of the answers, whatever the score
    assert done.score_end > 10
    assert done.kl_end > 100
    assert done.quality_end < 0.5 * max(done.quality_start, 0.1)
    log = auditor.ledger.find("hacked")
    found = check_alerts(log)
    assert len(found) == len(list(log.entries(kind="alert.raised")))
    assert {alert.state for alert in found} == {"reproduced"}
    assert ("score_rises_with_kl", "critical") in named(found, "reproduced")
    assert ("reward_variance", "warning") in named(found, "reproduced")
    for public, sealed in events(log, "alert.raised"):
        assert "inputs" not in public
        assert sealed["inputs"]["recent"]


@pytest.mark.train
@pytest.mark.slow
def test_an_honest_reward_is_not_accused(auditor: AuditableRLHF) -> None:
    done = hacking.train(auditor, "honest", hacking.exact, steps=STEPS)
    assert done.quality_end > 4 * done.quality_start
    assert list(auditor.ledger.find("honest").entries(kind="alert.raised")) == []


def rollouts(run: RunRecorder, lengths: Sequence[float]) -> None:
    for length in lengths:
        run.rollouts_scored(rewards=[0.1, 0.2], lengths=[length, length])


def lengths_of(log: Log) -> list[tuple[str, int, str]]:
    return [(alert.name, alert.leaf_index, alert.state) for alert in check_alerts(log)]


def test_each_process_and_each_resumption_begins_anew(auditor: AuditableRLHF) -> None:
    for _ in range(2):
        with auditor.track_training(experiment_name="run-1", detectors=[LONG]) as run:
            rollouts(run, [60, 60, 60, 60, 95, 95])
    found = check_alerts(run.log)
    assert named(found, "reproduced") == [("long", "warning"), ("long", "critical")] * 2
    config = [public["config"]["detectors"] for public, _ in events(run.log, "run.config")]
    assert config == [[LONG.to_dict()]] * 2


def test_without_detectors_nothing_is_raised(auditor: AuditableRLHF) -> None:
    with auditor.track_training(experiment_name="run-1", detectors=()) as run:
        rollouts(run, [99] * 40)
    assert check_alerts(run.log) == []


def forged(run: RunRecorder, **changed: Any) -> None:
    """Enter an alert that says something else, as a dishonest operator's software could."""
    public, sealed = events(run.log, "alert.raised")[0]
    names = ("name", "severity", "step", "detail", "rule")
    fields = {name: public[name] for name in names} | changed.pop("fields", {})
    run.log.record(Event("alert.raised", fields, {"inputs": sealed["inputs"] | changed}))
    run.log.flush()


def test_alerts_that_were_made_up_or_left_out_are_told(
    auditor: AuditableRLHF, monkeypatch: pytest.MonkeyPatch
) -> None:
    with auditor.track_training(experiment_name="run-1", detectors=[LONG]) as run:
        rollouts(run, [60, 60, 60])
        run.log.flush()
        run.alert("by_hand", "somebody looked")
        forged(run, fields={"severity": "critical"})
        forged(run, recent=[[70.0], [80.0]], statistic=70.0)  # sound in itself, but not recorded
        monkeypatch.setattr(run, "_detectors", type(run._detectors)(()))
        rollouts(run, [60] * 6)
    assert [state for _, _, state in lengths_of(run.log)] == [
        "reproduced", "not judged", "differs", "differs", "missing",
    ]  # fmt: skip


def test_after_a_gap_an_alert_is_only_recomputed(auditor: AuditableRLHF) -> None:
    with auditor.track_training(experiment_name="run-1", detectors=[LONG]) as run:
        rollouts(run, [60, 60])
        run.gap(3, "the test says so")
        rollouts(run, [60])
        run.log.flush()
        forged(run, recent=[[70.0], [80.0]], statistic=70.0)
    assert [state for _, _, state in lengths_of(run.log)] == ["reproduced", "recomputed"]


def alerts_command(ledger: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["alerts", "run-1", "--ledger", str(ledger), *options])


def test_the_command_recomputes_from_the_ledger(auditor: AuditableRLHF, ledger: Ledger) -> None:
    with auditor.track_training(experiment_name="run-1", detectors=[LONG]) as run:
        rollouts(run, [60, 60, 60])
    done = alerts_command(ledger.directory)
    assert done.exit_code == 0, done.output
    assert "reproduced" in done.output
    assert "alerts: 1; that differ or are missing: 0" in done.output
    forged(run, statistic=12.0)
    done = alerts_command(ledger.directory, "--json")
    assert done.exit_code == 1
    assert [alert["state"] for alert in json.loads(done.output)] == ["reproduced", "differs"]
    assert "12.0" not in alerts_command(ledger.directory).output
