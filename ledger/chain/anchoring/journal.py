"""The anchorer's memory over SQL: what was sent is known before it was sent.

A row for each log in a transaction. What belongs to the transaction as a whole, its bytes and
its cost, stands in the row of the first of them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from sqlalchemy import Connection, Engine, Row, Update, bindparam, func, select, update

from rlhf_audit_trail.ledger.appending import now_text
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
from rlhf_audit_trail.ledger.reading import StoredLog
from rlhf_audit_trail.ledger.store.database import (
    fetch_all,
    fetch_first,
    insert_columns,
    transact_once,
)
from rlhf_audit_trail.ledger.store.models import AnchorRow

__all__ = ["SqlAnchorJournal"]

_ANCHORS = AnchorRow.__table__  # type: ignore[attr-defined]
_DROPPED: Final = "dropped"
_PENDING: Final = AnchorState.PENDING.value
_READ_TOGETHER: Final = 100  # transactions
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
# The rows of a transaction agree on all that is asked here, so its first one speaks for them.
_FIRST: Final[Any] = _MINE & (func.length(_COLUMNS.raw_tx) > 0)
_OF_HASHES = (
    select(_ANCHORS)
    .where(_COLUMNS.tx_hash.in_(bindparam("hashes", expanding=True)))
    .order_by(_COLUMNS.id)
)
_FINAL = (
    select(_COLUMNS.tx_hash)
    .where(_FIRST & (_COLUMNS.state == AnchorState.FINALIZED.value))
    .order_by(_COLUMNS.id.desc())
)
_SUPERSEDED = (
    select(_ANCHORS)
    .where(_MINE & (_COLUMNS.state == _DROPPED) & (_COLUMNS.reason == SUPERSEDED))
    .order_by(_COLUMNS.id)
)
_CHANGE = update(_ANCHORS).where(_COLUMNS.tx_hash == bindparam("hashed"))
# plain, since they run at each step and for each log, and SQLAlchemy takes longer than SQLite
_LAST_FINAL: Final = (
    "SELECT block_number, block_hash FROM anchor WHERE chain_id = ? AND contract = ?"
    " AND publisher = ? AND state = 'finalized' ORDER BY id DESC LIMIT 1"
)
_OURS: Final = "chain_id = ? AND contract = ? AND publisher = ? AND length(raw_tx) > 0"
_STANDING: Final = (  # by the indices of nonce and state, however many anchors there are
    f"SELECT tx_hash, state, block_hash FROM anchor WHERE {_OURS} AND nonce IN"  # noqa: S608
    f" (SELECT nonce FROM anchor WHERE {_OURS} AND (state IN ('pending', 'mined', 'safe')"
    " OR state = 'dropped' AND block_hash IS NOT NULL)) ORDER BY id"
)
_SET_SEQUENCE: Final = "UPDATE anchor SET sequence = ? WHERE tx_hash = ? AND log_number = ?"
_CHANGE_ONE = _CHANGE.where(_COLUMNS.log_number == bindparam("numbered"))


_Change: TypeAlias = tuple[Update, dict[str, Any]]  # a statement, and what it sets where


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
        self._known: dict[bytes, JournalEntry] = {}  # by hash, as last read or written

    def write(self, notes: Sequence[Note]) -> None:
        """Keep all of them or none, in one commit."""
        if not notes:
            return
        self._write(notes)
        for note in notes:
            self._known[note.record.tx_hash] = _after(note)

    def _write(self, notes: Sequence[Note]) -> None:
        def work(connection: Connection) -> None:
            for note in notes:  # a row is changed by nothing before its intent
                if isinstance(note, Intended):
                    self._intend(connection, note.record)
            # after a reset of the chain there are thousands: those alike go together
            changes = [change for note in notes for change in self._changes(note)]
            for (statement, _), group in itertools.groupby(changes, key=_shape):
                connection.execute(statement, [values for _, values in group])
            self._complete(connection, [x for x in notes if isinstance(x, Seen) and _is_shared(x)])

        transact_once(self._engine, work)

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

    def _changes(self, note: Note) -> Iterator[_Change]:
        """Say what a note changes in the rows of its transaction."""
        match note:
            case Seen(record, mined, is_known):
                values = _where(mined)
                if not is_known:
                    values["sequence"] = _usual(mined.sequences)
                    if len(record.members) == 1:
                        values |= _cost(mined.spent)
                yield self._of_all(record, values)
            case Lost(record):
                yield self._of_all(record, {"state": _PENDING, **_NOWHERE})
            case Dropped(record, reason, spent, place):
                values = {"state": _DROPPED, "reason": reason, **_NOWHERE}
                if place is not None:
                    values |= dataclasses.asdict(place)
                yield self._of_all(record, values)
                if spent is not None:
                    paid = {"block_timestamp": spent.timestamp} | _cost(spent)
                    yield self._of_first(record, paid)

    def _of_all(self, record: AnchorRecord, values: Mapping[str, Any]) -> _Change:
        return _CHANGE, {"hashed": record.tx_hash, **values}

    def _of_first(self, record: AnchorRecord, values: Mapping[str, Any]) -> _Change:
        number = self._numbers[record.members[0].log_id]
        return _CHANGE_ONE, {"hashed": record.tx_hash, "numbered": number, **values}

    def _complete(self, connection: Connection, notes: Sequence[Seen]) -> None:
        """Give rows their own sequence where it is not the usual one, and each first its cost."""
        if not notes:
            return
        statement = _SET_SEQUENCE
        if connection.dialect.name == "postgresql":
            statement = statement.replace("?", "%s")
        rows = [
            (sequence, note.record.tx_hash, self._numbers[member.log_id])
            for note in notes
            for usual in [_usual(note.mined.sequences)]
            for sequence, member in zip(note.mined.sequences, note.record.members, strict=True)
            if sequence != usual
        ]
        if rows:
            connection.exec_driver_sql(statement, rows)
        costs = [self._of_first(note.record, _cost(note.mined.spent)) for note in notes]
        connection.execute(_CHANGE_ONE, [values for _, values in costs])

    def unsettled(self, account: Account) -> list[JournalEntry]:
        """Return what is neither finalized nor dropped, and what shares a nonce with that."""
        standing = {
            bytes(tx_hash): (state, block_hash and bytes(block_hash))
            for tx_hash, state, block_hash in fetch_all(
                self._engine, _STANDING, dataclasses.astuple(account) * 2
            )
        }
        changed = [x for x, state in standing.items() if _state(self._known.get(x)) != state]
        known = self._known
        if changed:
            with self._engine.connect() as connection:
                known = known | self._read(connection, changed)
        self._known = {tx_hash: known[tx_hash] for tx_hash in standing if tx_hash in known}
        return list(self._known.values())

    def last_final(self, account: Account) -> Place | None:
        """Return the block of the newest anchor that was seen to be final."""
        row = fetch_first(self._engine, _LAST_FINAL, dataclasses.astuple(account))
        return None if row is None else Place(row[0], bytes(row[1]))

    def finalized(self, account: Account) -> Iterator[JournalEntry]:
        """Return all that was seen to be final, newest first; read as far as it is asked for."""
        with self._engine.connect() as connection:
            found = connection.scalars(_FINAL, dataclasses.asdict(account)).all()
        hashes = list(map(bytes, found))
        for start in range(0, len(hashes), _READ_TOGETHER):
            part = hashes[start : start + _READ_TOGETHER]
            with self._engine.connect() as connection:
                entries = self._read(connection, part)
            self._known |= entries  # which are asked for again if the chain lost them
            yield from (entries[tx_hash] for tx_hash in part if tx_hash in entries)

    def superseded(self, account: Account) -> list[JournalEntry]:
        """Return all that was dropped because it is `SUPERSEDED`, in the order of intent."""
        with self._engine.connect() as connection:
            rows = connection.execute(_SUPERSEDED, dataclasses.asdict(account)).all()
        return list(self._entries(rows).values())

    def _read(self, connection: Connection, hashes: Sequence[bytes]) -> dict[bytes, JournalEntry]:
        found: dict[bytes, JournalEntry] = {}
        for start in range(0, len(hashes), _READ_TOGETHER):
            part = {"hashes": hashes[start : start + _READ_TOGETHER]}
            found |= self._entries(connection.execute(_OF_HASHES, part).all())
        return found

    def _entries(self, rows: Iterable[Row[Any]]) -> dict[bytes, JournalEntry]:
        transactions: dict[bytes, list[Row[Any]]] = {}
        for row in rows:
            transactions.setdefault(bytes(row.tx_hash), []).append(row)
        return {
            tx_hash: self._entry(members)
            for tx_hash, members in transactions.items()
            if all(row.log_number in self._log_ids for row in members)
        }

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
        place = Place(first.block_number, bytes(first.block_hash))
        sequences = tuple(row.sequence for row in rows)
        return JournalEntry(record, Mined(AnchorState(first.state), place, sequences, spent))


def _after(note: Note) -> JournalEntry:
    """Return the entry of a transaction as it stands once the note is written."""
    match note:
        case Seen(record, mined):
            return JournalEntry(record, mined)
        case Dropped(record, _, _, place):
            return JournalEntry(record, is_dropped=True, failed_at=place)
        case Intended(record) | Lost(record):
            return JournalEntry(record)


def _state(entry: JournalEntry | None) -> tuple[str, bytes | None] | None:
    """Return state and block of an entry as its rows hold them; the rest never changes."""
    if entry is None:
        return None
    block_hash = entry.place.block_hash if entry.place else None
    if entry.mined is not None:
        return entry.mined.state.value, block_hash
    return _DROPPED if entry.is_dropped else _PENDING, block_hash


def _shape(change: _Change) -> tuple[Update, frozenset[str]]:
    statement, values = change
    return statement, frozenset(values)


def _where(mined: Mined) -> dict[str, Any]:
    return {
        "state": mined.state.value,
        "reason": "",
        "block_number": mined.place.block_number,
        "block_hash": mined.place.block_hash,
        "block_timestamp": mined.spent.timestamp,
    }


def _is_shared(note: Seen) -> bool:
    """Whether a newly mined transaction has rows that differ: one for each of several logs."""
    return not note.is_known and len(note.record.members) > 1


def _usual(sequences: Sequence[int]) -> int:
    """Return the commonest: logs that are anchored together from the start have the same."""
    return Counter(sequences).most_common(1)[0][0]


def _cost(spent: Spent) -> dict[str, int]:
    return {"gas_used": spent.gas_used, "gas_price_wei": spent.gas_price_wei}
