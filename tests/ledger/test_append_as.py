"""Entries of a writer elsewhere: the same again keeps its index, anything else is refused."""

from __future__ import annotations

import dataclasses
import sqlite3
from contextlib import closing

import pytest

from rlhf_audit_trail.ledger.events import EntryTooLarge, Event, InvalidEvent
from rlhf_audit_trail.ledger.fsck import fsck
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.pruning import PrunePolicy, prune
from rlhf_audit_trail.ledger.refusals import ConflictingEntry, RunClosed, SequenceGap

WRITER, OTHER = "ab" * 16, "cd" * 16
NOW = "2026-11-20T10:15:00.123456Z"


def alert(detail):
    fields = {"name": "test", "severity": "low", "step": 0, "detail": detail}
    return Event("alert.raised", fields)


@pytest.fixture
def log(ledger):
    return ledger.open_run("run42")


def test_the_same_again_keeps_its_indices(ledger, log, annotation):
    events = [annotation(0), alert("x"), annotation(1)]
    assert log.append_as(WRITER, 0, events, NOW) == [0, 1, 2]
    log.record(annotation(9)).result()
    assert log.append_as(WRITER, 0, events, NOW) == [0, 1, 2]
    assert log.append_as(WRITER, 1, [*events[1:], alert("new")], NOW) == [1, 2, 4]
    assert log.append_as(OTHER, 0, events, NOW) == [5, 6, 7]
    assert [entry.writer_id for entry in log.entries()][:3] == [WRITER] * 3
    assert log.read(4).event["recorded_at"] == NOW
    assert list(fsck(ledger)) == []


def test_anything_else_under_the_same_number_is_refused(log, annotation):
    event = annotation(0)
    log.append_as(WRITER, 0, [event, alert("x")], NOW)
    changed = [
        dataclasses.replace(event, sealed=dict(event.sealed) | {"reward": 0.25}),
        dataclasses.replace(event, fields=dict(event.fields) | {"batch": 7}),
        dataclasses.replace(event, sealed={"reward": event.sealed["reward"]}),
        dataclasses.replace(event, subject="somebody-else"),
        dataclasses.replace(event, sealed={}),
        alert("x"),
    ]
    for other in changed:
        with pytest.raises(ConflictingEntry, match="sequence number 0"):
            log.append_as(WRITER, 0, [other, alert("x"), alert("more")], NOW)
    with pytest.raises(ConflictingEntry):
        log.append_as(WRITER, 0, [event], "2026-11-20T10:15:01Z")
    assert log.size == 2


@pytest.mark.parametrize("also", ["the secret only", "and the sealed values"])
def test_the_same_again_keeps_its_indices_though_the_person_was_erased(directory, annotation, also):
    events = [annotation(0), annotation(1), annotation(5)]  # the first and last of one person
    with Ledger.create(directory, organisation="acme.example") as ledger:
        log = ledger.open_run("run42")
        assert log.append_as(WRITER, 0, events, NOW) == [0, 1, 2]
        tag = ledger.vault.subject_tag(events[0].subject, log.origin)
    with closing(sqlite3.connect(directory / "vault-keys.db")) as keys, keys:
        assert keys.execute("DELETE FROM subject_key WHERE subject = ?", (tag,)).rowcount == 1
    if also != "the secret only":
        with closing(sqlite3.connect(directory / "ledger.db")) as stored, stored:
            assert stored.execute("DELETE FROM vault WHERE subject = ?", (tag,)).rowcount == 2
    with Ledger.open(directory) as ledger:
        log = ledger.find("run42")
        assert log.append_as(WRITER, 0, events, NOW) == [0, 1, 2]
        for other in (
            dataclasses.replace(events[0], fields=dict(events[0].fields) | {"batch": 7}),
            dataclasses.replace(events[0], sealed={"reward": 0.5}),
            dataclasses.replace(events[0], sealed={}),
        ):
            with pytest.raises(ConflictingEntry, match="sequence number 0"):
                log.append_as(WRITER, 0, [other, *events[1:]], NOW)
        changed = dataclasses.replace(events[1], sealed=dict(events[1].sealed) | {"reward": 0.25})
        with pytest.raises(ConflictingEntry, match="sequence number 1"):
            log.append_as(WRITER, 0, [events[0], changed], NOW)
        assert log.size == 3


