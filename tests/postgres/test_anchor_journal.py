"""The anchorer's memory on PostgreSQL: what is written reads back, by whoever opens it next."""

from __future__ import annotations

from rlhf_audit_trail.ledger.chain.anchoring.journal import SqlAnchorJournal
from rlhf_audit_trail.ledger.chain.anchoring.records import (
    SUPERSEDED,
    Account,
    AnchorRecord,
    Dropped,
    Intended,
    JournalEntry,
    Lost,
    Member,
    Mined,
    Seen,
    Spent,
)
from rlhf_audit_trail.ledger.chain.anchoring.view import Place
from rlhf_audit_trail.ledger.chain.contract.reader import AnchorState
from rlhf_audit_trail.ledger.chain.signing.transaction import Fees
from rlhf_audit_trail.ledger.log import Ledger

ACCOUNT = Account(31337, "0x" + "ab" * 20, "0x" + "Cd" * 20)


def record(nonce, logs):
    members = tuple(Member(log.log_id, 5 + nonce, bytes(32)) for log in logs)
    return AnchorRecord(
        ACCOUNT.chain_id, ACCOUNT.contract, ACCOUNT.publisher, nonce, members, Fees(9, 1),
        raw=b"raw" * 100_000, tx_hash=bytes([nonce]) * 32,
    )  # fmt: skip


def test_what_two_journals_write_in_turn_each_of_them_reads(tmp_path, new_database):
    Ledger.create(tmp_path / "audit", organisation="pg.example", database=new_database()).close()
    with Ledger.open(tmp_path / "audit") as ledger:
        logs = [ledger.open_run(f"run-{number}") for number in range(20)]
        one, other = (SqlAnchorJournal(ledger.engine, logs) for _ in range(2))
        first, second = record(1, logs), record(2, logs[:1])
        one.write([Intended(first), Intended(second)])
        expected = [JournalEntry(first), JournalEntry(second)]
        assert one.unsettled(ACCOUNT) == other.unsettled(ACCOUNT) == expected

        sequences = (3, *range(1, 19), 3)
        spent = Spent(gas_used=50_000, gas_price_wei=7, timestamp=1_700_000_000)
        mined = Mined(AnchorState.MINED, Place(12, b"\1" * 32), sequences, spent)
        other.write([Seen(first, mined)])
        expected[0] = JournalEntry(first, mined)
        assert one.unsettled(ACCOUNT) == other.unsettled(ACCOUNT) == expected

        one.write([Lost(first), Dropped(second, SUPERSEDED)])
        assert other.unsettled(ACCOUNT) == [JournalEntry(first)]
        assert other.superseded(ACCOUNT) == [JournalEntry(second, is_dropped=True)]

        final = Mined(AnchorState.FINALIZED, Place(13, b"\2" * 32), sequences, spent)
        one.write([Seen(first, final)])
        assert other.unsettled(ACCOUNT) == []
        assert list(other.finalized(ACCOUNT)) == [JournalEntry(first, final)]
        assert other.last_final(ACCOUNT) == final.place
