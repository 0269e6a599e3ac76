"""The tree against a slow transcription of RFC 6962, and proofs that must not verify."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_audit_trail.ledger.proof.errors import Inconsistent, MalformedBundle, NotIncluded
from rlhf_audit_trail.ledger.proof.merkle import (
    EMPTY_ROOT,
    MAX_TREE_SIZE,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_from_nodes,
    root_hash,
    verify_consistency,
    verify_inclusion,
)

SIZES = st.integers(min_value=1, max_value=300)
LEAVES = [leaf_hash(index.to_bytes(2, "big")) for index in range(300)]
NODES: dict[tuple[int, int], bytes] = {}


def read(level: int, index: int) -> bytes:
    if (level, index) not in NODES:
        whole = range(index << level, (index + 1) << level)
        NODES[level, index] = slow_root([LEAVES[at] for at in whole])
    return NODES[level, index]


def slow_root(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962 section 2.1, word by word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = max(2**n for n in range(len(leaves).bit_length()) if 2**n < len(leaves))
    return node_hash(slow_root(leaves[:k]), slow_root(leaves[k:]))


@given(st.lists(st.binary(max_size=80), max_size=40))
def test_root_is_that_of_the_slow_reference(entries: list[bytes]) -> None:
    leaves = [leaf_hash(entry) for entry in entries]
    assert root_hash(leaves) == slow_root(leaves)


@given(SIZES)
def test_root_from_stored_nodes_is_the_root(size: int) -> None:
    assert root_from_nodes(size, read) == slow_root(LEAVES[:size])


def test_the_empty_tree() -> None:
    assert root_hash([]) == root_from_nodes(0, read) == EMPTY_ROOT == hashlib.sha256().digest()


def test_prefixes_keep_leaves_and_nodes_apart() -> None:
    a, b = LEAVES[:2]
    assert leaf_hash(a + b) != node_hash(a, b)
    assert leaf_hash(b"\x01" + a + b) != node_hash(a, b)


@given(SIZES, st.data())
def test_inclusion_proofs_verify_and_any_changed_bit_does_not(
    size: int, data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, size - 1))
    path, root = inclusion_proof(index, size, read), slow_root(LEAVES[:size])
    verify_inclusion(LEAVES[index], index, size, path, root)
    hashes = [LEAVES[index], *path, root]
    at = data.draw(st.integers(0, len(hashes) - 1))
    bit = data.draw(st.integers(0, 255))
    hashes[at] = (int.from_bytes(hashes[at], "big") ^ (1 << bit)).to_bytes(32, "big")
    with pytest.raises(NotIncluded):
        verify_inclusion(hashes[0], index, size, hashes[1:-1], hashes[-1])


@given(SIZES, SIZES, st.data())
def test_consistency_proofs_verify_and_any_changed_bit_does_not(
    one: int, other: int, data: st.DataObject
) -> None:
    old, new = sorted((one, other))
    path = consistency_proof(old, new, read)
    old_root, new_root = slow_root(LEAVES[:old]), slow_root(LEAVES[:new])
    verify_consistency(old, old_root, new, new_root, path)
    hashes = [old_root, *path, new_root]
    at = data.draw(st.integers(0, len(hashes) - 1))
    bit = data.draw(st.integers(0, 255))
    hashes[at] = (int.from_bytes(hashes[at], "big") ^ (1 << bit)).to_bytes(32, "big")
    with pytest.raises(Inconsistent):
        verify_consistency(old, hashes[0], new, hashes[-1], hashes[1:-1])


@pytest.mark.parametrize("size", [*range(1, 34), 255, 256, 257])
def test_a_proof_of_any_other_length_is_refused_before_hashing(size: int) -> None:
    root = slow_root(LEAVES[:size])
    for index in {0, size // 2, size - 1}:
        path = inclusion_proof(index, size, read)
        for wrong in (path[:-1], (*path, LEAVES[0])):
            if len(wrong) != len(path):
                with pytest.raises(MalformedBundle):
                    verify_inclusion(LEAVES[index], index, size, wrong, root)


def test_a_rewritten_entry_breaks_every_consistency_proof_across_it() -> None:
    forged = [leaf_hash(b"forged") if at == 3 else leaf for at, leaf in enumerate(LEAVES[:20])]

    def read_forged(level: int, index: int) -> bytes:
        return slow_root(forged[index << level : (index + 1) << level])

    for old in range(4, 20):
        for new in range(old + 1, 21):
            path = consistency_proof(old, new, read_forged)
            with pytest.raises(Inconsistent):
                verify_consistency(old, slow_root(LEAVES[:old]), new, slow_root(forged[:new]), path)


@pytest.mark.parametrize(("index", "size"), [(-1, 5), (5, 5), (0, 0), (0, MAX_TREE_SIZE + 1)])
def test_places_outside_a_tree_are_refused(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        inclusion_proof(index, size, read)
    with pytest.raises(MalformedBundle):
        verify_inclusion(LEAVES[0], index, size, [], LEAVES[0])


@pytest.mark.parametrize(("old", "new"), [(0, 5), (0, 0), (6, 5), (-1, 5), (1, MAX_TREE_SIZE + 1)])
def test_sizes_without_consistency_proof_are_refused(old: int, new: int) -> None:
    with pytest.raises(ValueError, match="no consistency proof"):
        consistency_proof(old, new, read)
    with pytest.raises(MalformedBundle):
        verify_consistency(old, LEAVES[0], new, LEAVES[0], [])


def test_the_largest_tree_takes_no_longer_than_its_path() -> None:
    """Nodes that nobody could store stand in for 2**63 - 1 leaves."""

    def invented(level: int, index: int) -> bytes:
        return hashlib.sha256(b"%d/%d" % (level, index)).digest()

    root, old_size = root_from_nodes(MAX_TREE_SIZE, invented), 2**62 + 12345
    path = consistency_proof(old_size, MAX_TREE_SIZE, invented)
    assert len(path) <= 64
    assert len(inclusion_proof(MAX_TREE_SIZE - 1, MAX_TREE_SIZE, invented)) == 62
    with pytest.raises(Inconsistent):
        verify_consistency(old_size, root, MAX_TREE_SIZE, root, path)


def test_no_proof_is_longer_than_a_bundle_allows() -> None:
    sizes = [1 << n for n in range(63)] + [(1 << n) - 1 for n in range(2, 64)]
    for old, new in pairwise(sorted(sizes)):
        assert len(consistency_proof(old, new, lambda *_: bytes(32))) <= 64
    worst = (2**62 - 1, MAX_TREE_SIZE)
    assert len(consistency_proof(*worst, lambda *_: bytes(32))) <= 64
