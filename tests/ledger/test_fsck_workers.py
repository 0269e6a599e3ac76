"""fsck by several processes: the same findings, and an end whatever happens to them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_audit_trail.ledger.findings import UNCHECKED
from rlhf_audit_trail.ledger.fsck import Summary, fsck, open_damaged, ranges
from rlhf_audit_trail.ledger.tiles import TILE_WIDTH
from tests.ledger.test_fsck import DAMAGE, sql

PATIENCE_S = 60


def found_by(directory, jobs):
    summary = Summary()
    with open_damaged(directory) as storage:
        return list(fsck(storage, jobs=jobs, summary=summary)), summary


@pytest.fixture
def narrow(monkeypatch):
    """Ranges of one tile each, so that a small log is divided, too."""
    monkeypatch.setattr(ranges, "RANGE_ENTRIES", TILE_WIDTH)


@pytest.mark.slow
@pytest.mark.parametrize("statements", [x for x, _ in DAMAGE.values()], ids=DAMAGE)
def test_several_processes_find_what_one_finds(damaged, statements, monkeypatch):
    sql(damaged, *statements)
    alone, counted = found_by(damaged, 1)
    monkeypatch.setattr(ranges, "RANGE_ENTRIES", TILE_WIDTH)
    divided, counted_divided = found_by(damaged, 1)
    assert set(divided) == set(alone)
    assert counted_divided == counted
    assert found_by(damaged, 2) == (divided, counted_divided)


@pytest.mark.usefixtures("narrow")
def test_a_sound_ledger_is_sound_for_several_processes(damaged):
    findings, summary = found_by(damaged, 3)
    assert findings == []
    assert (summary.entries, summary.vault_rows, summary.blobs) == (610, 603, 2)


@pytest.mark.usefixtures("narrow")
def test_progress_comes_in_order_and_reaches_the_end(damaged):
    seen = []
    with open_damaged(damaged) as storage:
        assert list(fsck(storage, jobs=2, progress=seen.append)) == []
    done = [come.all_done for come in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1].all_size == 610
    assert {come.origin for come in seen} == {
        f"acme.example/rlhf/{run}" for run in ("registry", "run42", "ended")
    }


def children(pid):
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found += map(int, (task / "children").read_text().split())
        except FileNotFoundError:
            continue
    return found


def workers_of(pid):
    """Those that have become workers: until then a child is a copy of who makes it."""
    return [
        child
        for child in children(pid)
        if b"fsck.worker" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def own_workers():
    return workers_of(os.getpid())


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


@pytest.mark.usefixtures("narrow")
def test_a_worker_that_dies_is_said_and_nothing_hangs(damaged):
    found = []
    with open_damaged(damaged) as storage:
        checking = fsck(storage, jobs=2, progress=lambda _: kill_all())

        def kill_all():
            for pid in own_workers():
                os.kill(pid, signal.SIGKILL)

        found += checking
    assert [finding.what for finding in found] == [UNCHECKED]
    assert "ended (signal 9)" in found[0].detail
    assert own_workers() == []


def test_who_wants_no_more_leaves_no_process_behind(damaged, narrow):
    del narrow
    sql(damaged, "UPDATE entry SET kind = 'gap' WHERE log_number = RUN AND leaf_index < 300")
    with open_damaged(damaged) as storage:
        checking = fsck(storage, jobs=2)
        assert next(checking).what == "entry"
        checking.close()
    assert own_workers() == []


COMMAND = (sys.executable, "-m", "rlhf_audit_trail.cli", "fsck", "--jobs", "3", "--ledger")


@pytest.fixture
def command(damaged):
    """The command with two workers, stopped, so that it cannot end by itself."""
    with subprocess.Popen(
        # whoever runs the tests in the background may have interrupts ignored, which is inherited
        ["env", "--default-signal=INT", *COMMAND, str(damaged)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        workers = wait_until(lambda: len(found := workers_of(process.pid)) == 2 and found)
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        yield process, workers
        process.kill()


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_an_interrupt_ends_all_processes(command):
    process, workers = command
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, said) == (5, "")
    assert "interrupted" in errors
    assert "Traceback" not in errors
    wait_until(lambda: all(map(is_gone, workers)))


def test_a_killed_worker_gives_exit_code_5(command):
    process, workers = command
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    said, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 5
    assert errors == ""
    assert "ended (signal 9)" in said
    assert "sound" not in said


def test_workers_end_when_the_command_is_killed(command):
    process, workers = command
    process.kill()
    process.wait(PATIENCE_S)
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: all(map(is_gone, workers)))
