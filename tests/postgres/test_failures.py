"""Connections that break, replies that are lost, a server that restarts or forgets."""

from __future__ import annotations

import random
import threading
import time

import pytest
from sqlalchemy import event
from sqlalchemy.exc import InternalError, OperationalError, ProgrammingError

from rlhf_audit_trail.ledger.fsck import fsck
from rlhf_audit_trail.ledger.log import Ledger, SettingsError
from rlhf_audit_trail.ledger.store import postgresql
from rlhf_audit_trail.ledger.store.database import (
    LedgerTooNew,
    NotDurable,
    StoreError,
    ledger_engine,
    transact,
    writing,
)


def batches(log):
    return [entry.event["batch"] for entry in log.entries(kind="annotation.recorded")]


def terminate(server, database):
    """End every session of ours in a database; returns how many there were."""
    query = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = %s AND application_name = 'rlhf-audit'"
    )
    return len(server.execute(query, (database.split("?")[0].rsplit("/", 1)[1],)))


def test_sessions_terminated_again_and_again_lose_and_double_nothing(
    ledger, database, server, annotation
):
    log = ledger.open_run("run42")
    ended, stopping = [], threading.Event()
    chosen = random.Random(7)

    def kill():
        while not stopping.wait(chosen.uniform(0.05, 0.25)):
            ended.append(terminate(server, database))

    killer = threading.Thread(target=kill)
    killer.start()
    got = []
    try:
        while sum(ended) < 25:
            begin = len(got)
            made = log.record_many(annotation(x) for x in range(begin, begin + 40))
            got += [receipt.result() for receipt in made]
    finally:
        stopping.set()
        killer.join()
    assert got == list(range(len(got)))
    assert batches(log) == list(range(len(got)))
    assert log.publish().head.size == len(got)
    assert list(fsck(ledger)) == []


def ending_before_the_commit(engine, server, database):
    """Have the session terminated once, when everything but COMMIT has been said."""

    armed = [True]

    def commit(_connection):
        if armed:
            armed.clear()
            assert terminate(server, database)

    event.listen(engine, "commit", commit)
    return armed


def test_a_session_terminated_before_its_commit_is_tried_again(
    ledger, database, server, annotation
):
    log = ledger.open_run("run42")
    armed = ending_before_the_commit(ledger.engine, server, database)
    receipts = log.record_many(annotation(x) for x in range(10))
    assert [receipt.result() for receipt in receipts] == list(range(10))
    for act in (log.publish, lambda: ledger.open_run("another"), log.close):
        assert not armed
        armed.append(True)
        act()
    assert not armed
    assert log.published_sizes() == [10]
    assert list(fsck(ledger)) == []


@pytest.mark.parametrize("times", [1, 3])
def test_a_lost_reply_to_a_commit_doubles_nothing(directory, network, annotation, times):
    with Ledger.create(directory, organisation="acme.example", database=network.url) as ledger:
        log = ledger.open_run("run42")
        log.record(annotation(0)).result()
        network.swallow_commits = times
        receipts = log.record_many(annotation(x) for x in range(1, 300))
        assert [receipt.result() for receipt in receipts] == list(range(1, 300))
        assert network.swallowed == times
        assert batches(log) == list(range(300))
        for act in (log.publish, lambda: ledger.open_run("another"), log.close):
            network.swallow_commits = 1
            act()
            assert network.swallow_commits == 0
        assert log.published_sizes() == [300]
        kinds = [entry.event["kind"] for entry in ledger.registry.entries()]
        assert kinds == ["ledger.created", "run.opened", "run.opened", "run.closed"]
        assert list(fsck(ledger)) == []


def test_a_network_that_is_cut_for_a_while_loses_nothing(directory, network, annotation):
    with Ledger.create(directory, organisation="acme.example", database=network.url) as ledger:
        log = ledger.open_run("run42")
        log.record(annotation(0)).result()
        network.cut()
        receipt = log.record(annotation(1))
        time.sleep(2)  # longer than the writer's own delays
        assert not receipt.done()
        network.heal()
        assert receipt.result() == 1
        assert log.publish().head.size == 2
        assert list(fsck(ledger)) == []


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restarted_server_is_found_again(ledger, server, annotation, mode):
    log, stopping = ledger.open_run("run42"), threading.Event()
    receipts = []

    def work():
        while not stopping.is_set():
            receipts.extend(log.record_many(annotation(len(receipts) + x) for x in range(10)))
            receipts[-1].result()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        server.restart(mode)
    finally:
        stopping.set()
        thread.join()
    assert [receipt.result() for receipt in receipts] == list(range(len(receipts)))
    assert log.record(annotation(len(receipts))).result() == len(receipts)
    assert batches(log) == list(range(len(receipts) + 1))
    assert log.publish().head.size == len(receipts) + 1
    assert list(fsck(ledger)) == []


