"""Replay: sums bit for bit from the log alone, and an error of its own for each way of cheating."""

from __future__ import annotations

import copy

import pytest

from rlhf_audit_trail.ledger.budgets import Budgets
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.reading import AnchorView
from rlhf_audit_trail.ledger.subjects import erase_subject
from rlhf_audit_trail.privacy.account import Spent
from rlhf_audit_trail.privacy.errors import (
    EarlyCoin,
    NoiseProtocolError,
    PrivacyError,
    ReleaseDiffers,
    ReleaseWithoutSpend,
    SlotReused,
    SlotSkipped,
    SpendDiffers,
    TamperedParameters,
)
from rlhf_audit_trail.privacy.replay import DP_KINDS, replay, replay_log
from tests.privacy_ledger.charging import accounts_of
from tests.privacy_ledger.runs import NONCE, anchored, annotate, auditor


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run of two rounds, three releases and some skipped slots: its entries and openings."""
    from rlhf_audit_trail.ledger.log import Ledger

    directory = tmp_path_factory.mktemp("replay") / "ledger"
    Ledger.create(directory, organisation="acme.example").close()
    with auditor(directory, beacon="auditor") as audit, audit.track_training("a") as run:
        annotate(run)
        run.privacy.open_round(slots=4)
        anchored(audit.ledger, run.log)
        run.privacy.coin(value=NONCE)
        run.privacy.release_mean()
        run.privacy.skip("a test of the tree")
        run.privacy.release_histogram(levels=3)
        annotate(run, people=20)
        run.privacy.open_round(slots=2)
        run.privacy.coin(source="local")
        run.privacy.release_mean()
        size = run.log.size
        entries = sorted(
            (x.leaf_index, x.event)
            for kind in DP_KINDS
            for x in run.log.entries(0, size, kind=kind)
        )
        opened = {index: run.log.opened(index) for index, event in entries if "c" in event}
        whole = replay_log(run.log).check()
        person = accounts_of(audit.ledger, "annotator-3@example.org")[0]
        stored = Budgets(audit.ledger.engine).spent([person])[person][1]
        pseudonym = run.log.pseudonym_of("annotator-3@example.org")
        assert whole.sums[pseudonym] == Spent(*stored)
        anchors = run.log.anchors()
    return entries, opened, anchors, whole


def test_sums_are_recomputed_from_entries_and_openings_alone(recorded):
    entries, opened, anchors, whole = recorded
    again = replay(entries, opened=opened.get, anchors=anchors).check()
    assert (again.sums, len(again.charges)) == (whole.sums, 3)
    assert min(x.second_units for x in again.sums.values()) > 0
    assert (again.releases, again.pending, again.unopened) == (3, 0, 0)
    public = replay(entries).check()
    assert (public.sums, public.unopened) == ({}, 3)
    assert public.charges == whole.charges


def of_kind(entries, kind, number=0):
    return [x for x in entries if x[1]["kind"] == kind][number]


def inflated(entries):
    event = of_kind(entries, "dp.mechanism")[1]
    event["parameters"]["variance"] = "1"


def cheaper(entries):
    of_kind(entries, "dp.mechanism")[1]["rho_units"] = "1"


def undercharged(entries):
    of_kind(entries, "dp.spend")[1]["rho_units"] = "1"


def raised_cap(entries):
    event = of_kind(entries, "dp.spend")[1]
    event["budget"]["second_units"] = str(int(event["budget"]["second_units"]) * 2)


def reused(entries):
    of_kind(entries, "dp.spend", 1)[1]["slots"] = [0]


def passed_over(entries):
    entries.remove(of_kind(entries, "dp.skipped"))


def left_over(entries):
    entries.remove(of_kind(entries, "dp.skipped", 1))


def early(entries):
    event = of_kind(entries, "dp.coin")[1]
    event["tree_size"] = of_kind(entries, "dp.noise_root")[0]


def unanchored(entries):
    del of_kind(entries, "dp.coin")[1]["anchor"]


def another_anchor(entries):
    of_kind(entries, "dp.coin")[1]["anchor"]["tx_hash"] = "00" * 32


def uncharged(entries):
    of_kind(entries, "dp.release")[1]["spend_ref"] = 0


def twice(entries):
    _, event = of_kind(entries, "dp.release")
    entries.append((entries[-1][0] + 1, dict(event)))


def embellished(entries):
    of_kind(entries, "dp.release")[1]["value"] = ["5760"]


def other_range(entries):
    of_kind(entries, "dp.spend")[1]["first_index"] = 1


def two_coins(entries):
    _, event = of_kind(entries, "dp.coin")
    entries.append((entries[-1][0] + 1, dict(event)))


def nonsense(entries):
    of_kind(entries, "dp.spend")[1]["statistic"] = {"statistic": ["mean_sum"]}


@pytest.mark.parametrize(
    ("tamper", "error"),
    [
        (inflated, TamperedParameters), (cheaper, TamperedParameters),
        (undercharged, SpendDiffers), (raised_cap, SpendDiffers), (other_range, SpendDiffers),
        (reused, SlotReused), (twice, SlotReused),
        (passed_over, SlotSkipped), (left_over, SlotSkipped),
        (early, EarlyCoin), (unanchored, EarlyCoin), (another_anchor, EarlyCoin),
        (uncharged, ReleaseWithoutSpend), (embellished, ReleaseDiffers),
        (two_coins, NoiseProtocolError), (nonsense, TamperedParameters),
    ],
)  # fmt: skip
def test_each_way_of_cheating_has_its_error(recorded, tamper, error):
    entries, opened, anchors, _ = recorded
    changed = copy.deepcopy(entries)
    tamper(changed)
    found = replay(changed, opened=opened.get, anchors=anchors)
    assert found.differences
    with pytest.raises(error) as raised:
        found.check()
    assert type(raised.value) is error
    assert found.differences[0].leaf_index >= 0


def test_a_list_with_another_participant_or_too_many_charges_is_found(recorded):
    entries, opened, anchors, _ = recorded
    index = of_kind(entries, "dp.spend")[0]
    shorter = copy.deepcopy(opened)
    shorter[index]["participants"].pop()
    assert type(replay(entries, opened=shorter.get).differences[0].error) is SpendDiffers
    doubled = copy.deepcopy(opened)
    doubled[index]["participants"][1] = doubled[index]["participants"][0]
    assert type(replay(entries, opened=doubled.get).differences[0].error) is SpendDiffers
    del anchors


@pytest.mark.parametrize("kind", DP_KINDS)
def test_hostile_entries_are_differences_and_never_crash(recorded, kind):
    entries, opened, anchors, _ = recorded
    position = next((x for x, (_, event) in enumerate(entries) if event["kind"] == kind), None)
    for value in (None, -1, "x", [], {}, 10**30, True, [[]], "zz" * 32):
        if position is None:
            found = replay([*entries, (10**6, {"kind": kind, "part": value})], opened=opened.get)
            assert found.differences
            continue
        for name in set(entries[position][1]) - {"kind", "v", "run_id", "writer_id", "seq",
                                                  "recorded_at", "c"}:  # fmt: skip
            changed = copy.deepcopy(entries)
            if changed[position][1][name] == value:
                continue
            changed[position][1][name] = value
            found = replay(changed, opened=opened.get, anchors=anchors)
            assert all(isinstance(x.error, PrivacyError) for x in found.differences)


def test_who_has_values_and_was_not_charged_is_found(recorded):
    entries, opened, _, whole = recorded
    there = {tuple(opened[x]["participants"]) for x, y in entries if y["kind"] == "dp.spend"}
    everybody = max(there, key=len)

    def people(*changed):
        def of(begin, _end):
            return [*everybody, *changed] if begin == 0 else [None] * 20

        return replay(entries, opened=opened.get, people=of)

    assert people().check().sums == whole.sums
    with pytest.raises(SpendDiffers, match="leaves out"):
        people("somebody else").check()
    with pytest.raises(SpendDiffers, match="no value"):
        replay(entries, opened=opened.get, people=lambda *_: [None] * 3).check()


def test_a_block_that_was_not_settled_beforehand_is_no_coin(recorded):
    entries, opened, *_ = recorded
    changed = copy.deepcopy(entries)
    event = of_kind(changed, "dp.coin")[1]
    event["source"], event["block"] = "prevrandao", {"number": 228, "hash": "00" * 32}
    replay(changed, opened=opened.get).check()
    for number, error in ((229, NoiseProtocolError), (100, EarlyCoin)):
        event["block"]["number"] = number
        with pytest.raises(error):
            replay(changed, opened=opened.get).check()


def test_erasing_somebody_leaves_every_sum_as_it_was(ledger, directory, findings):
    ledger.close()
    with auditor(directory) as audit, audit.track_training("a") as run:
        annotate(run)
        run.privacy.open_round()
        run.privacy.coin()
        run.privacy.release_mean()
        before = replay_log(run.log).check().sums
        erase_subject(audit.ledger, "annotator-3@example.org", basis="request")
        assert replay_log(run.log).check().sums == before
    assert findings(directory) == []


def test_an_entry_beside_the_protocol_is_found_by_fsck_and_replay(ledger, directory, findings):
    ledger.close()
    with auditor(directory) as audit, audit.track_training("a") as run:
        annotate(run)
        run.privacy.open_round()
        run.privacy.coin()
        run.privacy.release_mean()
        spend = next(iter(run.log.entries(kind="dp.spend")))
        fields = {x: y for x, y in spend.event.items() if x not in
                  {"v", "kind", "run_id", "writer_id", "seq", "recorded_at", "c"}}  # fmt: skip
        run.log.record(Event("dp.spend", fields, run.log.opened(spend.leaf_index))).result()
        with pytest.raises(SlotReused):
            replay_log(run.log).check()
        assert isinstance(run.log.anchors(), list)
        assert AnchorView
    assert any("budget" in x for x in findings(directory))
