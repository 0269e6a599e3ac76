"""Two processes append to one SQLite ledger, a third signs it; one of them is killed, again and again."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from append_for_ever import EACH
from recorded_run import event_of, number_of

from rlhf_audit_trail.ledger.fsck import fsck, open_damaged
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.proof.merkle import leaf_hash, root_hash, verify_consistency
from rlhf_audit_trail.ledger.proof.tree_head import open_tree_head

KILLS = 5
NUMBERS = 1_000_000  # of events; each process has its own


def start(directory, what, count):
    script = Path(__file__).parent / "append_for_ever.py"
    arguments = [sys.executable, script, directory, what, str(count * NUMBERS)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def read(child, lines):
    """Read some lines; these are promises that were made by now."""
    found = [child.stdout.readline() for _ in range(lines)]
    assert all(found), "the process ended by itself"
    return "".join(found)


def kill(child):
    """Kill, and return what was told before; a line that was cut short tells nothing."""
    child.kill()
    rest, _ = child.communicate()
    assert child.returncode == -9
    return rest


@pytest.mark.slow
def test_whoever_is_killed_there_is_one_history(tmp_path):
    directory = tmp_path / "ledger"
    with Ledger.create(directory, organisation="acme.example") as ledger:
        ledger.open_run("run42").record(event_of(0)).result()
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    roles = ["append", "append", "publish"]
    children = [start(directory, role, place + 1) for place, role in enumerate(roles)]
    told = []
    try:
        for count in range(KILLS):
            told += [read(child, chosen.randrange(1, 40)) for child in children]
            place = count % len(roles) if count < len(roles) else chosen.randrange(len(roles))
            told.append(kill(children[place]))
            children[place] = start(directory, roles[place], len(roles) + count + 1)
        told += [read(child, 3) for child in children]
    finally:
        told += [kill(child) for child in children]
    lines = [x.split() for text in told for x in text.splitlines(keepends=True) if x.endswith("\n")]
    kept = {int(index): int(number) for what, index, number in (x for x in lines if x[0] == "kept")}
    assert len(kept) == sum(words[0] == "kept" for words in lines)
    judge(directory, kept, [bytes.fromhex(x[1]).decode() for x in lines if x[0] == "signed"])


def judge(directory, kept, notes):
    with open_damaged(directory) as storage:
        assert [str(finding) for finding in fsck(storage)] == []
    with Ledger.open(directory) as ledger:
        log = ledger.find("run42")
        entries = list(log.entries())
        numbers = {x.leaf_index: number_of(x.event) for x in entries}
        assert {index: numbers.get(index) for index in kept} == kept
        found = Counter(number for number in numbers.values() if number is not None)
        assert set(found.values()) == {1}
        unasked = set(found) - set(kept.values()) - {0}
        writers = {number // NUMBERS for number in found}
        assert len(unasked) <= EACH * len(writers)  # one group each was stored and not told
        heads = {open_tree_head(note, log.verifier_keys).head for note in notes}
        heads |= {log.published(size).head for size in log.published_sizes()} | {log.publish().head}
        ordered = sorted(heads, key=lambda head: head.size)
        assert len({head.size for head in ordered}) == len(ordered) >= 3
        leaves = [leaf_hash(entry.data) for entry in entries]
        for old, new in pairwise(ordered):
            proof = log.prove_consistency(old.size, new.size)
            verify_consistency(old.size, old.root, new.size, new.root, proof)
            assert old.root == root_hash(leaves[: old.size])
    with open_damaged(directory) as storage:
        assert [str(finding) for finding in fsck(storage)] == []
