"""What the anchorer remembers over SQL, read back by a journal that was opened anew."""

from __future__ import annotations

import dataclasses
from pathlib import Path

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
    Note,
    Seen,
    Spent,
)
from rlhf_audit_trail.ledger.chain.anchoring.view import Place
from rlhf_audit_trail.ledger.chain.contract.reader import AnchorState
from rlhf_audit_trail.ledger.chain.signing.transaction import Fees
from rlhf_audit_trail.ledger.log import Ledger

ACCOUNT = Account(31337, "0x" + "ab" * 20, "0x" + "Cd" * 20)
SPENT = Spent(gas_used=50_000, gas_price_wei=7, timestamp=1_700_000_000)


def test_each_state_reads_back(tmp_path: Path) -> None:
    Ledger.create(tmp_path / "audit", organisation="journal.example").close()
    with Ledger.open(tmp_path / "audit") as ledger:
        logs = [ledger.open_run(name) for name in ("one", "two")]
        members = tuple(Member(log.log_id, 5, bytes(32)) for log in logs)
        record = AnchorRecord(
            **dataclasses.asdict(ACCOUNT), nonce=3, members=members, fees=Fees(9, 1), raw=b"raw",
            tx_hash=b"\7" * 32,
        )  # fmt: skip

        def after(*notes: Note) -> list[JournalEntry]:
            SqlAnchorJournal(ledger.engine, logs).write(notes)
            return SqlAnchorJournal(ledger.engine, logs).unsettled(ACCOUNT)

        journal = SqlAnchorJournal(ledger.engine, logs)
        assert after() == []
        assert after(Intended(record)) == [JournalEntry(record)]
        other = dataclasses.replace(ACCOUNT, chain_id=1)
        assert journal.unsettled(other) == []

        place = Place(12, b"\1" * 32)
        failed = JournalEntry(record, is_dropped=True, failed_at=place)
        assert after(Dropped(record, "it failed", SPENT, place)) == [failed]
        assert journal.spent_since(ACCOUNT.publisher, 0) == SPENT.fee_wei
        assert after(Lost(record)) == [JournalEntry(record)]
        assert journal.spent_since(ACCOUNT.publisher, 0) == 0
        assert after(Dropped(record, "it failed", SPENT)) == [], "in a block that is final"

        def seen(state: AnchorState) -> Mined:
            return Mined(state, place, (1, 2), SPENT)

        mined, final = seen(AnchorState.MINED), seen(AnchorState.FINALIZED)
        assert after(Seen(record, mined)) == [JournalEntry(record, mined)]
        assert journal.last_final(ACCOUNT) is None
        assert after(Seen(record, final, is_known=True)) == []
        assert journal.last_final(ACCOUNT) == place
        assert journal.last_final(other) is None
        assert list(journal.finalized(ACCOUNT)) == [JournalEntry(record, final)]
        assert after(Lost(record)) == [JournalEntry(record)]
        assert list(journal.finalized(ACCOUNT)) == []
        assert journal.superseded(ACCOUNT) == []
        assert after(Dropped(record, SUPERSEDED)) == []
        assert journal.superseded(ACCOUNT) == [JournalEntry(record, is_dropped=True)]
        assert journal.superseded(other) == []
