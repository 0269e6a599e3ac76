"""A correction supersedes: readers get the newest, and both entries stay provable."""

from __future__ import annotations

import json

import pytest

from rlhf_audit_trail.ledger.correcting import NotCorrectable, correct, newest_values, superseding
from rlhf_audit_trail.ledger.events import Event, InvalidEvent
from rlhf_audit_trail.ledger.fsck import fsck
from rlhf_audit_trail.ledger.proof.verify import TrustPolicy, verify_bundle
from rlhf_audit_trail.ledger.subjects import erase_subject, find_subject
from rlhf_audit_trail.ledger.vault import Erased

ADA = "ada@engine.example"


@pytest.fixture
def log(ledger):
    log = ledger.open_run("run42")
    sealed = {"prompt": "q", "response": "a", "reward": 0.25}
    public = {"source": "human", "batch": 0}
    log.record(Event("annotation.recorded", public, sealed | {"annotator": ADA}, ADA))
    log.record(Event("annotation.recorded", public, sealed))
    log.record(Event("metrics.logged", {"step": 0}, {"metrics": {}})).result()
    return log


def test_the_newest_value_is_read_and_both_are_proven(ledger, log):
    first = correct(log, 0, {"reward": 0.5}, subject=ADA, source="human").result()
    correct(log, 0, {"reward": 0.75}, subject=ADA, source="human", reason="a typing error").result()
    name = find_subject(ledger, ADA).runs[0].pseudonym
    values = {"prompt": "q", "response": "a", "annotator": name}
    assert newest_values(log, 0) == values | {"reward": 0.75}
    assert log.opened(0) == values | {"reward": 0.25}
    assert newest_values(log, 1)["reward"] == 0.25
    assert superseding(log) == {0: [first, first + 1]}
    assert ADA.encode() not in log.read(first).data
    log.publish()
    proven = verify_bundle(
        log.bundle([0, first, first + 1], opened=["reward"]), TrustPolicy(log.verifier_keys)
    )
    assert list(proven.opened.values()) == [b"0.25", b"0.5", b"0.75"]
    named = [json.loads(proven.entries[index])["supersedes"] for index in (first, first + 1)]
    assert named == [0, 0]
    assert list(fsck(ledger)) == []


@pytest.mark.parametrize(
    ("index", "values", "subject"),
    [
        (0, {"reward": 0.5}, "somebody@else.example"),
        (0, {"reward": 0.5}, ""),
        (1, {"reward": 0.5}, ADA),
        (1, {"reward": 0.5}, "somebody@else.example"),
        (2, {"reward": 0.5}, ""),
        (0, {}, ADA),
        (0, {"annotator": "x"}, ADA),
        (0, {"score": 0.5}, ADA),
    ],
)
def test_what_is_no_correction_is_refused_and_makes_nobody(ledger, log, index, values, subject):
    with ledger.vault.keys.connect() as keys:
        before = keys.exec_driver_sql("SELECT count(*) FROM subject_key").scalar()
        with pytest.raises(NotCorrectable):
            correct(log, index, values, subject=subject, source="human")
        assert keys.exec_driver_sql("SELECT count(*) FROM subject_key").scalar() == before
    assert log.size == 3


def test_a_value_that_json_has_not_is_refused(log):
    with pytest.raises(InvalidEvent):
        correct(log, 0, {"reward": float("nan")}, subject=ADA, source="human")


def test_an_erasure_takes_the_correction_too(ledger, log):
    correct(log, 0, {"reward": 0.5}, subject=ADA, source="human").result()
    assert erase_subject(ledger, ADA, basis="request").entries == {"run42": 2}
    for read in (newest_values, log.__class__.opened):
        with pytest.raises(Erased):
            read(log, 0)
    with pytest.raises(Erased):
        correct(log, 0, {"reward": 1.0}, subject=ADA, source="human")
    assert list(fsck(ledger)) == []
