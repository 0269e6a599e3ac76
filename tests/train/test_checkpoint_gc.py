"""Discarding stored weights while another process trains, and goes on from some of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.cli.main import main
from rlhf_audit_trail.ledger.fsck import fsck, open_damaged
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.weights.checkpoints import CheckpointStore
from rlhf_audit_trail.ledger.weights.gc import collect

pytestmark = pytest.mark.train
SCRIPT = Path(__file__).with_name("store_on_demand.py")
FREE_CHECKPOINTS = 30


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    Ledger.create(tmp_path / "ledger", organisation="acme.example").close()
    return tmp_path / "ledger"


class Training:
    """Another process that trains, and stores a checkpoint when it is asked to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def store(self) -> list[str]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().split()


@contextmanager
def training(directory: Path, *more: str) -> Iterator[Training]:
    command = [sys.executable, str(SCRIPT), str(directory), *more]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Training(process)
            process.communicate(timeout=60)
            assert process.returncode == 0
        finally:
            process.kill()


def store_one(directory: Path) -> None:
    model = torch.nn.Linear(200, 200)
    with Ledger.open(directory) as ledger:
        auditor = AuditableRLHF("tiny", ledger=ledger, source="simulated", storage_backend="local")
        with auditor.track_training("run-1") as run:
            run.checkpoint(epoch=0, model=model, wait=True)


def gc(directory: Path, *options: str) -> dict[str, Any]:
    arguments = ["checkpoint", "gc", "run-1", "--ledger", str(directory), "--json", *options]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def restored(directory: Path) -> dict[str, int]:
    """Rebuild all that is stored; return names and how many differences lead to each."""
    with Ledger.open(directory) as ledger:
        store = CheckpointStore(ledger.engine, ledger.blobs)
        found = store.stored(ledger.find("run-1").number)
        for item in found:
            store.reader(item).restore()
        alerts = [x.event["name"] for x in ledger.find("run-1").entries(kind="alert.raised")]
        gaps = list(ledger.find("run-1").entries(kind="gap"))
    assert "checkpoint_not_stored" not in alerts
    assert gaps == []
    with open_damaged(directory) as storage:
        assert list(fsck(storage)) == []
    return {item.name: item.chain_length for item in found}


def test_what_the_training_goes_on_from_is_not_discarded(directory: Path) -> None:
    with training(directory) as other:
        for _ in range(6):
            other.store()
        found = gc(directory, "--keep-last", "0")
        # whole, and the fourth difference, from which the next ones start
        assert found["needed_by_training"] == ["epoch_0", "epoch_4"]
        assert found["discarded"] == ["epoch_1", "epoch_2", "epoch_3", "epoch_5"]
        other.store()
        shown = gc(directory, "--keep-last", "1", "--dry-run")
        assert shown["discarded"] == []
    assert restored(directory) == {"epoch_0": 0, "epoch_4": 1, "epoch_6": 2}
    ended = gc(directory, "--keep-last", "0")
    assert (ended["needed_by_training"], len(ended["discarded"])) == ([], 3)


def test_a_training_whose_base_is_gone_stores_whole_weights(directory: Path) -> None:
    with training(directory) as other:
        for _ in range(3):
            other.store()
        found = gc(directory, "--keep-last", "0", "--ended")  # which is not true
        assert found["discarded"] == ["epoch_0", "epoch_1", "epoch_2"]
        other.store()
        other.store()
    assert restored(directory) == {"epoch_3": 0, "epoch_4": 1}
    with Ledger.open(directory) as ledger:
        entries = list(ledger.find("run-1").entries(kind="checkpoint.saved"))
        assert len(entries) == 5
        (gone,) = ledger.registry.entries(kind="checkpoint.discarded")
        assert gone.event["names"] == ["epoch_0", "epoch_1", "epoch_2"]


def test_both_at_full_speed(directory: Path) -> None:
    discarded: list[str] = []
    with training(directory, "free") as other:
        while other.process.poll() is None:
            with Ledger.open(directory) as ledger:
                is_there = "run-1" in ledger.runs()
            if is_there:
                discarded += gc(directory, "--keep-last", "1", "--ended")["discarded"]
    found = restored(directory)
    assert len(found) + len(discarded) == FREE_CHECKPOINTS
    assert not set(found) & set(discarded)
    assert f"epoch_{FREE_CHECKPOINTS - 1}" in found


def test_who_was_cut_off_while_discarding_is_gone_on_for(directory: Path) -> None:
    store_one(directory)
    with Ledger.open(directory) as ledger:
        log = ledger.find("run-1")
        store = CheckpointStore(ledger.engine, ledger.blobs)
        (only,) = store.claim(store.stored(log.number))
        assert store.stored(log.number) == []
        assert store.going(log.number) == [only]
        found = collect(log, ledger.registry, store, [])
        assert (found.gone, found.kept) == ((only,), ())
        assert store.going(log.number) == []
    assert restored(directory) == {}


def test_a_blob_that_is_shortened_while_it_is_read_is_an_error(directory: Path) -> None:
    store_one(directory)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from rlhf_audit_trail.ledger.log import Ledger\n"
        "from rlhf_audit_trail.ledger.proof.errors import AuditTrailError\n"
        "from rlhf_audit_trail.ledger.weights.checkpoints import CheckpointStore\n"
        "with Ledger.open(sys.argv[1]) as ledger:\n"
        "    store = CheckpointStore(ledger.engine, ledger.blobs)\n"
        "    (one,) = store.stored()\n"
        "    reader = store.reader(one)\n"
        "    names = list(reader.layout.number)\n"
        "    reader.tensor(names[0])\n"  # its segment is held from here on
        "    for path in (Path(sys.argv[1]) / 'blobs').iterdir():\n"
        "        path.open('r+b').truncate(1000)\n"
        "    reader.tensor(names[-1])\n"
        "    try:\n"
        "        store.reader(one).restore()\n"
        "    except AuditTrailError as error:\n"
        "        print(type(error).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(directory)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "MalformedDelta\n"), done.stderr
