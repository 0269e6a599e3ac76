"""`rlhf-audit anchor` and `verify --rpc` against a real Anvil, as processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_audit_trail.ledger.chain.node.anvil import Anvil
from rlhf_audit_trail.ledger.chain.node.rpc import RpcClient

SCRIPTS = Path(__file__).parent.parent / "scripts"
TIMEOUT_S = 120

pytestmark = pytest.mark.chain


class Desk:
    """A directory with a ledger, and the commands run in it."""

    def __init__(self, folder: Path, chain: Anvil) -> None:
        self.folder = folder
        self.chain = chain
        self.publisher = chain.accounts[7]
        self.ok("init", "audit", "--organisation", f"{folder.name.replace('_', '-')}.example")
        self.record(300)

    def record(self, count: int) -> None:
        command = [sys.executable, str(SCRIPTS / "record_run.py"), "audit", "run-42", str(count)]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True)

    def configure(self, chain_id: int = 31337) -> None:
        with (self.folder / "audit" / "rlhf-audit.toml").open("a") as file:
            file.write(f'[chain]\nrpc_url = "{self.chain.url}"\nchain_id = {chain_id}\n')

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        key = self.publisher.key.hex()
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "rlhf_audit_trail.cli", *words],
            cwd=self.folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
            env=os.environ | {"RLHF_AUDIT_PUBLISHER_KEY": key},
        )  # fmt: skip
        assert key not in done.stdout + done.stderr, "the publisher's key was printed"
        return done

    def ok(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def verify(self, *words: str) -> tuple[int, dict[str, str]]:
        """Exit code, and the state of each step."""
        done = self.run("verify", "run-42.bundle", "--json", *words)
        assert done.stdout, done.stderr
        checks = json.loads(done.stdout)["checks"]
        return done.returncode, {check["id"]: check["state"] for check in checks}


@pytest.fixture
def desk(tmp_path: Path, anvil: Anvil) -> Desk:
    return Desk(tmp_path, anvil)


def test_anchor_prove_and_ask_the_chain(desk: Desk) -> None:
    desk.configure()
    first = json.loads(desk.ok("anchor", "--deploy", "--ledger", "audit", "--json"))
    assert [item["new"] for item in first["anchors"]] == [True, True]
    assert [item["tree_size"] for item in first["anchors"]] == [300, 3]
    desk.record(50)
    second = json.loads(desk.ok("anchor", "run-42", "--ledger", "audit", "--json"))
    assert second["anchors"][0]["tree_size"] == 350
    again = json.loads(desk.ok("anchor", "run-42", "--ledger", "audit", "--json"))
    assert again["anchors"][0]["new"] is False
    desk.ok("prove", "run-42", "320", "--ledger", "audit")
    key = ("--key", "audit/keys/run-42.vkey")
    asked = (*key, "--rpc", desk.chain.url, "--chain-id", "31337", "--publisher")
    assert desk.verify(*asked, desk.publisher.address)[0] == 3, "a block that is not final yet"
    desk.chain.mine(2)
    assert desk.verify(*asked, desk.publisher.address)[0] == 0
    desk.ok("prove", "run-42", "7", "--ledger", "audit")
    assert desk.verify(*asked, desk.publisher.address) == (
        0,
        dict.fromkeys(
            ("bundle", "tree_head", "signer", "inclusion", "consistency", "anchor", "file"),
            "passed",
        )
        | {"openings": "not_asked"},
    )
    code, states = desk.verify(*asked, desk.chain.accounts[3].address)
    assert (code, states["anchor"]) == (1, "failed"), "the file's evidence is of this publisher"
    desk.ok("prove", "run-42", "7", "--ledger", "audit", "--chain", "none")
    code, states = desk.verify(*asked, desk.chain.accounts[3].address)
    assert (code, states["anchor"]) == (3, "not_shown"), "another publisher anchored nothing"
    assert "sound" in desk.ok("fsck", "--ledger", "audit")


def test_an_unreachable_chain_is_inconclusive(desk: Desk) -> None:
    desk.ok("init", "other", "--organisation", "other.example")
    desk.ok("prove", "run-42", "7", "--ledger", "audit")
    nowhere = ("--rpc", "http://127.0.0.1:1", "--chain-id", "31337")
    pinned = ("--key", "audit/keys/run-42.vkey", "--publisher", desk.publisher.address)
    assert desk.verify(*nowhere, *pinned)[0] == 3
    assert desk.verify(*nowhere, *pinned, "--accept-unanchored")[0] == 0


@pytest.mark.parametrize(
    ("chain_id", "contract", "words"),
    [
        (1, "", "the node serves chain 31337, not the pinned chain 1"),
        (31337, "0x" + "11" * 20, "there is no code at 0x1111"),
        (31337, "0x4e59b44847b379578588920cA78FbF26c0B4956C", "is not TreeHeadAnchor"),
    ],
)
def test_nothing_is_sent_to_the_wrong_place(
    desk: Desk, chain_id: int, contract: str, words: str
) -> None:
    desk.configure(chain_id)
    if contract:
        with (desk.folder / "audit" / "rlhf-audit.toml").open("a") as file:
            file.write(f'contract = "{contract}"\n')
    done = desk.run("anchor", "run-42", "--ledger", "audit")
    assert done.returncode == 5
    assert words in done.stderr
    assert "next:" in done.stderr
    states = json.loads(desk.ok("status", "--ledger", "audit", "--json"))["logs"]
    assert all(log["anchor_state"] == "none" for log in states)


def test_a_ledger_without_chain_settings_says_what_to_set(desk: Desk) -> None:
    done = desk.run("anchor", "--ledger", "audit")
    assert done.returncode == 2
    assert "set rpc_url and chain_id below [chain]" in done.stderr


def test_a_dry_run_signs_stores_and_sends_nothing(desk: Desk) -> None:
    desk.configure()
    desk.ok("anchor", "--deploy", "--ledger", "audit")
    desk.record(20)
    before = desk.ok("status", "--ledger", "audit", "--json")
    plan = json.loads(desk.ok("anchor", "--dry-run", "--ledger", "audit", "--json"))
    assert desk.ok("status", "--ledger", "audit", "--json") == before
    (planned,) = plan["transactions"]
    assert [log["tree_size"] for log in planned["logs"]] == [320]
    assert 40_000 < planned["gas"] < planned["gas_limit"] < 100_000
    assert "nothing was signed, stored or sent" in desk.ok(
        "anchor", "--dry-run", "--ledger", "audit"
    )


def test_costs_are_those_of_the_receipts(desk: Desk) -> None:
    desk.configure()
    desk.ok("anchor", "--deploy", "--ledger", "audit")
    costs = json.loads(desk.ok("anchor", "--costs", "--ledger", "audit", "--json"))
    (anchor,) = costs["anchors"]
    assert anchor["logs"] == 2, "both logs in one transaction"
    with RpcClient(desk.chain.url) as rpc:
        receipt = rpc.call("eth_getTransactionReceipt", anchor["tx_hash"])
    gas, price = int(receipt["gasUsed"], 16), int(receipt["effectiveGasPrice"], 16)
    assert (anchor["gas_used"], anchor["gas_price_wei"]) == (gas, price)
    assert costs["total_ether"] == gas * price / 10**18
    assert list(costs["ether_by_day"].values()) == [costs["total_ether"]]
    assert costs["anchors_left"] > 1000
    assert "more anchors" in desk.ok("anchor", "--costs", "--ledger", "audit")


def test_who_is_about_to_run_dry_is_warned(desk: Desk) -> None:
    desk.configure()
    with (desk.folder / "audit" / "rlhf-audit.toml").open("a") as file:
        file.write("[anchor]\nwarn_below_anchors = 1000000000\n")
    shown = desk.ok("anchor", "--deploy", "--ledger", "audit")
    assert "more anchors\nnext: send ether to that account" in shown


def test_there_must_be_something_to_follow(desk: Desk) -> None:
    desk.configure()
    done = desk.run("anchor", "--follow", "--ledger", "audit")
    assert done.returncode == 2
    assert "set every_entries, every_s, at_checkpoints or at_run_end" in done.stderr
    assert desk.run("anchor", "run-42", "--costs", "--ledger", "audit").returncode == 2
