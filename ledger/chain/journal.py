"""The anchorer's memory over SQL: what was sent is known before it was sent.

A row for each log in a transaction. What belongs to the transaction as a whole, its bytes and
its cost, stands in the row of the first of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Engine, Row, bindparam, func, select, update

from rlhf_audit_trail.ledger.appending import now_text
from rlhf_audit_trail.ledger.chain.reader import AnchoredHead, AnchorState
from rlhf_audit_trail.ledger.chain.records import (
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
from rlhf_audit_trail.ledger.chain.transaction import Fees
from rlhf_audit_trail.ledger.chain.view import Place
from rlhf_audit_trail.ledger.reading import StoredLog
from rlhf_audit_trail.ledger.store.database import insert_columns, writing
from rlhf_audit_trail.ledger.store.models import AnchorRow

__all__ = ["SqlAnchorJournal"]

_ANCHORS = AnchorRow.__table__  # type: ignore[attr-defined]
_DROPPED: Final = "dropped"
_UNSETTLED: Final = ("pending", "mined", "safe")
_PENDING: Final = AnchorState.PENDING.value
_NOWHERE: Final[Mapping[str, None]] = {
    "sequence": None, "block_number": None, "block_hash": None, "block_timestamp": None,
    "gas_used": None, "gas_price_wei": None,
}  # fmt: skip

# Built once: to build a statement takes longer than to run it. `Account` gives the first three.
_COLUMNS = _ANCHORS.c
_MINE: Final[Any] = (
    (_COLUMNS.chain_id == bindparam("chain_id"))
    & (_COLUMNS.contract == bindparam("contract"))
    & (_COLUMNS.publisher == bindparam("publisher"))
)
_FAILED: Final[Any] = (_COLUMNS.state == _DROPPED) & _COLUMNS.block_hash.is_not(None)
_OPEN_NONCES = (
    select(_COLUMNS.nonce).where(_MINE & (_COLUMNS.state.in_(_UNSETTLED) | _FAILED)).distinct()
)
_OF_NONCES = (
    select(_ANCHORS)
    .where(_MINE & _COLUMNS.nonce.in_(bindparam("nonces", expanding=True)))
    .order_by(_COLUMNS.id)
)
_FINAL = (
    select(_ANCHORS)
    .where(_MINE & (_COLUMNS.state == AnchorState.FINALIZED.value))
    .order_by(_COLUMNS.id)
)
_LAST_FINAL = (
    select(_COLUMNS.block_number, _COLUMNS.block_hash)
    .where(_MINE & (_COLUMNS.state == AnchorState.FINALIZED.value))
    .order_by(_COLUMNS.id.desc())
    .limit(1)
)
_CHANGE = update(_ANCHORS).where(_COLUMNS.tx_hash == bindparam("hashed"))
_CHANGE_ONE = _CHANGE.where(_COLUMNS.log_number == bindparam("numbered"))


class SqlAnchorJournal:
    """Keeps anchor transactions in the ledger's own database; each `write` is one commit."""

    def __init__(
        self,
        engine: Engine,
        logs: Iterable[StoredLog],
        *,
        require: Callable[[Connection], None] = lambda _: None,
    ) -> None:
        """Keep records for `logs`; a record of another log is refused.

        Args:
            engine: the ledger's database.
            logs: all of the ledger's.
            require: called in the transaction of each intent; raises if this process may not
                use the publisher key any more.
        """
        self._engine = engine
        self._require = require
        self._numbers = {log.log_id: log.number for log in logs}
        self._log_ids = {number: log_id for log_id, number in self._numbers.items()}

    def write(self, notes: Sequence[Note]) -> None:
        """Keep all of them or none, in one commit."""
        if not notes:
            return
        with writing(self._engine) as connection:
            for note in notes:
                match note:
                    case Intended(record):
                        self._intend(connection, record)
                    case Seen():
                        self._see(connection, note)
                    case Lost(record):
                        self._change(connection, record, {"state": _PENDING} | {**_NOWHERE})
                    case Dropped():
                        self._drop(connection, note)

    def _intend(self, connection: Connection, record: AnchorRecord) -> None:
        common = {
            "chain_id": record.chain_id,
            "contract": record.contract,
            "publisher": record.publisher,
            "nonce": record.nonce,
            "tx_hash": record.tx_hash,
            "state": _PENDING,
            "reason": "",
            "created_at": now_text(),
            "max_fee_wei": record.fees.max_fee_wei,
            "tip_wei": record.fees.tip_wei,
        }
        members = record.members
        columns: dict[str, Sequence[Any]] = {
            "log_number": [self._numbers[member.log_id] for member in members],
            "tree_size": [member.tree_size for member in members],
            "root": [member.root for member in members],
            "raw_tx": [record.raw, *[b""] * (len(members) - 1)],
        }
        self._require(connection)
        insert_columns(connection, _ANCHORS, common, columns)

    def _see(self, connection: Connection, note: Seen) -> None:
        record, mined = note.record, note.mined
        first = mined.heads[0]
        common = {
            "state": first.state.value,
            "reason": "",
            "block_number": first.block_number,
            "block_hash": first.block_hash,
            "block_timestamp": first.timestamp,
        }
        self._change(connection, record, common)
        if note.is_known:
            return
        sequences = [
            {
                "hashed": record.tx_hash,
                "numbered": self._numbers[member.log_id],
                "sequence": head.sequence,
            }
            for member, head in zip(record.members, mined.heads, strict=True)
        ]
        connection.execute(_CHANGE_ONE, sequences)
        self._change(connection, record, _cost(mined.spent), only=record.members[0])

    def _drop(self, connection: Connection, note: Dropped) -> None:
        record, spent, place = note.record, note.spent, note.failed_at
        values: dict[str, Any] = {"state": _DROPPED, "reason": note.reason} | {**_NOWHERE}
        if place is not None:
            values |= {"block_number": place.block_number, "block_hash": place.block_hash}
        self._change(connection, record, values)
        if spent is not None:
            paid = {"block_timestamp": spent.timestamp} | _cost(spent)
            self._change(connection, record, paid, only=record.members[0])

    def unsettled(self, account: Account) -> list[JournalEntry]:
        """Return what is neither finalized nor dropped, and what shares a nonce with that."""
        mine = dataclasses.asdict(account)
        with self._engine.connect() as connection:
            nonces = connection.scalars(_OPEN_NONCES, mine).all()
            if not nonces:
                return []
            rows = connection.execute(_OF_NONCES, mine | {"nonces": nonces}).all()
        return self._entries(rows)

    def last_final(self, account: Account) -> Place | None:
        """Return the block of the newest anchor that was seen to be final."""
        with self._engine.connect() as connection:
            row = connection.execute(_LAST_FINAL, dataclasses.asdict(account)).first()
        return None if row is None else Place(row.block_number, bytes(row.block_hash))

    def finalized(self, account: Account) -> list[JournalEntry]:
        """Return all that was seen to be final, newest first."""
        with self._engine.connect() as connection:
            rows = connection.execute(_FINAL, dataclasses.asdict(account)).all()
        return self._entries(rows)[::-1]

    def _entries(self, rows: Iterable[Row[Any]]) -> list[JournalEntry]:
        transactions: dict[bytes, list[Row[Any]]] = {}
        for row in rows:
            transactions.setdefault(bytes(row.tx_hash), []).append(row)
        return [
            self._entry(members)
            for members in transactions.values()
            if all(row.log_number in self._log_ids for row in members)
        ]

    def spent_since(self, publisher: str, timestamp: int) -> int:
        """Return what a publisher's transactions cost in blocks later than that, in wei."""
        columns = _ANCHORS.c
        query = select(columns.gas_used, columns.gas_price_wei).where(
            func.lower(columns.publisher) == publisher.lower(),
            columns.block_timestamp > timestamp,
            columns.gas_used.is_not(None),
        )
        with self._engine.connect() as connection:
            # multiplied here: a sum of wei does not fit into 64 bits
            return sum(int(row[0]) * int(row[1]) for row in connection.execute(query))

    def _change(
        self,
        connection: Connection,
        record: AnchorRecord,
        values: Mapping[str, Any],
        *,
        only: Member | None = None,
    ) -> None:
        values = {"hashed": record.tx_hash, **values}
        if only is None:
            connection.execute(_CHANGE, values)
        else:
            connection.execute(_CHANGE_ONE, {"numbered": self._numbers[only.log_id], **values})

    def _entry(self, rows: Sequence[Row[Any]]) -> JournalEntry:
        first = rows[0]
        record = AnchorRecord(
            chain_id=first.chain_id,
            contract=first.contract,
            publisher=first.publisher,
            nonce=first.nonce,
            members=tuple(
                Member(self._log_ids[row.log_number], row.tree_size, bytes(row.root))
                for row in rows
            ),
            fees=Fees(max_fee_wei=first.max_fee_wei or 0, tip_wei=first.tip_wei or 0),
            raw=bytes(first.raw_tx),
            tx_hash=bytes(first.tx_hash),
        )
        if first.state in (_PENDING, _DROPPED):
            is_dropped = first.state == _DROPPED
            place = None
            if is_dropped and first.block_hash is not None:
                place = Place(first.block_number, bytes(first.block_hash))
            return JournalEntry(record, is_dropped=is_dropped, failed_at=place)
        spent = Spent(first.gas_used or 0, first.gas_price_wei or 0, first.block_timestamp)
        return JournalEntry(record, Mined(tuple(map(_anchored, rows)), spent))


def _cost(spent: Spent) -> dict[str, int]:
    return {"gas_used": spent.gas_used, "gas_price_wei": spent.gas_price_wei}


def _anchored(row: Row[Any]) -> AnchoredHead:
    return AnchoredHead(
        tree_size=row.tree_size,
        root=bytes(row.root),
        sequence=row.sequence,
        block_number=row.block_number,
        block_hash=bytes(row.block_hash),
        tx_hash=bytes(row.tx_hash),
        timestamp=row.block_timestamp,
        state=AnchorState(row.state),
    )
