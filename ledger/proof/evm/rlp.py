"""RLP, the encoding of Ethereum's headers, accounts, receipts and trie nodes.

An item is bytes, or a list of items. Each has exactly one encoding, and only that is read:
decoded, encoded again, and compared. Reference: Ethereum Yellow Paper, appendix B.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias, Union

from rlhf_audit_trail.ledger.proof.errors import MalformedBundle

Item: TypeAlias = Union[bytes, list["Item"]]  # noqa: UP007 - a quoted name has no |
Encodable: TypeAlias = Union[bytes, Sequence["Encodable"]]  # noqa: UP007

MAX_DEPTH: Final = 72  # a path has 64 digits at most, and with them as many nodes
_TEXT: Final = 0x80
_LIST: Final = 0xC0
_SHORT_MAX: Final = 55  # a longer payload has its length written out behind the first byte


def decode(data: bytes) -> Item:
    """Read one item that is all of `data`, else MalformedBundle."""
    item, end = _item(data, 0, MAX_DEPTH)
    if end != len(data) or encode(item) != data:
        raise MalformedBundle("RLP in another than its one spelling, or with something after it")
    return item


def encode(item: Encodable) -> bytes:
    """Write an item."""
    if isinstance(item, bytes):
        if len(item) == 1 and item[0] < _TEXT:
            return item
        return _prefix(_TEXT, len(item)) + item
    payload = b"".join(map(encode, item))
    return _prefix(_LIST, len(payload)) + payload


def write_number(number: int) -> bytes:
    """Return a number as the bytes that stand for it: big-endian, without leading zeros."""
    return number.to_bytes((number.bit_length() + 7) // 8)


def read_number(item: Item, *, size_bytes: int) -> int:
    """Read a number of at most so many bytes, without leading zeros, else MalformedBundle."""
    if not isinstance(item, bytes) or len(item) > size_bytes or item[:1] == b"\0":
        raise MalformedBundle("a number has leading zeros, too many bytes, or is none")
    return int.from_bytes(item)


def _prefix(kind: int, length: int) -> bytes:
    if length <= _SHORT_MAX:
        return bytes([kind + length])
    written = write_number(length)
    return bytes([kind + _SHORT_MAX + len(written)]) + written


def _item(data: bytes, at: int, depth: int) -> tuple[Item, int]:
    """Read the item at `at`, and return with it where it ends; its spelling is checked later."""
    if not depth or at >= len(data):
        raise MalformedBundle("RLP that ends too early, or is nested too deep")
    first = data[at]
    if first < _TEXT:
        return data[at : at + 1], at + 1
    kind = _LIST if first >= _LIST else _TEXT
    at, length = at + 1, first - kind
    if length > _SHORT_MAX:
        begin, at = at, at + length - _SHORT_MAX
        length = int.from_bytes(data[begin:at])
    end = at + length
    if end > len(data):
        raise MalformedBundle("RLP that ends too early")
    if kind == _TEXT:
        return data[at:end], end
    items: list[Item] = []
    while at < end:
        item, at = _item(data, at, depth - 1)
        items.append(item)
    if at != end:
        raise MalformedBundle("an RLP item reaches beyond its list")
    return items, end
