"""Cut tries down to what a proof needs, and build those that no node gives proofs of.

The maker's side of `proof/evm/trie.py`: nodes of Ethereum name children by hash, evidence has
those on the way to its keys written out in place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Final

from rlhf_audit_trail.ledger.proof.errors import MalformedBundle
from rlhf_audit_trail.ledger.proof.evm.keccak import keccak256
from rlhf_audit_trail.ledger.proof.evm.rlp import Item, decode, encode
from rlhf_audit_trail.ledger.proof.evm.trie import (
    BRANCH_ITEMS,
    HASH_BYTES,
    LEAF,
    PAIR_ITEMS,
    read_part,
)

__all__ = ["Trie", "cut_down"]

_DIGITS: Final = "0123456789abcdef"


def cut_down(nodes: Sequence[bytes], keys: Sequence[bytes]) -> Item:
    """Return a trie with only the nodes on the way to `keys` written out.

    Args:
        nodes: as RLP, the root first; the others in any order, surplus ones are left out.
        keys: as they are in the trie, that is mostly hashed already.

    Raises:
        MalformedBundle: these are no nodes.
    """
    known = {keccak256(node): node for node in nodes}
    return _expand(decode(nodes[0]) if nodes else b"", [key.hex() for key in keys], known)


def _expand(node: Item, paths: Sequence[str], known: Mapping[bytes, bytes]) -> Item:
    """Write out a node's children on the way to what is left of the keys."""
    if not isinstance(node, list) or len(node) not in (BRANCH_ITEMS, PAIR_ITEMS):
        raise MalformedBundle("this is no node of a trie")
    if len(node) == BRANCH_ITEMS:
        below = [[path[1:] for path in paths if path[:1] == digit] for digit in _DIGITS]
        children = zip(node[:-1], below, strict=True)
        return [*(_child(child, rest, known) for child, rest in children), node[-1]]
    part, is_leaf = read_part(node[0])
    rest = [path[len(part) :] for path in paths if path.startswith(part)]
    return node if is_leaf else [node[0], _child(node[1], rest, known)]


def _child(child: Item, paths: Sequence[str], known: Mapping[bytes, bytes]) -> Item:
    if not paths or not child:
        return child
    if isinstance(child, bytes):
        if child not in known:  # the verifier will miss it, and say so
            return child
        child = decode(known[child])
    return _expand(child, paths, known)


class Trie:
    """A trie over all of its items at once; Ethereum Yellow Paper, appendix D."""

    def __init__(self, items: Mapping[bytes, bytes]) -> None:
        """Build it from keys and values: at least one, none empty, no key that begins another."""
        self._nodes: dict[bytes, bytes] = {}  # by hash
        self._top = encode(self._node({key.hex(): value for key, value in items.items()}))
        self.root = keccak256(self._top)

    def prove(self, keys: Sequence[bytes]) -> Item:
        """Return the trie cut down to these keys."""
        return cut_down([self._top, *self._nodes.values()], keys)

    def _node(self, items: Mapping[str, bytes]) -> list[Item]:
        """Make the node for keys in hex digits; what is common to all goes in front."""
        common = _common(items)
        rest = {path[len(common) :]: value for path, value in items.items()}
        if len(rest) == 1:
            return [_part(common, LEAF), *rest.values()]
        branch: list[Item] = [
            self._name({path[1:]: value for path, value in rest.items() if path[:1] == digit})
            for digit in _DIGITS
        ]
        branch.append(b"")
        return [_part(common, 0), self._reference(branch)] if common else branch

    def _name(self, items: Mapping[str, bytes]) -> Item:
        return self._reference(self._node(items)) if items else b""

    def _reference(self, node: list[Item]) -> Item:
        """Name a node in the one before it: by its hash or, if it is small, by itself."""
        raw = encode(node)
        if len(raw) < HASH_BYTES:
            return node
        self._nodes[keccak256(raw)] = raw
        return keccak256(raw)


def _common(paths: Iterable[str]) -> str:
    """Return the digits with which all paths begin."""
    first, last = min(paths), max(paths)
    pairs = zip(first, last, strict=False)
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _part(path: str, flags: int) -> bytes:
    """Write digits of a key as bytes, with flags in front (hex-prefix encoding)."""
    return bytes.fromhex(f"{flags | 1:x}{path}" if len(path) % 2 else f"{flags:x}0{path}")
