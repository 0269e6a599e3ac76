"""Labels that are privatised when they are logged: what is kept, charged, refused and said."""

from __future__ import annotations

import json
import math
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_audit_trail.importers import Reading, import_annotations
from rlhf_audit_trail.ledger.budgets import Budgets
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.subjects import erase_subject
from rlhf_audit_trail.privacy import labels
from rlhf_audit_trail.privacy.account import Budget
from rlhf_audit_trail.privacy.bits import SeededBits
from rlhf_audit_trail.privacy.choosing import label_mechanism
from rlhf_audit_trail.privacy.config import PrivacyConfig
from rlhf_audit_trail.privacy.errors import (
    BudgetExhausted,
    ConflictingParameters,
    LabelsLost,
    NoiseProtocolError,
    NotChargedHere,
    RawValueRefused,
    ReleaseDiffers,
    ReleaseWithoutSpend,
    SpendDiffers,
    TamperedParameters,
    UnattributedLabel,
)
from rlhf_audit_trail.privacy.guarantee import Guarantee
from rlhf_audit_trail.privacy.label_replay import Labelled
from rlhf_audit_trail.privacy.replay import DP_KINDS, replay, replay_log
from rlhf_audit_trail.ranks.log import RankLog
from rlhf_audit_trail.record.recorder import RunRecorder
from tests.privacy_ledger.charging import accounts_of
from tests.privacy_ledger.runs import auditor
from tests.privacy_noise.leaks import Secrets, leaks

ROOT = Path(__file__).parents[2]
CHILD = "tests.privacy_ledger.label_until_exhausted"
STRONG = {"annotator_privacy_mode": "strong"}
CAP = Budget.of(10, "1e-6", response="0.25").second_cap_units
RAW = [0.7310585786300049, 0.2689414213699951, 0.9525741268224334]


@pytest.fixture
def made(ledger, directory):
    ledger.close()
    return directory


def log(run, rewards, names=None, **more):
    count = len(rewards)
    names = [f"annotator-{x}@example.org" for x in range(count)] if names is None else names
    return run.log_annotations(
        prompts=["p"] * count, responses=["r"] * count, rewards=rewards, annotator_ids=names, **more
    )


def update(number):
    fields = {"policy_step": number, "updates": 1, "algorithm": "dpo", "rows": 2}
    return Event("policy.update", fields | {"delta_norm_kind": "absent", "learning_rate": 0.1})


