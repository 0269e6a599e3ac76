"""Many logs in one transaction, offers that are replaced, and caps on what it may cost."""

from __future__ import annotations

import pytest

from rlhf_audit_trail.ledger.chain.anchoring.anchorer import Anchorer
from rlhf_audit_trail.ledger.chain.anchoring.fees import WEI_PER_GWEI, FeeLimits, fees_at, raised
from rlhf_audit_trail.ledger.chain.contract.reader import AnchorState
from rlhf_audit_trail.ledger.chain.errors import Forked, RolledBack, SpendingCapReached
from rlhf_audit_trail.ledger.chain.node.rpc import parse_quantity
from rlhf_audit_trail.ledger.chain.signing.transaction import Fees, chain_nonce
from tests.chain_fixtures import FileJournal, GrowingLog

pytestmark = pytest.mark.chain

ON, OFF = True, False
NO_PATIENCE = FeeLimits(replace_after_s=0.0)


@pytest.fixture
def journal(tmp_path):
    return FileJournal(tmp_path / "journal")


@pytest.fixture
def logs(log):
    return [GrowingLog(f"{log.origin}-{number}").grow(number + 1) for number in range(12)]


@pytest.fixture
def make(reader, publisher, journal):
    def make(**options):
        return Anchorer(reader, publisher, journal, **({"receipt_timeout_s": 0.3} | options))

    return make


@pytest.fixture
def manual_mining(rpc):
    rpc.call("evm_setAutomine", OFF)
    yield
    rpc.call("evm_setAutomine", ON)
    rpc.call("anvil_mine", "0x1")


def sizes(anchorer, log):
    events = anchorer.reader.events(anchorer.signer.address, log.log_id)
    return [event.tree_size for event in events]


# --- many logs --------------------------------------------------------------------------------


def test_all_logs_go_into_one_transaction(make, journal, logs):
    anchorer = make()
    done = anchorer.step(logs)
    assert {log.log_id: done.anchored[log.log_id].tree_size for log in logs} == {
        log.log_id: log.size for log in logs
    }
    assert journal.kinds().count("intent") == 1
    for log in logs[:3]:
        log.grow(5)
    done = anchorer.step(logs)
    assert set(done.anchored) == {log.log_id for log in logs[:3]}, "the satisfied ones stay out"
    assert journal.kinds().count("intent") == 2
    assert sizes(anchorer, logs[0]) == [1, 6]
    assert sizes(anchorer, logs[11]) == [12]


def test_what_contradicts_the_chain_stops_no_other(make, logs):
    anchorer = make()
    anchorer.step(logs)
    for log in logs:
        log.grow(2)
    logs[3].leaves[0] = bytes(32)
    del logs[5].leaves[2:]
    done = anchorer.step(logs)
    kinds = {log_id: type(finding) for log_id, finding in done.findings.items()}
    assert kinds == {logs[3].log_id: Forked, logs[5].log_id: RolledBack}
    assert len(done.anchored) == 10
    assert sizes(anchorer, logs[3]) == [4]


def test_what_the_contract_refuses_stops_no_other(make, logs):
    anchorer = make()
    anchorer.step(logs)
    for log in logs:
        log.grow(2)
    logs[4].consistency_proof = lambda _old, _new: (bytes(32),)
    done = anchorer.step(logs)
    (finding,) = done.findings.values()
    assert finding.reason == "InconsistentTree"
    assert len(done.anchored) == 11


def test_more_than_one_transaction_can_hold_is_split(make, journal, log, rpc):
    many = [GrowingLog(f"{log.origin} {number}").grow(1) for number in range(400)]
    done = make(limits=FeeLimits(day_wei_max=0), receipt_timeout_s=10).step(many)
    assert len(done.anchored) == 400
    assert journal.kinds().count("intent") == 2
    for entry in journal.entries():
        sent = rpc.call("eth_getTransactionByHash", f"0x{entry.record.tx_hash.hex()}")
        assert parse_quantity(sent["gas"]) <= 2**24  # EIP-7825, which this node enforces


# --- replacement ------------------------------------------------------------------------------


@pytest.mark.usefixtures("manual_mining")
def test_a_stuck_offer_is_replaced_by_a_higher_one_with_newer_heads(make, journal, logs, rpc):
    anchorer, (first, second, *_) = make(limits=NO_PATIENCE), logs
    assert anchorer.step([first]).waiting is not None
    second.grow(7)
    first.grow(3)
    anchorer.step([first, second])
    one, *_, last = [entry.record for entry in journal.entries()]
    assert one.nonce == last.nonce
    assert 8 * last.fees.max_fee_wei >= 9 * one.fees.max_fee_wei
    assert 8 * last.fees.tip_wei >= 9 * one.fees.tip_wei
    assert [x.tree_size for x in last.members] == [first.size, second.size]
    rpc.call("anvil_mine", "0x1")
    anchorer.reconcile()
    assert (sizes(anchorer, first), sizes(anchorer, second)) == ([first.size], [second.size])
    dropped = [entry.record for entry in journal.entries() if entry.is_dropped]
    assert one in dropped
    assert last not in dropped


@pytest.mark.usefixtures("manual_mining")
def test_a_replacement_loses_none_of_what_it_replaces(make, journal, logs):
    known = {log.log_id: log for log in logs}
    anchorer = make(limits=NO_PATIENCE, find=known.get)
    anchorer.step(logs[:3])
    anchorer.step(logs[5:6])  # about another log alone
    newest = journal.entries()[-1].record
    assert {x.log_id for x in newest.members} == {x.log_id for x in (*logs[:3], logs[5])}


