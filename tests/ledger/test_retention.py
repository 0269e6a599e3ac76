"""Retention: what was kept for long enough goes, once, and fsck and proofs stay sound."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

from rlhf_audit_trail.cli.main import main
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.fsck import Summary, fsck
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.retention import expire
from rlhf_audit_trail.ledger.settings import RetentionSettings, SettingsError
from rlhf_audit_trail.ledger.subjects import find_subject
from rlhf_audit_trail.ledger.vault import Erased

KEEP = RetentionSettings(("annotation.recorded=90d",))


def days_hence(days):
    return datetime.now(UTC) + timedelta(days=days)


def metrics(number):
    return Event("metrics.logged", {"step": number}, {"metrics": {"loss": number / 3}})


@pytest.fixture
def filled(ledger, annotation):
    log = ledger.open_run("run42")
    log.record_many(annotation(number) for number in range(700))
    log.record_many(metrics(number) for number in range(20))[-1].result()
    log.publish()
    return log


def test_what_is_due_goes_and_is_counted_once(ledger, filled, annotation):
    before = filled.root_at(filled.size)
    assert expire(ledger, KEEP, now=days_hence(89)).entries == {}
    dry = expire(ledger, KEEP, now=days_hence(91), is_dry=True)
    assert dry.entries == {("run42", "annotation.recorded"): 700}
    assert filled.opened(0)["reward"] == 0.5
    assert list(ledger.registry.entries(kind="values.expired")) == []
    done = expire(ledger, KEEP, now=days_hence(91))
    assert (done.entries, done.leftovers) == (dry.entries, [])
    assert expire(ledger, KEEP, now=days_hence(91)).entries == {}
    with pytest.raises(Erased):
        filled.openings(0)
    assert filled.opened(700)["metrics"] == {"loss": 0.0}
    assert filled.root_at(filled.size) == before
    told = [x.event for x in ledger.registry.entries(kind="values.expired")]
    assert {(x["run"], x["of_kind"], x["kept_days"]) for x in told} == {
        ("run42", "annotation.recorded", 90)
    }
    assert sum(x["entries"] for x in told) == 700
    filled.record_many(annotation(number) for number in range(10))[-1].result()
    summary = Summary()
    assert [str(x) for x in fsck(ledger, summary=summary)] == []
    assert summary.erased == 700
    assert find_subject(ledger, "annotator-1@example.org").entries == 2


@pytest.mark.usefixtures("filled")
def test_killed_in_between_it_is_completed_by_the_next_run(ledger):
    class Killed(BaseException):
        pass

    enter, left = ledger.registry.enter, [1]

    def enter_once(connection, events):
        if not left:
            raise Killed
        left.pop()
        enter(connection, events)

    ledger.registry.enter = enter_once
    with pytest.raises(Killed):
        expire(ledger, KEEP, now=days_hence(91))
    ledger.registry.enter = enter
    assert [str(x) for x in fsck(ledger)] == []
    rest = expire(ledger, KEEP, now=days_hence(91)).entries
    assert rest == {("run42", "annotation.recorded"): 200}
    assert [str(x) for x in fsck(ledger)] == []


@pytest.mark.usefixtures("filled")
def test_an_open_writer_files_its_people_again(ledger, annotation):
    with Ledger.open(ledger.directory) as other:
        log = other.find("run42")
        log.record(annotation(3)).result()  # filed under the newest tile, and remembered
        expire(ledger, KEEP, now=days_hence(91))
        log.record(annotation(3)).result()
        assert [str(x) for x in fsck(ledger)] == []


@pytest.mark.parametrize(
    "keep",
    [
        ("annotation.recorded",),
        ("annotation.recorded=0d",),
        ("annotation.recorded=90",),
        ("annotation=90d",),
        ("run.finished=90d",),  # nothing of it is sealed
        ("annotation.recorded=90d", "annotation.recorded=30d"),
    ],
)
def test_settings_that_say_nothing_clear_are_refused(keep):
    with pytest.raises(SettingsError):
        RetentionSettings(keep)


def test_the_command_says_what_is_due(directory, annotation):
    with Ledger.create(directory, organisation="acme.example") as ledger:
        ledger.open_run("run42").record(annotation(0)).result()

    def call(*arguments):
        environment = {"RLHF_AUDIT_LEDGER": str(directory)}
        return CliRunner(env=environment).invoke(main, ["retention", "run", *arguments])

    assert "everything is kept" in call().output
    with (directory / "rlhf-audit.toml").open("a") as file:
        file.write('[retention]\nkeep = ["annotation.recorded=90d"]\n')
    assert "nothing is due" in call("--dry-run").output
    shown = json.loads(call("--json").output)
    assert shown["classes"] == {"annotation.recorded": 90}
    assert shown["due"] == []