def test_a_transaction_stuck_between_messages_is_ended_by_the_server(
    ledger, server, annotation, monkeypatch
):
    monkeypatch.setattr(postgresql, "IDLE_TIMEOUT_S", 1)
    monkeypatch.setattr(postgresql, "TRANSACTION_TIMEOUT_S", 2)
    log = ledger.open_run("run42")

    def get_stuck():
        with writing(ledger.engine) as connection:
            raw = connection.connection.driver_connection
            with raw.pipeline():  # the server now expects more, and does not count it as idling
                raw.execute("SELECT 1 FROM log FOR UPDATE").fetchone()
                receipt = log.record(annotation(0))
                assert receipt.result(timeout_s=60) == 0
                raw.execute("SELECT 1").fetchone()

    with pytest.raises(OperationalError):
        get_stuck()
    assert "terminating connection due to transaction timeout" in server.log
    assert list(fsck(ledger)) == []


@pytest.mark.parametrize("setting", ["synchronous_commit", "fsync"])
def test_a_server_that_forgets_is_refused(ledger, database, server, setting):
    name = database.split("?")[0].rsplit("/", 1)[1]
    if setting == "fsync":
        server.execute("ALTER SYSTEM SET fsync = off")
    else:
        server.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    server.execute("SELECT pg_reload_conf()")
    try:
        ledger.engine.dispose()
        while server.execute("SHOW fsync") == [("on",)] and setting == "fsync":
            time.sleep(0.01)  # a reload reaches sessions a little later
        with pytest.raises(NotDurable, match=setting):
            ledger.open_run("run42")
    finally:
        server.execute("ALTER SYSTEM RESET fsync")
        server.execute("SELECT pg_reload_conf()")


def test_reading_sees_one_state_while_others_append(ledger, annotation):
    log = ledger.open_run("run42")
    log.record_many(annotation(x) for x in range(600))
    log.publish()
    findings = fsck(ledger, progress=lambda *_: log.record(annotation(0)).result())
    assert list(findings) == []
    assert log.size > 600


def test_fsck_names_what_was_damaged(ledger, annotation):
    log = ledger.open_run("run42")
    log.record_many(annotation(x) for x in range(300))
    log.publish()
    with ledger.engine.begin() as connection:
        for statement in (
            r"UPDATE entry SET data = data || '\x20'::bytea WHERE log_number = 2 AND leaf_index = 7",
            r"UPDATE entry SET kind = 'a\b' WHERE log_number = 2 AND leaf_index = 9",
            r"UPDATE hash_tile SET hashes = set_byte(hashes, 40, 0) WHERE log_number = 2",
            r"UPDATE tree_head SET note = note || '\x' WHERE log_number = 2",
            "DELETE FROM vault WHERE log_number = 2 AND leaf_index = 11",
        ):
            assert connection.exec_driver_sql(statement).rowcount == 1
    found = {(finding.what, finding.where) for finding in fsck(ledger)}
    assert found == {
        ("entry", "index 7"),
        ("entry", "index 9"),
        ("hash_tile", "level 0, tile 0"),
        ("tree_head", "size 300"),
        ("vault", "index 11"),
    }


@pytest.mark.usefixtures("ledger")
def test_a_read_only_engine_writes_nothing_and_makes_nothing(database, new_database):
    with pytest.raises(StoreError, match="older version"):
        ledger_engine(new_database(), read_only=True)
    engine = ledger_engine(database, read_only=True)
    with engine.connect() as connection, pytest.raises(InternalError, match="read-only"):
        connection.exec_driver_sql("DELETE FROM entry")
    engine.dispose()


def test_a_newer_database_is_refused(ledger, database):
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999_future'")
    with pytest.raises(LedgerTooNew, match="9999_future"):
        ledger_engine(database)


def test_settings_that_lead_to_no_database(directory, database):
    ledger = Ledger.create(directory, organisation="acme.example", database=database)
    ledger.close()
    path = directory / "rlhf-audit.toml"

    def use(url, keys="sqlite:///vault-keys.db"):
        lines = ["[ledger]", 'organisation = "acme.example"', f'database = "{url}"']
        path.write_text("\n".join([*lines, f'keys_database = "{keys}"', ""]))
        Ledger.open(directory)

    with pytest.raises(StoreError, match="cannot open"):
        use("postgresql+psycopg://nobody@/none?host=/no/such/folder")
    with pytest.raises(StoreError, match="driver"):
        use("postgresql+nosuch://localhost/none")
    with pytest.raises(StoreError, match="not supported"):
        use("mysql://localhost/none")
    with pytest.raises(SettingsError, match="not a URL"):
        use("no url at all")
    with pytest.raises(SettingsError, match="one and the same"):
        use(database, database)


def test_an_error_that_will_not_pass_is_not_tried_again(ledger):
    attempts = []

    def work(connection):
        attempts.append(connection)
        connection.exec_driver_sql("SELECT no_such_column FROM log")

    with pytest.raises(ProgrammingError, match="no_such_column"):
        transact(ledger.engine, work)
    assert len(attempts) == 1
