"""What the chain shows at the beginning of a step, asked for all at once.

Over one connection to one node a step's questions take one exchange instead of a dozen; they
are those that do not depend on each other's answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader, AnchorState
from rlhf_audit_trail.ledger.chain.errors import ChainUnreachable, RpcError
from rlhf_audit_trail.ledger.chain.node.rpc import parse_data, parse_quantity
from rlhf_audit_trail.ledger.chain.signing.transaction import DEFAULT_TIP_WEI
from rlhf_audit_trail.ledger.proof.merkle import HASH_BYTES

__all__ = [
    "BlockView",
    "ChainView",
    "Place",
    "hashes_at",
    "look",
    "look_again",
    "mined_receipt",
    "read_block",
]

_TAGS: Final = (AnchorState.FINALIZED, AnchorState.SAFE)
_WITHOUT_BODIES: Final = False


@dataclass(frozen=True)
class Place:
    """A block as it was seen: its number, and its hash of 32 bytes."""

    block_number: int
    block_hash: bytes


@dataclass(frozen=True)
class BlockView:
    """The block at which everything of one step is read.

    Attributes:
        number: of the block.
        timestamp: Unix seconds.
        base_fee_wei: per unit of gas.
        block_hash: 32 bytes.
    """

    number: int
    timestamp: int
    base_fee_wei: int
    block_hash: bytes


@dataclass(frozen=True)
class ChainView:
    """The pinned chain and the publisher's account, as one look found them.

    Attributes:
        nonce: the account's next one, by the newest block.
        balance_wei: of the account.
        tip_wei: the usual one.
        newest: the newest block.
        settled: number of the newest finalized and of the newest safe block; -1 for none.
        receipts: by transaction hash; None for what is not mined.
        standing: those of the blocks that were asked for that are still the chain's.
    """

    nonce: int
    balance_wei: int
    tip_wei: int
    newest: BlockView
    settled: dict[AnchorState, int]
    receipts: dict[bytes, dict[str, Any] | None]
    standing: frozenset[Place]


def look(
    reader: AnchorReader,
    publisher: str,
    tx_hashes: Sequence[bytes] = (),
    *,
    places: Sequence[Place] = (),
) -> ChainView:
    """Ask for all of it, and check first that this is the pinned chain and contract.

    Args:
        reader: the pinned chain and contract.
        publisher: address of the account.
        tx_hashes: whose receipts are wanted.
        places: blocks that should stand.

    Raises:
        WrongChain, NoContractCode, WrongContractCode: not what was pinned.
        ChainUnreachable, RpcError: no answer, or the node's refusal.
    """
    calls: list[tuple[str, Sequence[Any]]] = [
        *reader.questions,
        ("eth_getTransactionCount", (publisher, "latest")),
        ("eth_getBalance", (publisher, "latest")),
        ("eth_getBlockByNumber", ("latest", _WITHOUT_BODIES)),
        *(("eth_getBlockByNumber", (tag.value, _WITHOUT_BODIES)) for tag in _TAGS),
        ("eth_maxPriorityFeePerGas", ()),
        *(("eth_getTransactionReceipt", (f"0x{tx_hash.hex()}",)) for tx_hash in tx_hashes),
        *(("eth_getBlockByNumber", (hex(x.block_number), _WITHOUT_BODIES)) for x in places),
    ]
    answers = reader.rpc.call_together(calls)
    chain_id, code, nonce, balance, newest, final, safe, tip, *rest = answers
    reader.require_answers(_said(chain_id), _said(code))
    receipts = [_said(answer) for answer in rest[: len(tx_hashes)]]
    return ChainView(
        nonce=parse_quantity(_said(nonce)),
        balance_wei=parse_quantity(_said(balance)),
        # not every node offers the method
        tip_wei=DEFAULT_TIP_WEI if isinstance(tip, RpcError) else parse_quantity(tip),
        newest=read_block(_said(newest)),
        settled={
            tag: -1 if block is None else parse_quantity(block.get("number"))
            for tag, block in zip(_TAGS, map(_or_none, (final, safe)), strict=True)
        },
        receipts={
            tx_hash: mined_receipt(receipt)
            for tx_hash, receipt in zip(tx_hashes, receipts, strict=True)
        },
        standing=frozenset(
            place
            for place, block in zip(places, rest[len(tx_hashes) :], strict=True)
            if _hash_of(block) == place.block_hash
        ),
    )


def read_block(block: Any) -> BlockView:
    """Read what a node answered for a block.

    Raises:
        ChainUnreachable: it is not one.
    """
    if not isinstance(block, dict):
        raise ChainUnreachable("the node answered something that is not a block")
    return BlockView(
        number=parse_quantity(block.get("number")),
        timestamp=parse_quantity(block.get("timestamp")),
        base_fee_wei=parse_quantity(block.get("baseFeePerGas", "0x0")),
        block_hash=parse_data(block.get("hash"), size_bytes=HASH_BYTES),
    )


def look_again(
    reader: AnchorReader, tx_hashes: Sequence[bytes]
) -> tuple[BlockView, dict[bytes, dict[str, Any] | None]]:
    """Ask for receipts alone, and for the newest block, in which they likely stand.

    Raises:
        ChainUnreachable, RpcError: no answer, or the node's refusal.
    """
    calls: list[tuple[str, Sequence[Any]]] = [
        ("eth_getTransactionReceipt", (f"0x{tx_hash.hex()}",)) for tx_hash in tx_hashes
    ]
    calls.append(("eth_getBlockByNumber", ("latest", _WITHOUT_BODIES)))
    *found, newest = map(_said, reader.rpc.call_together(calls))
    receipts = dict(zip(tx_hashes, map(mined_receipt, found), strict=True))
    return read_block(newest), receipts


def mined_receipt(answer: Any) -> dict[str, Any] | None:
    """Return a receipt, or None if it is none of a mined transaction."""
    return answer if isinstance(answer, dict) and answer.get("blockHash") else None


def hashes_at(reader: AnchorReader, numbers: Sequence[int]) -> list[bytes]:
    """Return the hashes of the chain's blocks of these numbers; empty for one that is not there.

    Raises:
        ChainUnreachable: no answer.
    """
    calls = [("eth_getBlockByNumber", (hex(number), _WITHOUT_BODIES)) for number in numbers]
    return [_hash_of(answer) for answer in reader.rpc.call_together(calls)]


def _said(answer: Any) -> Any:
    if isinstance(answer, RpcError):
        raise answer
    return answer


def _or_none(answer: Any) -> dict[str, Any] | None:
    """Return a block; a young chain has no settled one, and some nodes say so by an error."""
    return answer if isinstance(answer, dict) else None


def _hash_of(answer: Any) -> bytes:
    block = _or_none(answer)
    return b"" if block is None else parse_data(block.get("hash"), size_bytes=HASH_BYTES)
