"""The report: attributes as documented, figures of the account, and no word too much."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction

import pytest
import yaml

from rlhf_audit_trail.ledger.disclosing import disclose
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.stored_entry import NeverOpened
from rlhf_audit_trail.privacy import registry_entry
from rlhf_audit_trail.privacy.account import Budget, Spent
from rlhf_audit_trail.privacy.choosing import release_mechanism
from rlhf_audit_trail.privacy.config import PrivacyConfig
from rlhf_audit_trail.privacy.errors import InvalidParameter
from rlhf_audit_trail.privacy.guarantee import Guarantee
from rlhf_audit_trail.privacy.report import shown_up
from tests.privacy_ledger.runs import NONCE, anchored, annotate, auditor

WORDS = {
    "name": "Feedback means", "data_curator": "Acme", "intended_use": "Research.",
    "description": "Means of ratings.", "data_product_region": "Global",
    "publication_date": "2026-11-20", "registry_author": "A. Author",
}  # fmt: skip


@pytest.fixture
def made(ledger, directory):
    ledger.close()
    return directory


def released(audit, name, *, people=30, count=1):
    with audit.track_training(name) as run:
        annotate(run, people=people)
        run.privacy.open_round(slots=4)
        run.privacy.coin()
        run.privacy.release_mean()
        if count > 1:
            run.privacy.release_histogram(levels=2)
    return audit.get_privacy_report()


def test_a_report_has_the_figures_of_the_account(made):
    with auditor(made) as audit:
        report = released(audit, "a")
        config = PrivacyConfig(reward_bounds=(0, 1))
        budget, cost = Budget.of(3, "1e-6"), release_mechanism(config).cost
        spent = Spent().plus(budget.charge(cost))
        exact = Fraction(budget.spent_epsilon_units(spent), 10**12)
        assert 0 <= Fraction(report.total_epsilon) - exact < Fraction(1, 10**12)
        assert report.run_epsilon == report.total_epsilon
        assert report.remaining_budget == pytest.approx(3 - report.total_epsilon)
        assert report.remaining_rounds == budget.uses_left(spent, cost) > 100
        assert report.remaining_rho_units == budget.left(spent).second_units
        assert (report.dp_delta, report.delta) == (1e-6, 1e-6)
        assert (report.unit, report.relation, report.view) == ("annotator", "replace", "public")
        assert (report.annotators, report.exhausted, report.strength) == (30, 0, "moderate")
        assert report.ledger_release == Guarantee(0, 0)
        assert report.combined == report.aggregate_release
        assert report.aggregate_release.delta_units == 10**12
        (release,) = report.releases
        assert (release["coin"], release["has_integrity"]) == ("local", False)
        assert any("no integrity" in text for text in report.caveats)
        assert "no integrity" in report.statement()
        assert "at most" not in report.statement()  # no training is claimed
        json.dumps(report.to_dict())


def test_other_runs_of_the_ledger_count_for_the_worst_annotator(made):
    with auditor(made) as audit:
        first = released(audit, "a", people=20)
        second = released(audit, "b", people=40)
        assert second.run_epsilon == first.total_epsilon
        assert second.total_epsilon > second.run_epsilon
        assert second.remaining_rounds == first.remaining_rounds - 1
        again = audit.get_privacy_report("a")
        assert again.total_epsilon == second.total_epsilon
        assert any("1 other runs" in text for text in again.caveats)


def test_a_spent_budget_is_exhausted_and_never_below_zero(made):
    with auditor(made, epsilon=0.5, epsilon_per_round=0.4) as audit:
        report = released(audit, "a")
        assert (report.remaining_rounds, report.exhausted) == (0, 30)
        assert 0 <= report.remaining_budget < 0.5
        assert report.total_epsilon <= 0.5


def test_the_mode_minimal_claims_nothing_and_one_aggregate_ends_combined(made):
    with auditor(made, annotator_privacy_mode="minimal") as audit:
        with audit.track_training("a") as run:
            annotate(run)
            run.privacy.release_mean()
        report = audit.get_privacy_report()
        assert (report.combined, report.aggregate_release, report.total_epsilon) == (None,) * 3
        assert "no DP claim" in report.statement()
        assert any("without noise" in text for text in report.unprotected)
        with pytest.raises(InvalidParameter):
            report.to_registry_yaml(**WORDS)
    with auditor(made) as audit:  # the same run goes on under moderate
        report = released(audit, "a")
        assert (report.combined, report.aggregate_release) == (None, None)


def update(number, **dp):
    fields = {"policy_step": number, "updates": 1, "algorithm": "dpo", "rows": None}
    fields |= {"delta_norm_kind": "absent", "learning_rate": 0.1, **dp}
    return Event("policy.update", fields)


STATEMENTS = [
    {"unit": unit, "relation": relation, "view": "public", "epsilon": epsilon, "dp_delta": 1e-6,
     "examples_max": 2}
    for unit, relation, epsilon in (
        ("example", "add_remove", 1.0), ("example", "replace", 1.9),
        ("annotator", "add_remove", 2.5), ("annotator", "replace", 3.75),
    )
]  # fmt: skip


def final(dp):
    fields = {"role": "policy_final", "weights_digest": "00" * 32, "tensors": 1, "parameters": 1}
    return Event("model.registered", fields | ({"dp": dp} if dp else {}))


@pytest.mark.parametrize("kind", ["private", "mixed", "plain"])
def test_a_model_adds_its_share_or_ends_what_is_combined(made, kind):
    dp = {"dp": {"sampling": "poisson"}}
    with auditor(made) as audit:
        with audit.track_training("a") as run:
            annotate(run)
            run.privacy.open_round()
            run.privacy.coin()
            run.privacy.release_mean()
            steps = {"private": [dp, dp], "mixed": [dp, {}], "plain": [{}, {}]}[kind]
            run.log.record_many([update(number, **more) for number, more in enumerate(steps)])
            said = {"statements": STATEMENTS, "caveats": ["noise generator: x"]}
            run.log.record(final(said if kind == "private" else None)).result()
        report = audit.get_privacy_report()
    if kind == "private":
        assert report.model_release == Guarantee(3_750_000_000_000, 10**12)
        assert report.combined == report.aggregate_release.plus(report.model_release)
        assert "annotator-level eps=3.75 with at most 2 examples" in report.statement()
        assert report.for_scope("dpo").training["algorithms"] == {
            "dpo": {"updates": 2, "private": 2}
        }
        assert report.for_scope("dpo").releases == ()
        assert report.for_scope("releases").training["algorithms"] == {}
        with pytest.raises(InvalidParameter):
            report.for_scope("ppo")
        return
    assert (report.model_release, report.combined) == (None, None)
    assert report.aggregate_release is not None
    assert "WITHOUT differential privacy" in report.statement()


def test_disclosures_are_listed_and_their_readers_not_bound(made, tmp_path):
    with auditor(made) as audit:
        released(audit, "a")
        log = audit.ledger.find("a")
        index = next(iter(log.entries(kind="annotation.recorded"))).leaf_index
        log.publish()
        disclose(audit.ledger, "a", index, fields=["reward"], reader="Dr. A",
                 target=tmp_path / "opened")  # fmt: skip
        root = next(iter(log.entries(kind="dp.noise_root"))).leaf_index
        spend = next(iter(log.entries(kind="dp.spend"))).leaf_index
        for place, field in ((root, "secret"), (spend, "accounts")):
            with pytest.raises(NeverOpened):
                disclose(audit.ledger, "a", place, fields=[field], reader="Dr. A",
                         target=tmp_path / field)  # fmt: skip
            assert not (tmp_path / field).exists()
        report = audit.get_privacy_report()
        assert [(x["index"], x["reader"]) for x in report.disclosures] == [(index, "Dr. A")]
        assert "opened to Dr. A, who are not bound" in report.statement()


def test_a_contradiction_takes_every_guarantee_back(made):
    with auditor(made) as audit:
        released(audit, "a")
        log = audit.ledger.open_run("a")
        root = {"round": 1, "slots": 2, "root": "00" * 32}
        log.record(Event("dp.noise_root", root, {"secret": "00" * 32})).result()
        report = audit.get_privacy_report("a")
        assert (report.aggregate_release, report.combined) == (None, None)
        assert "SlotSkipped" in report.differences[0]
        assert "no guarantee is stated" in report.statement()


def test_reading_a_log_with_published_labels_costs_what_they_cost(made):
    with auditor(made, release_values=True, epsilon_per_round=0.5) as audit:
        with audit.track_training("a") as run:
            names = [f"annotator-{number}@example.org" for number in range(3)]
            run.log_annotations(
                prompts=["p"] * 3, responses=["r"] * 3, rewards=[0.1, 0.9, 0.5],
                annotator_ids=names,
            )  # fmt: skip
        report = audit.get_privacy_report()
        assert report.labels.released == 3
        assert report.ledger_release == report.aggregate_release == report.combined
        assert report.ledger_release.epsilon_units >= 4 * 10**11


def test_slots_that_were_passed_over_when_the_coin_was_known_end_integrity(made):
    with auditor(made, beacon="auditor") as audit:
        with audit.track_training("a") as run:
            annotate(run)
            run.privacy.open_round(slots=5)
            anchored(audit.ledger, run.log, chain_id=1)
            run.privacy.skip("opened as a test of the tree")
            run.privacy.coin(value=NONCE)
            run.privacy.release_mean()
            report = audit.get_privacy_report()
            assert [x["has_integrity"] for x in report.releases] == [True]
            assert not any("given up" in text for text in report.caveats)
            assert any("only to the auditor" in text for text in report.caveats)
            run.privacy.skip("the noise of this one did not please", count=2)
            run.privacy.release_histogram(levels=2)
        report = audit.get_privacy_report()
        assert [x["has_integrity"] for x in report.releases] == [True, False]
        assert [x["given_up_before"] for x in report.releases] == [0, 2]
        assert any("2 slots were given up" in text for text in report.caveats)
        assert "1 of 2 releases have no integrity" in report.statement()


@pytest.mark.parametrize("units", [1, 10**12, 10**12 + 1, 123_456_789_012_345, 2**61 - 1])
def test_what_is_shown_is_never_below_what_was_spent(units):
    for shown in (
        shown_up(units, 10**12),
        registry_entry._scalar(registry_entry._up(units, 10**12)),
    ):
        assert "e" not in registry_entry._scalar(float(shown))
        assert 1 <= Fraction(shown) * 10**12 / units <= Fraction(1001, 1000)


def test_no_word_is_said_that_must_not_be(made):
    with auditor(made) as audit:
        report = released(audit, "a", count=2)
        text = json.dumps(report.to_dict()).lower() + report.to_registry_yaml(**WORDS).lower()
        for word in ("anonymis", "anonymiz", "gdpr", "zero knowledge", "compliant"):
            assert word not in text


def test_a_registry_entry_is_yaml_of_the_registrys_form_and_never_understates(made):
    with auditor(made) as audit:
        report = released(audit, "a")
        found = yaml.safe_load(report.to_registry_yaml(**WORDS))
    assert set(found) == {"url_slug", "status", "tier", "deployment"}
    assert (found["status"], found["tier"]) == ("Draft", 3)
    assert set(found["deployment"]) == {
        "product", "dp_flavor", "privacy_loss", "model", "accounting", "implementation",
        "resources",
    }  # fmt: skip
    parameters = found["deployment"]["privacy_loss"]["privacy_parameters"]
    units = Fraction(repr(parameters["epsilon"])) * 10**12
    assert report.aggregate_release.epsilon_units <= units <= 110_000_000_000
    assert parameters["delta"] == 1e-6
    with pytest.raises(InvalidParameter):
        report.to_registry_yaml(name="x")


def cli(directory, *arguments):
    command = [sys.executable, "-m", *arguments, "--ledger", directory]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_line_prints_and_recomputes(made):
    with auditor(made) as audit:
        released(audit, "a")
    shown = cli(made, "rlhf_audit_trail.cli", "privacy", "a")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "rounds left" in shown.stdout
    same = cli(made, "rlhf_audit_trail.analyze_privacy", "--experiment", "a")
    assert (same.returncode, same.stdout) == (0, shown.stdout)
    found = cli(made, "rlhf_audit_trail.cli", "privacy", "recompute", "a", "--json")
    said = json.loads(found.stdout)
    assert (said["charges"], said["participants"], said["differences"]) == (1, 30, [])
    audit = json.loads(
        cli(made, "rlhf_audit_trail.cli", "privacy", "a", "--json", "--audit").stdout
    )
    assert 0 <= audit["audit"]["epsilon_low"] <= audit["audit"]["epsilon_claimed"]
    listed = cli(made, "rlhf_audit_trail.cli", "privacy", "a", "--json", "--annotators")
    assert len(json.loads(listed.stdout)["spent_here"]) == 30
    assert cli(made, "rlhf_audit_trail.cli", "privacy", "b").returncode not in {0, 1}
