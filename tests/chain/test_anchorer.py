"""The anchorer: one anchor per tree head, whatever is killed, lost or taken back."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_audit_trail.ledger.chain.anchoring.anchorer import Anchorer
from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader, AnchorState
from rlhf_audit_trail.ledger.chain.contract.writer import anchor, deploy
from rlhf_audit_trail.ledger.chain.errors import (
    ChainUnreachable,
    Forked,
    InsufficientFunds,
    NoContractCode,
    RolledBack,
    WrongChain,
)
from rlhf_audit_trail.ledger.chain.node.anvil import Anvil
from rlhf_audit_trail.ledger.chain.node.anvil_settings import StateSettings
from rlhf_audit_trail.ledger.chain.node.rpc import RpcClient
from rlhf_audit_trail.ledger.chain.signing.signer import KeySigner
from rlhf_audit_trail.ledger.chain.signing.transaction import broadcast, chain_nonce, prepare
from tests.chain_fixtures import FREE_PORT, FileJournal, GrowingLog

pytestmark = pytest.mark.chain

ROOT = Path(__file__).resolve().parents[2]
ON, OFF = True, False


@pytest.fixture
def journal(tmp_path):
    return FileJournal(tmp_path / "journal")


@pytest.fixture
def anchorer(reader, publisher, journal):
    return Anchorer(reader, publisher, journal, receipt_timeout_s=0.3)


@pytest.fixture
def manual_mining(rpc):
    rpc.call("evm_setAutomine", OFF)
    yield
    rpc.call("evm_setAutomine", ON)
    rpc.call("anvil_mine", "0x1")


def step(anchorer, *logs):
    """One step with the first log's outcome: its anchored head, or None, or its finding."""
    done = anchorer.step(logs)
    if logs[0].log_id in done.findings:
        raise done.findings[logs[0].log_id]
    return done.anchored.get(logs[0].log_id)


def sizes(anchorer, log):
    events = anchorer.reader.events(anchorer.signer.address, log.log_id)
    return [event.tree_size for event in events]


def test_each_step_anchors_the_newest_head_once(anchorer, journal, log):
    assert step(anchorer, log) is None  # nothing published yet
    for size in (1, 7, 8, 30):
        log.grow(size - log.size)
        anchored = step(anchorer, log)
        assert (anchored.tree_size, anchored.root) == (size, log.root_at(size))
        assert anchored.state is AnchorState.MINED
        assert step(anchorer, log) is None
    assert sizes(anchorer, log) == [1, 7, 8, 30]
    assert journal.kinds().count("intent") == 4


def test_two_logs_share_a_publisher(anchorer, log):
    other = GrowingLog(f"{log.origin}-b").grow(3)
    log.grow(5)
    assert step(anchorer, log).tree_size == 5
    assert step(anchorer, other).tree_size == 3
    assert (sizes(anchorer, log), sizes(anchorer, other)) == ([5], [3])


def test_the_intent_is_durable_before_anything_is_sent(anchorer, journal, log, monkeypatch):
    class Unplugged(Exception):
        pass

    def intent(record):
        FileJournal.intent(journal, record)
        assert (
            anchorer.reader.rpc.call("eth_getTransactionByHash", f"0x{record.tx_hash.hex()}")
            is None
        )
        raise Unplugged

    monkeypatch.setattr(journal, "intent", intent)
    nonce = chain_nonce(anchorer.reader.rpc, anchorer.signer.address)
    with pytest.raises(Unplugged):
        step(anchorer, log.grow(4))
    assert chain_nonce(anchorer.reader.rpc, anchorer.signer.address) == nonce
    monkeypatch.undo()
    assert step(anchorer, log).tree_size == 4  # the reconciliation inside has done it
    assert sizes(anchorer, log) == [4]
    assert journal.kinds() == ["intent", "mined"]


def test_states_follow_the_chain_until_final(anvil, anchorer, journal, log):
    step(anchorer, log.grow(2))
    for _ in range(2):
        anvil.mine()
        anchorer.reconcile()
    lines = [line for line in journal.lines() if line["kind"] == "mined"]
    states = [line["mined"]["state"] for line in lines]
    assert states == ["mined", "safe", "finalized"]
    assert journal.unsettled() == []
    anchorer.reconcile()
    assert journal.kinds() == ["intent", "mined", "mined", "mined"]


def test_the_chain_is_saved_after_an_anchor(reader, publisher, journal, log):
    saved = []
    anchorer = Anchorer(reader, publisher, journal, after_mined=lambda: saved.append(1))
    step(anchorer, log.grow(2))
    step(anchorer, log)
    assert len(saved) == 1


