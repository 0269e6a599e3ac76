"""Storing weights while the disk is full, the database away, or the process killed."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.ledger import writer
from rlhf_audit_trail.ledger.fsck import fsck, open_damaged
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.weights.checkpoints import CheckpointStore
from rlhf_audit_trail.weights.byte_arithmetic import NUMPY
from rlhf_audit_trail.weights.model_weights import digest_model
from rlhf_audit_trail.weights.snapshot import LiveCopy, WeightsMoved
from tests.store_faults import no_larger_files, no_more_pages, without_table

pytestmark = pytest.mark.train
SCRIPT = Path(__file__).with_name("store_until_killed.py")
LIMIT = 2_000_000  # bytes: more than the database has, less than a segment of new weights
Fault = Callable[[Ledger], contextlib.AbstractContextManager[None]]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "RETRY_DELAYS_S", (0.0, 0.0))


def no_large_files(_: Ledger) -> AbstractContextManager[None]:
    """Have no file larger than the smallest weights that are stored here."""
    return no_larger_files(LIMIT)


def no_tables(ledger: Ledger) -> AbstractContextManager[None]:
    """Take the table of weights away."""
    return without_table(ledger, "weight_segment")


def storing(ledger: Ledger) -> AuditableRLHF:
    return AuditableRLHF("tiny", ledger=ledger, source="simulated", seed=1, storage_backend="local")


def set_strict(ledger: Ledger) -> None:
    with (ledger.directory / "rlhf-audit.toml").open("a") as file:
        file.write('on_loss = "strict"\n')


def check_all(ledger: Ledger, run: str) -> list[str]:
    """Rebuild every stored checkpoint; none is half there."""
    store = CheckpointStore(ledger.engine, ledger.blobs, NUMPY)
    stored = store.stored(ledger.find(run).number)
    for checkpoint in stored:
        store.reader(checkpoint).restore()
    return [checkpoint.weights_digest for checkpoint in stored]


def discard_unfinished(ledger: Ledger) -> None:
    """Free what was never stored to the end: then each object has its row, and none is left."""
    store = CheckpointStore(ledger.engine, ledger.blobs)
    store.discard(store.unfinished())
    assert store.unfinished() == []
    kept = {store.segments(x) for x in store.stored()}
    known = {digest for segments in kept for digest in segments} | set(ledger.blobs.digests())
    assert {x.name for x in (ledger.directory / "blobs").iterdir()} <= known


@pytest.mark.parametrize("fault", [no_large_files, no_more_pages, no_tables])
def test_the_weights_are_lost_and_the_training_goes_on(ledger: Ledger, fault: Fault) -> None:
    # weights that lie in files, or in the database itself: there a full page is met at once
    size = 110 if fault is no_more_pages else 1_000
    model = torch.nn.Linear(size, size)
    steps = 0
    digests = []
    with storing(ledger).track_training("run-1") as run:
        for epoch in range(3):  # two scratch files are then there, as in any longer training
            run.checkpoint(epoch=epoch, model=model).receipt.result()
            digests.append(digest_model(model).digest.hex())
        with fault(ledger):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for _ in range(3):
                model(torch.ones(1, size)).sum().backward()
                optimizer.step()
                torch.nn.init.normal_(model.weight)
                lost = run.checkpoint(epoch=3 + steps, model=model)
                assert lost.weights_digest == digest_model(model).digest.hex()
                steps += 1
        assert run.checkpoint(epoch=9, model=model, wait=True).receipt.result() >= 0
        digests.append(digest_model(model).digest.hex())
    assert steps == 3
    log = ledger.find("run-1")
    found = check_all(ledger, "run-1")
    entries = [entry.event for entry in log.entries()]
    alerts = [x["name"] for x in entries if x["kind"] == "alert.raised"]
    gaps = sum(x["count"] for x in entries if x["kind"] == "gap")
    saved = [x["name"] for x in entries if x["kind"] == "checkpoint.saved"]
    assert found == digests
    if fault is no_more_pages:  # then entries found no room either, unless in a page begun before
        assert gaps + len(alerts) >= steps
    else:
        assert alerts.count("checkpoint_not_stored") == 3
        assert saved == [f"epoch_{n}" for n in (0, 1, 2, 3, 4, 5, 9)]
    discard_unfinished(ledger)
    assert list(fsck(ledger)) == []


@pytest.mark.parametrize("fault", [no_large_files, no_tables])
def test_a_strict_ledger_says_so_at_the_next_call(ledger: Ledger, fault: Fault) -> None:
    set_strict(ledger)
    ledger.close()
    with Ledger.open(ledger.directory) as again, contextlib.ExitStack() as stack:
        with pytest.raises(Exception, match=r"failed|weight_segment"):
            train_into(again, lambda: stack.enter_context(fault(again)))
        stack.close()
        assert len(check_all(again, "run-1")) == 3


def test_no_room_for_a_copy_of_the_weights(ledger: Ledger) -> None:
    """The first checkpoint is made while the disk is full: it is digested where it lies."""
    model = torch.nn.Linear(1_000, 1_000)
    with storing(ledger).track_training("run-1") as run:
        with no_large_files(ledger):
            lost = run.checkpoint(epoch=0, model=model)
            assert lost.weights_digest == digest_model(model).digest.hex()
        run.checkpoint(epoch=1, model=model).receipt.result()
    alerts = [x.event["name"] for x in ledger.find("run-1").entries(kind="alert.raised")]
    assert alerts == ["checkpoint_not_stored"]
    assert check_all(ledger, "run-1") == [lost.weights_digest]


def train_into(ledger: Ledger, breaking: Callable[[], None]) -> None:
    model = torch.nn.Linear(1_000, 1_000)
    with storing(ledger).track_training("run-1") as run:
        for epoch in range(3):
            run.checkpoint(epoch=epoch, model=model).receipt.result()
        torch.nn.init.normal_(model.weight)
        breaking()
        run.checkpoint(epoch=3, model=model)
        run.checkpoint(epoch=4, model=model)
        pytest.fail("the training went on")


def open_files(below: Path) -> list[str]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(entry.readlink()).startswith(str(below)):
                found.append(str(entry.readlink()))
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are told by Linux")
def test_weights_that_move_are_a_gap_and_an_alert(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = torch.nn.Linear(4, 4)
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    take = LiveCopy.take

    def slowly(copy: LiveCopy) -> None:
        with torch.no_grad():
            model.weight.add_(1)  # what a training does that writes to weights by itself
        take(copy)

    with storing(ledger).track_training("run-1") as run:
        monkeypatch.setattr(LiveCopy, "take", slowly)
        lost = run.checkpoint(epoch=0, model=model, path=folder)
        with pytest.raises(WeightsMoved):
            lost.receipt.result()
        monkeypatch.undo()
        run.checkpoint(epoch=1, model=model, path=folder).receipt.result()
        assert open_files(folder) == []
    entries = [entry.event for entry in ledger.find("run-1").entries()]
    (gap,) = [x for x in entries if x["kind"] == "gap"]
    assert (gap["count"], gap["reason"]) == (1, "a checkpoint could not be recorded: WeightsMoved")
    (alert,) = [x for x in entries if x["kind"] == "alert.raised"]
    assert alert["name"] == "checkpoint_not_recorded"
    assert [x["name"] for x in entries if x["kind"] == "checkpoint.saved"] == ["epoch_1"]


def test_killed_while_storing_nothing_is_half_there(tmp_path: Path) -> None:
    directory = tmp_path / "ledger"
    Ledger.create(directory, organisation="acme.example").close()
    promised: list[str] = []
    for moment_s in (0.02, 0.06):  # after a checkpoint: in the midst of the next one
        with subprocess.Popen(
            [sys.executable, str(SCRIPT), str(directory)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout
            lines = [process.stdout.readline() for _ in range(2)]
            time.sleep(moment_s)
            process.send_signal(signal.SIGKILL)
            lines += process.stdout.readlines()
        assert process.returncode == -signal.SIGKILL
        promised += [line.split()[1] for line in lines if line.endswith("\n")]
        with Ledger.open(directory) as ledger:
            found = check_all(ledger, "run-1")
            assert set(promised) <= set(found)
            discard_unfinished(ledger)
            assert set(check_all(ledger, "run-1")) == set(found)
    with open_damaged(directory) as storage:
        assert list(fsck(storage)) == []
