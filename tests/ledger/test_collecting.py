"""Cosignatures come by themselves: in the background, after a crash, and never twice the work."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.applications import Starlette

from rlhf_audit_trail.api.witness_app import create_witness_app
from rlhf_audit_trail.ledger.collecting import runs_behind
from rlhf_audit_trail.ledger.fsck import fsck, open_damaged
from rlhf_audit_trail.ledger.log import Forked, Ledger
from rlhf_audit_trail.ledger.tlog_policy import check_policy
from rlhf_audit_trail.ledger.witness import Witness
from tests.ledger.guarding import (
    COSIGNER,
    RUN,
    WitnessProcess,
    back_up,
    configure,
    put_back,
    watched_by,
)

CHILD = Path(__file__).parent / "sign_and_die.py"
NOBODY = "http://127.0.0.1:9"  # the discard service's port: nothing listens there


@pytest.fixture
def witness(directory, tmp_path):
    with Ledger.create(directory, organisation="acme.example") as ledger:
        process = WitnessProcess(ledger, tmp_path / "witness.db")
    watched_by(directory, process.url)
    yield process
    process.kill()


def cosigned_sizes(ledger):
    with ledger.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT log_number, tree_size FROM cosignature")
        return sorted(map(tuple, rows))


def is_clean(directory):
    with open_damaged(directory) as storage:
        return [str(finding) for finding in fsck(storage)] == []


@pytest.mark.usefixtures("witness")
def test_signing_is_enough_and_closing_waits_for_the_witness(directory, annotation):
    with Ledger.open(directory) as ledger:
        log = ledger.open_run(RUN)
        for number in range(3):
            log.record(annotation(number))
            log.publish()
        found = ledger.watch.await_quorum(RUN, 3, timeout_s=60)
        assert (found.head.size, found.is_quorum) == (3, True)
        check_policy(ledger.watch.policy, log.served_note(), pinned=log.verifier_keys)
        ledger.registry.publish()
    with Ledger.open(directory) as ledger:
        assert {(1, 2), (2, 3)} <= set(cosigned_sizes(ledger))
        assert runs_behind(ledger.engine, ledger.watch.policy) == []
    assert is_clean(directory)


@pytest.mark.parametrize("where", ["before", "after"])
def test_killed_between_signing_and_storing_the_next_start_collects(directory, witness, where):
    for size in (1, 2):
        arguments = [sys.executable, str(CHILD), str(directory), RUN, where]
        child = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=120)
        assert child.returncode == -9, child.stderr
        assert is_clean(directory)
        with Ledger.open(directory) as ledger:  # which is all it takes
            found = ledger.watch.await_quorum(RUN, size, timeout_s=60)
            assert (found.head.size, found.is_quorum) == (size, True)
            assert cosigned_sizes(ledger)[-1] == (2, size)
    assert is_clean(directory)
    witness.kill()


def test_a_witness_that_comes_back_is_asked_again_about_the_newest_head(
    directory, witness, annotation, serve, tmp_path
):
    witness.kill()
    with Ledger.open(directory) as ledger:
        keys = ledger.registry.verifier_keys + ledger.open_run(RUN).verifier_keys
    behaviour = {"app": Starlette()}  # answers 404 to everything

    async def door(scope, receive, send):
        await behaviour["app"](scope, receive, send)

    watched_by(directory, serve(door), guard='when_unreachable = "publish"')
    with Ledger.open(directory) as ledger, Witness(COSIGNER, keys, tmp_path / "w.db") as back:
        log = ledger.open_run(RUN)
        for size in (1, 2, 3):
            log.record(annotation(size))
            log.publish()
        assert not ledger.watch.await_quorum(RUN, 3, timeout_s=0.5).is_quorum
        behaviour["app"] = create_witness_app(back)
        assert ledger.watch.await_quorum(RUN, 3, timeout_s=60).head.size == 3
        assert cosigned_sizes(ledger) == [(2, 3)]
        behaviour["app"] = Starlette()


def test_a_witness_that_hangs_holds_up_neither_signing_nor_for_long_the_end(
    directory, witness, annotation
):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        hanging = f"http://127.0.0.1:{listener.getsockname()[1]}"
        watched_by(directory, witness.url, hanging, guard="timeout_s = 0.5")
        with Ledger.open(directory) as ledger:
            log = ledger.open_run(RUN)
            log.record(annotation(0))
            assert log.publish().head.size == 1
            found = ledger.watch.await_quorum(RUN, 1, timeout_s=60)
            assert [x.state for x in found.outcomes] == ["cosigned", "pending"]
    with Ledger.open(directory) as ledger:
        assert (2, 1) in cosigned_sizes(ledger)


def test_an_alarm_while_collecting_makes_the_log_read_only_and_is_logged_once(
    directory, witness, annotation, tmp_path, caplog
):
    """Found in the background, by the look that each start takes at what is not cosigned."""
    with Ledger.open(directory) as ledger:
        log = ledger.open_run(RUN)
        log.record(annotation(0)).result()
        back_up(directory, tmp_path / "old.db")
        log.record(annotation(1))
        log.publish()
        assert ledger.watch.await_quorum(RUN, 2, timeout_s=60).is_quorum
    put_back(tmp_path / "old.db", directory)
    configure(directory)
    with Ledger.open(directory) as ledger:
        ledger.open_run(RUN).record(annotation(5))
        ledger.open_run(RUN).publish()
    watched_by(directory, witness.url)
    caplog.set_level(logging.WARNING)
    with Ledger.open(directory) as ledger:  # its start finds a head without cosignatures
        found = ledger.watch.await_quorum(RUN, 2, timeout_s=60)
        assert [type(x.finding) for x in found.alarms] == [Forked]
        log = ledger.find(RUN)
        for _ in range(2):
            with pytest.raises(Forked, match="witness w0 holds another tree of 2"):
                log.record(annotation(6))
        with pytest.raises(Forked):
            log.publish()
    assert caplog.text.count("read-only") == 1


def test_without_a_policy_there_is_no_thread(ledger, annotation):
    log = ledger.open_run(RUN)
    log.record(annotation(0))
    log.publish()
    assert ledger.watch.await_quorum(RUN, 1, timeout_s=60) is None


def test_a_database_that_is_away_does_not_end_the_collecting(directory, witness, annotation):
    watched_by(directory, witness.url, guard='when_unreachable = "publish"')
    with Ledger.open(directory) as ledger:
        log = ledger.open_run(RUN)
        with ledger.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE cosignature RENAME TO hidden")
        log.record(annotation(0))
        log.publish()
        assert ledger.watch.await_quorum(RUN, 1, timeout_s=0.5) is None
        with ledger.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE hidden RENAME TO cosignature")
        assert ledger.watch.await_quorum(RUN, 1, timeout_s=60).is_quorum


@pytest.mark.usefixtures("witness")
def test_an_address_nobody_answers_at_is_left_for_the_next_start(directory, annotation):
    watched_by(directory, NOBODY, guard='when_unreachable = "publish"')
    with Ledger.open(directory) as ledger:
        log = ledger.open_run(RUN)
        log.record(annotation(0))
        log.publish()
        found = ledger.watch.await_quorum(RUN, 1, timeout_s=1)
        assert (found.is_quorum, [x.state for x in found.outcomes]) == (False, ["pending"])
    with Ledger.open(directory) as ledger:
        assert runs_behind(ledger.engine, ledger.watch.policy) == [RUN]
