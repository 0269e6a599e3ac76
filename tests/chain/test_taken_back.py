"""What was final or had failed, and what a chain that goes back makes of it."""

from __future__ import annotations

import pytest

from rlhf_audit_trail.ledger.chain.anchoring.anchorer import Anchorer
from rlhf_audit_trail.ledger.chain.signing.transaction import await_receipt, chain_nonce
from tests.chain_fixtures import FileJournal

pytestmark = pytest.mark.chain


@pytest.fixture
def journal(tmp_path):
    return FileJournal(tmp_path / "journal")


@pytest.fixture
def anchorer(reader, publisher, journal):
    return Anchorer(reader, publisher, journal, receipt_timeout_s=0.3)


def step(anchorer, log):
    return anchorer.step([log]).anchored.get(log.log_id)


def sizes(anchorer, log):
    events = anchorer.reader.events(anchorer.signer.address, log.log_id)
    return [event.tree_size for event in events]


def test_a_final_anchor_that_vanishes_raises_an_alarm_and_is_sent_again(
    rpc, anvil, anchorer, journal, log, caplog
):
    anvil.mine()
    snapshot = rpc.call("evm_snapshot")
    for size in (2, 5):
        log.grow(size - log.size)
        step(anchorer, log)
    anvil.mine(2)
    anchorer.reconcile()
    assert journal.unsettled() == []
    assert anchorer.step([log]).vanished == ()
    assert rpc.call("evm_revert", snapshot)
    done = anchorer.step([log])
    (alarm,) = done.vanished
    assert "2 anchors that were final are not on chain 31337 any more" in alarm.message
    assert alarm.message in caplog.text
    assert sizes(anchorer, log) == [2, 5], "the very same transactions"
    assert journal.kinds().count("intent") == 2
    assert anchorer.step([log]).vanished == (), "said once"


def test_a_failed_transaction_that_succeeds_after_a_reorganisation_is_found(
    rpc, anvil, publisher, anchorer, journal, log
):
    """The code was gone for a block: the transaction there failed, and then did not."""
    contract = anchorer.reader.contract
    code = rpc.call("eth_getCode", contract, "latest")
    anvil.mine(3)
    before = rpc.call("evm_snapshot")
    real_intent = journal.intent

    def intent(record):
        real_intent(record)
        rpc.call("anvil_setCode", contract, "0xfe")  # reverts

    journal.intent = intent
    try:
        assert step(anchorer, log.grow(4)) is None
    finally:
        journal.intent = real_intent
        rpc.call("anvil_setCode", contract, code)
    (entry,) = journal.entries()
    assert entry.is_dropped
    assert entry.failed_at is not None
    assert rpc.call("evm_revert", before)  # the chain takes that block back, and mines another
    rpc.call("eth_sendRawTransaction", f"0x{entry.record.raw.hex()}")
    await_receipt(rpc, entry.record.tx_hash)
    anchorer.reconcile()
    assert sizes(anchorer, log) == [4]
    (entry,) = journal.entries()
    assert entry.mined is not None
    assert journal.kinds() == ["intent", "dropped", "mined"]
    assert chain_nonce(rpc, publisher.address) == 1


def test_a_failed_transaction_is_let_go_once_its_block_is_final(rpc, anvil, anchorer, journal, log):
    contract = anchorer.reader.contract
    code = rpc.call("eth_getCode", contract, "latest")
    real_intent = journal.intent

    def intent(record):
        real_intent(record)
        rpc.call("anvil_setCode", contract, "0xfe")

    journal.intent = intent
    try:
        step(anchorer, log.grow(4))
    finally:
        journal.intent = real_intent
        rpc.call("anvil_setCode", contract, code)
    assert len(journal.unsettled()) == 1
    assert step(anchorer, log).tree_size == 4, "by another transaction"
    anvil.mine(3)
    anchorer.reconcile()
    assert journal.unsettled() == []
    assert [entry.is_dropped for entry in journal.entries()] == [True, False]
