"""Releases from a run: the protocol in its order, one charge for each, nothing raw in public."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import pytest

from rlhf_audit_trail.ledger.bearer import TOKEN_PREFIX
from rlhf_audit_trail.ledger.budgets import Budgets
from rlhf_audit_trail.ledger.correcting import correct
from rlhf_audit_trail.ledger.disclosing import DisclosureRefused
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.progress import Progress
from rlhf_audit_trail.ledger.remote import RemoteLog
from rlhf_audit_trail.ledger.remote_ledger import RemoteRun
from rlhf_audit_trail.ledger.subjects import erase_subject
from rlhf_audit_trail.privacy import releases, rounds
from rlhf_audit_trail.privacy.config import PrivacyConfig
from rlhf_audit_trail.privacy.errors import (
    BudgetExhausted,
    ConflictingParameters,
    EarlyCoin,
    InvalidDelta,
    InvalidEpsilon,
    MissingSensitivity,
    NoiseProtocolError,
    NotChargedHere,
    ReleaseDiffers,
    UnsafeAccounting,
)
from rlhf_audit_trail.privacy.estimates import mechanism_fields
from rlhf_audit_trail.privacy.guarantee import Guarantee
from rlhf_audit_trail.privacy.redraw import Noised, check_release
from rlhf_audit_trail.privacy.releases import RunPrivacy
from rlhf_audit_trail.privacy.replay import replay_log
from rlhf_audit_trail.privacy.slot_disclosing import open_slots
from rlhf_audit_trail.privacy.slots import NoiseSlots, SlotOpening
from rlhf_audit_trail.ranks.log import RankLog
from rlhf_audit_trail.record.recorder import RunRecorder
from tests.privacy_ledger.charging import accounts_of
from tests.privacy_ledger.runs import NONCE, anchored, annotate, auditor


@pytest.fixture
def made(ledger, directory):
    ledger.close()
    return directory


def test_a_mean_is_released_once_and_charged_once(made, findings):
    with auditor(made) as audit, audit.track_training("a") as run:
        annotate(run)
        assert run.privacy.open_round(slots=3) == run.privacy.open_round(slots=5)
        run.privacy.coin()
        first = run.privacy.release_mean()
        assert first == run.privacy.release_mean()
        histogram = run.privacy.release_histogram(levels=4)
        assert (first.participants, len(histogram.value)) == (30, 4)
        assert abs(first.estimate - Fraction(3, 4)) < 7 * Fraction(first.std)
        assert abs(histogram.value[3] - 30) < 7 * histogram.std
        assert len(list(run.log.entries(kind="dp.spend"))) == 2
        assert len(list(run.log.entries(kind="dp.mechanism"))) == 2
        events = {x.leaf_index: x.event for x in run.log.entries()}
        spend, release = (events[index] for index in first.entries)
        assert (spend["slots"], release["slots"], spend["participants"]) == ([0], [0], 30)
        assert release["estimate"] == {"mean": str(first.estimate)}
        rho = sum(int(x["rho_units"]) for x in events.values() if x["kind"] == "dp.spend")
        ada = accounts_of(audit.ledger, "annotator-7@example.org")[0]
        assert Budgets(audit.ledger.engine).spent([ada])[ada][1].second_units == rho
    assert findings(made) == []


def test_only_the_covered_annotations_count_and_the_first_of_each_annotator(made):
    config = {"epsilon": 1000.0, "epsilon_per_round": 400.0}
    with auditor(made, **config) as audit, audit.track_training("a") as run:
        annotate(run, people=40, reward=1.0)
        annotate(run, people=40, reward=0.0)  # beyond one contribution
        corrected = next(iter(run.log.entries(kind="annotation.recorded"))).leaf_index
        correct(run.log, corrected, {"reward": 0.0}, subject="annotator-0@example.org",
                source="simulated").result()  # fmt: skip
        run.log_annotations(prompts=["p"], responses=["r"], rewards=[0.0])  # nobody's
        run.privacy.open_round()
        run.privacy.coin()
        annotate(run, people=50, reward=0.0)  # after the coin: of the next round
        found = run.privacy.release_histogram(levels=2)
        assert [round(x) for x in found.value] == pytest.approx([1, 39], abs=3)
        spend = run.log.read(found.entries[0]).event
        assert (spend["entries"], spend["participants"]) == (81, 40)
        assert spend["left_out"] == {"beyond_contributions": 40, "unattributed": 1}
        run.privacy.open_round()
        run.privacy.coin()
        again = run.privacy.release_histogram(levels=2)
        assert again.participants == 50
        assert run.log.read(again.entries[0]).event["first_index"] == spend["end_index"]


def test_a_coin_waits_until_slots_and_values_are_under_a_final_anchor(made):
    with auditor(made, beacon="auditor") as audit, audit.track_training("a") as run:
        annotate(run)
        with pytest.raises(NoiseProtocolError, match="no round"):
            run.privacy.coin(value=NONCE)
        anchored(audit.ledger, run.log)  # before the slots were settled
        run.privacy.open_round(slots=2)
        with pytest.raises(EarlyCoin):
            run.privacy.coin(value=NONCE)
        anchored(audit.ledger, run.log, state="safe")
        with pytest.raises(EarlyCoin):
            run.privacy.coin(value=NONCE)
        annotate(run, people=1)
        size = anchored(audit.ledger, run.log)
        with pytest.raises(NoiseProtocolError, match="given"):
            run.privacy.coin()
        with pytest.raises(NoiseProtocolError, match="drand"):
            run.privacy.coin(value=NONCE, source="drand")
        with pytest.raises(NoiseProtocolError, match="no coin"):
            run.privacy.release_mean()
        coin = run.privacy.coin(value=NONCE.hex())
        assert (coin.source, coin.tree_size, coin.value) == ("auditor", size, NONCE)
        with pytest.raises(NoiseProtocolError, match="no round"):
            run.privacy.coin(value=NONCE)
        assert run.privacy.release_mean().participants == 30


def test_slots_are_used_in_order_and_those_left_over_are_told(made):
    with auditor(made) as audit, audit.track_training("a") as run:
        annotate(run)
        run.privacy.open_round(slots=4)
        run.privacy.coin()
        run.privacy.release_mean()
        assert run.privacy.skip("a test of the tree") == range(1, 2)
        run.privacy.release_histogram(levels=2)
        with pytest.raises(NoiseProtocolError, match="not so many"):
            run.privacy.skip("", count=2)
        annotate(run)
        run.privacy.open_round(slots=1)
        skipped = [x.event for x in run.log.entries(kind="dp.skipped")]
        assert [(x["slot"], x["count"]) for x in skipped] == [(1, 1), (3, 1)]
        run.privacy.coin()
        run.privacy.release_mean()
        with pytest.raises(NoiseProtocolError, match="no slot left"):
            run.privacy.release_histogram(levels=2)


def charge_and_crash(audit, monkeypatch, crash):
    with monkeypatch.context() as patched, audit.track_training("a") as run:
        annotate(run)
        run.privacy.open_round(slots=2)
        run.privacy.coin()
        patched.setattr(releases, "drawn", crash)
        run.privacy.release_mean()


def test_a_crash_between_charge_and_release_gives_the_same_value_and_no_second_charge(
    made, findings, monkeypatch
):
    drawn = []

    def crash(mechanism, cells, bits):
        drawn.append(real(mechanism, cells, bits))
        raise KeyboardInterrupt

    real = releases.drawn
    with auditor(made) as audit:
        with pytest.raises(KeyboardInterrupt):
            charge_and_crash(audit, monkeypatch, crash)
        (ada,) = accounts_of(audit.ledger, "annotator-3@example.org")
        before = Budgets(audit.ledger.engine).spent([ada])[ada]
        assert before[1].second_units
    with auditor(made) as audit, audit.track_training("a") as run:
        found = run.privacy.release_mean()
        assert [list(found.value)] == drawn
        assert Budgets(audit.ledger.engine).spent([ada])[ada] == before
        assert len(list(run.log.entries(kind="dp.spend"))) == 1
    assert findings(made) == []


def test_who_is_erased_between_charge_and_release_costs_a_slot(made, findings, monkeypatch):
    def crash(*_):
        raise KeyboardInterrupt

    with auditor(made) as audit:
        with pytest.raises(KeyboardInterrupt):
            charge_and_crash(audit, monkeypatch, crash)
        erase_subject(audit.ledger, "annotator-3@example.org", basis="request")
        with audit.track_training("a") as run:
            with pytest.raises(NoiseProtocolError, match="erased"):  # with the round's noise
                run.privacy.release_mean()
            (skipped,) = [x.event for x in run.log.entries(kind="dp.skipped")]
            assert (skipped["slot"], skipped["count"]) == (0, 1)
    assert findings(made) == []


def test_a_budget_that_is_spent_ends_releases_or_leaves_somebody_out(made):
    config = {"epsilon": 1.0, "epsilon_per_round": 0.9}
    with auditor(made, **config) as audit, audit.track_training("a") as run:
        annotate(run, people=25)
        run.privacy.open_round()
        run.privacy.coin()
        run.privacy.release_mean()
        with pytest.raises(BudgetExhausted):
            run.privacy.release_histogram(levels=2)
        with pytest.raises(MissingSensitivity):  # everybody is left out
            run.privacy.release_histogram(levels=2, leave_out_exhausted=True)
    with auditor(made, **config) as audit, audit.track_training("b") as run:
        annotate(run, people=30)
        run.privacy.open_round()
        run.privacy.coin()
        with pytest.raises(BudgetExhausted):
            run.privacy.release_mean()
        found = run.privacy.release_mean(leave_out_exhausted=True)
        assert found.participants == 5
        spend = run.log.read(found.entries[0]).event
        assert spend["left_out"] == {"exhausted_annotators": 25}
        assert spend["slots"] == [0]  # what was refused took none


def test_minimal_shows_aggregates_of_twenty_and_claims_nothing(made):
    config = {"annotator_privacy_mode": "minimal"}
    with auditor(made, **config) as audit, audit.track_training("a") as run:
        annotate(run, people=19, each=3, reward=0.5)
        hidden = run.privacy.release_mean()
        assert (hidden.value, hidden.estimate, hidden.claim) == ((), None, "no DP claim")
        assert not list(run.log.entries(kind="dp.unprotected"))
        annotate(run, people=20, reward=0.5)
        shown = run.privacy.release_mean()
        assert (shown.estimate, shown.participants) == (Fraction(1, 2), 20)
        (event,) = [x.event for x in run.log.entries(kind="dp.unprotected")]
        assert ("value" in event, "value" in event["c"]) == (False, True)
        with pytest.raises(NoiseProtocolError, match="minimal"):
            run.privacy.open_round()


def test_what_a_model_will_spend_is_taken_off_every_budget_beforehand(made):
    share = Guarantee(2_900_000_000_000, 10**11)
    with auditor(made) as audit, audit.track_training("a") as run:
        annotate(run)
        with pytest.raises(InvalidEpsilon):
            run.privacy.reserve(Guarantee(3 * 10**12, 0))
        with pytest.raises(UnsafeAccounting):
            run.privacy.reserve(Guarantee(10**12, 0, relation="add_remove"))
        run.privacy.reserve(share)
        run.privacy.reserve(share)
    with auditor(made) as audit, audit.track_training("a") as run:  # and so after a restart
        with pytest.raises(ConflictingParameters):
            run.privacy.reserve(Guarantee(10**12, 0))
        run.privacy.open_round()
        run.privacy.coin()
        with pytest.raises(BudgetExhausted):  # its rho alone is worth more than 0.1
            run.privacy.release_mean()
    with auditor(made) as audit, audit.track_training("b") as run:
        annotate(run)
        run.privacy.reserve(Guarantee(10**12, 10**11))
        run.privacy.open_round()
        run.privacy.coin()
        index = run.privacy.release_mean().entries[0]
        assert run.log.read(index).event["budget"]["epsilon_units"] == "2000000000000"
        assert replay_log(run.log).check().releases == 1
        with pytest.raises(ConflictingParameters):
            run.privacy.reserve(Guarantee(10**11, 10**11))
        assert audit.get_privacy_report().cap_epsilon == 2.0


def test_refusals_write_and_charge_nothing(made):
    with auditor(made, reward_bounds=None) as audit, audit.track_training("a") as run:
        annotate(run)
        run.privacy.open_round()
        run.privacy.coin()
        size = run.log.size
        with pytest.raises(MissingSensitivity):
            run.privacy.release_mean()
        assert run.log.size == size
    with auditor(made, delta=0.04) as audit, audit.track_training("b") as run:
        annotate(run)
        run.privacy.open_round()
        run.privacy.coin()
        size = run.log.size
        with pytest.raises(InvalidDelta):
            run.privacy.release_mean()
        assert run.log.size == size
        assert not Budgets(audit.ledger.engine).spent([bytes(32)])[bytes(32)][1].second_units


def test_what_is_public_holds_no_id_value_seed_or_account(made):
    with auditor(made) as audit, audit.track_training("a") as run:
        annotate(run, reward=0.123456)
        run.privacy.open_round(slots=2)
        run.privacy.coin()
        found = run.privacy.release_mean()
        public = b"\n".join(x.data for x in run.log.entries())
        root = next(iter(run.log.entries(kind="dp.noise_root")))
        secret = run.log.opened(root.leaf_index)["secret"]
        slots = NoiseSlots(bytes.fromhex(secret), 2)
        opened = run.log.opened(found.entries[0])
        hidden = [secret, *opened["participants"], *opened["accounts"], "annotator-7", "0.123456"]
        hidden += [slots.open(0).seed.hex(), slots.open(1).seed.hex()]
        raw = sum(round(0.123456 * 256) for _ in range(30))
        noise = str(int(found.value[0]) - raw)
        said = json.dumps([x.event for x in run.log.entries(kind="dp.release")])
        assert not [x for x in hidden if x.encode() in public]
        assert f'"{raw}"' not in said
        assert len(noise) < 3 or f'"{noise}"' not in said


@pytest.mark.parametrize("kind", [RemoteRun, RankLog])
def test_a_run_on_another_machine_or_of_another_process_cannot_charge(kind):
    progress = Progress(0, is_closed=False, policy_step=0, batch=0, tree_head="")
    remote = RemoteLog("https://audit.example", "a", TOKEN_PREFIX + "t" * 43)
    log = RankLog("a", 1) if kind is RankLog else RemoteRun(remote, progress, is_strict=False)
    recorder = RunRecorder(log, source="simulated")
    recorder.protect(PrivacyConfig(), None)
    with pytest.raises(NotChargedHere):
        recorder.privacy.release_mean()


def test_two_processes_that_release_at_once_charge_once_and_use_one_slot(made, findings):
    """Two open ledgers on one directory, as two processes have them."""
    with auditor(made) as audit, audit.track_training("a") as run, Ledger.open(made) as other:
        annotate(run)
        log = other.open_run("a")
        theirs = RunPrivacy(log, audit.privacy_config, Budgets(other.engine), other.chain)
        both = (run.privacy, theirs)
        with ThreadPoolExecutor(2) as threads:
            opened = list(threads.map(lambda x: x.open_round(slots=8), both))
            assert len({x.root for x in opened}) == 1
            run.privacy.coin()
            means = list(threads.map(lambda x: x.release_mean(), both * 3))
            assert len(set(means)) == 1
            wanted = [(x, levels) for levels in (2, 3, 4) for x in both]
            found = list(threads.map(lambda x: x[0].release_histogram(levels=x[1]), wanted))
        assert len(set(found)) == 3
        spends = [x.event for x in run.log.entries(kind="dp.spend")]
        assert [x["slots"] for x in spends] == [[0], [1], [2], [3]]
        assert replay_log(run.log).check().releases == 4
    assert findings(made) == []


def test_an_opened_slot_draws_the_release_again_and_is_a_disclosure(made, tmp_path):
    with auditor(made) as audit, audit.track_training("a") as run:
        annotate(run, reward=[0.25, 1.0])
        run.privacy.open_round(slots=4)
        burnt = run.privacy.skip("opened as a test of the tree", count=2)
        open_slots(audit.ledger, "a", 0, burnt, reader="Dr. A", target=tmp_path / "before")
        run.privacy.coin()
        found = run.privacy.release_mean()
        with pytest.raises(NoiseProtocolError, match="any more"):
            open_slots(audit.ledger, "a", 0, [3], reader="Dr. A", target=tmp_path / "later")
        open_slots(audit.ledger, "a", 0, [2], reader="Dr. A", target=tmp_path / "opened")
        with pytest.raises(DisclosureRefused):
            open_slots(audit.ledger, "a", 0, [2], reader="", target=tmp_path / "nobody")
        known = rounds.read(run.log)
        (spend,) = known.rounds[0].spends
        opening = SlotOpening.from_json((tmp_path / "opened").read_text().strip())
        noised = Noised(
            mechanism_fields(known.mechanisms[spend.event["mechanism_ref"]]),
            known.rounds[0].root, 4, spend.slot, known.rounds[0].coin.value, list(found.value),
        )  # fmt: skip
        check_release(noised, [15 * 64 + 15 * 256], opening)
        with pytest.raises(ReleaseDiffers):
            check_release(noised, [15 * 64 + 15 * 256 + 1], opening)
        for line in (tmp_path / "before").read_text().splitlines():
            SlotOpening.from_json(line).check(known.rounds[0].root, 4)
        report = audit.get_privacy_report()
        assert [x["fields"] for x in report.disclosures] == [["slot/0", "slot/1"], ["slot/2"]]
        assert replay_log(run.log).check().releases == 1
