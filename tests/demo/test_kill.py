"""SIGKILL at any moment of a recorded, anchored training; then the next process goes on."""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_audit_trail.ledger.chain.anchoring.publishing import Publisher
from rlhf_audit_trail.ledger.chain.contract.reader import read_anchored
from rlhf_audit_trail.ledger.chain.node.anvil import Anvil
from rlhf_audit_trail.ledger.chain.signing.signer import KeySigner
from rlhf_audit_trail.ledger.fsck import fsck, open_damaged
from rlhf_audit_trail.ledger.log import SETTINGS_FILE, Ledger
from tests.chain_fixtures import FREE_PORT

SCRIPT = Path(__file__).with_name("train_forever.py")
KILLS = 6

pytestmark = [pytest.mark.chain, pytest.mark.slow]


def train_and_kill(directory: Path, key: bytes, receipts: int, rng: random.Random) -> list[str]:
    """Let a training run until it reported some receipts, and a random moment longer."""
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), str(directory)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin
        assert process.stdout
        process.stdin.write(key.hex() + "\n")
        process.stdin.flush()
        lines = [process.stdout.readline() for _ in range(receipts)]
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
    assert process.returncode == -signal.SIGKILL
    return [line for line in lines if line.endswith("\n")]


def test_every_durable_receipt_survives_and_the_run_goes_on(tmp_path: Path) -> None:
    rng = random.Random(20261121)
    directory = tmp_path / "audit"
    with Anvil(FREE_PORT) as chain:
        signer = KeySigner(chain.accounts[0].key)
        Ledger.create(directory, organisation="kill.example").close()
        with (directory / SETTINGS_FILE).open("a") as file:
            file.write(f'[chain]\nrpc_url = "{chain.url}"\nchain_id = 31337\n')
        promised: dict[int, str] = {}
        for _ in range(KILLS):
            for line in train_and_kill(directory, chain.accounts[0].key, rng.randint(1, 90), rng):
                index, digest = line.split()
                assert promised.setdefault(int(index), digest) == digest
            with open_damaged(directory) as storage:
                assert list(fsck(storage)) == []
            with Ledger.open(directory) as ledger:
                log = ledger.find("endless")
                stored = {
                    entry.leaf_index: hashlib.sha256(entry.data).hexdigest()
                    for entry in log.entries()
                }
                assert promised.items() <= stored.items()
        with Ledger.open(directory) as ledger, Publisher(ledger, signer) as publisher:
            log = ledger.find("endless")
            publisher.anchor(log)
            assert log.anchored_sizes()[-1] == log.size
            assert len(list(log.entries(kind="run.resumed"))) == KILLS - 1
            for size in log.anchored_sizes():
                said = read_anchored(
                    chain.url, chain_id=31337, contract=log.anchors()[0].contract,
                    publisher=signer.address, log_id=log.log_id, tree_size=size,
                )  # fmt: skip
                assert said is not None
                assert said.root == log.root_at(size)
        with open_damaged(directory) as storage:
            assert list(fsck(storage)) == []
