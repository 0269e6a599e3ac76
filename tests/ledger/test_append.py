"""Recording: receipts, order, what is refused, what is closed."""

from __future__ import annotations

import json
import threading

import pytest

from rlhf_audit_trail.ledger.events import EntryTooLarge, Event, InvalidEvent
from rlhf_audit_trail.ledger.fsck import fsck
from rlhf_audit_trail.ledger.log import (
    EntryMissing,
    InvalidName,
    Ledger,
    LedgerExists,
    LedgerMissing,
    RunClosed,
)
from rlhf_audit_trail.ledger.proof.commitment import verify_opening
from rlhf_audit_trail.ledger.writer import WriterClosed


def alert(detail):
    fields = {"name": "test", "severity": "low", "step": 0, "detail": detail}
    return Event("alert.raised", fields)


def test_receipts_give_indices_in_the_order_of_the_calls(ledger, annotation):
    log = ledger.open_run("run42")
    receipts = [log.record(annotation(0)), *log.record_many(annotation(x) for x in range(1, 300))]
    assert [receipt.result() for receipt in receipts] == list(range(300))
    assert all(receipt.done() for receipt in receipts)
    events = [entry.event for entry in log.entries()]
    assert [event["batch"] for event in events] == list(range(300))
    assert [event["seq"] for event in events] == list(range(300))
    assert {event["writer_id"] for event in events} == {log.writer_id}


def test_what_a_receipt_promised_is_there_after_opening_again(directory, annotation):
    with Ledger.create(directory, organisation="acme.example") as ledger:
        log = ledger.open_run("run42")
        index = log.record_many(annotation(x) for x in range(5))[-1].result()
        entry = log.read(index)
    with Ledger.open(directory) as ledger:
        log = ledger.find("run42")
        assert log.read(index) == entry
        assert log.opened(index)["reward"] == 0.5
        assert log.record(annotation(5)).result() == 5
        assert log.read(5).writer_id != entry.writer_id
        assert list(fsck(ledger)) == []


def test_threads_share_a_log_and_each_keeps_its_own_order(ledger, annotation):
    log = ledger.open_run("run42")
    indices = {}

    def work(number):
        receipts = [log.record(annotation(number * 1000 + x)) for x in range(100)]
        indices[number] = [receipt.result() for receipt in receipts]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(index for found in indices.values() for index in found) == list(range(400))
    assert all(found == sorted(found) for found in indices.values())
    for number, found in indices.items():
        assert [log.read(index).event["batch"] for index in found] == [
            number * 1000 + x for x in range(100)
        ]


