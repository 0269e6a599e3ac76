"""What happens to entries that are not taken: strict, warn, and what died with a process."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from rlhf_audit_trail.ledger import writer
from rlhf_audit_trail.ledger.drafts import EventColumns
from rlhf_audit_trail.ledger.events import EntryTooLarge, Event, InvalidEvent
from rlhf_audit_trail.ledger.fsck import fsck
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.settings import SettingsError
from rlhf_audit_trail.ledger.writer import AppendFailed, Overloaded


def settings(directory, **values):
    path = directory / "rlhf-audit.toml"
    lines = [f"{name} = {value!r}".replace("'", '"') for name, value in values.items()]
    path.write_text("\n".join([path.read_text("utf-8").rstrip(), *lines, ""]), "utf-8")


@pytest.fixture
def make(directory):
    def make(**values):
        Ledger.create(directory, organisation="acme.example").close()
        settings(directory, **values)
        return Ledger.open(directory)

    return make


def gaps(log):
    names = ("first_seq", "last_seq", "count")
    return [tuple(entry.event[name] for name in names) for entry in log.entries(kind="gap")]


def batches(log):
    return [entry.event["batch"] for entry in log.entries(kind="annotation.recorded")]


class Blocked:
    """A store that takes nothing until it is let."""

    def __init__(self, ledger, monkeypatch):
        self.real, self.go, self.begun = (
            ledger._writer._commit,
            threading.Event(),
            threading.Event(),
        )
        monkeypatch.setattr(ledger._writer, "_commit", self)
        monkeypatch.setattr(writer, "QUEUE_ENTRIES_MAX", 100)

    def __call__(self, tickets, retry):
        self.begun.set()
        assert self.go.wait(30)
        self.real(tickets, retry)


def test_warn_drops_what_does_not_fit_and_counts_it(make, annotation, monkeypatch, caplog):
    with make(queue_wait_ms=0) as ledger:
        log = ledger.open_run("run42")
        blocked = Blocked(ledger, monkeypatch)
        first = log.record(annotation(0))
        assert blocked.begun.wait(30)
        kept = log.record_many(annotation(x) for x in range(1, 101))
        dropped = log.record_many(annotation(x) for x in range(101, 131))
        assert dropped[0].done()
        with pytest.raises(Overloaded, match="100 entries wait"):
            dropped[-1].result()
        blocked.go.set()
        assert [first.result(), kept[-1].result()] == [0, 100]
        log.record(annotation(200)).result()
        assert batches(log) == [*range(101), 200]
        assert gaps(log) == [(101, 130, 30)]
        assert list(fsck(ledger)) == []
    assert [x.levelname for x in caplog.records] == ["WARNING"]


def test_strict_raises_and_the_numbers_are_not_used(make, annotation, monkeypatch):
    with make(queue_wait_ms=0, on_loss="strict") as ledger:
        log = ledger.open_run("run42")
        blocked = Blocked(ledger, monkeypatch)
        log.record(annotation(0))
        assert blocked.begun.wait(30)
        log.record_many(annotation(x) for x in range(1, 101))
        with pytest.raises(Overloaded):
            log.record(annotation(101))
        blocked.go.set()
        log.flush()
        log.record(annotation(102)).result()
        assert batches(log) == [*range(101), 102]
        assert gaps(log) == []


def test_a_call_waits_for_room(make, annotation, monkeypatch):
    with make(queue_wait_ms=30_000) as ledger:
        log = ledger.open_run("run42")
        blocked = Blocked(ledger, monkeypatch)
        log.record(annotation(0))
        assert blocked.begun.wait(30)
        log.record_many(annotation(x) for x in range(1, 101))
        threading.Timer(0.2, blocked.go.set).start()
        assert log.record(annotation(101)).result() == 101
        assert gaps(log) == []


def test_more_than_the_queue_holds_in_one_call(make, annotation, monkeypatch):
    monkeypatch.setattr(writer, "QUEUE_ENTRIES_MAX", 10)
    with make(queue_wait_ms=0) as ledger:
        log = ledger.open_run("run42")
        assert log.record_many(annotation(x) for x in range(50))[-1].result() == 49


@pytest.fixture
def refusing(monkeypatch):
    monkeypatch.setattr(writer, "RETRY_DELAYS_S", (0.0,))

    def refuse(ledger):
        def commit(_tickets, _retry):
            raise OSError("no such disk")

        monkeypatch.setattr(ledger._writer, "_commit", commit)

    return refuse


def test_strict_raises_at_the_next_call_and_the_gap_is_told(make, annotation, refusing):
    with make(on_loss="strict") as ledger:
        log = ledger.open_run("run42")
        real = ledger._writer._commit
        refusing(ledger)
        log.record(annotation(0)).done()
        with pytest.raises(AppendFailed, match="no such disk"):
            log.flush()
        log.record(annotation(1))
        log._writer.flush()
        with pytest.raises(AppendFailed, match="no such disk"):
            log.record(annotation(2))
        ledger._writer._commit = real
        log.record(annotation(3)).result()
        assert batches(log) == [3]
        assert sum(count for _, _, count in gaps(log)) >= 2
        assert list(fsck(ledger)) == []


def test_strict_raises_at_the_end_and_still_closes(make, annotation, refusing):
    ledger = make(on_loss="strict")
    log = ledger.open_run("run42")
    refusing(ledger)
    log.record(annotation(0))
    with pytest.raises(AppendFailed):
        ledger.close()
    ledger.close()
    with Ledger.open(ledger.directory) as again:
        log = again.find("run42")
        log.record(annotation(1)).result()
        assert [count for _, _, count in gaps(log)] == [2]  # the entry, and its gap event


def test_what_could_not_be_captured_is_counted(ledger, annotation):
    log = ledger.open_run("run42")
    log.record(annotation(0))
    log.lose(3, "the collator returned no rows")
    log.record(annotation(1)).result()
    (gap,) = log.entries(kind="gap")
    assert (gap.event["first_seq"], gap.event["count"]) == (1, 3)
    assert gap.event["reason"] == "the collator returned no rows"
    assert list(fsck(ledger)) == []


@pytest.mark.parametrize("values", [{"on_loss": "quietly"}, {"queue_wait_ms": -1}])
def test_settings_that_mean_nothing(make, values):
    with pytest.raises(SettingsError, match=next(iter(values))):
        make(**values)


# --- what died with a process ---------------------------------------------------------------

DIE = """
import os, signal, sys, threading
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Ledger
def event(number):
    return Event("annotation.recorded", {"source": "simulated", "batch": number}, {"reward": 1.5})
