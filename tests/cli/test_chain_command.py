"""`rlhf-audit chain` on real chains: deployed once, looked at from both sides, lies noticed."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from eth_account import Account

from rlhf_audit_trail.cli.main import main
from rlhf_audit_trail.ledger.chain.anchoring.publishing import Publisher
from rlhf_audit_trail.ledger.chain.contract.compiled import CREATE2_FACTORY, load_artifact
from rlhf_audit_trail.ledger.chain.contract.deployment import (
    FACTORY_FUNDS_WEI,
    FACTORY_SIGNER,
    FACTORY_TRANSACTION,
    carry_out,
    derive_address,
    plan_deployment,
)
from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader
from rlhf_audit_trail.ledger.chain.contract.writer import anchor, deploy
from rlhf_audit_trail.ledger.chain.node.anvil import Anvil
from rlhf_audit_trail.ledger.chain.node.rpc import RpcClient
from rlhf_audit_trail.ledger.chain.signing.signer import KeySigner
from rlhf_audit_trail.ledger.chain.signing.transaction import await_receipt, broadcast, keccak256
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Ledger
from tests.chain_fixtures import FREE_PORT

LEDGER = "audit"
PROJECT = Path(__file__).parents[2]
NOBODY = "0x00000000000000000000000000000000000000ee"

pytestmark = pytest.mark.chain


@pytest.fixture
def bare() -> Iterator[Anvil]:
    """A chain of the test's own, on which nothing was deployed yet."""
    with Anvil(FREE_PORT) as chain:
        yield chain


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("RLHF_AUDIT_"):
            monkeypatch.delenv(name)


def run(*words: str, key: bytes | None = None, typed: str = "") -> Result:
    """Run `rlhf-audit chain ...` with a publisher key in the environment, or none."""
    given = {} if key is None else {"RLHF_AUDIT_PUBLISHER_KEY": key.hex()}
    done = CliRunner(env=given).invoke(main, ["chain", *words], input=typed)
    assert done.exception is None or isinstance(done.exception, SystemExit)
    assert key is None or key.hex() not in done.output
    return done


def at(chain: Anvil) -> tuple[str, ...]:
    return ("--rpc", chain.url, "--chain-id", str(chain.config.anvil.chain_id))


def nonce(chain: Anvil, address: str) -> str:
    with RpcClient(chain.url) as rpc:
        return str(rpc.call("eth_getTransactionCount", address, "latest"))


def set_code(chain: Anvil, address: str, code: bytes) -> None:
    with RpcClient(chain.url) as rpc:
        rpc.call("anvil_setCode", address, f"0x{code.hex()}")


# --- deploy ---------------------------------------------------------------------------------


def test_deploy_says_its_cost_first_and_spends_once(bare: Anvil) -> None:
    payer = bare.accounts[2]
    dry = run("deploy", *at(bare), "--dry-run", key=payer.key)
    assert dry.exit_code == 0, dry.stderr
    assert "dry run: nothing was sent" in dry.stdout
    assert f"payer     {payer.address}   has 10,000.000000 ether" in dry.stdout
    assert nonce(bare, payer.address) == "0x0"

    done = run("deploy", *at(bare), key=payer.key)
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"contract  {load_artifact().address}   on chain 31337"
    order = [line.split()[0] for line in lines]
    assert order == ["contract", "gas", "cost", "payer", "deployed", "spent"]
    assert nonce(bare, payer.address) == "0x1"

    again = json.loads(run("deploy", *at(bare), "--json", key=payer.key).stdout)
    assert (again["was_there"], again["deployed"], again["cost_wei"]) == (True, False, 0)
    assert "already there; nothing was sent" in run("deploy", *at(bare), key=payer.key).stdout
    assert nonce(bare, payer.address) == "0x1"


def test_the_estimate_holds(bare: Anvil) -> None:
    record = json.loads(run("deploy", *at(bare), "--json", key=bare.accounts[0].key).stdout)
    assert record["deployed"] is True
    assert record["gas_used"] <= record["gas"] <= record["gas_limit"]
    assert record["cost_wei"] <= record["cost_wei_max"] < record["balance_wei"]
    assert record["contract"] == derive_address().address
    assert record["block_number"] == 1


