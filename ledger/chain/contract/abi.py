"""The few calls, answers and errors of `TreeHeadAnchor` as bytes; standard library only.

Solidity's ABI puts each static value into a word of 32 bytes, and a dynamic one behind an
offset. What comes back is parsed strictly: exact lengths, no bits above a type's width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rlhf_audit_trail.ledger.chain.contract.compiled import load_artifact
from rlhf_audit_trail.ledger.chain.errors import ChainUnreachable
from rlhf_audit_trail.ledger.chain.node.rpc import parse_data, parse_quantity

__all__ = [
    "ANCHOR",
    "ANCHORED_EVENT",
    "ANCHOR_MANY",
    "HEAD",
    "MAX_CONTRACT_SIZE",
    "AnchoredEvent",
    "Head",
    "HeadUpdate",
    "address_word",
    "decode_event",
    "decode_head",
    "encode_anchor",
    "encode_anchor_many",
    "encode_head_call",
    "event_texts",
    "explain_revert",
    "record_sequence",
    "record_text",
]

WORD_BYTES: Final = 32
_ADDRESS_BYTES: Final = 20
_SELECTOR_BYTES: Final = 4
_EVENT_TOPICS: Final = 4  # the signature and three indexed values
MAX_CONTRACT_SIZE: Final = 2**64 - 1  # uint64 treeSize

ANCHOR: Final = "anchor(bytes32,uint64,bytes32,bytes32[])"
ANCHOR_MANY: Final = "anchorMany((bytes32,uint64,bytes32,bytes32[])[])"
HEAD: Final = "head(address,bytes32)"
ANCHORED_EVENT: Final = "TreeHeadAnchored(address,bytes32,uint64,uint64,bytes32)"


@dataclass(frozen=True)
class Head:
    """The newest tree head the contract holds for one publisher and log; size 0 means none.

    Attributes:
        root: 32 bytes.
        tree_size: count of leaves.
        timestamp: of the anchoring block, Unix seconds.
        block_number: of the anchoring block.
        sequence: count of anchors so far, 1 for the first.
    """

    root: bytes
    tree_size: int
    timestamp: int
    block_number: int
    sequence: int


@dataclass(frozen=True)
class HeadUpdate:
    """One tree head to anchor, as `anchor` and `anchorMany` take it.

    Attributes:
        log_id: 32 bytes.
        tree_size: count of leaves, above the anchored one.
        root: 32 bytes.
        proof: consistency proof from the anchored head, 32 bytes each; empty for the first.
    """

    log_id: bytes
    tree_size: int
    root: bytes
    proof: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class AnchoredEvent:
    """One `TreeHeadAnchored` event and where it stands."""

    publisher: str
    log_id: bytes
    sequence: int
    tree_size: int
    root: bytes
    block_number: int
    block_hash: bytes
    tx_hash: bytes


def encode_anchor(log_id: bytes, tree_size: int, root: bytes, proof: Sequence[bytes]) -> bytes:
    """Write a call of `anchor`; ids and hashes are 32 bytes each."""
    if not 0 <= tree_size <= MAX_CONTRACT_SIZE:
        raise ValueError("a tree size is an unsigned number of 64 bits")
    words = [log_id, _number(tree_size), root, _number(4 * WORD_BYTES), _number(len(proof)), *proof]
    if set(map(len, words)) != {WORD_BYTES}:
        raise ValueError("ids and hashes are 32 bytes each")
    return load_artifact().functions[ANCHOR] + b"".join(words)


def encode_anchor_many(updates: Sequence[HeadUpdate]) -> bytes:
    """Write a call of `anchorMany`: an array of dynamic tuples, each behind an offset."""
    # a tuple is encoded like the arguments of a call
    bodies = [
        encode_anchor(item.log_id, item.tree_size, item.root, item.proof)[_SELECTOR_BYTES:]
        for item in updates
    ]
    offset, offsets = WORD_BYTES * len(bodies), []
    for body in bodies:
        offsets.append(_number(offset))
        offset += len(body)
    words = [_number(WORD_BYTES), _number(len(bodies)), *offsets]
    return load_artifact().functions[ANCHOR_MANY] + b"".join((*words, *bodies))


def encode_head_call(publisher: str, log_id: bytes) -> bytes:
    """Write a call of `head`."""
    if len(log_id) != WORD_BYTES:
        raise ValueError("a log id is 32 bytes")
    return load_artifact().functions[HEAD] + address_word(publisher) + log_id


def address_word(address: str) -> bytes:
    """Return an address such as `0x4e59…` as a word, its 20 bytes at the end."""
    data = bytes.fromhex(address.removeprefix("0x"))
    if len(data) != _ADDRESS_BYTES:
        raise ValueError("an address is 20 bytes")
    return data.rjust(WORD_BYTES, b"\0")


def decode_head(answer: Any) -> Head:
    """Read what `head` answered.

    Raises:
        ChainUnreachable: the answer is not one; nothing there answers like the contract.
    """
    data = parse_data(answer, size_bytes=5 * WORD_BYTES)
    root, *numbers = _words(data)
    tree_size, timestamp, block_number, sequence = (_uint64(word) for word in numbers)
    return Head(root, tree_size, timestamp, block_number, sequence)


def decode_event(record: Any) -> AnchoredEvent | None:
    """Read a log record of a receipt; None if it is another event.

    Raises:
        ChainUnreachable: the record is malformed.
    """
    if not isinstance(record, dict) or not isinstance(record.get("topics"), list):
        raise ChainUnreachable("the node answered something that is not an event")
    topics = [parse_data(topic, size_bytes=WORD_BYTES) for topic in record["topics"]]
    if not topics or topics[0] != load_artifact().events[ANCHORED_EVENT]:
        return None
    if len(topics) != _EVENT_TOPICS:
        raise ChainUnreachable("the node answered an event with values missing")
    tree_size, root = _words(parse_data(record.get("data"), size_bytes=2 * WORD_BYTES))
    return AnchoredEvent(
        publisher=f"0x{topics[1][12:].hex()}",
        log_id=topics[2],
        sequence=_uint64(topics[3]),
        tree_size=_uint64(tree_size),
        root=root,
        block_number=parse_quantity(record.get("blockNumber")),
        block_hash=parse_data(record.get("blockHash"), size_bytes=WORD_BYTES),
        tx_hash=parse_data(record.get("transactionHash"), size_bytes=WORD_BYTES),
    )


def event_texts(publisher: str, heads: Iterable[tuple[bytes, int, bytes]]) -> list[str]:
    """Return all that anchors' events say but their sequences, as `record_text` spells it.

    Args:
        publisher: address.
        heads: log id, tree size and root of each.
    """
    same = (load_artifact().events[ANCHORED_EVENT] + address_word(publisher)).hex()
    return [
        f"{same}{log_id.hex()}{tree_size:064x}{root.hex()}" for log_id, tree_size, root in heads
    ]


def record_text(record: Any) -> str:
    """Return topics and data of a log record but for the last topic; empty if it is another event.

    Comparing texts takes a fraction of decoding, and a receipt may hold hundreds of records.
    """
    try:
        signature, publisher, log_id, _ = record["topics"]
        words = signature[2:], publisher[2:], log_id[2:], record["data"][2:]
        return "".join(words).lower()
    except (KeyError, TypeError, ValueError):
        return ""


def record_sequence(record: Any) -> int:
    """Return the sequence in the log record of an anchor.

    Raises:
        ChainUnreachable: the record is malformed.
    """
    return _uint64(parse_data(record["topics"][-1], size_bytes=WORD_BYTES))


def explain_revert(data: Any) -> tuple[str, tuple[int, ...]]:
    """Name the contract's error in a revert, with its numbers; an empty name if it is none."""
    if not isinstance(data, str) or not data.startswith("0x"):
        return "", ()
    try:
        raw = bytes.fromhex(data[2:])
    except ValueError:
        return "", ()
    selector, rest = raw[:_SELECTOR_BYTES], raw[_SELECTOR_BYTES:]
    for signature, known in load_artifact().errors.items():
        if selector == known and len(rest) % WORD_BYTES == 0:
            numbers = tuple(int.from_bytes(word) for word in _words(rest))
            return signature.split("(", maxsplit=1)[0], numbers
    return "", ()


def _number(value: int) -> bytes:
    return value.to_bytes(WORD_BYTES)


def _uint64(word: bytes) -> int:
    value = int.from_bytes(word)
    if value > MAX_CONTRACT_SIZE:
        raise ChainUnreachable("the node answered a number of more than 64 bits")
    return value


def _words(data: bytes) -> list[bytes]:
    return [data[start : start + WORD_BYTES] for start in range(0, len(data), WORD_BYTES)]
