"""RFC 6962 Merkle tree: hashing, roots, inclusion and consistency proofs.

The shape of a proof is derived from numbers (index, sizes) and never read from
the prover; its length is checked before anything is hashed. A path alone binds
no position: the same path verifies for other (index, size) pairs, so callers
must take size and root from one signed tree head (`FORMAT.md`, section 4.3).

Sizes and indices are below 2**63. References: RFC 6962 section 2.1,
RFC 9162 sections 2.1.3 and 2.1.4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

from rlhf_audit_trail.ledger.proof.errors import Inconsistent, MalformedBundle, NotIncluded

HASH_BYTES = 32
MAX_TREE_SIZE = 2**63 - 1  # fits a signed SQL integer; the contract's uint64 is wider
EMPTY_ROOT = hashlib.sha256(b"").digest()

NodeReader = Callable[[int, int], bytes]
"""`read(level, index)`: hash of the complete subtree over leaves
[index * 2**level, (index + 1) * 2**level)."""


def leaf_hash(entry: bytes) -> bytes:
    """Hash an entry's exact bytes as a leaf, SHA-256(0x00 || entry)."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash two children of 32 bytes each, SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_hash(leaves: Sequence[bytes]) -> bytes:
    """Return the root over leaf hashes (32 bytes each), in order; RFC 6962 section 2.1."""
    nodes = list(leaves)
    while len(nodes) > 1:  # pair level by level; an odd last node moves up unchanged
        paired = [node_hash(*nodes[i : i + 2]) for i in range(0, len(nodes) - 1, 2)]
        nodes = paired + nodes[len(nodes) & ~1 :]
    return nodes[0] if nodes else EMPTY_ROOT


def root_from_nodes(size: int, read: NodeReader) -> bytes:
    """Return the root of the first `size` leaves from stored complete nodes."""
    return _range_root(0, size, read)


def _range_root(begin: int, end: int, read: NodeReader) -> bytes:
    """Hash over leaves [begin, end), where `begin` is a multiple of the largest power of two
    below its length: complete nodes are read left to right, and hashed together right to left.
    """
    peaks = []
    while begin < end:
        level = (end - begin).bit_length() - 1
        peaks.append(read(level, begin >> level))
        begin += 1 << level
    node = peaks.pop() if peaks else EMPTY_ROOT
    for peak in reversed(peaks):
        node = node_hash(peak, node)
    return node


def inclusion_proof(index: int, size: int, read: NodeReader) -> tuple[bytes, ...]:
    """Build the inclusion proof for leaf `index` in the tree of `size`, leaf to root.

    Raises ValueError unless `0 <= index < size <= MAX_TREE_SIZE`. RFC 9162 section 2.1.3.1.
    """
    if not 0 <= index < size <= MAX_TREE_SIZE:
        raise ValueError(f"index {index} is outside a tree of {size}")
    *siblings, _ = _descend(index, size, to_leaf=True)
    return tuple(_range_root(*span, read) for span in reversed(siblings))


def consistency_proof(old_size: int, new_size: int, read: NodeReader) -> tuple[bytes, ...]:
    """Build the consistency proof from `old_size` to `new_size`; empty when they are equal.

    It is the path of the old tree's last leaf in the new tree, begun at the subtree that ends
    with that leaf. Raises ValueError unless `1 <= old_size <= new_size <= MAX_TREE_SIZE`.
    RFC 9162 section 2.1.4.1.
    """
    if not 1 <= old_size <= new_size <= MAX_TREE_SIZE:
        raise ValueError(f"no consistency proof from size {old_size} to {new_size}")
    spans = _descend(old_size - 1, new_size, to_leaf=False)
    if spans[-1][0] == 0:  # that subtree is the whole old tree, whose root the verifier knows
        spans.pop()
    return tuple(_range_root(*span, read) for span in reversed(spans))


