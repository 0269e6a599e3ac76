"""Several processes append to one run: killed, stopped, on two machines."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

from rlhf_audit_trail.ledger.log import Ledger

CHILD = Path(__file__).parent / "appender.py"
SIGNER = Path(__file__).parent / "signer.py"

# A group of processes that nobody outside waits for is woken by the kernel when one of it ends;
# in a session of its own a stopped process stays stopped.
APART = {"start_new_session": True}


def start(directory, *, total, group, how=""):
    arguments = [sys.executable, CHILD, directory, "run42", str(total), str(group)]
    command = [*arguments, *[how][: bool(how)]]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **APART)


def receipts(output):
    """Read complete lines: index to writer."""
    lines = [line.split() for line in output.splitlines(keepends=True) if line.endswith("\n")]
    found = {int(index): writer for writer, index in (x for x in lines if len(x) == 2)}
    assert len(found) == len([x for x in lines if len(x) == 2])
    return found


def assert_history(directory, promised):
    """Every receipt is where it was promised, and each writer counts without a hole."""
    with Ledger.open(directory) as ledger:
        log = ledger.find("run42")
        entries = list(log.entries())
        assert [entry.leaf_index for entry in entries] == list(range(len(entries)))
        for index, writer in promised.items():
            assert entries[index].writer_id == writer
        seqs = defaultdict(list)
        for entry in entries:
            seqs[entry.writer_id].append(entry.seq)
        assert all(found == list(range(len(found))) for found in seqs.values())
        assert log.publish().head.size == len(entries)
        return len(entries)


@pytest.mark.slow
def test_four_processes_append_at_once(ledger, directory, sound):
    children = [start(directory, total=500, group=group) for group in (1, 10, 50, 100)]
    outputs = [child.communicate()[0] for child in children]
    assert [child.returncode for child in children] == [0] * 4
    promised = {}
    for output in outputs:
        promised |= receipts(output)
    assert sorted(promised) == list(range(2_000))
    assert assert_history(directory, promised) == 2_000
    assert sound(directory).entries == 2_000 + ledger.registry.size


@pytest.mark.slow
@pytest.mark.usefixtures("ledger")
def test_processes_killed_at_any_moment_leave_one_history(directory, sound):
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    lasting = start(directory, total=600, group=4)
    promised = {}
    for _ in range(4):
        child = start(directory, total=0, group=chosen.choice([1, 7, 100]))
        text = "".join(child.stdout.readline() for _ in range(chosen.randrange(1, 300)))
        child.kill()
        promised |= receipts(text + child.communicate()[0])
        assert child.returncode == -9
        sound(directory)
    promised |= receipts(lasting.communicate()[0])
    assert lasting.returncode == 0
    assert assert_history(directory, promised) >= len(promised) > 600
    sound(directory)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["idle", "holding"])
def test_a_stopped_process_blocks_no_one_and_loses_nothing(
    ledger, directory, annotation, sound, how
):
    child = start(directory, total=20, group=10, how=how)
    text = ""
    while not text.endswith("stopping\n"):
        text += child.stdout.readline()
    log = ledger.open_run("run42")
    own = log.record_many(annotation(x) for x in range(300))
    indices = [receipt.result(timeout_s=60) for receipt in own]
    assert indices == list(range(10, 310))
    assert log.publish().head.size == 310
    child.send_signal(signal.SIGCONT)
    promised = receipts(text + child.communicate()[0])
    assert child.returncode == 0
    assert sorted(promised) == [*range(10), *range(310, 320)]
    assert assert_history(directory, promised) == 320
    assert sound(directory).entries == 320 + ledger.registry.size


def start_signer(directory, *how):
    command = [sys.executable, SIGNER, directory, "run42", *how]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command, text=True, **pipes, **APART)


def read_until_stopping(child):
    text = ""
    while not text.endswith("stopping\n"):
        line = child.stdout.readline()
        assert line
        text += line
    return text


def assert_signed_once(directory, outputs):
    """What any signer was given for a size is the one tree head that is stored for it."""
    with Ledger.open(directory) as ledger:
        log = ledger.find("run42")
        kept = {
            size: hashlib.sha256(str(log.published(size).note).encode()).hexdigest()
            for size in log.published_sizes()
        }
    said = [line.split() for text in outputs for line in text.splitlines() if line != "stopping"]
    assert all(kept[int(size)] == digest for size, digest in said)
    return len({size for size, _ in said})


@pytest.mark.slow
def test_signers_and_appenders_of_which_two_are_stopped_and_all_are_cut_off(
    directory, network, sound
):
    Ledger.create(directory, organisation="acme.example", database=network.url).close()
    appenders = [start(directory, total=200, group=group) for group in (2, 10, 40)]
    appenders += [start(directory, total=200, group=10, how="holding")]
    signers = [start_signer(directory) for _ in range(2)] + [start_signer(directory, "holding")]
    texts = [read_until_stopping(child) for child in (appenders[3], signers[2])]
    for _ in range(3):  # with one appender and one signer stopped, each in its transaction
        time.sleep(0.5)
        network.cut()
        time.sleep(1)
        network.heal()
    outputs = [child.communicate()[0] for child in appenders[:3]]
    for child in (appenders[3], signers[2]):
        child.send_signal(signal.SIGCONT)
    outputs.append(texts[0] + appenders[3].communicate()[0])
    notes = [child.communicate("")[0] for child in signers[:2]]
    notes.append(texts[1] + signers[2].communicate("")[0])
    assert [child.returncode for child in (*appenders, *signers)] == [0] * 7
    promised = {}
    for output in outputs:
        promised |= receipts(output)
    assert sorted(promised) == list(range(800))
    assert assert_history(directory, promised) == 800
    assert assert_signed_once(directory, notes) > 3
    assert sound(directory).entries == 802


@pytest.mark.slow
def test_two_machines_with_a_copy_of_settings_and_key_share_one_database(
    tmp_path, new_database, annotation, sound
):
    database, keys = new_database(), new_database()
    here, there = tmp_path / "here", tmp_path / "there"
    Ledger.create(here, organisation="acme.example", database=database, keys_database=keys).close()
    there.mkdir()
    for name in ("rlhf-audit.toml", "operator.key"):
        shutil.copy(here / name, there / name)
    children = [start(directory, total=200, group=10) for directory in (here, there)]
    promised = {}
    for child in children:
        promised |= receipts(child.communicate()[0])
        assert child.returncode == 0
    assert sorted(promised) == list(range(400))
    for directory in (there, here):
        assert assert_history(directory, promised) == 400
        assert sound(directory).vault_rows == 400
        assert not list(directory.glob("*.db"))
    with Ledger.open(here) as ledger, Ledger.open(there) as other:
        assert ledger.open_run("new").verifier_keys == other.open_run("new").verifier_keys
        index = ledger.open_run("new").record(annotation(3)).result()
        assert other.open_run("new").opened(index)["prompt"] == "prompt 3"
        ledger.open_run("new").publish()
        other.open_run("new").record(annotation(4))
        assert other.open_run("new").publish().head.size == 2
        assert ledger.open_run("new").published().head.size == 2
