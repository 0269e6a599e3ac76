"""What a look at the chain found of transactions: their receipts, and the blocks they stand in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Final

from rlhf_audit_trail.ledger.chain.anchoring.records import (
    AnchorRecord,
    JournalEntry,
    Mined,
    Spent,
)
from rlhf_audit_trail.ledger.chain.anchoring.view import BlockView, ChainView, Place, read_block
from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader, AnchorState
from rlhf_audit_trail.ledger.chain.contract.writer import confirm_all
from rlhf_audit_trail.ledger.chain.errors import ChainUnreachable
from rlhf_audit_trail.ledger.chain.node.rpc import parse_data, parse_quantity
from rlhf_audit_trail.ledger.chain.signing.transaction import find_receipt
from rlhf_audit_trail.ledger.proof.merkle import HASH_BYTES

__all__ = ["Sightings", "is_large"]

_LARGE: Final = 16  # members; their receipt is larger than a block without bodies
_WITHOUT_BODIES: Final = False


def is_large(entry: JournalEntry) -> bool:
    """Whether its block tells with less than its receipt that it is still mined there."""
    return entry.mined is not None and len(entry.record.members) > _LARGE


class Sightings:
    """The receipts and blocks of the last look; asks for what it did not bring."""

    def __init__(self, reader: AnchorReader) -> None:
        """Take the pinned chain; nothing is asked yet."""
        self._reader = reader
        self._receipts: dict[bytes, dict[str, Any] | None] = {}
        self._settled: dict[AnchorState, int] = {}  # block numbers
        self._standing: frozenset[Place] = frozenset()
        self._blocks: dict[bytes, BlockView] = {}  # by hash

    def take(self, view: ChainView, entries: Iterable[JournalEntry]) -> None:
        """Take what a look at these entries found."""
        self._settled, self._standing = view.settled, view.standing
        self._take(view.newest, view.receipts, entries)

    def take_new(
        self,
        newest: BlockView,
        receipts: Mapping[bytes, dict[str, Any] | None],
        entries: Iterable[JournalEntry],
    ) -> None:
        """Take what a look at entries found that were just sent, so that none is settled."""
        self._settled, self._standing = {}, frozenset()
        self._take(newest, receipts, entries)

    def stands(self, entry: JournalEntry) -> bool:
        """Whether the block it was mined in was seen to be the chain's still."""
        return entry.mined is not None and entry.mined.place in self._standing

    def receipt(self, record: AnchorRecord) -> dict[str, Any] | None:
        """Return its receipt if it is mined; what the look brought is used once."""
        if record.tx_hash in self._receipts:
            return self._receipts.pop(record.tx_hash)
        return find_receipt(self._reader.rpc, record.tx_hash)

    def settled(self, mined: Mined) -> Mined:
        """Return the same with how settled its block is now."""
        return dataclasses.replace(mined, state=self._state_of(mined.place.block_number))

    def mined(self, entry: JournalEntry, receipt: dict[str, Any]) -> Mined:
        """Return where a transaction stands and how settled that is.

        Raises:
            TransactionFailed: it was mined without effect.
            ChainUnreachable: its block changed meanwhile.
        """
        record, known = entry.record, entry.mined
        place = _place_of(receipt)
        if known is not None and known.place.block_hash == place.block_hash:
            return self.settled(known)
        sequences = confirm_all(
            receipt,
            contract=record.contract,
            publisher=record.publisher,
            members=[(x.log_id, x.tree_size, x.root) for x in record.members],
        )
        return Mined(self._state_of(place.block_number), place, sequences, self.spent(receipt))

    def unsettled_place(self, receipt: dict[str, Any]) -> Place | None:
        """Return the block of a receipt; None if it is final."""
        place = _place_of(receipt)
        is_final = self._state_of(place.block_number) is AnchorState.FINALIZED
        return None if is_final else place

    def spent(self, receipt: dict[str, Any]) -> Spent:
        """Return what a mined transaction cost.

        Raises:
            ChainUnreachable: its block changed meanwhile.
        """
        place = _place_of(receipt)
        block = self._blocks.get(place.block_hash)
        if block is None:
            number = receipt.get("blockNumber")
            found = self._reader.rpc.call("eth_getBlockByNumber", number, _WITHOUT_BODIES)
            block = read_block(found)
        if Place(block.number, block.block_hash) != place:
            raise ChainUnreachable("a block changed while it was read", next_step="look again")
        return Spent(
            gas_used=parse_quantity(receipt.get("gasUsed")),
            gas_price_wei=parse_quantity(receipt.get("effectiveGasPrice", "0x0")),
            timestamp=block.timestamp,
        )

    def _take(
        self,
        newest: BlockView,
        receipts: Mapping[bytes, dict[str, Any] | None],
        entries: Iterable[JournalEntry],
    ) -> None:
        """Read together the blocks of what is newly mined; most often it is the newest one."""
        self._receipts, self._blocks = dict(receipts), {newest.block_hash: newest}
        numbers = set()
        for entry in entries:
            receipt, place = receipts.get(entry.record.tx_hash), entry.place
            known = (newest.block_hash, place and place.block_hash)
            if receipt and parse_data(receipt.get("blockHash")) not in known:
                numbers.add(str(receipt.get("blockNumber")))
        calls = [("eth_getBlockByNumber", (number, _WITHOUT_BODIES)) for number in sorted(numbers)]
        for found in self._reader.rpc.call_together(calls):
            if isinstance(found, dict):  # what is missing is asked for again, alone
                block = read_block(found)
                self._blocks[block.block_hash] = block

    def _state_of(self, block_number: int) -> AnchorState:
        """Return how settled a block is that a receipt names; the most settled comes first."""
        for state, number in self._settled.items():
            if number >= block_number:
                return state
        return AnchorState.MINED


def _place_of(receipt: dict[str, Any]) -> Place:
    block_hash = parse_data(receipt.get("blockHash"), size_bytes=HASH_BYTES)
    return Place(parse_quantity(receipt.get("blockNumber")), block_hash)