def _descend(index: int, size: int, *, to_leaf: bool) -> list[tuple[int, int]]:
    """Walk from the root towards leaf `index`; return each sibling's [begin, end), then the
    node's own where the walk ends: at the leaf, or at the first subtree that ends with it.
    """
    spans = []
    begin, end = 0, size
    while end > index + 1 or (to_leaf and begin < index):
        middle = begin + (1 << ((end - begin - 1).bit_length() - 1))  # as RFC 6962 splits
        spans.append((middle, end) if index < middle else (begin, middle))
        begin, end = (begin, middle) if index < middle else (middle, end)
    return [*spans, (begin, end)]


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> None:
    """Show that `leaf` stands at `index` in the tree (size, root), or raise.

    `size` and `root` must come from one signed tree head.

    Raises:
        MalformedBundle: a hash is not 32 bytes, the index is not below the size,
            or the proof has not exactly the length that (index, size) demands.
        NotIncluded: the path leads to another root.

    RFC 9162 section 2.1.3.2.
    """
    if not 0 <= index < size <= MAX_TREE_SIZE:
        raise MalformedBundle(f"leaf index {index} is outside a tree of {size} entries")
    inner = (index ^ (size - 1)).bit_length()  # below it, the tree is complete around the leaf
    border = (index >> inner).bit_count()  # above it, only left siblings exist
    _check_hashes(proof, inner + border, (leaf, root))
    node = leaf
    for level, sibling in enumerate(proof[:inner]):
        right = (index >> level) & 1
        node = node_hash(sibling, node) if right else node_hash(node, sibling)
    for sibling in proof[inner:]:
        node = node_hash(sibling, node)
    if node != root:
        raise NotIncluded(
            "the path does not lead to the signed root", expected=root.hex(), actual=node.hex()
        )


def verify_consistency(
    old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """Show that the tree (new_size, new_root) extends (old_size, old_root), or raise.

    Each (size, root) pair must come from one signed or anchored tree head.

    Raises:
        MalformedBundle: the old size is 0 or above the new size, or a length is wrong.
        Inconsistent: the proof leads to other roots, or equal sizes have unequal roots.

    RFC 9162 section 2.1.4.2.
    """
    if not 1 <= old_size <= new_size <= MAX_TREE_SIZE:
        raise MalformedBundle(f"no consistency proof leads from size {old_size} to {new_size}")
    shift = (old_size & -old_size).bit_length() - 1  # height of the old tree's last whole subtree
    inner = ((old_size - 1) ^ (new_size - 1)).bit_length() - shift
    border = ((old_size - 1) >> (inner + shift)).bit_count()
    whole = old_size == 1 << shift  # a power of two: the proof leaves the old root out
    length = 0 if old_size == new_size else inner + border + (not whole)
    _check_hashes(proof, length, (old_root, new_root))
    if old_size == new_size:
        _same_root("old", old_size, old_root, new_root)
        return
    seed, path = (old_root, proof) if whole else (proof[0], proof[1:])
    mask = (old_size - 1) >> shift
    old_node = new_node = seed
    for level, sibling in enumerate(path[:inner]):
        if (mask >> level) & 1:
            old_node, new_node = node_hash(sibling, old_node), node_hash(sibling, new_node)
        else:
            new_node = node_hash(new_node, sibling)
    for sibling in path[inner:]:
        old_node, new_node = node_hash(sibling, old_node), node_hash(sibling, new_node)
    _same_root("old", old_size, old_root, old_node)
    _same_root("new", new_size, new_root, new_node)


def _same_root(which: str, size: int, expected: bytes, actual: bytes) -> None:
    if expected != actual:
        raise Inconsistent(
            f"the trees contradict each other: wrong {which} root at size {size}",
            expected=expected.hex(),
            actual=actual.hex(),
        )


def _check_hashes(proof: Sequence[bytes], length: int, others: Iterable[bytes]) -> None:
    """Refuse a proof of the wrong shape before anything is hashed."""
    if len(proof) != length:
        raise MalformedBundle(
            "the proof's length is not the one its sizes demand",
            expected=f"{length} hashes",
            actual=f"{len(proof)} hashes",
        )
    if any(len(item) != HASH_BYTES for item in (*proof, *others)):
        raise MalformedBundle(f"a hash is not exactly {HASH_BYTES} bytes long")