def test_what_was_pruned_is_refused_by_its_name(ledger, log, annotation, tmp_path):
    log.append_as(WRITER, 0, [annotation(0)], NOW)
    log.close()
    prune(ledger, "run42", tmp_path / "archive", PrunePolicy("it is elsewhere"))
    with pytest.raises(RunClosed):
        log.append_as(WRITER, 0, [annotation(0)], NOW)
    with Ledger.open(ledger.directory) as again, pytest.raises(RunClosed):
        again.find("run42").append_as(WRITER, 0, [annotation(0)], NOW)


def test_a_gap_is_seen_and_nothing_stored(log):
    with pytest.raises(SequenceGap) as caught:
        log.append_as(WRITER, 3, [alert("x")], NOW)
    assert caught.value.expected == 0
    log.append_as(WRITER, 0, [alert("a"), alert("b")], NOW)
    with pytest.raises(SequenceGap) as caught:
        log.append_as(WRITER, 3, [alert("x")], NOW)
    assert caught.value.expected == 2
    assert log.size == 2


def gap(first, last, **changed):
    fields = {"of_writer": WRITER, "first_seq": first, "last_seq": last, "count": last - first + 1}
    return Event("gap", fields | {"reason": "the queue was full"} | changed)


def test_a_gap_stands_for_the_numbers_it_names_and_for_no_others(ledger, log):
    log.append_as(WRITER, 0, [alert("a"), alert("b")], NOW)
    wrong = [gap(2, 3), gap(1, 4), gap(2, 5), gap(2, 4, count=1), gap(2, 4, of_writer=OTHER)]
    for event in (*wrong, alert("x")):
        with pytest.raises(SequenceGap):
            log.append_as(WRITER, 5, [event], NOW)
    told = [gap(2, 4), alert("c")]
    assert log.append_as(WRITER, 5, told, NOW) == [2, 3]
    assert log.append_as(WRITER, 5, told, NOW) == [2, 3]  # sent again
    assert log.append_as(WRITER, 7, [alert("d")], NOW) == [4]
    assert [entry.seq for entry in log.entries()] == [0, 1, 5, 6, 7]
    assert list(fsck(ledger)) == []


def test_one_refused_writer_does_not_hold_up_the_others(ledger, log, annotation):
    receipts = log.record_many(annotation(number) for number in range(50))
    with pytest.raises(SequenceGap):
        log.append_as(WRITER, 1, [alert("x")], NOW)
    more = log.record_many(annotation(number) for number in range(50, 100))
    assert [x.result() for x in (*receipts, *more)] == list(range(100))
    assert list(fsck(ledger)) == []


@pytest.mark.parametrize(
    ("writer_id", "first_seq", "events", "recorded_at", "error"),
    [
        ("AB" * 16, 0, [alert("")], NOW, InvalidEvent),
        ("ab", 0, [alert("")], NOW, InvalidEvent),
        (WRITER, 0, [], NOW, InvalidEvent),
        (WRITER, -1, [alert("")], NOW, InvalidEvent),
        (WRITER, 2**63, [alert("")], NOW, InvalidEvent),
        (WRITER, 0, [alert("")], 'x","kind":"run.closed', InvalidEvent),
        (WRITER, 0, [alert("")], "2026-11-20 10:15:00", InvalidEvent),
        (WRITER, 0, [alert("x" * 65_535)], NOW, EntryTooLarge),
        (WRITER, 0, [alert(3)], NOW, InvalidEvent),
    ],
)
def test_what_is_malformed_is_refused(log, writer_id, first_seq, events, recorded_at, error):
    with pytest.raises(error):
        log.append_as(writer_id, first_seq, events, recorded_at)
    assert log.size == 0


def test_a_closed_run_gives_old_indices_and_takes_nothing_new(log):
    log.append_as(WRITER, 0, [alert("x")], NOW)
    log.close()
    with pytest.raises(RunClosed):
        log.append_as(WRITER, 1, [alert("y")], NOW)