ledger = Ledger.open(sys.argv[1])
log = ledger.open_run("run42")
log.record_many(event(x) for x in range(10))[-1].result()
ledger._writer._commit = lambda tickets, retry: threading.Event().wait()
log.record_many(event(x) for x in range(10, 17))
os.kill(os.getpid(), signal.SIGKILL)
"""


def die(directory):
    done = subprocess.run([sys.executable, "-c", DIE, str(directory)], check=False)
    assert done.returncode == -signal.SIGKILL


def test_what_died_with_a_process_is_counted_by_the_next(directory, annotation):
    Ledger.create(directory, organisation="acme.example").close()
    die(directory)
    assert len(list((directory / "writers").iterdir())) == 1
    with Ledger.open(directory) as ledger:
        log = ledger.open_run("run42")
        assert gaps(log) == []  # looking writes nothing
        (dead,) = {entry.writer_id for entry in log.entries()}
        log.record(annotation(99)).result()
        assert gaps(log) == [(10, 16, 7)]
        (gap,) = log.entries(kind="gap")
        assert (gap.event["of_writer"], gap.writer_id) == (dead, log.writer_id)
        assert gap.event["reason"] == "its process ended before they were durable"
        assert list(fsck(ledger)) == []
    assert list((directory / "writers").iterdir()) == []


def test_after_a_start_of_the_machine_the_count_is_a_lower_bound(directory, annotation):
    Ledger.create(directory, organisation="acme.example").close()
    die(directory)
    (path,) = (directory / "writers").iterdir()
    data = bytearray(path.read_bytes())
    data[8] ^= 1  # another boot
    path.write_bytes(data)
    with Ledger.open(directory) as ledger:
        log = ledger.open_run("run42")
        log.record(annotation(99)).result()
        (gap,) = log.entries(kind="gap")
        assert "at least" in gap.event["reason"]


def test_a_death_is_told_once_however_often_it_is_found(directory, annotation):
    Ledger.create(directory, organisation="acme.example").close()
    die(directory)
    (path,) = (directory / "writers").iterdir()
    kept = path.read_bytes()
    with Ledger.open(directory) as ledger:
        ledger.open_run("run42").record(annotation(98)).result()
    path.write_bytes(kept)  # killed between telling and removing
    with Ledger.open(directory) as ledger:
        log = ledger.open_run("run42")
        log.record(annotation(99)).result()
        assert gaps(log) == [(10, 16, 7)]
    assert not path.exists()


def test_the_counts_of_living_writers_are_left_alone(directory, annotation):
    with Ledger.create(directory, organisation="acme.example") as ledger:
        ledger.open_run("run42").record(annotation(0)).result()
        with Ledger.open(directory) as other:
            log = other.open_run("run42")
            log.record(annotation(1)).result()
            assert gaps(log) == []
            assert len(list((directory / "writers").iterdir())) == 2
    assert list((directory / "writers").iterdir()) == []


# --- columns --------------------------------------------------------------------------------


def columns(**changed):
    given = {
        "kind": "annotation.recorded",
        "fields": {"source": "simulated", "batch": 1},
        "sealed": {"prompt": ["a", "ü", '"'], "response": ["b"] * 3, "reward": [0.5, 1.0, -2]},
        "subjects": ["anna", "", "bo"],
    }
    return EventColumns(**given | changed)


def test_columns_are_what_single_events_are(ledger):
    log = ledger.open_run("run42")
    receipts = log.record_columns(columns())
    assert [receipt.result() for receipt in receipts] == [0, 1, 2]
    opened = [log.opened(index) for index in range(3)]
    assert [x["prompt"] for x in opened] == ["a", "ü", '"']
    assert [x["reward"] for x in opened] == [0.5, 1.0, -2]
    assert ["annotator" in x for x in opened] == [True, False, True]
    sealed = {"prompt": "a", "response": "b", "annotator": "anna", "reward": 0.5}
    single = Event("annotation.recorded", {"source": "simulated", "batch": 1}, sealed, "anna")
    index = log.record(single).result()
    assert log.opened(index) == opened[0]
    assert list(fsck(ledger)) == []


def test_columns_of_values_that_could_change_are_copied(ledger):
    log = ledger.open_run("run42")
    metrics = [{"loss": 1.0}, {"loss": [1, 2]}]
    given = EventColumns("metrics.logged", {"step": 1}, {"metrics": metrics}, ["", ""])
    receipts = log.record_columns(given)
    metrics[0]["loss"] = 7
    assert receipts[-1].result() == 1
    assert [log.opened(index)["metrics"] for index in (0, 1)] == [{"loss": 1.0}, {"loss": [1, 2]}]


@pytest.mark.parametrize(
    "changed",
    [
        {"sealed": {"reward": [0.5, float("nan"), 1.0]}},
        {"sealed": {"reward": [0.5, float("inf"), 1.0]}},
        {"sealed": {"reward": [0.5, {1}, 1.0]}},
        {"sealed": {"prompt": ["a", "\ud800", "b"]}},
        {"sealed": {"reward": [0.5]}},
        {"sealed": {"no_such": [1, 2, 3]}},
        {"fields": {"source": "simulated"}},
        {"subjects": ["a", "\udfff", "b"]},
        {"subjects": ["a", 7, "b"]},
        {"subjects": ["a", None, "b"]},
        {"kind": "no.such"},
    ],
)
def test_columns_that_do_not_fit_leave_nothing(ledger, changed):
    log = ledger.open_run("run42")
    with pytest.raises(InvalidEvent):
        log.record_columns(columns(**changed))
    log.flush()
    assert log.size == 0


def test_columns_whose_entries_would_be_too_large(ledger):
    fields = {"source": "s" * 65_400, "batch": 1}
    with pytest.raises(EntryTooLarge):
        ledger.open_run("run42").record_columns(columns(fields=fields))


def test_no_rows_are_no_entries(ledger):
    log = ledger.open_run("run42")
    none = EventColumns("annotation.recorded", {"source": "x", "batch": 1}, {"reward": []}, [])
    receipts = [log.record_columns(none), log.record_many([])]
    assert [len(x) for x in receipts] == [0, 0]
    assert [list(x) for x in receipts] == [[], []]
    with pytest.raises(IndexError):
        receipts[0][0]
