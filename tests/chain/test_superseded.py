"""A chain that lost more than a reorganisation can: newer heads stand in for what is gone."""

from __future__ import annotations

import pytest

from rlhf_audit_trail.ledger.chain.anchoring.anchorer import Anchorer
from rlhf_audit_trail.ledger.chain.node.anvil import Anvil
from rlhf_audit_trail.ledger.chain.signing.transaction import await_receipt, broadcast, chain_nonce
from tests.chain_fixtures import FileJournal, GrowingLog

pytestmark = pytest.mark.chain

RESENT = 64
LOST = RESENT + 16


@pytest.fixture
def journal(tmp_path):
    return FileJournal(tmp_path / "journal")


@pytest.fixture
def other():
    return GrowingLog("example.org/rlhf/another")


@pytest.fixture
def anchorer(reader, publisher, journal, log, other):
    known = {log.log_id: log, other.log_id: other}
    return Anchorer(reader, publisher, journal, receipt_timeout_s=1.0, find=known.get)


@pytest.fixture
def before(rpc, anvil: Anvil, anchorer, log, other):
    """Many anchors, and the state of the chain before them; the other log has none of the last."""
    anvil.mine()
    snapshot = rpc.call("evm_snapshot")
    for number in range(LOST):
        anchorer.step([log.grow(1)] if number != RESENT + 3 else [other.grow(5)])
    return snapshot


def sizes(anchorer, log):
    events = anchorer.reader.events(anchorer.signer.address, log.log_id)
    return [event.tree_size for event in events]


def test_newer_heads_supersede_what_is_too_much_to_be_sent_again(
    rpc, anchorer, journal, log, other, before
):
    newest, first = log.size, [*range(1, RESENT + 1)]
    assert rpc.call("evm_revert", before)
    done = anchorer.step([log])
    assert sizes(anchorer, log) == [*first, newest], "the first as they were, and the newest"
    assert sizes(anchorer, other) == [5], "nobody asked for it, and it was lost all the same"
    assert done.anchored[log.log_id].tree_size == newest
    assert chain_nonce(rpc, anchorer.signer.address) == RESENT + 1, "one for all the others"
    dropped = [entry for entry in journal.entries() if entry.is_dropped]
    assert len(dropped) == LOST - RESENT
    assert anchorer.step([log]).anchored == {}
    anchorer.step([log.grow(1)])
    assert sizes(anchorer, log) == [*first, newest, newest + 1]


def test_what_waits_is_not_superseded_before_newer_heads_are_written_down(
    rpc, anchorer, journal, log, before
):
    """Killed between its look and its transaction, the anchorer begins again."""
    assert rpc.call("evm_revert", before)
    anchorer.reconcile()
    assert anchorer.outbox.superseded
    assert not any(entry.is_dropped for entry in journal.entries())
    again = Anchorer(anchorer.reader, anchorer.signer, journal, receipt_timeout_s=1.0)
    again.step([log])
    assert sizes(again, log)[-1] == log.size


def test_a_chain_that_comes_back_shows_all_of_it_again(rpc, anvil, anchorer, journal, log, before):
    """As after a node that lagged behind, of which the anchorer thought that it had lost much."""
    raws = [entry.record.raw for entry in journal.entries()]
    everything = sizes(anchorer, log)
    assert rpc.call("evm_revert", before)
    before = rpc.call("evm_snapshot")
    anchorer.step([log])
    assert any(entry.is_dropped for entry in journal.entries())
    assert rpc.call("evm_revert", before)
    for raw in raws:
        broadcast(rpc, raw)
    await_receipt(rpc, journal.entries()[LOST - 1].record.tx_hash)
    anchorer.step([log])
    assert sizes(anchorer, log) == everything
    standing = [entry for entry in journal.entries() if entry.mined]
    assert [entry.record.raw for entry in standing] == raws
    assert journal.entries()[-1].is_dropped, "what was to stand in for them"
    anvil.mine(3)
    anchorer.reconcile()
    assert journal.unsettled() == []
