"""Transactions on their way to a node: since when each is offered, and which it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from rlhf_audit_trail.ledger.chain.anchoring.records import AnchorRecord
from rlhf_audit_trail.ledger.chain.errors import InsufficientFunds, RpcError
from rlhf_audit_trail.ledger.chain.node.rpc import RpcClient
from rlhf_audit_trail.ledger.chain.signing.transaction import broadcast, broadcast_many

__all__ = ["Offers"]

# One exchange: a development chain mines them before it answers, and nodes bound a request.
_SENT_TOGETHER: Final = 32
_SENT_BYTES: Final = 2**18

_NO_FUNDS: Final = ("insufficient funds", "insufficient balance")

# A refusal of a broadcast that says nothing is wrong but the price, or that it was seen before.
_PRICE: Final = ("underpriced", "less than block base fee", "max fee per gas", "fee too low")


class Offers:
    """Broadcasts transactions, and remembers what came of it; not thread-safe."""

    def __init__(self, rpc: RpcClient, *, now_s: Callable[[], float]) -> None:
        """Take the way to the node, and a clock that only goes forward."""
        self._rpc = rpc
        self._now_s = now_s
        self._since_s: dict[bytes, float] = {}  # by transaction, while it is pending
        self._refused: set[bytes] = set()

    def send(self, record: AnchorRecord) -> None:
        """Broadcast one.

        Raises:
            InsufficientFunds: the account cannot pay.
            ChainUnreachable, RpcError: it may have arrived all the same.
        """
        self.since_s(record)
        try:
            broadcast(self._rpc, record.raw)
        except RpcError as error:
            self._heed(record, error)
        else:
            self._heed(record, None)

    def send_all(self, records: Sequence[AnchorRecord]) -> None:
        """Broadcast several in their order: after a reset of the chain there are thousands.

        Raises:
            As `send`.
        """
        for few in _together(records):
            if len(few) == 1:
                self.send(few[0])
                continue
            for record in few:
                self.since_s(record)
            refusals = broadcast_many(self._rpc, [record.raw for record in few])
            for record, refusal in zip(few, refusals, strict=True):
                self._heed(record, refusal)

    def since_s(self, record: AnchorRecord) -> float:
        """Return when this process first saw it pending."""
        return self._since_s.setdefault(record.tx_hash, self._now_s())

    def is_refused(self, record: AnchorRecord) -> bool:
        """Whether the node does not take it at the price it offers."""
        return record.tx_hash in self._refused

    def forget(self, record: AnchorRecord) -> None:
        """Forget one that is mined, or that is offered no more."""
        self._since_s.pop(record.tx_hash, None)
        self._refused.discard(record.tx_hash)

    def _heed(self, record: AnchorRecord, refusal: RpcError | None) -> None:
        """Remember whether the price is too low; raise any other refusal."""
        if refusal is None:
            self._refused.discard(record.tx_hash)
            return
        words = str(refusal).lower()
        if any(part in words for part in _NO_FUNDS):
            raise InsufficientFunds(
                f"{record.publisher} cannot pay for an anchor",
                next_step="send ether to that address; the anchor is kept and sent again",
            ) from refusal
        if not any(part in words for part in _PRICE):
            raise refusal
        self._refused.add(record.tx_hash)


def _together(records: Sequence[AnchorRecord]) -> Iterator[Sequence[AnchorRecord]]:
    """Cut into parts that go in one exchange each."""
    few: list[AnchorRecord] = []
    for record in records:
        size_bytes = sum(len(x.raw) for x in (*few, record))
        if few and (len(few) == _SENT_TOGETHER or size_bytes > _SENT_BYTES):
            yield few
            few = []
        few.append(record)
    if few:
        yield few
