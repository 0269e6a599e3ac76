"""The way of a release, watched from outside: never above what is claimed, and faults are seen.

Values come from entries and vault, the mechanism and the claim from entries, noise from slots and
a coin, as `release_mean` does it; only often enough to be counted.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from click.testing import CliRunner

from rlhf_audit_trail.cli.privacy_command import privacy
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.privacy.charging import budget_of
from rlhf_audit_trail.privacy.covered_values import Of, covered, statistic_cells
from rlhf_audit_trail.privacy.empirical import epsilon_lower_bound
from rlhf_audit_trail.privacy.estimates import mechanism_fields
from rlhf_audit_trail.privacy.interval import Interval
from rlhf_audit_trail.privacy.redraw import drawn
from rlhf_audit_trail.privacy.slots import NoiseSlots
from rlhf_audit_trail.privacy.stated import mechanism_of, statistic_of
from tests.privacy_ledger.runs import NONCE, annotate, auditor

DRAWS = 6_000
EPSILON = 4.0
PEOPLE = 25


@pytest.fixture(scope="module")
def neighbours(tmp_path_factory):
    """Two runs with releases that differ in one annotator's reward, which is far out of bounds."""
    from rlhf_audit_trail.ledger.log import Ledger

    directory = tmp_path_factory.mktemp("audit") / "ledger"
    Ledger.create(directory, organisation="acme.example").close()
    with auditor(directory, epsilon=30.0, epsilon_per_round=EPSILON) as audit:
        logs = []
        for name, odd in (("a", -20.0), ("b", 20.0)):
            with audit.track_training(name) as run:
                annotate(run, PEOPLE, reward=[odd] + [0.5] * (PEOPLE - 1))
                run.privacy.open_round(slots=2)
                run.privacy.coin()
                run.privacy.release_mean()
                run.privacy.release_histogram(levels=2)
                logs.append(run.log)
        yield logs


def releases(log, number, *, fault=lambda mechanism: mechanism):
    """First cells of what could have been released, and what was claimed of it."""
    spend = list(log.entries(kind="dp.spend"))[number].event
    stated = mechanism_of(mechanism_fields(log.read(spend["mechanism_ref"]).event))
    of, statistic = Of.said(spend["of"]), statistic_of(spend["statistic"])
    taken = covered(log, spend["first_index"], spend["end_index"], of)
    cells, slots = statistic_cells(statistic, of, taken.values), NoiseSlots.draw(DRAWS)
    mechanism, budget = fault(stated), budget_of(spend["budget"])
    claimed = budget.spent_epsilon_units(budget.charge(stated.cost)) / 10**12
    found = (drawn(mechanism, cells, slots.bits(slot, NONCE)) for slot in range(DRAWS))
    return [cell[0] for cell in found], min(claimed, EPSILON)


def audited(neighbours, number=0, **planted):
    (one, claimed), (two, _) = (releases(log, number, **planted) for log in neighbours)
    return epsilon_lower_bound(one, two, dp_delta=1e-6, confidence=0.9999), claimed


@pytest.mark.parametrize("number", [0, 1])
def test_what_is_released_is_never_above_the_claim(neighbours, number):
    low, claimed = audited(neighbours, number)
    assert 0 <= low <= claimed
    assert low > 0  # it sees something: how much, chance decides


def test_noise_that_is_scaled_down_is_seen(neighbours):
    low, claimed = audited(neighbours, fault=lambda x: replace(x, variance=x.variance / 64))
    assert low > claimed


def test_missing_clipping_is_seen(neighbours, monkeypatch):
    def unclipped(self, value):
        return (Fraction(value) - self.low) / (self.high - self.low)

    monkeypatch.setattr(Interval, "position", unclipped)
    low, claimed = audited(neighbours)
    assert low > claimed


def test_a_parameter_that_promises_more_noise_than_was_drawn_is_seen(neighbours):
    """The entry is as it must be in itself; the samplers ran with another variance."""
    true = releases(neighbours[0], 0)[1]
    low, _ = audited(neighbours, fault=lambda x: replace(x, variance=Fraction(1, 4)))
    assert low > true


def record(log, event):
    log.record(event).result()


def mechanism(log):
    fields = mechanism_fields(next(iter(log.entries(kind="dp.mechanism"))).event)
    parameters = {**fields["parameters"], "variance": "1"}
    record(log, Event("dp.mechanism", {**fields, "parameters": parameters}))


def coin(log):
    (root,) = log.entries(kind="dp.noise_root")
    skipped = {"round": 0, "slot": 2, "count": 2, "reason": "left over"}
    record(log, Event("dp.skipped", skipped))
    record(log, Event("dp.noise_root", {"round": 1, "slots": 1, "root": "00" * 32}))
    fields = {"round": 1, "noise_root": log.size - 1, "tree_size": log.size, "source": "auditor"}
    anchor = {"chain_id": 1, "contract": "", "tx_hash": "00" * 32, "block_number": 7}
    record(log, Event("dp.coin", {**fields, "value": "00" * 32, "anchor": anchor}))
    assert root.leaf_index >= 0


def passed_over(log):
    record(log, Event("dp.skipped", {"round": 0, "slot": 3, "count": 1, "reason": "x"}))


def reused(log):
    record(log, Event("dp.skipped", {"round": 0, "slot": 1, "count": 1, "reason": "x"}))


def again(log):
    (release, *_) = log.entries(kind="dp.release")
    names = ("round", "spend_ref", "coin_ref", "slots", "value", "estimate", "noise")
    record(log, Event("dp.release", {name: release.event[name] for name in names}))


@pytest.mark.parametrize(
    ("tamper", "error"),
    [
        (mechanism, "TamperedParameters"), (coin, "EarlyCoin"), (passed_over, "SlotSkipped"),
        (reused, "SlotReused"), (again, "SlotReused"),
    ],
)  # fmt: skip
def test_the_verifier_refuses_what_was_written_into_a_real_log(ledger, directory, tamper, error):
    ledger.close()
    with auditor(directory) as audit, audit.track_training("a") as run:
        annotate(run)
        run.privacy.open_round(slots=4)
        run.privacy.coin()
        run.privacy.release_mean()
        run.privacy.release_histogram(levels=2)
        tamper(run.log)
    found = CliRunner().invoke(privacy, ["recompute", "a", "--ledger", str(directory)])
    assert (found.exit_code, f": {error}: " in found.output) == (1, True), found.output
    shown = CliRunner().invoke(privacy, ["a", "--ledger", str(directory)])
    assert (shown.exit_code, "no guarantee is stated" in shown.output) == (1, True)
