"""Merkle-Patricia tries: what a root hash says about a few keys.

A proof is the trie itself, cut down: nodes on the way to the keys stand written out in the place
where their parent has their hash. So there is no order of nodes to get wrong, and none stands
twice. Hashed together from the leaves to the root, they must give the root that is known.
Reference: Ethereum Yellow Paper, appendix D.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from rlhf_audit_trail.ledger.proof.errors import Inconsistent, MalformedBundle
from rlhf_audit_trail.ledger.proof.evm.keccak import keccak256
from rlhf_audit_trail.ledger.proof.evm.rlp import Item, encode

HASH_BYTES: Final = 32
BRANCH_ITEMS: Final = 17  # a child for each hex digit, and a value
PAIR_ITEMS: Final = 2  # extension and leaf: part of a key, and what follows
ODD, LEAF = 1, 2  # flags in the first hex digit of such a part

Keys = Mapping[str, bytes]
"""What is left of each key below a node, in hex digits, to the whole key."""


def look_up(root: bytes, trie: Item, keys: Sequence[bytes]) -> list[bytes]:
    """Return the values that the trie with this root holds at all of `keys`.

    Raises:
        MalformedBundle: this is no trie, a node is missing on the way to a key, or there is one
            on the way to none.
        Inconsistent: it has another root, or holds nothing at one of the keys.
    """
    found: dict[bytes, bytes] = {}
    node = _hash_children(trie, {key.hex(): key for key in keys}, found) if trie != b"" else b""
    actual = keccak256(encode(node))
    if actual != root:
        raise Inconsistent(
            "the nodes do not lead to the root", expected=root.hex(), actual=actual.hex()
        )
    for key in keys:
        if not found.get(key):
            raise Inconsistent("the chain holds nothing there", expected=f"a value at {key.hex()}")
    return [found[key] for key in keys]


def _hash_children(node: Item, keys: Keys, found: dict[bytes, bytes]) -> list[Item]:
    """Return the node as it is hashed: children written out replaced by what names them.

    Values of `keys` are put into `found`; they are shown only once the root fits.
    """
    if not isinstance(node, list) or len(node) not in (BRANCH_ITEMS, PAIR_ITEMS):
        raise MalformedBundle("this is no node of a trie")
    if len(node) == BRANCH_ITEMS:
        if "" in keys:
            found[keys[""]] = _value(node[-1])
        return [
            *(
                _name(child, {x[1:]: key for x, key in keys.items() if x[:1] == f"{n:x}"}, found)
                for n, child in enumerate(node[:-1])
            ),
            _value(node[-1]),
        ]
    part, is_leaf = read_part(node[0])
    below = {x[len(part) :]: key for x, key in keys.items() if x.startswith(part)}
    if is_leaf:
        if "" in below:
            found[below[""]] = _value(node[1])
        return [node[0], _value(node[1])]
    return [node[0], _name(node[1], below, found)]


def _name(child: Item, keys: Keys, found: dict[bytes, bytes]) -> Item:
    """Return what names a child in its parent: its hash or, below 32 bytes, the child itself."""
    if isinstance(child, bytes):
        if child and len(child) != HASH_BYTES:
            raise MalformedBundle("a node is named by something that is no hash")
        if child and keys:
            raise MalformedBundle("a node is missing")
        return child
    node = _hash_children(child, keys, found)
    raw = encode(node)
    if len(raw) < HASH_BYTES:
        return node
    if not keys:
        raise MalformedBundle("there is a node that no key needs")
    return keccak256(raw)


def read_part(item: Item) -> tuple[str, bool]:
    """Return part of a key in hex digits, and whether it ends a leaf; else MalformedBundle."""
    digits = item.hex() if isinstance(item, bytes) else ""
    flags = int(digits[:1] or "f", 16)
    part = digits[1:] if flags & ODD else digits[2:]
    if flags > (ODD | LEAF) or (not flags & ODD and digits[1] != "0"):
        raise MalformedBundle("part of a key begins with other flags than the four there are")
    if not part and not flags & LEAF:
        raise MalformedBundle("an extension node without a part of a key")
    return part, bool(flags & LEAF)


def _value(item: Item) -> bytes:
    if not isinstance(item, bytes):
        raise MalformedBundle("a trie's value is no bytes")
    return item