def test_a_dry_run_needs_no_key(bare: Anvil) -> None:
    record = json.loads(run("deploy", *at(bare), "--dry-run", "--json").stdout)
    assert (record["payer"], record["balance_wei"], record["deployed"]) == (None, None, False)
    assert record["gas"] > 600_000
    refused = run("deploy", *at(bare))
    assert refused.exit_code == 5
    assert "RLHF_AUDIT_PUBLISHER_KEY is not set" in refused.stderr


def test_deploy_opens_a_keystore(bare: Anvil, tmp_path: Path) -> None:
    file = tmp_path / "keystore.json"
    file.write_text(json.dumps(Account.encrypt(bare.accounts[3].key, "geheim", kdf="pbkdf2")))
    done = run("deploy", *at(bare), "--keystore", str(file), typed="geheim\n")
    assert done.exit_code == 0, done.output
    assert f"payer     {bare.accounts[3].address}" in done.output
    assert "geheim" not in done.output


def test_too_little_money_is_said_before_anything_is_sent(bare: Anvil) -> None:
    payer = bare.accounts[4]
    with RpcClient(bare.url) as rpc:
        rpc.call("anvil_setBalance", payer.address, hex(10**12))
    done = run("deploy", *at(bare), key=payer.key)
    assert done.exit_code == 5
    assert f"error: {payer.address} has 1,000,000,000,000 wei on chain 31337" in done.stderr
    assert "next: send ether to that account" in done.stderr
    assert nonce(bare, payer.address) == "0x0"


def test_the_wrong_chain_is_named_and_nothing_is_sent(bare: Anvil) -> None:
    done = run("deploy", "--rpc", bare.url, "--chain-id", "1", key=bare.accounts[0].key)
    assert done.exit_code == 5
    assert "the node serves chain 31337, not the pinned chain 1" in done.stderr
    assert nonce(bare, bare.accounts[0].address) == "0x0"


def test_a_missing_factory_can_be_brought_by_anyone(bare: Anvil) -> None:
    """The advice of the error, followed: the factory's own transaction puts it where it belongs."""
    set_code(bare, CREATE2_FACTORY, b"")
    with RpcClient(bare.url) as rpc:
        rpc.call("anvil_setNonce", CREATE2_FACTORY, "0x0")
        rpc.call("anvil_setBalance", FACTORY_SIGNER, hex(0))
    done = run("deploy", *at(bare), key=bare.accounts[0].key)
    assert done.exit_code == 5
    assert f"chain 31337 has no deployment factory at {CREATE2_FACTORY}" in done.stderr
    assert f"send 0.01 ether to {FACTORY_SIGNER}" in done.stderr
    with RpcClient(bare.url) as rpc:
        rpc.call("anvil_setBalance", FACTORY_SIGNER, hex(FACTORY_FUNDS_WEI))
        broadcast(rpc, FACTORY_TRANSACTION)
        receipt = await_receipt(rpc, keccak256(FACTORY_TRANSACTION))
    assert receipt["contractAddress"].lower() == CREATE2_FACTORY.lower()
    assert run("deploy", *at(bare), key=bare.accounts[0].key).exit_code == 0
    assert run("verify-code", "--rpc", bare.url).exit_code == 0


