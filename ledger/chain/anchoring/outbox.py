"""What one publisher has sent, kept in line with the chain.

The chain is believed over the journal. Of several transactions with one nonce, each an offer
to replace the one before, any may be mined, so all of them are watched until one is final.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from rlhf_audit_trail.ledger.chain.anchoring.offers import Offers
from rlhf_audit_trail.ledger.chain.anchoring.records import (
    SUPERSEDED,
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
)
from rlhf_audit_trail.ledger.chain.anchoring.sightings import Sightings, is_large
from rlhf_audit_trail.ledger.chain.anchoring.vanished import alarm_about, find_vanished
from rlhf_audit_trail.ledger.chain.anchoring.view import ChainView, Place, look, look_again
from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader
from rlhf_audit_trail.ledger.chain.errors import AnchorVanished, TransactionFailed
from rlhf_audit_trail.ledger.chain.signing.transaction import find_receipt

__all__ = ["Flight", "Outbox"]

_logger = logging.getLogger(__name__)

_FIRST_PAUSE_S: Final = 0.0005  # a development chain has mined after a few of them
_LONGEST_PAUSE_S: Final = 1.0
_PAUSE_SHARE: Final = 0.125  # of the time waited so far: whatever a block takes, this much is lost
_LOOK_AGAIN_S: Final = 0.05  # a node may show the new nonce a moment before the receipt

_RESENT_MAX: Final = 64
"""Transactions sent again after the chain lost them: what a reorganisation can take back, two
epochs with one in each block. Where more are gone the chain was reset, and each of them would
take its time and its gas; newer heads supersede them."""


_Groups: TypeAlias = "list[tuple[int, tuple[JournalEntry, ...]]]"  # by nonce, in their order


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
        self._offers = Offers(reader.rpc, now_s=now_s)
        self._pending: list[tuple[JournalEntry, ...]] = []  # by nonce, since the last look
        self._found = Sightings(reader)  # of the present look
        self._notes: list[Note] = []  # not written yet: all that the chain says again if asked
        self.view: ChainView | None = None  # of the last look, until something is sent
        self.superseded: list[JournalEntry] = []  # lost, and too many to be sent again
        self.newly_mined: list[tuple[AnchorRecord, Mined]] = []  # emptied by the caller
        self.vanished: list[AnchorVanished] = []  # emptied by the caller

    def send(self, record: AnchorRecord, *, instead_of: Sequence[JournalEntry] = ()) -> None:
        """Write a signed transaction down, then broadcast it.

        Args:
            record: what was signed.
            instead_of: of `superseded`, what needs not be sent any more: newer heads of its
                logs are on the chain or in this transaction.

        Raises:
            InsufficientFunds: the account cannot pay; it is kept and sent again.
            ChainUnreachable, RpcError: it is kept, and may have arrived all the same.
        """
        self._notes.append(Intended(record))
        self._drop(instead_of, SUPERSEDED)
        dropped = {entry.record.tx_hash for entry in instead_of}
        self.superseded = [x for x in self.superseded if x.record.tx_hash not in dropped]
        self.flush()  # must be durable before a single byte leaves
        same = [x for x in self._pending if x[0].record.nonce == record.nonce]
        self._pending = [x for x in self._pending if x not in same]
        self._pending.append((*(same[0] if same else ()), JournalEntry(record)))
        self._pending.sort(key=lambda entries: entries[0].record.nonce)
        self.view = None
        self._offers.send(record)

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
        self.superseded.clear()
        groups, view = self._look()
        nonce = view.nonce
        self._found.take(view, [entry for _, entries in groups for entry in entries])
        waiting: dict[int, tuple[JournalEntry, ...]] = {}
        self.view = view
        for number, entries in groups:
            if not self._settle(entries):
                waiting[number] = self._lost(entries)  # as they stand in the journal now
            elif number >= nonce:  # mined while the look went on
                self.view = None
        self._drop_passed({x: waiting.pop(x) for x in list(waiting) if x < nonce})
        return self._resend(nonce, waiting)

    def wait(self, timeout_s: float) -> Flight | None:
        """Wait until everything sent is mined; return what is not after that time.

        Raises:
            ChainUnreachable, RpcError: no answer, or the node's refusal.
        """
        self.view = None
        began_s = self._now_s()
        while True:
            if self._pending:
                sent = [entry for entries in self._pending for entry in entries]
                hashes = [entry.record.tx_hash for entry in sent]
                self._found.take_new(*look_again(self._reader, hashes), sent)
            self._pending = [entries for entries in self._pending if not self._settle(entries)]
            flight = self._flight(self._pending[0]) if self._pending else None
            waited_s = self._now_s() - began_s
            if flight is None or flight.is_refused or waited_s >= timeout_s:
                self.flush()
                return flight
            time.sleep(min(max(_FIRST_PAUSE_S, waited_s * _PAUSE_SHARE), _LONGEST_PAUSE_S))

    # --- looking ----------------------------------------------------------------------

    def _look(self) -> tuple[_Groups, ChainView]:
        """Read the journal, and all that the chain shows of it; see that the final still stands."""
        groups, last = self._by_nonce(), self._journal.last_final(self._account)
        view = self._look_at(groups, last)
        is_changed = last is not None and last not in view.standing and self._take_back()
        if is_changed or (self._is_back(groups, view) and self._revive()):
            groups = self._by_nonce()
            view = self._look_at(groups)
        return groups, view

    def _look_at(self, groups: _Groups, last: Place | None = None) -> ChainView:
        """Ask for the receipts of all of them, and for the blocks alone of what is large."""
        entries = [entry for _, entries in groups for entry in entries]
        places = {x.mined.place for x in entries if x.mined and is_large(x)}
        places |= {last} if last else set()
        hashes = [entry.record.tx_hash for entry in entries if not is_large(entry)]
        return look(self._reader, self._publisher, hashes, places=list(places))

    def _take_back(self) -> bool:
        """Note as lost what was final and is not on the chain any more, and raise the alarm."""
        gone = find_vanished(self._reader, self._journal.finalized(self._account))
        self._journal.write([Lost(record) for record in reversed(gone)])
        if gone:
            self.vanished.append(alarm_about(gone))
            _logger.error("%s", self.vanished[-1])
        return bool(gone)

    def _is_back(self, groups: _Groups, view: ChainView) -> bool:
        """Whether something is mined that was dropped in favour of another of its nonce."""
        entries = [entry for _, entries in groups for entry in entries if entry.is_dropped]
        return any(view.receipts[x.record.tx_hash] for x in entries if x.failed_at is None)

    def _revive(self) -> bool:
        """Take what was superseded for pending again, as far as it is on the chain after all.

        A node that lags far behind shows a chain that lost much, and then catches up.
        """
        records = [entry.record for entry in self._journal.superseded(self._account)]
        if records:
            _, receipts = look_again(self._reader, [record.tx_hash for record in records])
            records = [record for record in records if receipts[record.tx_hash]]
        self._journal.write([Lost(record) for record in records])
        return bool(records)

    def _by_nonce(self) -> _Groups:
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
            if entry.mined is not None and self._found.stands(entry):
                self._note_mined(entry, self._found.settled(entry.mined))
            elif (receipt := self._found.receipt(entry.record)) is not None:
                self._note(entry, receipt)
            else:
                continue
            others = [other for other in entries if other is not entry]
            self._drop(others, "another transaction of its nonce was mined")
            self._offers.forget(entry.record)
            if entry.mined is None and entry.failed_at is None:
                self._after_mined()
            return True
        return False

    def _drop_passed(self, passed: dict[int, tuple[JournalEntry, ...]]) -> None:
        """Drop what the chain's nonce has passed, unless receipts were only late."""
        if passed:
            time.sleep(_LOOK_AGAIN_S)
        for entries in passed.values():
            if not self._settle(entries):
                self._drop(entries, "its nonce was used by another transaction")

    def _note(self, entry: JournalEntry, receipt: dict[str, Any]) -> None:
        """Write down what a receipt says, if it says anything new."""
        try:
            mined = self._found.mined(entry, receipt)
        except TransactionFailed as error:
            place = self._found.unsettled_place(receipt)
            if not entry.is_dropped or place != entry.failed_at:
                spent = self._found.spent(receipt)
                self._notes.append(Dropped(entry.record, error.message, spent, place))
        else:
            self._note_mined(entry, mined)

    def _note_mined(self, entry: JournalEntry, mined: Mined) -> None:
        if mined != entry.mined:
            is_known = _same_block(mined, entry.mined)
            self._notes.append(Seen(entry.record, mined, is_known=is_known))
        if entry.mined is None:
            self.newly_mined.append((entry.record, mined))

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
            self._offers.forget(entry.record)
            if not entry.is_dropped:
                self._notes.append(Dropped(entry.record, reason))

    # --- sending ----------------------------------------------------------------------

    def _resend(self, nonce: int, waiting: dict[int, tuple[JournalEntry, ...]]) -> Flight | None:
        """Send what is pending, in the order of nonces; drop what a gap keeps from the chain."""
        for number, entries in waiting.items():
            if number != nonce:
                self._drop(entries, "the chain went back past transactions unknown here")
                continue
            self._pending.append(entries)
            nonce += 1
        self._pending, rest = self._pending[:_RESENT_MAX], self._pending[_RESENT_MAX:]
        self.superseded = [x for entries in rest for x in entries if not x.is_dropped]
        if not self._pending:
            return None
        self.view = None
        alive = [[x.record for x in entries if not x.is_dropped] for entries in self._pending]
        self._offers.send_all([offers[0] for offers in alive])
        for offers in alive:
            if len(offers) > 1 and find_receipt(self._reader.rpc, offers[0].tx_hash) is None:
                self._offers.send(offers[-1])
        return self._flight(self._pending[0])

    def _flight(self, entries: Sequence[JournalEntry]) -> Flight:
        alive = tuple(entry for entry in entries if not entry.is_dropped)
        newest = alive[-1].record
        return Flight(alive, self._offers.since_s(newest), self._offers.is_refused(newest))


def _same_block(one: Mined, other: Mined | None) -> bool:
    return other is not None and one.place.block_hash == other.place.block_hash
