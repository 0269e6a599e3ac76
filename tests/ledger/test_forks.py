"""Forked children: os.fork, multiprocessing, and the workers of a DataLoader."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rlhf_audit_trail.ledger.fsck import fsck
from rlhf_audit_trail.ledger.log import Ledger

HEAD = """
import os, sys
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Ledger
def event(number):
    sealed = {"prompt": "p", "reward": number / 2}
    return Event("annotation.recorded", {"source": "simulated", "batch": number}, sealed,
                 subject=f"annotator-{number % 5}")
ledger = Ledger.create(sys.argv[1], organisation="acme.example")
log = ledger.open_run("run42")
"""

FORK = (
    HEAD
    + """
mine = log.record_many(event(number) for number in range(500))  # still queued, perhaps
children = []
for child in range(3):
    process = os.fork()
    if not process:
        log.record_many(event(1000 * (child + 1) + number) for number in range(50))
        sys.exit(0)  # nobody waits for a receipt, and nobody closes
    children.append(process)
    log.record(event(900 + child))
codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in children]
assert codes == [0, 0, 0], codes
assert [receipt.result() for receipt in mine] == sorted(receipt.result() for receipt in mine)
ledger.close()
"""
)

POOL = (
    HEAD
    + """
import multiprocessing
def work(begin):
    log.record_many(event(begin + number) for number in range(40))
log.record(event(0))
context = multiprocessing.get_context("fork")
workers = [context.Process(target=work, args=(1000 * number,)) for number in (1, 2)]
for worker in workers:
    worker.start()
log.record(event(1))
for worker in workers:
    worker.join()
    assert worker.exitcode == 0
ledger.close()
"""
)

LOADER = (
    HEAD
    + """
import torch
class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 60
    def __getitem__(self, number):
        log.record(event(1000 + number))
        return number
log.record(event(0)).result()
loader = torch.utils.data.DataLoader(Rows(), num_workers=2, batch_size=5)
for _ in range(2):
    assert sum(len(rows) for rows in loader) == 60
log.record(event(1))
ledger.close()
"""
)


def batches(log):
    return sorted(entry.event["batch"] for entry in log.entries())


def tell(script, directory):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(directory)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return Ledger.open(directory)


def test_children_and_parent_record_into_one_history(directory):
    with tell(FORK, directory) as ledger:
        log = ledger.find("run42")
        own = [*range(500), 900, 901, 902]
        children = [1000 * child + number for child in (1, 2, 3) for number in range(50)]
        assert batches(log) == sorted(own + children)
        assert len({entry.writer_id for entry in log.entries()}) == 4
        assert list(fsck(ledger)) == []
        (first,) = [entry for entry in log.entries() if entry.event["batch"] == 0]
        assert log.opened(first.leaf_index) == {"prompt": "p", "reward": 0.0}
    assert list((directory / "writers").iterdir()) == []


def test_workers_of_multiprocessing_lose_nothing_at_their_end(directory):
    with tell(POOL, directory) as ledger:
        log = ledger.find("run42")
        assert batches(log) == [0, 1, *range(1000, 1040), *range(2000, 2040)]
        assert list(fsck(ledger)) == []


@pytest.mark.slow
def test_workers_of_a_data_loader_lose_nothing_at_their_end(directory):
    with tell(LOADER, directory) as ledger:
        log = ledger.find("run42")
        assert batches(log) == sorted([0, 1, *range(1000, 1060), *range(1000, 1060)])
        assert len({entry.writer_id for entry in log.entries()}) == 5
        assert list(fsck(ledger)) == []


def test_a_process_that_forgets_to_close_loses_nothing(directory):
    script = HEAD + "log.record_many(event(number) for number in range(3000))\n"
    with tell(script, directory) as ledger:
        assert batches(ledger.find("run42")) == list(range(3000))