def test_a_lost_race_is_won_all_the_same(bare: Anvil) -> None:
    """Another deployment comes first: ours fails in its block, and the contract is there."""
    first, second = (KeySigner(account.key) for account in bare.accounts[:2])
    with RpcClient(bare.url) as rpc:
        plan = plan_deployment(rpc, second.address, chain_id=31337)
        deploy(rpc, first, chain_id=31337)
        done = carry_out(rpc, second, plan)
    assert done.address == load_artifact().address
    assert done.gas_used > 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("deploy", "--rpc", "http://127.0.0.1:1"), 2, "--rpc needs --chain-id"),
        (("deploy", "--chain-id", "1"), 2, "--chain-id needs --rpc"),
        (("deploy", "--rpc", "http://127.0.0.1:1", "--chain-id", "1"), 5, "cannot reach the chain"),
        (("deploy",), 4, "there is no ledger in"),
        (("status",), 4, "there is no ledger in"),
        (("verify-code",), 2, "Missing option '--rpc'"),
        (("verify-code", "--rpc", "http://127.0.0.1:1"), 5, "cannot reach the chain"),
    ],
)
def test_what_cannot_be_done_says_why(words: tuple[str, ...], code: int, said: str) -> None:
    done = run(*words, key=bytes(31) + b"\x01")
    assert (done.exit_code, said in done.stderr) == (code, True), done.stderr


def test_operating_md_does_what_it_says(bare: Anvil, publisher: KeySigner) -> None:
    text = (PROJECT / "ledger/OPERATING.md").read_text("utf-8")
    section = text.split("## The contract on a chain\n", 1)[1].split("\n## ", 1)[0]
    (block,) = re.findall(r"^```console\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    codes = []
    for line in block.splitlines():
        command, group, *words = shlex.split(line.removeprefix("$ "))
        assert (command, group) == ("rlhf-audit", "chain")
        extra = ("--publisher", publisher.address) if "status" in words else ()
        done = run(*words, "--ledger", LEDGER, *extra, key=bare.accounts[5].key)
        codes.append(done.exit_code)
    assert codes == [0, 0, 0]


# --- verify-code ----------------------------------------------------------------------------


def test_a_stranger_sees_the_derivation_and_the_same_code(anvil: Anvil) -> None:
    done = run("verify-code", "--rpc", anvil.url, "--chain-id", "31337")
    assert done.exit_code == 0, done.stderr
    artifact = load_artifact()
    assert f"  address         {artifact.address}" in done.stdout
    assert f"  init code hash  0x{keccak256(artifact.creation).hex()}" in done.stdout
    assert "TreeHeadAnchor, byte for byte" in done.stdout
    record = json.loads(run("verify-code", "--rpc", anvil.url, "--json").stdout)
    shown = record["derivation"]
    spelt = bytes.fromhex(
        "ff" + shown["factory"][2:] + shown["salt"][2:] + shown["init_code_hash"][2:]
    )
    assert shown["address"] == f"0x{keccak256(spelt)[12:].hex()}"  # as a stranger would compute it
    assert record["nodes"][0]["code_hash"] == shown["runtime_code_hash"]
    assert record["is_same"] is True


def test_a_stranger_needs_the_base_install_only(anvil: Anvil) -> None:
    """A process in which nothing else can be imported."""
    missing = ("sqlmodel", "sqlalchemy", "web3", "eth_account", "eth_utils", "torch", "fastapi")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({missing!r}))\n"
        "from rlhf_audit_trail.cli.main import main\n"
        f"main(['chain', 'verify-code', '--rpc', '{anvil.url}'])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_other_code_and_no_code_are_told_apart(anvil: Anvil, bare: Anvil) -> None:
    missing = run("verify-code", "--rpc", bare.url)
    assert (missing.exit_code, "no code there" in missing.stdout) == (3, True)
    changed = bytearray(load_artifact().runtime)
    changed[100] ^= 1
    set_code(bare, load_artifact().address, bytes(changed))
    other = run("verify-code", "--rpc", bare.url, "--json")
    assert other.exit_code == 1
    assert json.loads(other.stdout)["nodes"][0]["code"] == "other"
    # one honest node does not outvote one that shows other code
    both = run("verify-code", "--rpc", anvil.url, "--rpc", bare.url)
    assert both.exit_code == 1
    assert "NOT TreeHeadAnchor" in both.stdout
    refused = run("deploy", *at(bare), key=bare.accounts[0].key)
    assert (refused.exit_code, "is not TreeHeadAnchor" in refused.stderr) == (5, True)


