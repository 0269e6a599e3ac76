"""The launcher: what it starts, what it refuses, and what survives."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader
from rlhf_audit_trail.ledger.chain.contract.writer import anchor, deploy
from rlhf_audit_trail.ledger.chain.errors import (
    AnvilFailed,
    AnvilNotFound,
    AnvilVersion,
    ChainUnreachable,
    PortTaken,
)
from rlhf_audit_trail.ledger.chain.node.anvil import Anvil
from rlhf_audit_trail.ledger.chain.node.anvil_settings import (
    AnvilConfig,
    BinarySettings,
    NodeSettings,
    StateSettings,
    find_anvil,
    read_anvil_config,
)
from rlhf_audit_trail.ledger.chain.node.rpc import RpcClient
from rlhf_audit_trail.ledger.chain.signing.signer import KeySigner
from rlhf_audit_trail.ledger.settings import SettingsError, UnknownSetting
from tests.chain_fixtures import FREE_PORT, GrowingLog

pytestmark = pytest.mark.chain

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_BODIES = False
KEPT = dataclasses.replace(FREE_PORT, state=StateSettings())


def gone(pid):
    """Whether the process has ended; waits for it. A zombie has."""
    for _ in range(500):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


def write(tmp_path, text):
    path = tmp_path / "anvil.toml"
    path.write_text(text)
    return path


# --- settings -------------------------------------------------------------------------------


def test_the_file_in_the_repository_states_the_defaults():
    assert read_anvil_config(ROOT / "anvil.toml") == AnvilConfig()
    text = (ROOT / "anvil.toml").read_text()
    for table in (NodeSettings, StateSettings, BinarySettings):
        for item in dataclasses.fields(table):
            assert f"\n{item.name} = " in text  # every setting stands there, with its comment


def test_settings_reach_anvil():
    settings = NodeSettings(port=0, chain_id=77, accounts=3, block_time=5)
    with (
        Anvil(dataclasses.replace(FREE_PORT, anvil=settings)) as anvil,
        RpcClient(anvil.url) as rpc,
    ):
        assert rpc.call("eth_chainId") == hex(77)
        assert len(anvil.accounts) == len(rpc.call("eth_accounts")) == 3
        assert [a.address.lower() for a in anvil.accounts] == rpc.call("eth_accounts")


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("[anvil]\nchainid = 1", UnknownSetting, "did you mean 'chain_id'"),
        ("[anvill]\nport = 1", UnknownSetting, "did you mean 'anvil'"),
        ("[anvil]\nport = '8545'", SettingsError, "anvil.port is str"),
        ("[anvil]\nport = 70000", SettingsError, "must be 0 to 65535"),
        ("[state]\nkeep = 0", SettingsError, "state.keep is 0"),
        ("[anvil", SettingsError, "is not TOML"),
    ],
)
def test_settings_are_strict(tmp_path, text, error, words):
    with pytest.raises(error, match=words.replace(".", r"\.")):
        read_anvil_config(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SettingsError, match="cannot read"):
        read_anvil_config(tmp_path / "none.toml")


# --- the binary -----------------------------------------------------------------------------


def test_no_binary_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.delenv("ANVIL_BIN", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AnvilNotFound) as caught:
        find_anvil(BinarySettings(search="env, path"))
    assert "npm install" in caught.value.next_step
    assert "ANVIL_BIN" in caught.value.next_step


def test_a_named_binary_must_be_one(tmp_path, monkeypatch):
    script = tmp_path / "anvil"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    for value in (script, tmp_path / "none"):
        monkeypatch.setenv("ANVIL_BIN", str(value))
        with pytest.raises(AnvilNotFound, match="does not name an Anvil binary"):
            find_anvil(BinarySettings())


def test_a_script_on_the_path_is_passed_over(tmp_path, monkeypatch):
    """npm puts a node script called anvil there; killing it would orphan the real one."""
    script = tmp_path / "anvil"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.delenv("ANVIL_BIN", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_anvil(BinarySettings()) != script


def test_another_version_is_refused(monkeypatch):
    real = find_anvil(BinarySettings())
    monkeypatch.setenv("ANVIL_BIN", str(real))
    assert find_anvil(BinarySettings(version="== 1.7.1")) == real
    with pytest.raises(AnvilVersion, match=r"is Anvil 1\.7\.1, not >=2"):
        find_anvil(BinarySettings(version=">=2"))
    with pytest.raises(SettingsError, match="write it like"):
        find_anvil(BinarySettings(version="new"))
    with pytest.raises(SettingsError, match="known: env"):
        find_anvil(BinarySettings(search="cellar"))


def test_another_program_is_refused(monkeypatch):
    monkeypatch.setenv("ANVIL_BIN", shutil.which("true"))
    with pytest.raises(AnvilVersion):
        find_anvil(BinarySettings())


# --- starting and stopping ------------------------------------------------------------------


def test_a_taken_port_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        config = dataclasses.replace(FREE_PORT, anvil=NodeSettings(port=port))
        anvil = Anvil(config, state_dir=tmp_path)
        with pytest.raises(PortTaken, match=f"port {port} on 127.0.0.1 is taken"):
            anvil.start()
        assert anvil.pid == 0


def test_anvils_own_refusal_is_passed_on(tmp_path):
    settings = NodeSettings(port=0, hardfork="nofork")
    anvil = Anvil(dataclasses.replace(FREE_PORT, anvil=settings), state_dir=tmp_path)
    with pytest.raises(AnvilFailed, match="Unknown hardfork: nofork"):
        anvil.start()


def test_stopping_ends_the_process():
    anvil = Anvil(FREE_PORT).start()
    pid = anvil.pid
    anvil.stop()
    assert gone(pid)
    anvil.stop()
    with RpcClient(anvil.url, timeout_s=2) as rpc, pytest.raises(ChainUnreachable):
        rpc.call("eth_chainId")


def test_the_genesis_block_is_always_the_same_and_time_is_real():
    seen = set()
    for _ in range(2):
        with Anvil(FREE_PORT) as anvil, RpcClient(anvil.url) as rpc:
            seen.add(rpc.call("eth_getBlockByNumber", "0x0", WITHOUT_BODIES)["hash"])
            anvil.mine()
            block = rpc.call("eth_getBlockByNumber", "latest", WITHOUT_BODIES)
            assert abs(int(block["timestamp"], 16) - time.time()) < 60
    assert len(seen) == 1


def test_time_never_runs_backwards(tmp_path):
    times = []
    for ahead in (5_000, 0):
        with Anvil(KEPT, state_dir=tmp_path) as anvil, RpcClient(anvil.url) as rpc:
            rpc.call("evm_increaseTime", ahead)
            for _ in range(2):
                anvil.mine()
                block = rpc.call("eth_getBlockByNumber", "latest", WITHOUT_BODIES)
                times.append(int(block["timestamp"], 16))
            anvil.save_state()
    assert times == sorted(times)


def test_starting_twice_is_refused():
    with Anvil(FREE_PORT) as anvil, pytest.raises(AnvilFailed, match="started already"):
        anvil.start()


def test_keys_are_never_shown():
    with Anvil(FREE_PORT) as anvil:
        account = anvil.accounts[0]
        assert KeySigner(account.key).address == account.address
        assert account.key.hex() not in repr(account)
        assert "key" not in repr(account)


CHILD = """
import sys, time
from pathlib import Path
from rlhf_audit_trail.ledger.chain.node.anvil import Anvil
from tests.chain_fixtures import FREE_PORT
anvil = Anvil(FREE_PORT).start()
print(anvil.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_no_orphan_is_left_when_the_parent_is_killed():
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, cwd=ROOT)
    with child.stdout as lines:
        pid = int(lines.readline())
    assert Path(f"/proc/{pid}/exe").resolve().name == "anvil"
    child.kill()
    child.wait()
    assert gone(pid)


