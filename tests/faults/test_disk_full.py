"""A disk that has no room left: a typed error, nothing half-written, the loss told once it has."""

from __future__ import annotations

import contextlib
import os
import resource
import signal

import pytest
from recorded_run import event_of, number_of

from rlhf_audit_trail.ledger import writer
from rlhf_audit_trail.ledger.fsck import fsck
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.writer import AppendFailed
from tests.store_faults import no_larger_files, no_more_pages

GROUPS, EACH = 15, 100
COUNT = GROUPS * EACH
ROOM = 150_000  # bytes that are still free


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(writer, "RETRY_DELAYS_S", (0.0, 0.0))


@pytest.fixture
def ledger(tmp_path):
    with Ledger.create(tmp_path / "ledger", organisation="acme.example") as opened:
        yield opened


def little_room_in_files(ledger):
    """Files may become somewhat larger than the largest is now."""
    largest = max(x.stat().st_size for x in ledger.directory.rglob("*") if x.is_file())
    return no_larger_files(largest + ROOM)


def little_room_in_pages(ledger):
    """The database may get some pages more."""
    return no_more_pages(ledger, room_pages=ROOM // 4096)


def numbers(log):
    found = [number_of(entry.event) for entry in log.entries()]
    return [number for number in found if number is not None]


@pytest.mark.parametrize("full", [little_room_in_files, little_room_in_pages])
def test_what_finds_no_room_is_refused_whole_and_told(ledger, full):
    log = ledger.open_run("run42")
    log.record_many(map(event_of, range(300)))[-1].result()
    signed = log.publish()
    with full(ledger):
        kept = []
        for first in range(300, 300 + COUNT, EACH):
            receipts = log.record_many(map(event_of, range(first, first + EACH)))
            with contextlib.suppress(AppendFailed):
                assert receipts[0].result() == log.size - EACH
                kept += range(first, first + EACH)
        assert 0 < len(kept) < COUNT
    assert log.record(event_of(9_999)).result() == log.size - 1
    ledger.close()
    with Ledger.open(ledger.directory) as again:
        log = again.find("run42")
        assert numbers(log) == [*range(300), *kept, 9_999]
        lost = sum(entry.event["count"] for entry in log.entries(kind="gap"))
        assert lost >= COUNT - len(kept)  # gap events that found no room either count among it
        assert log.publish().head.size == log.size
        assert log.published(300).note == signed.note
        assert list(fsck(again)) == []


def publish_for_ever(log):
    for number in range(300, 1_000):
        log.publish()
        log.record(event_of(number)).result()


def test_a_head_that_finds_no_room_is_not_signed_and_is_signed_later(ledger):
    log = ledger.open_run("run42")
    log.record_many(map(event_of, range(300)))[-1].result()
    with little_room_in_files(ledger), pytest.raises(Exception, match=r"disk is full|disk I/O"):
        publish_for_ever(log)
    signed = log.published_sizes()
    head = log.publish().head
    assert head.size == log.size
    assert log.published_sizes() in (signed, [*signed, head.size])
    assert list(fsck(ledger)) == []


def test_no_room_for_a_new_ledger_leaves_none(tmp_path):
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
        try:
            Ledger.create(tmp_path / "ledger", organisation="acme.example")
        except Exception:  # noqa: BLE001 - what the ledger leaves is what counts
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 1 << 8
    assert list(tmp_path.iterdir()) == []
    Ledger.create(tmp_path / "ledger", organisation="acme.example").close()