def test_a_copy_elsewhere_is_looked_at_there(bare: Anvil) -> None:
    set_code(bare, NOBODY, load_artifact().runtime)
    assert run("verify-code", "--rpc", bare.url, "--contract", NOBODY).exit_code == 0
    assert run("verify-code", "--rpc", bare.url, "--chain-id", "5").exit_code == 5


# --- status ---------------------------------------------------------------------------------


@pytest.fixture
def publisher(bare: Anvil) -> KeySigner:
    """Who anchors for a ledger with one run of 40 entries, set up for the bare chain."""
    with Ledger.create(LEDGER, organisation="acme.example") as ledger:
        ledger.open_run("run-42")
    record(40)
    with Path(LEDGER, "rlhf-audit.toml").open("a") as file:
        file.write(f'[chain]\nrpc_url = "{bare.url}"\nchain_id = 31337\n')
    return KeySigner(bare.accounts[5].key)


def record(count: int) -> None:
    with Ledger.open(LEDGER) as ledger:
        log = ledger.find("run-42")
        log.record_many(
            Event("annotation.recorded", {"source": "simulated", "batch": x}, {"reward": x / 2})
            for x in range(count)
        )
        log.flush()


def status(*words: str) -> tuple[int, dict[str, Any]]:
    done = run("status", "--ledger", LEDGER, "--json", *words)
    assert done.stdout, done.output
    return done.exit_code, json.loads(done.stdout)


def test_status_follows_the_chain(bare: Anvil, publisher: KeySigner) -> None:
    unknown = run("status", "--ledger", LEDGER)
    assert (unknown.exit_code, "no publisher is known" in unknown.stderr) == (2, True)
    code, found = status("--publisher", publisher.address)
    assert (code, found["code"], found["block_number"]) == (3, "missing", 0)

    key = bare.accounts[5].key
    assert run("deploy", "--ledger", LEDGER, key=key).exit_code == 0
    with Ledger.open(LEDGER) as ledger, Publisher(ledger, publisher) as anchoring:
        for log in (ledger.registry, ledger.find("run-42")):
            anchoring.anchor(log)
        sizes = [ledger.find(name).size for name in ("registry", "run-42")]
    code, found = status()  # the registry log says who anchors
    assert (code, found["code"]) == (0, "same")
    assert found["publisher"].lower() == publisher.address.lower()
    log = found["logs"][1]
    assert (log["size"], log["anchored_size"], log["lag"], log["anchors"]) == (sizes[1],) * 2 + (
        0,
        1,
    )
    assert log["finalized_size"] == 0
    assert [item["state"] for item in log["unsettled"]] == ["mined"]
    assert 0 < found["balance_wei"] < 10**22

    bare.mine(3)
    record(2)
    code, found = status()
    log = found["logs"][1]
    assert (log["anchored_size"], log["finalized_size"], log["lag"]) == (sizes[1], sizes[1], 2)
    shown = run("status", "--ledger", LEDGER)
    assert shown.exit_code == 0
    assert "TreeHeadAnchor, byte for byte" in shown.stdout
    assert "next: rlhf-audit anchor   (not anchored to the end: " in shown.stdout


def test_status_says_when_the_chain_knows_more(bare: Anvil, publisher: KeySigner) -> None:
    """Someone with the publisher's key anchored leaves that the log does not have."""
    with Ledger.open(LEDGER) as ledger, RpcClient(bare.url) as rpc:
        contract = deploy(rpc, publisher, chain_id=31337)
        anchor(
            AnchorReader(rpc, chain_id=31337, contract=contract), publisher,
            log_id=ledger.find("run-42").log_id, tree_size=10**6, root=bytes(32), proof=(),
        )  # fmt: skip
    code, found = status("--publisher", publisher.address)
    assert code == 1
    assert found["logs"][1]["alarm"]["kind"] == "RolledBack"
    shown = run("status", "--ledger", LEDGER, "--publisher", publisher.address)
    assert "FAILED" in shown.stdout
    set_code(bare, contract, b"\x00")
    assert status("--publisher", publisher.address)[0] == 1