def test_it_outlives_the_thread_that_started_it():
    """The parent-death signal fires at the end of a thread: it must be one that stays."""
    anvil = Anvil(FREE_PORT)
    thread = threading.Thread(target=anvil.start)
    thread.start()
    thread.join()
    try:
        time.sleep(0.2)
        with RpcClient(anvil.url) as rpc:
            assert rpc.call("eth_chainId") == hex(31337)
    finally:
        anvil.stop()


# --- state ----------------------------------------------------------------------------------


def anchor_once(anvil, log, old, new):
    with RpcClient(anvil.url) as rpc:
        signer = KeySigner(anvil.accounts[0].key)
        reader = AnchorReader(rpc, chain_id=31337, contract=deploy(rpc, signer, chain_id=31337))
        proof = log.consistency_proof(old, new) if old else ()
        event = anchor(
            reader, signer, log_id=log.log_id, tree_size=new, root=log.root_at(new), proof=proof
        )
    anvil.save_state()
    return event


def read_sizes(anvil, log, contract):
    with RpcClient(anvil.url) as rpc:
        reader = AnchorReader(rpc, chain_id=31337, contract=contract)
        reader.check()
        events = reader.events(anvil.accounts[0].address, log.log_id)
        return [reader.place(event).tree_size for event in events]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_anchors_survive_a_restart(tmp_path, how):
    log = GrowingLog("example.org/rlhf/restart").grow(10)
    with Anvil(KEPT, state_dir=tmp_path) as anvil:
        first = anchor_once(anvil, log, 0, 4)
        os.kill(anvil.pid, how)
        assert gone(anvil.pid)
    with Anvil(KEPT, state_dir=tmp_path) as anvil:
        with RpcClient(anvil.url) as rpc:
            reader = AnchorReader(
                rpc,
                chain_id=31337,
                contract=deploy(rpc, KeySigner(anvil.accounts[0].key), chain_id=31337),
            )
            assert reader.events(anvil.accounts[0].address, log.log_id) == (first,)
        anchor_once(anvil, log, 4, 10)
        assert read_sizes(anvil, log, reader.contract) == [4, 10]
    with Anvil(KEPT, state_dir=tmp_path) as anvil:
        assert read_sizes(anvil, log, reader.contract) == [4, 10]


