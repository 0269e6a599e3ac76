"""A store that fails: lost, or stored with the reply lost; then it heals."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import pytest
from sqlalchemy.exc import OperationalError

from rlhf_audit_trail.ledger import writer
from rlhf_audit_trail.ledger.fsck import fsck
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.writer import AppendFailed
from tests.store_faults import no_more_pages


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(writer, "RETRY_DELAYS_S", (0.0, 0.0, 0.0))


@contextmanager
def refused(ledger):
    """Have the database itself refuse entries."""
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER no BEFORE INSERT ON entry BEGIN SELECT RAISE(ABORT, 'refused'); END"
        )
    try:
        yield
    finally:
        with ledger.engine.begin() as connection:
            connection.exec_driver_sql("DROP TRIGGER no")


def failing_commits(ledger, monkeypatch, *, store, times):
    """Have commits fail, before or after they really stored."""
    real, calls = ledger._writer._commit, []

    def commit(tickets, retry):
        calls.append(retry)
        if store or len(calls) > times:
            real(tickets, retry)
        if len(calls) <= times:
            raise OperationalError("COMMIT", {}, OSError("the reply was lost"))

    monkeypatch.setattr(ledger._writer, "_commit", commit)
    return calls


def batches(log):
    return [entry.event["batch"] for entry in log.entries(kind="annotation.recorded")]


def gaps(log):
    names = ("first_seq", "last_seq", "count")
    return [tuple(x.event[name] for name in names) for x in log.entries(kind="gap")]


@pytest.mark.parametrize("failure", [no_more_pages, refused])
def test_what_the_store_refuses_raises_and_becomes_a_gap(ledger, annotation, failure):
    log = ledger.open_run("run42")
    log.record_many(annotation(number) for number in range(10))[-1].result()
    with failure(ledger):
        receipts = log.record_many(annotation(number) for number in range(10, 600))
        for receipt in (receipts[0], receipts[-1]):
            with pytest.raises(AppendFailed, match="could not be stored"):
                receipt.result()
    assert log.record(annotation(600)).result() == 11
    assert batches(log) == [*range(10), 600]
    assert gaps(log) == [(10, 599, 590)]
    assert log.publish().head.size == 12
    assert list(fsck(ledger)) == []


def test_nothing_of_a_refused_group_is_left(ledger, annotation):
    log = ledger.open_run("run42")
    with refused(ledger), pytest.raises(AppendFailed):
        log.record(annotation(0)).result()
    with ledger.engine.connect() as connection:
        for table in ("entry", "vault", "hash_tile"):
            query = f"SELECT count(*) FROM {table} WHERE log_number = {log.number}"  # noqa: S608 - our own names
            assert connection.exec_driver_sql(query).scalar() == 0
    assert log.size == 0


def test_a_loss_is_told_even_when_the_gap_event_is_lost_too(ledger, annotation):
    log = ledger.open_run("run42")
    for number in range(3):
        with refused(ledger), pytest.raises(AppendFailed):
            log.record(annotation(number)).result()
    log.record(annotation(9)).result()
    assert batches(log) == [9]
    # seq 0; then a gap event and an entry, twice; all of them in one statement
    assert gaps(log) == [(0, 4, 5)]
    assert list(fsck(ledger)) == []


def test_losses_with_entries_between_them_are_told_one_by_one(ledger, annotation):
    log = ledger.open_run("run42")
    for number in range(3):
        with refused(ledger), pytest.raises(AppendFailed):
            log.record(annotation(number)).result()
        log.record(annotation(10 + number)).result()
    assert batches(log) == [10, 11, 12]
    assert gaps(log) == [(0, 0, 1), (3, 3, 1), (6, 6, 1)]
    assert list(fsck(ledger)) == []


def test_the_last_loss_is_told_when_the_ledger_is_closed(directory, annotation):
    with Ledger.create(directory, organisation="acme.example") as ledger:
        log = ledger.open_run("run42")
        with refused(ledger), pytest.raises(AppendFailed):
            log.record(annotation(0)).result()
    with Ledger.open(directory) as ledger:
        assert gaps(ledger.find("run42")) == [(0, 0, 1)]


def test_a_gap_hides_no_other_loss_from_fsck(ledger, annotation):
    log = ledger.open_run("run42")
    with refused(ledger), pytest.raises(AppendFailed):
        log.record(annotation(0)).result()
    log.record(annotation(1)).result()
    log._next_seq += 2
    log.record(annotation(2)).result()
    (finding,) = fsck(ledger)
    assert (finding.what, finding.where) == ("sequence", f"writer {log.writer_id}")
    assert "3 to 4" in finding.detail


@pytest.mark.parametrize("store", [False, True], ids=["lost", "stored, reply lost"])
@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_failed_commit_is_tried_again_and_stored_exactly_once(
    ledger, annotation, monkeypatch, store, times
):
    log = ledger.open_run("run42")
    log.record_many(annotation(number) for number in range(300))[-1].result()
    calls = failing_commits(ledger, monkeypatch, store=store, times=times)
    receipts = log.record_many(annotation(number) for number in range(300, 600))
    assert [receipt.result() for receipt in receipts] == list(range(300, 600))
    assert log.record(annotation(600)).result() == 600
    assert calls == [False, *[True] * times, False]
    assert batches(log) == list(range(601))
    assert log.publish().head.size == 601
    assert list(fsck(ledger)) == []


def test_a_group_given_up_but_stored_after_all_is_no_contradiction(ledger, annotation, monkeypatch):
    log = ledger.open_run("run42")
    failing_commits(ledger, monkeypatch, store=True, times=4)
    with pytest.raises(AppendFailed):
        log.record(annotation(0)).result()
    assert log.record(annotation(1)).result() == 2
    assert batches(log) == [0, 1]  # the gap event says less than is there, never more
    assert gaps(log) == [(0, 0, 1)]
    assert list(fsck(ledger)) == []


def test_one_log_that_fails_does_not_confuse_the_other(ledger, annotation):
    logs = [ledger.open_run(name) for name in ("one", "two")]
    with refused(ledger):
        receipts = [log.record(annotation(0)) for log in logs]
        for receipt in receipts:
            with pytest.raises(AppendFailed):
                receipt.result()
    for log in logs:
        assert log.record(annotation(1)).result() == 1
        assert gaps(log) == [(0, 0, 1)]
    assert list(fsck(ledger)) == []


def test_a_full_queue_over_a_failing_store_comes_to_an_end(ledger, annotation, monkeypatch):
    log = ledger.open_run("run42")
    monkeypatch.setattr(writer, "QUEUE_ENTRIES_MAX", 3)
    lost = []

    def work():
        for number in range(40):
            try:
                log.record(annotation(number)).result()
            except AppendFailed:
                lost.append(number)

    with refused(ledger):
        threads = [threading.Thread(target=work, daemon=True) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
    assert len(lost) == 8 * 40
    log.record(annotation(0)).result()
    assert list(fsck(ledger)) == []


def test_a_store_that_went_away_is_told_at_once_and_once(ledger, annotation, caplog):
    """Receipts may never be asked: a training must not learn of it only at its end."""
    log = ledger.open_run("run42")
    with refused(ledger):
        for number in range(3):
            log.record(annotation(number))
            log.flush()
    told = [record for record in caplog.records if "could not be stored" in record.getMessage()]
    assert len(told) == 1
    log.record(annotation(3)).result()
    with refused(ledger):
        log.record(annotation(4))
        log.flush()
    told = [record for record in caplog.records if "could not be stored" in record.getMessage()]
    assert len(told) == 2
