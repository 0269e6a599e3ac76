"""Processes that are killed, and processes that append at the same time."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_audit_trail.ledger.fsck import Summary, fsck, open_damaged
from rlhf_audit_trail.ledger.log import Ledger

CHILD = Path(__file__).parent / "append_until_killed.py"


def start(directory, run_id, *, total, group):
    arguments = [sys.executable, CHILD, directory, run_id, str(total), str(group)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def reported(output):
    """Read receipts; a line that the kill cut short reports nothing."""
    lines = [line.split() for line in output.splitlines(keepends=True) if line.endswith("\n")]
    return {int(index): digest for index, digest in lines}


def is_clean(directory):
    with open_damaged(directory) as storage:
        summary = Summary()
        assert [str(finding) for finding in fsck(storage, summary=summary)] == []
        return summary.entries > 0


@pytest.mark.slow
def test_killed_at_any_moment_every_receipt_is_kept(directory, annotation):
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    Ledger.create(directory, organisation="acme.example").close()
    promised = {}
    for _ in range(6):
        child = start(directory, "run42", total=0, group=chosen.choice([1, 7, 100]))
        text = "".join(child.stdout.readline() for _ in range(chosen.randrange(1, 400)))
        child.kill()
        rest, _ = child.communicate()
        assert child.returncode == -9
        receipts = reported(text + rest)
        assert receipts
        assert not set(receipts) & set(promised)
        promised |= receipts
        assert is_clean(directory)  # as the kill left it
        with Ledger.open(directory) as ledger:
            log = ledger.open_run("run42")
            stored = {entry.leaf_index: entry.data for entry in log.entries()}
            for index, digest in promised.items():
                assert hashlib.sha256(stored[index]).hexdigest() == digest
            assert log.opened(max(promised))["prompt"] == "p"
            log.record(annotation(0)).result()
            promised[log.size - 1] = hashlib.sha256(log.read(log.size - 1).data).hexdigest()
            assert log.publish().head.size == log.size
        assert is_clean(directory)


@pytest.mark.slow
def test_killed_while_a_run_begins_leaves_a_ledger_that_goes_on(directory, annotation):
    chosen = random.Random(1)
    Ledger.create(directory, organisation="acme.example").close()
    for number in range(4):
        child = start(directory, f"run{number}", total=0, group=1)
        while not (directory / "keys" / f"run{number}.vkey").exists():
            pass
        child.kill()
        child.communicate()
        assert is_clean(directory)
        with Ledger.open(directory) as ledger:
            log = ledger.open_run(f"run{number}")
            log.record(annotation(chosen.randrange(100))).result()
            log.close()
            assert len([x for x in ledger.registry.entries(kind="run.opened")
                        if x.event["run"] == log.run_id]) == 1  # fmt: skip
        assert is_clean(directory)


@pytest.mark.slow
def test_two_processes_append_to_one_run_and_lose_nothing(directory):
    Ledger.create(directory, organisation="acme.example").close()
    children = [start(directory, "run42", total=600, group=group) for group in (1, 7)]
    outputs = [child.communicate()[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    first, second = map(reported, outputs)
    assert not set(first) & set(second)
    promised = first | second
    assert (len(first), len(second)) == (600, 602)
    assert sorted(promised) == list(range(1202))
    assert is_clean(directory)
    with Ledger.open(directory) as ledger:
        log = ledger.find("run42")
        entries = list(log.entries())
        assert {x.leaf_index: hashlib.sha256(x.data).hexdigest() for x in entries} == promised
        assert len({entry.writer_id for entry in entries}) == 2
        assert log.publish().head.size == 1202