# --- contradictions -------------------------------------------------------------------------


def test_a_shorter_log_is_a_rollback(anchorer, journal, log):
    step(anchorer, log.grow(9))
    del log.leaves[5:]
    with pytest.raises(RolledBack, match="has 5 entries, and 9 are anchored"):
        step(anchorer, log)
    assert sizes(anchorer, log) == [9]
    assert journal.kinds().count("intent") == 1


def test_a_rewritten_log_is_a_fork(anchorer, journal, log):
    step(anchorer, log.grow(9))
    log.leaves[3] = bytes(32)
    for size in (9, 20):
        log.grow(size - log.size)
        with pytest.raises(Forked, match="another root at the anchored size 9"):
            step(anchorer, log)
    assert sizes(anchorer, log) == [9]
    assert journal.kinds().count("intent") == 1


def test_the_wrong_chain_or_no_code_sends_nothing(reader, publisher, journal, log):
    log.grow(3)
    empty = "0x00000000000000000000000000000000000000dd"
    for pinned, error in (
        (AnchorReader(reader.rpc, chain_id=1, contract=reader.contract), WrongChain),
        (AnchorReader(reader.rpc, chain_id=31337, contract=empty), NoContractCode),
    ):
        with pytest.raises(error):
            step(Anchorer(pinned, publisher, journal), log)
    assert journal.lines() == []
    assert chain_nonce(reader.rpc, publisher.address) == 0


def test_no_node_sends_nothing(reader, publisher, journal, log):
    with RpcClient("http://127.0.0.1:9", timeout_s=1) as rpc:
        gone = AnchorReader(rpc, chain_id=31337, contract=reader.contract)
        with pytest.raises(ChainUnreachable):
            step(Anchorer(gone, publisher, journal), log.grow(1))
    assert journal.lines() == []


def test_an_empty_account_is_said_and_kept(rpc, anchorer, log):
    rpc.call("anvil_setBalance", anchorer.signer.address, "0x0")
    with pytest.raises(InsufficientFunds, match=r"holds 0\.000000 ether"):
        step(anchorer, log.grow(3))
    rpc.call("anvil_setBalance", anchorer.signer.address, hex(10**20))
    step(anchorer, log)
    assert sizes(anchorer, log) == [3]


# --- the chain's ways -----------------------------------------------------------------------


@pytest.mark.usefixtures("manual_mining")
def test_a_slow_block_is_waited_for_with_one_transaction_in_flight(rpc, anchorer, journal, log):
    assert step(anchorer, log.grow(3)) is None
    log.grow(2)
    assert step(anchorer, log) is None  # a second would need the first as its predecessor
    assert journal.kinds() == ["intent"]
    rpc.call("anvil_mine", "0x1")
    rpc.call("evm_setAutomine", ON)
    assert step(anchorer, log).tree_size == 5
    assert sizes(anchorer, log) == [3, 5]


@pytest.mark.usefixtures("manual_mining")
def test_a_dropped_transaction_is_sent_again(rpc, anchorer, journal, log):
    step(anchorer, log.grow(3))
    rpc.call("anvil_dropAllTransactions")
    anchorer.reconcile()
    rpc.call("anvil_mine", "0x1")
    anchorer.reconcile()
    assert sizes(anchorer, log) == [3]
    assert journal.kinds() == ["intent", "mined"]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_reorganisation_sends_the_same_bytes_in_order(rpc, anchorer, journal, log, depth):
    for size in (2, 5, 9):
        log.grow(size - log.size)
        step(anchorer, log)
    rpc.call("anvil_reorg", depth, [])
    anchorer.reconcile()
    assert sizes(anchorer, log) == [2, 5, 9]
    assert journal.kinds().count("intent") == 3
    assert journal.kinds().count("unmined") == depth
    assert step(anchorer, log) is None


def test_a_chain_that_went_back_is_caught_up(rpc, anchorer, log):
    snapshot = rpc.call("evm_snapshot")
    for size in (2, 5):
        log.grow(size - log.size)
        step(anchorer, log)
    assert rpc.call("evm_revert", snapshot)
    assert sizes(anchorer, log) == []
    step(anchorer, log)
    assert sizes(anchorer, log) == [2, 5]


def test_a_nonce_used_by_somebody_else_is_found_out(rpc, anchorer, journal, log):
    """The key was used elsewhere between signing and sending; the head needs a new transaction."""
    other = prepare(rpc, anchorer.signer, chain_id=31337, to=anchorer.signer.address, data=b"")
    real_intent = journal.intent

    def intent(record):
        real_intent(record)
        broadcast(rpc, other.raw)

    journal.intent = intent
    step(anchorer, log.grow(6))
    journal.intent = real_intent
    step(anchorer, log)
    assert sizes(anchorer, log) == [6]
    assert journal.kinds() == ["intent", "dropped", "intent", "mined"]