BAD = {
    "unknown kind": Event("no.such.kind", {}),
    "field missing": Event("alert.raised", {"name": "x"}),
    "field surplus": Event("checkpoint.saved", {"surplus": 1}),
    "wrong type": alert(3),
    "truth for a number": Event(
        "alert.raised", {"name": "x", "severity": "x", "step": True, "detail": ""}
    ),
    "not a number, sealed": Event("metrics.logged", {"step": 1}, {"metrics": {"a": float("nan")}}),
    "not JSON, sealed": Event("metrics.logged", {"step": 1}, {"metrics": {1, 2}}),
    "lone surrogate": alert("\ud800"),
    "no person": Event("metrics.logged", {"step": 1}, {"metrics": 1}, subject=7),
    "a person that no text names": Event(
        "metrics.logged", {"step": 1}, {"metrics": 1}, subject="\udfff"
    ),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_one_bad_event_among_good_ones_leaves_nothing(ledger, annotation, bad):
    log = ledger.open_run("run42")
    with pytest.raises(InvalidEvent):
        log.record_many([annotation(0), bad, annotation(1)])
    log.flush()
    assert log.size == 0
    assert log.record(annotation(2)).result() == 0
    assert log.read(0).seq == 0  # no number was used up
    assert list(fsck(ledger)) == []


def test_an_entry_of_65535_bytes_fits_and_one_more_does_not(ledger):
    log = ledger.open_run("run42")
    spare = 65_535 - len(log.read(log.record(alert("")).result()).data)
    entry = log.read(log.record(alert("x" * spare)).result())
    assert len(entry.data) == 65_535
    with pytest.raises(EntryTooLarge, match="65,535"):
        log.record_many([alert(""), alert("x" * (spare + 1))])
    log.flush()
    assert log.size == 2


def test_sealed_values_open_to_what_the_entry_committed_to(ledger, annotation):
    log = ledger.open_run("run42")
    index = log.record(annotation(7)).result()
    event = log.read(index).event
    openings = log.openings(index)
    assert {opening.path for opening in openings} == {"prompt", "response", "annotator", "reward"}
    for opening in openings:
        value = verify_opening(bytes.fromhex(event["c"][opening.path]), opening)
        assert json.loads(value) == log.opened(index)[opening.path]
    assert log.opened(index)["prompt"] == "prompt 7"


def test_events_of_all_sorts_in_one_call_keep_their_order_and_their_own_values(ledger, annotation):
    """They are made in groups of the same sealed fields, and must come apart again."""
    log = ledger.open_run("run42")
    events = []
    for number in range(400):
        events += [annotation(number), alert(f"{number}")][: 1 + number % 2]
        if number % 3 == 0:
            events.append(Event("metrics.logged", {"step": number}, {"metrics": {"x": number}}))
    log.record_many(events)[-1].result()
    for index, (event, entry) in enumerate(zip(events, log.entries(), strict=True)):
        assert (entry.event["kind"], entry.leaf_index) == (event.kind, index)
        opened = log.opened(index)
        opened.pop("annotator", None)  # a pseudonym there
        assert opened == {k: v for k, v in event.sealed.items() if k != "annotator"}
    for kind in ("annotation.recorded", "alert.raised", "metrics.logged", "gap"):
        found = [entry.leaf_index for entry in log.entries(kind=kind)]
        assert found == [index for index, event in enumerate(events) if event.kind == kind]
        newest = log.newest(kind)
        assert (newest and newest.leaf_index) == (found[-1] if found else None)
    assert [entry.leaf_index for entry in log.entries(300, 310, kind="alert.raised")] == [
        index for index in range(300, 310) if events[index].kind == "alert.raised"
    ]
    assert list(fsck(ledger)) == []


def test_equal_values_have_unequal_commitments(ledger, annotation):
    log = ledger.open_run("run42")
    log.record_many([annotation(0), annotation(0)])[-1].result()
    first, second = (entry.event["c"] for entry in log.entries())
    assert not set(first.values()) & set(second.values())


def test_a_person_has_one_name_in_a_log_and_another_in_the_next(ledger, annotation):
    logs = [ledger.open_run(name) for name in ("one", "two")]
    for log in logs:
        log.record_many(annotation(number) for number in (0, 5, 1))[-1].result()
    names = [[log.opened(index)["annotator"] for index in range(3)] for log in logs]
    assert names[0][0] == names[0][1] != names[0][2]
    assert not set(names[0]) & set(names[1])


def test_a_run_is_announced_once_however_often_it_is_opened(directory):
    with Ledger.create(directory, organisation="acme.example") as ledger:
        ledger.open_run("run42")
    for _ in range(2):
        with Ledger.open(directory) as ledger:
            log = ledger.open_run("run42")
            (opened,) = ledger.registry.entries(kind="run.opened")
            assert opened.event["log_keys"] == [str(key) for key in log.verifier_keys]
            (created,) = ledger.registry.entries(kind="ledger.created")
            assert created.event["organisation"] == "acme.example"


def test_closing_a_run_signs_it_and_says_so_in_the_registry(ledger, annotation):
    log = ledger.open_run("run42")
    log.record_many(annotation(number) for number in range(3))
    log.close()
    log.close()
    (closed,) = ledger.registry.entries(kind="run.closed")
    head = log.published().head
    assert (closed.event["tree_size"], closed.event["root"]) == (head.size, head.root.hex())
    assert head.size == 3
    with pytest.raises(RunClosed):
        log.record(annotation(4))
    assert list(fsck(ledger)) == []


def test_a_closing_that_was_interrupted_is_finished_on_opening(directory, annotation):
    with Ledger.create(directory, organisation="acme.example") as ledger:
        log = ledger.open_run("run42")
        log.record(annotation(0)).result()
        log._registry = None  # killed between the flag and the announcement
        log.publish()
        with ledger.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE log SET closed = 1 WHERE run_id = 'run42'")
    with Ledger.open(directory) as ledger:
        ledger.find("run42")
        assert len(list(ledger.registry.entries(kind="run.closed"))) == 1
        assert list(fsck(ledger)) == []


def test_a_closed_ledger_takes_nothing_more(directory, annotation):
    ledger = Ledger.create(directory, organisation="acme.example")
    log = ledger.open_run("run42")
    ledger.close()
    ledger.close()
    with pytest.raises(WriterClosed):
        log.record(annotation(0))


@pytest.mark.parametrize("name", ["", "registry", "a b", "a+b", "../x", "a/b", "x" * 101, "ü"])
def test_names_that_no_origin_can_have(ledger, name):
    with pytest.raises(InvalidName):
        ledger.open_run(name)
    assert ledger.runs() == []


def test_entries_and_ledgers_that_are_not_there(ledger, tmp_path):
    with pytest.raises(EntryMissing):
        ledger.open_run("run42").read(0)
    with pytest.raises(LedgerMissing):
        ledger.find("other")
    with pytest.raises(LedgerMissing):
        Ledger.open(tmp_path / "other")
    with pytest.raises(LedgerExists):
        Ledger.create(ledger.directory, organisation="acme.example")
    with pytest.raises(InvalidName):
        Ledger.create(tmp_path / "new", organisation="Not A Domain")
    assert not (tmp_path / "new").exists()


def test_a_run_closed_by_another_process_takes_no_more(ledger):
    log = ledger.open_run("run")
    log.record(alert("first")).result()
    with Ledger.open(ledger.directory) as other:
        other.open_run("run").close()
    size = log.size
    with pytest.raises(RunClosed):
        log.record(alert("late")).result()
    with pytest.raises(RunClosed):
        log.record(alert("later"))
    assert log.size == size
    assert list(fsck(ledger)) == []