@pytest.mark.usefixtures("manual_mining")
def test_the_replaced_one_may_be_mined_all_the_same(make, journal, log, rpc):
    """A node elsewhere kept the older offer; its hash is watched, and nothing comes twice."""
    anchorer = make(limits=NO_PATIENCE)
    anchorer.step([log.grow(4)])
    anchorer.step([log.grow(2)])
    older = journal.entries()[0].record
    rpc.call("anvil_dropAllTransactions")
    rpc.call("eth_sendRawTransaction", f"0x{older.raw.hex()}")
    rpc.call("anvil_mine", "0x1")
    anchorer.reconcile()
    assert sizes(anchorer, log) == [4]
    rpc.call("evm_setAutomine", ON)
    assert make().step([log]).anchored[log.log_id].tree_size == 6
    assert sizes(anchorer, log) == [4, 6]
    # and a reorganisation that takes it back sends the very same bytes first
    rpc.call("anvil_reorg", 2, [])
    anchorer.reconcile()
    assert sizes(anchorer, log) == [4, 6]


@pytest.mark.usefixtures("manual_mining")
def test_without_reason_nothing_is_replaced(make, journal, log):
    anchorer = make(limits=FeeLimits(replace_after_s=48.0))
    anchorer.step([log.grow(1)])
    anchorer.step([log.grow(1)])
    assert journal.kinds() == ["intent"]


@pytest.mark.usefixtures("manual_mining")
def test_time_is_that_of_a_clock_that_only_goes_forward(make, journal, log):
    now = [1000.0]

    def tick():
        now[0] += 0.1
        return now[0]

    anchorer = make(limits=FeeLimits(replace_after_s=48.0), now_s=tick)
    anchorer.step([log.grow(1)])
    now[0] += 30
    anchorer.step([log])
    assert journal.kinds() == ["intent"]
    now[0] += 30
    anchorer.step([log])
    assert journal.kinds() == ["intent", "intent"]


# --- caps -------------------------------------------------------------------------------------


def test_above_the_cap_an_offer_waits_and_is_sent_again(make, journal, log, rpc):
    rpc.call("anvil_setNextBlockBaseFeePerGas", hex(30 * WEI_PER_GWEI))
    rpc.call("anvil_mine", "0x1")
    anchorer = make(limits=FeeLimits(fee_wei_max=5 * WEI_PER_GWEI))
    try:
        for _ in range(2):
            done = anchorer.step([log.grow(1)])
            assert isinstance(done.held_back, SpendingCapReached)
            assert "5 gwei" in done.held_back.message
    finally:
        rpc.call("anvil_setNextBlockBaseFeePerGas", hex(WEI_PER_GWEI))
        rpc.call("anvil_mine", "0x1")
    assert len(journal.entries()) == 1, "the same bytes, again and again"
    for _ in range(2):
        anchorer.step([log])
    assert sizes(anchorer, log)[-1] == 2


def test_the_days_limit_counts_what_was_mined(make, journal, log):
    unlimited = make()
    unlimited.step([log.grow(1)])
    spent = journal.spent_since("", 0)
    assert spent > 0
    anchorer = make(limits=FeeLimits(day_wei_max=spent + 1))
    done = anchorer.step([log.grow(1)])
    assert isinstance(done.held_back, SpendingCapReached)
    assert journal.kinds().count("intent") == 1
    assert unlimited.step([log]).anchored[log.log_id].tree_size == 2


def test_offers_are_raised_by_an_eighth_on_both_and_never_above_the_cap():
    limits = FeeLimits(fee_wei_max=1000)
    assert fees_at(100, 10, limits) == Fees(max_fee_wei=210, tip_wei=10)
    assert fees_at(700, 10, limits) == Fees(max_fee_wei=1000, tip_wei=10)
    assert fees_at(0, 2000, limits) == Fees(max_fee_wei=1000, tip_wei=1000)
    assert raised(Fees(400, 8), Fees(100, 1), limits) == Fees(450, 9)
    assert raised(Fees(401, 9), Fees(100, 1), limits) == Fees(452, 11), "rounded up"
    assert raised(Fees(400, 8), Fees(900, 50), limits) == Fees(900, 50)
    assert raised(Fees(400, 0), Fees(0, 0), limits).tip_wei == 1, "an eighth of nothing is no raise"
    assert raised(Fees(900, 8), Fees(100, 1), limits) is None


# --- a dry run --------------------------------------------------------------------------------


def test_a_plan_says_what_a_step_would_do_and_does_nothing(make, journal, logs, rpc):
    anchorer = make()
    anchorer.step(logs[:2])
    before, lines = chain_nonce(rpc, anchorer.signer.address), journal.lines()
    plan = anchorer.plan([log.grow(3) for log in logs])
    assert (chain_nonce(rpc, anchorer.signer.address), journal.lines()) == (before, lines)
    (planned,) = plan.transactions
    assert len(planned.updates) == 12
    done = anchorer.step(logs)
    assert len(done.anchored) == 12
    (entry,) = [e for e in journal.entries() if len(e.record.members) == 12]
    assert abs(entry.mined.spent.gas_used - planned.gas) < 0.05 * planned.gas
    assert entry.mined.state is AnchorState.MINED
    assert planned.expected_wei <= plan.balance_wei
    assert anchorer.plan(logs).transactions == ()