def test_a_head_anchored_by_a_relative_is_enough(reader, publisher, anchorer, journal, log):
    """A journal was lost: the chain already has the head, and nothing is sent."""
    log.grow(4)
    anchor(reader, publisher, log_id=log.log_id, tree_size=4, root=log.root_at(4), proof=())
    assert step(anchorer, log) is None
    assert journal.lines() == []
    assert step(anchorer, log.grow(1)).tree_size == 5


def test_a_node_killed_before_it_was_saved_gets_the_same_bytes_again(tmp_path, journal, log):
    """The snapshot is older than the journal: what the journal knows is sent once more."""
    config = dataclasses.replace(FREE_PORT, state=StateSettings())
    for size, save in ((4, True), (9, False)):
        with Anvil(config, state_dir=tmp_path) as anvil, RpcClient(anvil.url) as rpc:
            signer = KeySigner(anvil.accounts[0].key)
            address = deploy(rpc, signer, chain_id=31337)
            reader = AnchorReader(rpc, chain_id=31337, contract=address)
            after_mined = anvil.save_state if save else lambda: None
            anchorer = Anchorer(reader, signer, journal, after_mined=after_mined)
            step(anchorer, log.grow(size - log.size))
            os.kill(anvil.pid, signal.SIGKILL)
    with Anvil(config, state_dir=tmp_path) as anvil, RpcClient(anvil.url) as rpc:
        reader = AnchorReader(rpc, chain_id=31337, contract=address)
        anchorer = Anchorer(reader, signer, journal)
        assert sizes(anchorer, log) == [4]
        assert step(anchorer, log).tree_size == 9
        assert sizes(anchorer, log) == [4, 9]
    assert journal.kinds().count("intent") == 2


# --- killed processes -----------------------------------------------------------------------

CHILD = """
import os, signal, sys
from pathlib import Path
from rlhf_audit_trail.ledger.chain.signing import transaction
from rlhf_audit_trail.ledger.chain.anchoring.anchorer import Anchorer
from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader
from rlhf_audit_trail.ledger.chain.node.rpc import RpcClient
from rlhf_audit_trail.ledger.chain.signing.signer import signer_from_environment
from tests.chain_fixtures import FileJournal, GrowingLog

url, contract, path, origin, size, point = sys.argv[1:]

class Doomed(FileJournal):
    def intent(self, record):
        if point == "before the intent":
            os.kill(os.getpid(), signal.SIGKILL)
        super().intent(record)
        if point == "before the broadcast":
            os.kill(os.getpid(), signal.SIGKILL)

    def mined(self, record, mined):
        if point == "after the broadcast":
            os.kill(os.getpid(), signal.SIGKILL)
        super().mined(record, mined)

reader = AnchorReader(RpcClient(url), chain_id=31337, contract=contract)
anchorer = Anchorer(reader, signer_from_environment(), Doomed(Path(path)))
anchorer.step([GrowingLog(origin).grow(int(size))])
"""

INTENT, BROADCAST, AFTER = "before the intent", "before the broadcast", "after the broadcast"


@pytest.mark.parametrize(
    "points",
    [(INTENT,), (BROADCAST,), (AFTER,), (BROADCAST, AFTER), (AFTER, BROADCAST), (AFTER, INTENT)],
    ids=" then ".join,
)
def test_a_kill_anywhere_makes_no_second_anchor(anvil, anchorer, publisher, journal, log, points):
    """Killed while anchoring size 5, and then 8; the next process finds all in order."""
    for size, point in zip((5, 8), points, strict=False):
        child = subprocess.run(
            [
                sys.executable, "-c", CHILD, anvil.url, anchorer.reader.contract,
                str(journal.path), log.origin, str(size), point,
            ],
            cwd=ROOT,
            env={"RLHF_AUDIT_PUBLISHER_KEY": publisher._account.key.hex(), "PATH": ""},
            check=False,
        )  # fmt: skip
        assert child.returncode == -signal.SIGKILL
        log.grow(size - log.size)
    step(anchorer, log)
    step(anchorer, log)
    assert sizes(anchorer, log) == [5, 8][: len(points)]
    assert chain_nonce(anchorer.reader.rpc, publisher.address) == len(points)
    assert all(not entry.is_pending for entry in journal.unsettled())
    assert journal.kinds().count("intent") == len(points)
