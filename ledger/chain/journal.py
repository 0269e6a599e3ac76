"""The anchorer's memory over SQL: what was sent is known before it was sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Engine, select, update

from rlhf_audit_trail.ledger.appending import now_text
from rlhf_audit_trail.ledger.chain.anchorer import AnchorRecord, JournalEntry
from rlhf_audit_trail.ledger.chain.reader import AnchoredHead, AnchorState
from rlhf_audit_trail.ledger.reading import StoredLog
from rlhf_audit_trail.ledger.store.database import writing
from rlhf_audit_trail.ledger.store.models import AnchorRow

__all__ = ["SqlAnchorJournal"]

_ANCHORS = AnchorRow.__table__  # type: ignore[attr-defined]
_UNSETTLED = ("pending", "mined", "safe")
_NOWHERE = {"sequence": None, "block_number": None, "block_hash": None, "block_timestamp": None}


class SqlAnchorJournal:
    """Keeps anchor transactions in the ledger's own database; each call is one commit."""

    def __init__(self, engine: Engine, logs: Iterable[StoredLog]) -> None:
        """Keep records for `logs`; a record of another log is refused."""
        self._engine = engine
        self._numbers = {log.log_id: log.number for log in logs}
        self._log_ids = {number: log_id for log_id, number in self._numbers.items()}

    def intent(self, record: AnchorRecord) -> None:
        """Keep a transaction that is about to be sent for the first time."""
        row = {
            "log_number": self._numbers[record.log_id],
            "tree_size": record.tree_size,
            "root": record.root,
            "chain_id": record.chain_id,
            "contract": record.contract,
            "publisher": record.publisher,
            "nonce": record.nonce,
            "tx_hash": record.tx_hash,
            "raw_tx": record.raw,
            "state": AnchorState.PENDING.value,
            "reason": "",
            "created_at": now_text(),
        }
        with writing(self._engine) as connection:
            connection.execute(_ANCHORS.insert(), row)

    def mined(self, record: AnchorRecord, anchored: AnchoredHead) -> None:
        """Note the block it stands in and how settled that is."""
        self._change(
            record,
            state=anchored.state.value,
            sequence=anchored.sequence,
            block_number=anchored.block_number,
            block_hash=anchored.block_hash,
            block_timestamp=anchored.timestamp,
        )

    def unmined(self, record: AnchorRecord) -> None:
        """Note that the chain lost its block: pending again."""
        self._change(record, state=AnchorState.PENDING.value, **_NOWHERE)

    def dropped(self, record: AnchorRecord, reason: str) -> None:
        """Note that it anchored nothing and never will."""
        self._change(record, state="dropped", reason=reason, **_NOWHERE)

    def unsettled(self) -> list[JournalEntry]:
        """Return all entries that are neither finalized nor dropped, in the order of intent."""
        query = select(_ANCHORS).where(_ANCHORS.c.state.in_(_UNSETTLED)).order_by(_ANCHORS.c.id)
        with self._engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
        return [self._entry(row) for row in rows if row["log_number"] in self._log_ids]

    def _change(self, record: AnchorRecord, **values: Any) -> None:
        found = (_ANCHORS.c.tx_hash == record.tx_hash) & (
            _ANCHORS.c.log_number == self._numbers[record.log_id]
        )
        with writing(self._engine) as connection:
            connection.execute(update(_ANCHORS).where(found).values(**values))

    def _entry(self, row: Mapping[Any, Any]) -> JournalEntry:
        record = AnchorRecord(
            chain_id=row["chain_id"],
            contract=row["contract"],
            publisher=row["publisher"],
            log_id=self._log_ids[row["log_number"]],
            tree_size=row["tree_size"],
            root=bytes(row["root"]),
            nonce=row["nonce"],
            raw=bytes(row["raw_tx"]),
            tx_hash=bytes(row["tx_hash"]),
        )
        pending = row["state"] == AnchorState.PENDING.value
        return JournalEntry(record, None if pending else _anchored(row))


def _anchored(row: Mapping[Any, Any]) -> AnchoredHead:
    return AnchoredHead(
        tree_size=row["tree_size"],
        root=bytes(row["root"]),
        sequence=row["sequence"],
        block_number=row["block_number"],
        block_hash=bytes(row["block_hash"]),
        tx_hash=bytes(row["tx_hash"]),
        timestamp=row["block_timestamp"],
        state=AnchorState(row["state"]),
    )
