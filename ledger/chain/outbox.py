"""What one publisher has sent, kept in line with the chain.

The chain is believed over the journal. Of several transactions with one nonce, each an offer
to replace the one before, any may be mined, so all of them are watched until one is final.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rlhf_audit_trail.ledger.chain.contract import confirm_all
from rlhf_audit_trail.ledger.chain.errors import (
    AnchorVanished,
    ChainUnreachable,
    InsufficientFunds,
    RpcError,
    TransactionFailed,
)
from rlhf_audit_trail.ledger.chain.reader import AnchoredHead, AnchorReader, AnchorState
from rlhf_audit_trail.ledger.chain.records import (
    Account,
    AnchorJournal,
    AnchorRecord,
    Dropped,
    Intended,
    JournalEntry,
    Lost,
    Mined,
    Note,
    Seen,
    Spent,
)
from rlhf_audit_trail.ledger.chain.rpc import parse_data, parse_quantity
from rlhf_audit_trail.ledger.chain.transaction import broadcast, find_receipt
from rlhf_audit_trail.ledger.chain.vanished import alarm_about, find_vanished
from rlhf_audit_trail.ledger.chain.view import (
    BlockView,
    ChainView,
    Place,
    look,
    look_again,
    read_block,
)
from rlhf_audit_trail.ledger.proof.merkle import HASH_BYTES

__all__ = ["Flight", "Outbox"]

_logger = logging.getLogger(__name__)

_FIRST_PAUSE_S: Final = 0.0005  # a development chain has mined after a few of them
_LONGEST_PAUSE_S: Final = 1.0
_LOOK_AGAIN_S: Final = 0.05  # a node may show the new nonce a moment before the receipt
_WITHOUT_BODIES: Final = False
_NO_FUNDS: Final = ("insufficient funds", "insufficient balance")

# A refusal of a broadcast that says nothing is wrong but the price, or that it was seen before.
_PRICE: Final = ("underpriced", "less than block base fee", "max fee per gas", "fee too low")


@dataclass(frozen=True)
class Flight:
    """The transactions of the chain's next nonce, none of them mined.

    Attributes:
        entries: one or more, in the order of intent; the last one offers most.
        since_s: when this process first saw the last one, by the monotonic clock.
        is_refused: the node does not take the last one at the price it offers.
    """

    entries: tuple[JournalEntry, ...]
    since_s: float
    is_refused: bool

    @property
    def newest(self) -> AnchorRecord:
        """The last offer."""
        return self.entries[-1].record


class Outbox:
    """Looks after the transactions of one publisher; not thread-safe."""

    def __init__(
        self,
        reader: AnchorReader,
        publisher: str,
        journal: AnchorJournal,
        *,
        after_mined: Callable[[], None] = lambda: None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the parts; nothing is asked yet.

        Args:
            reader: the pinned chain and contract.
            publisher: address of the signer, with its checksum case.
            journal: where intents are kept.
            after_mined: called once a transaction is mined.
            now_s: a clock that only goes forward; wall time plays no part.
        """
        self._reader = reader
        self._publisher = publisher
        self._journal = journal
        self._after_mined = after_mined
        self._now_s = now_s
        self._account = Account(reader.chain_id, reader.contract, publisher)
        self._since_s: dict[bytes, float] = {}  # by transaction, while it is pending
        self._refused: set[bytes] = set()
        self._pending: list[tuple[JournalEntry, ...]] = []  # by nonce, since the last look
        self._receipts: dict[bytes, dict[str, Any] | None] = {}  # of the present look
        self._settled: dict[AnchorState, int] = {}  # block numbers, of the present look
        self._newest: BlockView | None = None  # of the present look
        self._notes: list[Note] = []  # not written yet: all that the chain says again if asked
        self.view: ChainView | None = None  # of the last look, until something is sent
        self.newly_mined: list[tuple[AnchorRecord, Mined]] = []  # emptied by the caller
        self.vanished: list[AnchorVanished] = []  # emptied by the caller

    def send(self, record: AnchorRecord) -> None:
        """Write a signed transaction down, then broadcast it.

        Raises:
            InsufficientFunds: the account cannot pay; it is kept and sent again.
            ChainUnreachable, RpcError: it is kept, and may have arrived all the same.
        """
        self._notes.append(Intended(record))
        self.flush()  # must be durable before a single byte leaves
        same = [x for x in self._pending if x[0].record.nonce == record.nonce]
        self._pending = [x for x in self._pending if x not in same]
        self._pending.append((*(same[0] if same else ()), JournalEntry(record)))
        self._pending.sort(key=lambda entries: entries[0].record.nonce)
        self._broadcast(record)

    def flush(self) -> None:
        """Write down what was found out, in one commit."""
        notes, self._notes = self._notes, []
        self._journal.write(notes)

    def reconcile(self) -> Flight | None:
        """Bring every unsettled record in line with the chain; send again what it lacks.

        Returns:
            What waits for its block with the chain's next nonce, if anything does.

        Raises:
            WrongChain, NoContractCode, WrongContractCode: not what was pinned; nothing is sent.
            InsufficientFunds: the account cannot pay for what is sent again.
            ChainUnreachable, RpcError: no answer, or the node's refusal; do it again later.
        """
        self._notes.clear()
        self._pending.clear()
        groups, view = self._look()
        nonce = view.nonce
        self._receipts, self._settled = dict(view.receipts), view.settled
        self._newest = view.newest
        waiting: dict[int, tuple[JournalEntry, ...]] = {}
        self.view = view
        for number, entries in groups:
            if self._settle(entries):
                if number >= nonce:  # mined while the look went on
                    self.view = None
                continue
            entries = self._lost(entries)  # noqa: PLW2901 - as they stand in the journal now
            if number < nonce and not self._settle_later(entries):
                self._drop(entries, "its nonce was used by another transaction")
            elif number >= nonce:
                waiting[number] = entries
        return self._resend(nonce, waiting)

    def wait(self, timeout_s: float) -> Flight | None:
        """Wait until everything sent is mined; return what is not after that time.

        Raises:
            ChainUnreachable, RpcError: no answer, or the node's refusal.
        """
        self._settled = {}  # what is new is not settled; the next look tells
        self.view = None
        deadline_s, pause_s = self._now_s() + timeout_s, _FIRST_PAUSE_S
        while True:
            if self._pending:
                sent = [entry.record.tx_hash for entries in self._pending for entry in entries]
                self._newest, self._receipts = look_again(self._reader, sent)
            self._pending = [entries for entries in self._pending if not self._settle(entries)]
            flight = self._flight(self._pending[0]) if self._pending else None
            if flight is None or flight.is_refused or self._now_s() >= deadline_s:
                self.flush()
                return flight
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    # --- looking ----------------------------------------------------------------------

    def _look(self) -> tuple[list[tuple[int, tuple[JournalEntry, ...]]], ChainView]:
        """Read the journal, and all that the chain shows of it; see that the final still stands."""
        groups, last = self._by_nonce(), self._journal.last_final(self._account)
        view = look(self._reader, self._publisher, _hashes(groups), place=last)
        if not view.stands and self._take_back():
            groups = self._by_nonce()
            view = look(self._reader, self._publisher, _hashes(groups))
        return groups, view

    def _take_back(self) -> bool:
        """Note as lost what was final and is not on the chain any more, and raise the alarm."""
        gone = find_vanished(self._reader, self._journal.finalized(self._account))
        self._journal.write([Lost(record) for record in reversed(gone)])
        if gone:
            self.vanished.append(alarm_about(gone))
            _logger.error("%s", self.vanished[-1])
        return bool(gone)

    def _by_nonce(self) -> list[tuple[int, tuple[JournalEntry, ...]]]:
        """Unsettled entries of this publisher here; each nonce's extend the one before."""
        groups: dict[int, list[JournalEntry]] = {}
        for entry in self._journal.unsettled(self._account):
            groups.setdefault(entry.record.nonce, []).append(entry)
        return [(nonce, tuple(groups[nonce])) for nonce in sorted(groups)]

    def _settle(self, entries: Sequence[JournalEntry]) -> bool:
        """Look for all transactions of a nonce; note the one that is mined, if one is."""
        # the one that was there last time is likeliest, and then the newest
        newest_first = entries[::-1]
        for entry in sorted(newest_first, key=lambda entry: entry.mined is None):
            receipt = self._receipt(entry.record)
            if receipt is not None:
                self._note(entry, receipt, [other for other in entries if other is not entry])
                return True
        return False

    def _receipt(self, record: AnchorRecord) -> dict[str, Any] | None:
        if record.tx_hash in self._receipts:  # each is used for one look
            return self._receipts.pop(record.tx_hash)
        return find_receipt(self._reader.rpc, record.tx_hash)

    def _settle_later(self, entries: Sequence[JournalEntry]) -> bool:
        time.sleep(_LOOK_AGAIN_S)
        return self._settle(entries)

    def _note(
        self, entry: JournalEntry, receipt: dict[str, Any], others: Sequence[JournalEntry]
    ) -> None:
        """Write down what a receipt says, if it says anything new."""
        record = entry.record
        try:
            mined = self._mined(entry, receipt)
        except TransactionFailed as error:
            place = self._unsettled_place(receipt)
            if not entry.is_dropped or place != entry.failed_at:
                spent = self._spent(receipt)
                self._notes.append(Dropped(record, error.message, spent, place))
        else:
            if mined != entry.mined:
                self._notes.append(Seen(record, mined, is_known=_same_block(mined, entry.mined)))
            if entry.mined is None:
                self.newly_mined.append((record, mined))
        self._drop(others, "another transaction of its nonce was mined")
        self._forget(record)
        if entry.mined is None and entry.failed_at is None:
            self._after_mined()

    def _unsettled_place(self, receipt: dict[str, Any]) -> Place | None:
        """Return the block of a receipt; None if it is final."""
        number = parse_quantity(receipt.get("blockNumber"))
        if self._state_of(number) is AnchorState.FINALIZED:
            return None
        return Place(number, parse_data(receipt.get("blockHash"), size_bytes=HASH_BYTES))

    def _mined(self, entry: JournalEntry, receipt: dict[str, Any]) -> Mined:
        """Return where a transaction stands and how settled that is."""
        record, known = entry.record, entry.mined
        block_hash = parse_data(receipt.get("blockHash"), size_bytes=HASH_BYTES)
        if known is not None and known.heads[0].block_hash == block_hash:
            state = self._state_of(known.heads[0].block_number)
            if state is known.state:
                return known
            heads = tuple(dataclasses.replace(head, state=state) for head in known.heads)
            return Mined(heads, known.spent)
        events = confirm_all(
            receipt,
            contract=record.contract,
            publisher=record.publisher,
            members=[(x.log_id, x.tree_size, x.root) for x in record.members],
        )
        spent = self._spent(receipt)
        number = events[0].block_number
        head = AnchoredHead(
            tree_size=0,
            root=b"",
            sequence=0,
            block_number=number,
            block_hash=block_hash,
            tx_hash=record.tx_hash,
            timestamp=spent.timestamp,
            state=self._state_of(number),
        )
        return Mined(
            tuple(
                dataclasses.replace(head, tree_size=x.tree_size, root=x.root, sequence=x.sequence)
                for x in events
            ),
            spent,
        )

    def _spent(self, receipt: dict[str, Any]) -> Spent:
        block, number = self._newest, receipt.get("blockNumber")
        block_hash = parse_data(receipt.get("blockHash"), size_bytes=HASH_BYTES)
        if block is None or block.block_hash != block_hash:
            found = self._reader.rpc.call("eth_getBlockByNumber", number, _WITHOUT_BODIES)
            block = read_block(found)
        if block.block_hash != block_hash or block.number != parse_quantity(number):
            raise ChainUnreachable("a block changed while it was read", next_step="look again")
        return Spent(
            gas_used=parse_quantity(receipt.get("gasUsed")),
            gas_price_wei=parse_quantity(receipt.get("effectiveGasPrice", "0x0")),
            timestamp=block.timestamp,
        )

    def _state_of(self, block_number: int) -> AnchorState:
        """Return how settled a block is that a receipt names; the most settled comes first."""
        for state, number in self._settled.items():
            if number >= block_number:
                return state
        return AnchorState.MINED

    def _lost(self, entries: Sequence[JournalEntry]) -> tuple[JournalEntry, ...]:
        """Note that the chain no longer has what it had; the one it had comes first again."""
        found: list[JournalEntry] = []
        for entry in entries:
            if entry.mined is not None or entry.failed_at is not None:
                self._notes.append(Lost(entry.record))
                found.insert(0, JournalEntry(entry.record))
            else:
                found.append(entry)
        return tuple(found)

    def _drop(self, entries: Sequence[JournalEntry], reason: str) -> None:
        for entry in entries:
            self._forget(entry.record)
            if not entry.is_dropped:
                self._notes.append(Dropped(entry.record, reason))

    # --- sending ----------------------------------------------------------------------

    def _resend(self, nonce: int, waiting: dict[int, tuple[JournalEntry, ...]]) -> Flight | None:
        """Send what is pending, in the order of nonces; drop what a gap keeps from the chain."""
        flight = None
        for number, entries in waiting.items():
            if number != nonce:
                self._drop(entries, "the chain went back past transactions unknown here")
                continue
            alive = tuple(x for x in entries if not x.is_dropped)
            self._pending.append(entries)
            self._broadcast(alive[0].record)
            if len(alive) > 1 and not self._was_mined(alive[0]):
                self._broadcast(alive[-1].record)
            flight = flight or self._flight(alive)
            nonce += 1
        return flight

    def _was_mined(self, entry: JournalEntry) -> bool:
        return find_receipt(self._reader.rpc, entry.record.tx_hash) is not None

    def _flight(self, entries: Sequence[JournalEntry]) -> Flight:
        alive = tuple(entry for entry in entries if not entry.is_dropped)
        tx_hash = alive[-1].record.tx_hash
        since_s = self._since_s.setdefault(tx_hash, self._now_s())
        return Flight(alive, since_s, tx_hash in self._refused)

    def _broadcast(self, record: AnchorRecord) -> None:
        self._since_s.setdefault(record.tx_hash, self._now_s())
        self.view = None
        try:
            broadcast(self._reader.rpc, record.raw)
        except RpcError as error:
            words = str(error).lower()
            if any(part in words for part in _NO_FUNDS):
                raise InsufficientFunds(
                    f"{record.publisher} cannot pay for an anchor",
                    next_step="send ether to that address; the anchor is kept and sent again",
                ) from error
            if not any(part in words for part in _PRICE):
                raise
            self._refused.add(record.tx_hash)
        else:
            self._refused.discard(record.tx_hash)

    def _forget(self, record: AnchorRecord) -> None:
        self._since_s.pop(record.tx_hash, None)
        self._refused.discard(record.tx_hash)


def _hashes(groups: Iterable[tuple[int, Sequence[JournalEntry]]]) -> list[bytes]:
    return [entry.record.tx_hash for _, entries in groups for entry in entries]


def _same_block(one: Mined, other: Mined | None) -> bool:
    return other is not None and one.heads[0].block_hash == other.heads[0].block_hash