def test_a_torn_snapshot_gives_way_to_the_one_before(tmp_path):
    log = GrowingLog("example.org/rlhf/torn").grow(10)
    with Anvil(KEPT, state_dir=tmp_path) as anvil:
        anchor_once(anvil, log, 0, 4)
        anchor_once(anvil, log, 4, 10)
        with RpcClient(anvil.url) as rpc:
            contract = deploy(rpc, KeySigner(anvil.accounts[0].key), chain_id=31337)
    newest, older = tmp_path / "chain-31337.json", tmp_path / "chain-31337.json.1"
    assert sorted(tmp_path.iterdir()) == [newest, older]
    newest.write_bytes(newest.read_bytes()[:-100])
    with Anvil(KEPT, state_dir=tmp_path) as anvil:
        assert read_sizes(anvil, log, contract) == [4]
    older.write_bytes(b"")
    with pytest.raises(AnvilFailed, match="no snapshot in"):
        Anvil(KEPT, state_dir=tmp_path).start()


def test_another_chain_id_does_not_load_the_state(tmp_path):
    with Anvil(KEPT, state_dir=tmp_path) as anvil:
        anvil.mine(3)
        anvil.save_state()
    other = dataclasses.replace(KEPT, anvil=NodeSettings(port=0, chain_id=5))
    with Anvil(other, state_dir=tmp_path) as anvil, RpcClient(anvil.url) as rpc:
        assert rpc.call("eth_blockNumber") == "0x0"


def test_without_snapshots_nothing_is_written(tmp_path):
    with Anvil(FREE_PORT, state_dir=tmp_path) as anvil:
        anvil.save_state()
    assert list(tmp_path.iterdir()) == []