def child(directory, *arguments):
    command = [sys.executable, "-m", CHILD, directory, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_a_raw_value_is_in_no_file_of_a_ledger_and_in_no_message(made, findings, caplog):
    with auditor(made, **STRONG) as audit, caplog.at_level("DEBUG"):
        with audit.track_training("a") as run:
            found = log(run, RAW)
            with pytest.raises(UnattributedLabel) as refused:
                log(run, RAW, ["", None, ""])
            stored = [run.log.opened(x) for x in range(run.log.size)]
        report = audit.get_privacy_report()
        texts = [str(refused.value), repr(found), repr(run.privacy), caplog.text, str(stored)]
        texts += [json.dumps(report.to_dict())]
        assert not any("reward" in values for values in stored)
    documents = {x.name: x.read_bytes() for x in made.rglob("*") if x.is_file()}
    for number in RAW:
        forms = [repr(number)[:10].encode(), struct.pack("<d", number), struct.pack(">d", number)]
        for data in (*documents.values(), *(text.encode() for text in texts)):
            assert not any(form in data for form in forms)
    small = {name: data for name, data in documents.items() if len(data) < 50_000}
    public = small | {f"text {place}": text for place, text in enumerate(texts)}
    with Ledger.open(made) as ledger:
        public["entries"] = b"\n".join(x.data for x in ledger.find("a").entries())
    assert leaks(public, Secrets(numbers=RAW)) == []
    assert findings(made) == []


def test_stored_answers_are_those_returned_and_have_the_mechanisms_distribution(made, findings):
    count, epsilon = 6_000, 1.0
    with auditor(made, **STRONG, epsilon_per_round=epsilon) as audit:
        with audit.track_training("a") as run:
            found = log(run, [1.0] * (count // 2) + [0.25] * (count // 2))
            by_place = {
                x.event["of"]: x.values["answer"]
                for x in run.log.sealed_entries(0, run.log.size, kind="label.privatised")
            }
            assert [by_place[x.result()] for x in found] == list(found.answers)
            assert [x.event["labels"] for x in run.log.entries(kind="dp.labels")] == [4_096, 1_904]
        assert replay_log(audit.ledger.find("a")).check().privatised == count
    keep = math.exp(epsilon) / (1 + math.exp(epsilon))
    for part, one in ((found.answers[: count // 2], 1.0), (found.answers[count // 2 :], 0.25)):
        chance = one * keep + (1 - one) * (1 - keep)
        spread = math.sqrt(len(part) * chance * (1 - chance))
        assert abs(sum(part) - len(part) * chance) < 6 * spread
    mean = sum(found.estimates) / count
    assert abs(mean - 0.625) < 6 * 1.09 / math.sqrt(count)
    assert set(found.rewards) == {0.0, 1.0}
    assert findings(made) == []


def test_levels_keep_their_scale_and_their_estimates_are_unbiased(made):
    config = {**STRONG, "epsilon_per_round": 4.0, "reward_levels": 5, "reward_bounds": (1, 5)}
    with auditor(made, **config) as audit, audit.track_training("a") as run:
        found = log(run, [4.0] * 2_000)
    assert set(found.rewards) <= {1.0, 2.0, 3.0, 4.0, 5.0}
    assert abs(sum(found.estimates) / 2_000 - 4) < 0.15


def test_a_budget_is_exact_and_a_refused_batch_leaves_nothing(made, findings):
    with auditor(made, **STRONG) as audit:
        with audit.track_training("a") as run:
            log(run, [0.5] * (CAP - 1), ["ada"] * (CAP - 1))
            size = run.log.size
            account = accounts_of(audit.ledger, "ada", "bob")
            before = Budgets(audit.ledger.engine).spent(account)
            with pytest.raises(BudgetExhausted) as refused:
                log(run, [0.5] * 3, ["bob", "ada", "ada"])
            assert "ada" not in str(refused.value) + refused.value.annotator
            assert (run.log.size, Budgets(audit.ledger.engine).spent(account)) == (size, before)
            log(run, [0.5], ["ada"])
            with pytest.raises(BudgetExhausted):
                log(run, [0.5], ["ada"])
        report = audit.get_privacy_report()
        assert (CAP, report.remaining_labels, report.exhausted) == (60, 0, 1)
        assert 9.9 < report.total_epsilon <= 10
        budget = Budget.of(10, "1e-6", response="0.25")
        mechanism = label_mechanism(PrivacyConfig(reward_bounds=(0, 1), **STRONG))
        units = budget.spent_epsilon_units(budget.charge(mechanism.cost).times(CAP))
        assert report.aggregate_release == Guarantee(units, 10**12)
        with audit.track_training("b") as run, pytest.raises(BudgetExhausted):
            log(run, [0.5], ["ada"])  # a new run refills nothing, and is left without a charge
        assert list(audit.ledger.find("b").entries(kind="dp.mechanism")) == []
    assert findings(made) == []


@pytest.mark.slow
def test_two_processes_never_exceed_a_budget_and_a_kill_refunds_nothing(made, findings):
    killed = child(made, "a", "ada", "die")
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert findings(made) == []
    with Ledger.open(made) as ledger:
        ((_, sums),) = Budgets(ledger.engine).spent(accounts_of(ledger, "ada")).values()
        assert sums.second_units == 2
        found = replay_log(ledger.find("a"))
        assert (found.labels_waiting, found.privatised, found.differences) == (2, 0, [])
    children = [child(made, run, "ada", "labels") for run in ("a", "b")]
    lines = [x.communicate()[0].split() for x in children]
    assert [x.returncode for x in children] == [0, 0]
    assert sum(len(x) - 1 for x in lines) == CAP - 2
    assert findings(made) == []
    with Ledger.open(made) as ledger:
        found = replay_log(ledger.find("a")).check()
        assert (found.skipped, found.labels_waiting) == (2, 0)  # told when the run went on


class Counted:
    """One stream for both runs, that counts its words."""

    words = 0

    def __init__(self):
        self._bits = SeededBits(bytes(range(32)))

    def word(self):
        Counted.words += 1
        return self._bits.word()


def test_neighbours_with_the_same_randomness_do_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(labels, "SystemBits", Counted)
    seen = []
    for number, rewards in enumerate(([0.0, 1.0, 0.5, 0.123456789], [1.0, -1e300, 7, 0])):
        directory = tmp_path / str(number)
        Ledger.create(directory, organisation="acme.example").close()
        Counted.words = 0
        with auditor(directory, **STRONG, total_epsilon=0.5) as audit:
            with audit.track_training("a") as run:
                log(run, rewards)
                log(run, rewards)
                with pytest.raises(BudgetExhausted) as refused:
                    log(run, rewards)
                sizes = [(x.event["kind"], len(x.data)) for x in run.log.entries()
                         if x.event["kind"] != "env.snapshot"]  # fmt: skip
            seen.append((sizes, Counted.words, str(refused.value), vault_sizes(audit.ledger)))
    assert seen[0] == seen[1]


def vault_sizes(ledger):
    with ledger.engine.connect() as connection:
        query = "SELECT leaf_index, length(ciphertext) FROM vault ORDER BY log_number, leaf_index"
        return connection.exec_driver_sql(query).all()


def test_released_values_are_public_and_charged_and_the_raw_value_stays_in_the_vault(
    made, findings
):
    with auditor(made, release_values=True) as audit:
        with audit.track_training("a") as run:
            found = log(run, RAW)
            assert [run.log.opened(x.result())["reward"] for x in found] == RAW
            public = [x.event["released"] for x in run.log.entries(kind="label.privatised")]
            assert public == list(found.answers)
            run.log.record_many([update(0)])
            with pytest.raises(ConflictingParameters):
                run.privacy.reserve(Guarantee(10**12, 10**11))
            run.privacy.open_round()
            run.privacy.coin()
            assert run.privacy.release_mean().participants == 3  # of the raw values, and paid for
        report = audit.get_privacy_report()
        assert (report.labels.raw, report.labels.released, report.annotators) == (3, 3, 3)
        assert "WITHOUT differential privacy" in report.statement()
        assert (report.combined, report.differences) == (None, ())
        sums = {x.second_units for x in replay_log(audit.ledger.find("a")).sums.values()}
        assert len(sums) == 1
    assert findings(made) == []


def test_only_privatised_labels_give_the_model_their_guarantee(made):
    with auditor(made, **STRONG) as audit:
        with audit.track_training("a") as run:
            log(run, [0.5] * 4)
            run.log.record_many([update(0)])
        report = audit.get_privacy_report()
        assert "trained only on privatised labels: same guarantee" in report.statement()
        assert report.combined == report.model_release == report.aggregate_release
        assert any("operator's word" in text for text in report.caveats)
    with auditor(made) as audit:  # the run goes on, and keeps a raw value
        with audit.track_training("a") as run:
            log(run, [0.5])
        report = audit.get_privacy_report()
        assert "same guarantee" not in report.statement()
        assert report.combined is None


def test_what_would_keep_a_raw_value_is_refused(made, tmp_path):
    exported = tmp_path / "x.jsonl"
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "annotator": "ada"}
    exported.write_text(json.dumps(row) + "\n", "utf-8")
    with auditor(made, **STRONG) as audit:
        with audit.track_training("a") as run:
            index = log(run, [0.5], ["ada"])[0].result()
            size = run.log.size
            for values in ({"reward": 0.75}, {"details": {"x": 0.75}}, {"rejected": "b"}):
                with pytest.raises(RawValueRefused):
                    run.correct_annotation(index, annotator_id="ada", **values)
            with pytest.raises(RawValueRefused):
                import_annotations(audit.ledger, "a", exported, Reading(source="human"))
            for call in (run.privacy.open_round, run.privacy.release_mean):
                with pytest.raises(NoiseProtocolError, match="strong"):
                    call()
            assert run.log.size == size
            run.correct_annotation(index, annotator_id="ada", response="other")
        other = RunRecorder(RankLog("a", 1), source="human")
        other.protect(audit.privacy_config, None)
        with pytest.raises(NotChargedHere):
            log(other, [0.5])


def test_labels_that_another_process_gave_up_are_lost_and_told(made, monkeypatch):
    with auditor(made, **STRONG) as audit, audit.track_training("a") as run:
        log(run, [0.5])
        drawn = labels.drawn

        def given_up(*given):
            monkeypatch.setattr(labels, "drawn", drawn)
            config = audit.privacy_config
            labels.RunLabels(run.log, config, Budgets(audit.ledger.engine))._give_up("test")
            return drawn(*given)

        monkeypatch.setattr(labels, "drawn", given_up)
        with pytest.raises(LabelsLost):
            log(run, [0.5, 0.5])
        log(run, [0.5])
        found = replay_log(run.log).check()
        assert (found.privatised, found.skipped) == (2, 2)


def test_who_is_erased_takes_the_answers_along_and_sums_stay_exact(made, findings):
    with auditor(made, **STRONG) as audit:
        with audit.track_training("a") as run:
            log(run, [0.5] * 6, ["ada", "bob", "cleo"] * 2)
        before = replay_log(audit.ledger.find("a")).sums
        erase_subject(audit.ledger, "bob", basis="request")
        log_a = audit.ledger.find("a")
        kept = [x.values for x in log_a.sealed_entries(0, log_a.size, kind="label.privatised")]
        assert [values is None for values in kept] == [False, True, False] * 2
        found = replay_log(log_a).check()
        assert (found.sums, found.unopened) == (before, 0)
    assert findings(made) == []


def forged(entries, opened, change, annotators):
    entries = [(index, dict(event)) for index, event in entries]
    opened = {index: None if x is None else dict(x) for index, x in opened.items()}
    change(dict(entries), entries, opened)
    indices = sorted(annotators)
    whose = Labelled(indices, lambda a, b: [annotators[x] for x in indices if a <= x < b])
    return [type(x.error) for x in replay(entries, opened=opened.get, labelled=whose).differences]


def test_each_forgery_of_a_label_is_found(made):
    with auditor(made, release_values=True) as audit, audit.track_training("a") as run:
        log(run, [0.5] * 3, ["ada", "bob", "bob"])
        size = run.log.size
        sealed = [x for kind in DP_KINDS for x in run.log.sealed_entries(0, size, kind=kind)]
        whose = {x.leaf_index: x.values["annotator"] for x in
                 run.log.sealed_entries(0, size, kind="annotation.recorded")}  # fmt: skip
    entries = sorted((x.leaf_index, x.event) for x in sealed)
    opened = {x.leaf_index: x.values for x in sealed}
    charge = next(index for index, event in entries if event["kind"] == "dp.labels")
    answer = next(index for index, event in entries if event["kind"] == "label.privatised")
    names = sorted(whose.values())

    def set_(index, **fields):
        return lambda by, *_: by[index].update(fields)

    def list_(given):
        return lambda _by, _all, opened: opened[charge].update(participants=given)

    def again(by, entries, _):
        entries.append((size + 1, dict(by[answer])))

    skip = {"kind": "dp.labels_skipped", "labels_ref": charge, "labels": 3, "reason": "x"}
    attempts = [
        (lambda *_: None, None),
        (set_(charge, epsilon_units="1"), SpendDiffers),
        (set_(charge, labels=2), SpendDiffers),
        (set_(charge, mechanism_ref=0), TamperedParameters),
        (list_([names[0]] * 3), SpendDiffers),
        (list_(names[:2]), SpendDiffers),
        (set_(answer, of=size + 5), ReleaseWithoutSpend),
        (set_(answer, labels_ref=0), ReleaseWithoutSpend),
        (set_(answer, released=2), ReleaseDiffers),
        (again, ReleaseWithoutSpend),
        (lambda _by, entries, _: entries.append((size + 1, skip)), NoiseProtocolError),
    ]
    for change, error in attempts:
        found = forged(entries, opened, change, whose)
        assert found[:1] == ([] if error is None else [error])
