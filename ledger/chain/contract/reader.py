"""Read anchors from a node: what an auditor asks a chain; standard library only.

Every answer is as trustworthy as the node that gives it. Chain id, contract, publisher and log
id come from the reader's own trust policy, never from the party under check.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from rlhf_audit_trail.ledger.chain.contract.abi import (
    ANCHORED_EVENT,
    AnchoredEvent,
    Head,
    address_word,
    decode_event,
    decode_head,
    encode_head_call,
)
from rlhf_audit_trail.ledger.chain.contract.compiled import load_artifact
from rlhf_audit_trail.ledger.chain.errors import (
    ChainUnreachable,
    NoContractCode,
    RpcError,
    WrongChain,
    WrongContractCode,
)
from rlhf_audit_trail.ledger.chain.node.rpc import RpcClient, parse_data, parse_quantity

__all__ = [
    "AnchorReader",
    "AnchorState",
    "AnchoredHead",
    "Head",
    "read_anchored",
    "read_head",
]

_TAGS: Final = ("finalized", "safe")
_WITHOUT_BODIES: Final = False


class AnchorState(StrEnum):
    """How settled an anchor is; only a finalized one is reported as anchored."""

    PENDING = "pending"
    MINED = "mined"
    SAFE = "safe"
    FINALIZED = "finalized"


@dataclass(frozen=True)
class AnchoredHead:
    """A tree head as the chain shows it.

    Attributes:
        tree_size: count of leaves.
        root: 32 bytes.
        sequence: count of anchors of the log up to this one.
        block_number: of the block it stands in.
        block_hash: 32 bytes.
        tx_hash: 32 bytes.
        timestamp: the block's, Unix seconds: the tree head is not younger.
        state: mined, safe or finalized, at the moment of reading.
    """

    tree_size: int
    root: bytes
    sequence: int
    block_number: int
    block_hash: bytes
    tx_hash: bytes
    timestamp: int
    state: AnchorState


class AnchorReader:
    """Reads one contract on one chain through one node."""

    def __init__(self, rpc: RpcClient, *, chain_id: int, contract: str) -> None:
        """Remember what is pinned; nothing is asked yet."""
        self.rpc = rpc
        self.chain_id = chain_id
        self.contract = contract.lower()

    def check(self) -> None:
        """Make sure that this is the pinned chain, with our very code at the address.

        Without code there, every call succeeds and nothing is anchored.

        Raises:
            WrongChain: another chain id.
            NoContractCode: no code at the address.
            WrongContractCode: other code.
        """
        self.require_answers(*(self.rpc.call(method, *params) for method, params in self.questions))

    @property
    def questions(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """The calls whose answers show that this is the pinned chain and contract."""
        return ("eth_chainId", ()), ("eth_getCode", (self.contract, "latest"))

    def require_answers(self, chain_id: Any, code_text: Any) -> None:
        """Judge the answers to `questions`; raises as `check`."""
        found = parse_quantity(chain_id)
        if found != self.chain_id:
            raise WrongChain(
                f"the node serves chain {found}, not the pinned chain {self.chain_id}",
                next_step="point the RPC address at a node of the pinned chain",
            )
        code = parse_data(code_text)
        if not code:
            raise NoContractCode(
                f"there is no code at {self.contract} on chain {self.chain_id}",
                next_step="deploy the contract there, or correct its address",
            )
        if code != load_artifact().runtime:
            raise WrongContractCode(
                f"the code at {self.contract} on chain {self.chain_id} is not TreeHeadAnchor",
                next_step="correct the address, or use the release that matches the contract",
            )

    def head(self, publisher: str, log_id: bytes, *, block: str = "latest") -> Head:
        """Return the newest anchored head at a block; size 0 if there is none.

        Raises:
            ChainUnreachable: no usable answer, such as from an address without code.
        """
        call = {"to": self.contract, "data": f"0x{encode_head_call(publisher, log_id).hex()}"}
        return decode_head(self.rpc.call("eth_call", call, block))

    def events(
        self, publisher: str, log_id: bytes, *, from_block: int = 0
    ) -> tuple[AnchoredEvent, ...]:
        """Return the log's anchors from a block on, oldest first."""
        records = self.rpc.call(
            "eth_getLogs",
            {
                "address": self.contract,
                "fromBlock": hex(from_block),
                "toBlock": "latest",
                "topics": [
                    f"0x{load_artifact().events[ANCHORED_EVENT].hex()}",
                    f"0x{address_word(publisher).hex()}",
                    f"0x{log_id.hex()}",
                ],
            },
        )
        if not isinstance(records, list):
            raise ChainUnreachable("the node answered something that is not a list of events")
        events = [decode_event(record) for record in records]
        return tuple(sorted((e for e in events if e is not None), key=lambda e: e.sequence))

    def anchored(
        self, publisher: str, log_id: bytes, tree_size: int, *, from_block: int = 0
    ) -> AnchoredHead | None:
        """Return the anchor of exactly that size, or None if that size was never anchored."""
        for event in self.events(publisher, log_id, from_block=from_block):
            if event.tree_size == tree_size:
                return self.place(event)
        return None

    def place(self, event: AnchoredEvent) -> AnchoredHead:
        """Add the block's time and state to an event.

        Raises:
            ChainUnreachable: the block is not on the chain any more; ask again.
        """
        block = self._block(hex(event.block_number))
        if block is None or parse_data(block.get("hash")) != event.block_hash:
            raise ChainUnreachable(f"block {event.block_number} changed while it was read")
        return AnchoredHead(
            tree_size=event.tree_size,
            root=event.root,
            sequence=event.sequence,
            block_number=event.block_number,
            block_hash=event.block_hash,
            tx_hash=event.tx_hash,
            timestamp=parse_quantity(block.get("timestamp")),
            state=self.state_of(event.block_number, event.block_hash),
        )

    def state_of(self, block_number: int, block_hash: bytes) -> AnchorState:
        """Return how settled a block is; pending if the chain no longer has it."""
        block = self._block(hex(block_number))
        if block is None or parse_data(block.get("hash")) != block_hash:
            return AnchorState.PENDING
        for tag in _TAGS:
            settled = self._block(tag)
            if settled is not None and parse_quantity(settled.get("number")) >= block_number:
                return AnchorState(tag)
        return AnchorState.MINED

    def _block(self, number_or_tag: str) -> dict[str, Any] | None:
        try:
            block = self.rpc.call("eth_getBlockByNumber", number_or_tag, _WITHOUT_BODIES)
        except RpcError:
            if number_or_tag in _TAGS:  # a young chain has no such block, and some nodes say so
                return None
            raise
        if block is not None and not isinstance(block, dict):
            raise ChainUnreachable("the node answered something that is not a block")
        return block


def read_head(url: str, *, chain_id: int, contract: str, publisher: str, log_id: bytes) -> Head:
    """Ask a node for the newest anchored head, after checking chain and contract code.

    Raises:
        ChainUnreachable, WrongChain, NoContractCode, WrongContractCode: see `AnchorReader.check`.
    """
    with RpcClient(url) as rpc:
        reader = AnchorReader(rpc, chain_id=chain_id, contract=contract)
        reader.check()
        return reader.head(publisher, log_id)


def read_anchored(
    url: str, *, chain_id: int, contract: str, publisher: str, log_id: bytes, tree_size: int
) -> AnchoredHead | None:
    """Ask a node for the anchor of exactly that size, after checking chain and contract code.

    Raises:
        ChainUnreachable, WrongChain, NoContractCode, WrongContractCode: see `AnchorReader.check`.
    """
    with RpcClient(url) as rpc:
        reader = AnchorReader(rpc, chain_id=chain_id, contract=contract)
        reader.check()
        return reader.anchored(publisher, log_id, tree_size)
