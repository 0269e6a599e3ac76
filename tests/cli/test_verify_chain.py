"""`prove` with chain evidence and `verify` with every way to trust a block, on a real Anvil."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_audit_trail.ledger.chain.node.anvil import Anvil
from rlhf_audit_trail.ledger.chain.node.anvil_settings import (
    AnvilConfig,
    NodeSettings,
    StateSettings,
)

RECORD = Path(__file__).parent.parent / "scripts" / "record_run.py"
TIMEOUT_S = 120
NOWHERE = "http://127.0.0.1:1"

pytestmark = pytest.mark.chain


class Desk:
    """A ledger anchored at 300 entries, and bundles of entry 7."""

    def __init__(self, folder: Path, chain: Anvil) -> None:
        self.folder, self.chain = folder, chain
        self.publisher = chain.accounts[6].address.lower()
        self.key = ("--key", "audit/keys/run-42.vkey")
        self.ok("init", "audit", "--organisation", "evidence.example")
        self.record(300)
        with (folder / "audit" / "rlhf-audit.toml").open("a") as file:
            file.write(f'[chain]\nrpc_url = "{chain.url}"\nchain_id = 31337\n')
        self.ok("anchor", "--deploy", "--ledger", "audit")
        chain.mine(3)
        self.said = self.ok("prove", "run-42", "7", "--ledger", "audit", "-o", "storage.bundle")
        self.ok(
            "prove",
            "run-42",
            "7",
            "--ledger",
            "audit",
            "-o",
            "receipt.bundle",
            "--chain",
            "receipt",
        )
        self.ok(
            "prove", "run-42", "7", "--ledger", "audit", "-o", "plain.bundle", "--chain", "none"
        )
        self.place = ("--publisher", self.publisher)
        self.block = re.search(r"--trusted-block-hash (\S+)", self.said)[1]

    def record(self, count: int) -> None:
        command = [sys.executable, str(RECORD), "audit", "run-42", str(count)]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "rlhf_audit_trail.cli", *words],
            cwd=self.folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
            env=os.environ | {"RLHF_AUDIT_PUBLISHER_KEY": self.chain.accounts[6].key.hex()},
        )  # fmt: skip

    def ok(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def verify(self, file: str, *words: str) -> tuple[int, str, dict]:
        """Exit code, what the step `anchor` says, and all of the report."""
        done = self.run("verify", f"{file}.bundle", *self.key, *words, "--json")
        assert done.stdout, done.stderr
        said = json.loads(done.stdout)
        (anchor,) = (check["text"] for check in said["checks"] if check["id"] == "anchor")
        return done.returncode, anchor, said


@pytest.fixture(scope="module")
def chain():
    """A chain of its own, since heads are proved at the newest final block."""
    settings = AnvilConfig(anvil=NodeSettings(port=0), state=StateSettings(snapshot=False))
    with Anvil(settings) as opened:
        yield opened


@pytest.fixture(scope="module")
def desk(chain, tmp_path_factory) -> Desk:
    return Desk(tmp_path_factory.mktemp("desk"), chain)


def changed(block: str) -> str:
    return block[:-1] + ("0" if block[-1] != "0" else "1")


def test_a_trusted_hash_is_enough_offline(desk: Desk) -> None:
    """The storage's block is named by `prove`; the receipt's is another, so nobody confirmed it."""
    code, anchor, said = desk.verify("storage", *desk.place, "--trusted-block-hash", desk.block)
    assert code == 0
    assert "the head of size 300 is in block" in anchor
    chain_id, number, block_hash = desk.block.split(":")
    assert said["on_trust"] == [
        f"block {number} of chain {chain_id} has hash {block_hash}: you gave its hash"
    ]
    done = desk.run(
        "verify", "storage.bundle", *desk.key, *desk.place, "--trusted-block-hash", desk.block
    )
    assert "On trust: block" in done.stdout
    assert "A header does not name its chain." in done.stdout
    assert desk.verify("receipt", *desk.place, "--trusted-block-hash", desk.block)[0] == 3


def test_a_wrong_hash_fails_and_an_unknown_block_is_inconclusive(desk: Desk) -> None:
    code, anchor, _ = desk.verify(
        "storage", *desk.place, "--trusted-block-hash", changed(desk.block)
    )
    assert (code, anchor[:9]) == (1, "7.3 block")
    chain_id, number, block_hash = desk.block.split(":")
    other = f"{chain_id}:{int(number) + 1}:{block_hash}"
    code, anchor, said = desk.verify("storage", *desk.place, "--trusted-block-hash", other)
    assert (code, desk.block in anchor) == (3, True)
    assert desk.block in said["next"]
    code, _, said = desk.verify("plain", *desk.place, "--trusted-block-hash", desk.block)
    assert (code, "no chain evidence" in said["chain"]) == (3, True)


@pytest.mark.parametrize("file", ["storage", "receipt"])
def test_nodes_confirm_the_block(desk: Desk, file: str) -> None:
    twice = ("--rpc", desk.chain.url, "--rpc", desk.chain.url.replace("127.0.0.1", "localhost"))
    asked = (*desk.place, "--chain-id", "31337")
    code, _, said = desk.verify(file, *asked, "--rpc", desk.chain.url)
    assert (code, said["on_trust"][0].endswith("a node gave its hash")) == (0, True)
    code, _, said = desk.verify(file, *asked, *twice)
    assert (code, said["on_trust"][0].endswith("2 of 2 nodes gave its hash")) == (0, True)
    three = (*twice, "--rpc", NOWHERE)
    assert desk.verify(file, *asked, *three)[0] == 0
    code, _, said = desk.verify(file, *asked, *three, "--rpc-quorum", "3")
    assert (code, "2 of 3 nodes answer" in said["chain"]) == (3, True)
    assert desk.verify("plain", *asked, *twice)[0] == 0, "asked about the head itself"


def test_a_lying_node_among_honest_ones_changes_nothing(desk: Desk) -> None:
    """The liar is a chain of the same id with another history, far enough on to have the block."""
    settings = AnvilConfig(
        anvil=NodeSettings(port=0, timestamp=1_700_000_000), state=StateSettings(snapshot=False)
    )
    with Anvil(settings) as liar:
        liar.mine(20)
        asked = (*desk.place, "--chain-id", "31337")
        honest = (
            "--rpc",
            desk.chain.url,
            "--rpc",
            desk.chain.url.replace("127.0.0.1", "localhost"),
        )
        three = (*honest, "--rpc", liar.url)
        code, _, said = desk.verify("storage", *asked, *three)
        assert (code, said["on_trust"][0].endswith("2 of 3 nodes gave its hash")) == (0, True)
        code, _, said = desk.verify("storage", *asked, *three, "--rpc-quorum", "3")
        assert (code, "fewer than 3 of 3 nodes" in said["chain"]) == (3, True)
        code, anchor, _ = desk.verify("storage", *asked, "--rpc", liar.url)
        assert (code, anchor[:9]) == (1, "7.3 block")


def test_a_list_of_headers_confirms_the_block(desk: Desk) -> None:
    number = int(desk.block.split(":")[1])
    command = ("chain", "headers", "--rpc", desk.chain.url, "--chain-id", "31337")
    listed = desk.ok(*command, "--from", "1", "--to", str(number))
    assert listed.splitlines()[-1] == desk.block
    desk.ok(*command, "--from", "1", "-o", "blocks.txt")
    with (desk.folder / "blocks.txt").open("a") as file:
        file.write("# kept by the auditor\n\n")
    asked = (*desk.place, "--chain-id", "31337", "--headers")
    for name in ("storage", "receipt"):
        code, _, said = desk.verify(name, *asked, "blocks.txt")
        assert (code, "the list blocks.txt has its hash" in said["on_trust"][0]) == (0, True)
    (desk.folder / "bad.txt").write_text(listed.replace(":0x", ":0y"))
    done = desk.run("verify", "storage.bundle", *desk.key, *asked, "bad.txt")
    assert (done.returncode, "names no block" in done.stderr) == (4, True)
    assert desk.run("verify", "storage.bundle", *desk.key, *asked, "none.txt").returncode == 4


def test_evidence_of_another_publisher_or_contract_fails(desk: Desk) -> None:
    block = ("--trusted-block-hash", desk.block)
    code, anchor, _ = desk.verify("storage", "--publisher", "0x" + "11" * 20, *block)
    assert (code, anchor) == (1, "7.2 place: another publisher than the one you trust")
    code, anchor, _ = desk.verify("storage", *desk.place, *block, "--contract", "0x" + "22" * 20)
    assert (code, anchor) == (1, "7.2 place: another contract than the one you trust")
    code, anchor, _ = desk.verify("storage", *desk.place, *block, "--log-id", "33" * 32)
    assert (code, anchor) == (1, "7.2 place: another log id than the one you trust")


def test_it_holds_after_the_contract_moved_on(desk: Desk) -> None:
    desk.record(50)
    desk.ok("anchor", "run-42", "--ledger", "audit")
    said = desk.ok("prove", "run-42", "320", "--ledger", "audit", "-o", "early.bundle")
    assert "no chain evidence: the newest anchor there is of size 300" in said
    done = desk.run("prove", "run-42", "320", "--ledger", "audit", "--chain", "storage")
    assert done.returncode == 5
    assert "before these entries" in done.stderr
    said = desk.ok(
        "prove", "run-42", "320", "--ledger", "audit", "-o", "new.bundle", "--block", "latest"
    )
    desk.chain.mine(200)
    block = ("--trusted-block-hash", desk.block)
    assert desk.verify("storage", *desk.place, *block)[0] == 0
    assert (
        desk.verify("storage", *desk.place, "--chain-id", "31337", "--rpc", desk.chain.url)[0] == 0
    )
    newer = re.search(r"--trusted-block-hash (\S+)", said)[1]
    assert desk.verify("new", *desk.place, "--trusted-block-hash", newer)[0] == 0
    said = desk.ok(
        "prove", "run-42", "7", "--ledger", "audit", "-o", "first.bundle", "--chain", "receipt"
    )
    first = re.search(r"--trusted-block-hash (\S+)", said)[1]
    code, anchor, _ = desk.verify("first", *desk.place, "--trusted-block-hash", first)
    assert (code, anchor.startswith("the head of size 300 is in block")) == (0, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rpc", NOWHERE), "chain options need"),
        (("--trusted-block-hash", "1:2:3"), "chain options need"),
        (("--publisher", "0x" + "11" * 20, "--trusted-block-hash", "1:2:0x" + "00" * 32, "--chain-id", "2"), "of another chain"),
        (("--publisher", "0x" + "11" * 20, "--chain-id", "2", "--rpc", NOWHERE, "--rpc-quorum", "2"), "--rpc-quorum must be"),
    ],
)  # fmt: skip
def test_wrong_usage(desk: Desk, words: tuple[str, ...], message: str) -> None:
    done = desk.run("verify", "storage.bundle", *desk.key, *words)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr


def test_nothing_heavy_is_imported(desk: Desk) -> None:
    """Offline, not even a way to open a connection."""
    code = (
        "import sys, atexit\n"
        "for name in ('web3', 'eth_account', 'eth_utils', 'sqlmodel', 'fastapi', 'torch', 'http.client'):\n"
        "    sys.modules[name] = None\n"
        "from rlhf_audit_trail.cli.main import main\n"
        "main()\n"
    )
    words = ("verify", "storage.bundle", *desk.key, *desk.place, "--trusted-block-hash", desk.block)
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=desk.folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
