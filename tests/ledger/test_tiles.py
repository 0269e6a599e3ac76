"""The growing tree, its tiles, and reading them back, against the slow oracle."""

from __future__ import annotations

import hashlib

import pytest

from rlhf_audit_trail.ledger.proof.merkle import EMPTY_ROOT, leaf_hash, node_hash, root_hash
from rlhf_audit_trail.ledger.tiles import (
    GrowingTree,
    TileReader,
    rows_above,
    tile_path,
    tile_widths,
)

SIZES = 701
LEAVES = [leaf_hash(b"%d" % number) for number in range(SIZES)]


def oracle(leaves):
    """RFC 6962, section 2.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return node_hash(oracle(leaves[:split]), oracle(leaves[split:]))


class Stored:
    """Tiles as a store keeps them; refuses to change what is immutable."""

    def __init__(self):
        self.tiles = {}
        self.leaves = []

    def take(self, leaves, full):
        self.leaves += leaves
        for tile in full:
            assert (len(tile.hashes), len(tile.inner_nodes)) == (8192, 8160)
            assert b"".join(rows_above(tile.hashes)) == tile.hashes + tile.inner_nodes
            kept = (tile.hashes, tile.inner_nodes)
            assert self.tiles.setdefault((tile.level, tile.tile_index), kept) is kept

    def reader(self):
        return TileReader(
            lambda level, index: self.tiles.get((level, index)),
            lambda first, count: b"".join(self.leaves[first : first + count]),
        )


def test_a_restored_tree_equals_the_grown_one_at_every_size():
    stored, tree = Stored(), GrowingTree()
    for size in range(SIZES):
        restored = GrowingTree.restore(size, stored.reader())
        assert vars(restored) == vars(tree)
        assert tree.root() == root_hash(LEAVES[:size])
        stored.take([LEAVES[size]], tree.append([LEAVES[size]]))
    assert sorted(stored.tiles) == [(0, 0), (0, 1)]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 8, 255, 256, 257, 700])
def test_the_root_is_that_of_the_rfc(size):
    tree = GrowingTree()
    tree.append(LEAVES[:size])
    assert tree.root() == oracle(LEAVES[:size])
    assert (tree.root() == EMPTY_ROOT) == (size == 0)


def test_three_levels_of_tiles():
    count = 256 * 256 + 300
    leaves = [number.to_bytes(32, "big") for number in range(count)]
    stored, tree = Stored(), GrowingTree()
    for begin in range(0, count, 1000):
        stored.take(leaves[begin : begin + 1000], tree.append(leaves[begin : begin + 1000]))
    assert {level for level, _ in stored.tiles} == {0, 1}
    assert len(stored.tiles) == 257 + 1
    assert tree.root() == root_hash(leaves)
    for index in (0, 255):
        expected = root_hash(leaves[index * 256 : (index + 1) * 256])
        assert stored.tiles[1, 0][0][index * 32 :][:32] == expected
    assert vars(GrowingTree.restore(count, stored.reader())) == vars(tree)
    reader = stored.reader()
    assert reader.hashes(2, 0, 1) == root_hash(leaves[: 256 * 256])
    assert reader.hashes(1, 1, 1) == root_hash(leaves[256 * 256 :][:256])


@pytest.mark.parametrize(
    ("level", "size", "widths"),
    [(0, 70_000, (273, 112)), (1, 70_000, (1, 17)), (2, 70_000, (0, 1)), (0, 256, (1, 0))],
)
def test_widths_are_those_of_the_specification(level, size, widths):
    assert tile_widths(level, size) == widths


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        ((0, 1234067, 256), "tile/0/x001/x234/067"),
        ((1, 0, 17), "tile/1/000.p/17"),
        (("entries", 999, 256), "tile/entries/999"),
        ((0, 1000, 1), "tile/0/x001/000.p/1"),
    ],
)
def test_paths_are_those_of_the_specification(tile, path):
    assert tile_path(*tile) == path
