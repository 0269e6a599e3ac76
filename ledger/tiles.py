"""The Merkle tree as tiles of 256 hashes: growing it, and reading it back.

Level 0 holds leaf hashes; a hash at level n + 1 is the root over one full tile at level n.
Only full tiles are stored; the ragged right edge is derived. c2sp.org/tlog-tiles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from rlhf_audit_trail.ledger.proof.merkle import EMPTY_ROOT, HASH_BYTES, node_hash

__all__ = [
    "INNER_BYTES",
    "TILE_HEIGHT",
    "TILE_WIDTH",
    "FullTile",
    "GrowingTree",
    "TileReader",
    "encode_entry_tile",
    "rows_above",
    "tile_path",
    "tile_widths",
]

TILE_HEIGHT: Final = 8
TILE_WIDTH: Final = 1 << TILE_HEIGHT
INNER_BYTES: Final = (TILE_WIDTH - 1) * HASH_BYTES  # of a full tile, see FullTile


@dataclass(frozen=True)
class FullTile:
    """A tile that will not change again.

    Attributes:
        level: 0 over leaves, one more for each eight heights of the tree.
        tile_index: counted from the left.
        hashes: its 256 hashes, 8,192 bytes; this is what C2SP clients fetch.
        inner_nodes: the 255 nodes above them, height by height, the root last, 8,160 bytes.
            They follow from `hashes`; kept, a proof slices where it would hash.
    """

    level: int
    tile_index: int
    hashes: bytes
    inner_nodes: bytes


def tile_widths(level: int, size: int) -> tuple[int, int]:
    """Return how many full tiles a level has in a tree of `size`, and the partial one's width."""
    return divmod(size >> (TILE_HEIGHT * level), TILE_WIDTH)


def tile_path(level: int | str, tile_index: int, width: int) -> str:
    """Return a tile's path below the log's prefix; `level` is a number or `entries`.

    The index is written in groups of three digits, all but the last marked with an x:
    `tile_path(0, 1234067, 256)` is `tile/0/x001/x234/067`.
    """
    digits = f"{tile_index:d}"
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[i : i + 3] for i in range(0, len(digits), 3)]
    name = "/".join([f"x{group}" for group in groups[:-1]] + groups[-1:])
    partial = "" if width == TILE_WIDTH else f".p/{width}"
    return f"tile/{level}/{name}{partial}"


def encode_entry_tile(entries: Iterable[bytes]) -> bytes:
    """Encode entries as an entry tile: each after its length, uint16 big-endian."""
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def rows_above(hashes: bytes) -> list[bytes]:
    """Return the complete nodes over a tile's hashes, height by height, `hashes` first.

    Of a full tile, 9 rows of 256, 128, ... 1 nodes; of a partial one, what is complete.
    """
    rows = [hashes]
    while len(rows[-1]) >= 2 * HASH_BYTES:
        rows.append(b"".join(_parents(rows[-1])))
    return rows


def _parents(row: bytes) -> list[bytes]:
    """Hash the nodes of a row in pairs; an odd last one is left out."""
    pair = 2 * HASH_BYTES
    ends = range(0, len(row) // pair * pair, pair)
    return [hashlib.sha256(b"\x01" + row[i : i + pair]).digest() for i in ends]


class GrowingTree:
    """The right edge of a tree: enough to append, to give a root, and to complete tiles.

    For each height, the nodes that no full tile holds yet; at most 16 kB for 8 heights.
    Not thread-safe: the thread that commits entries owns it.
    """

    def __init__(self) -> None:
        """Start empty; `restore` starts from a stored tree."""
        self.size = 0
        self._rows: list[bytearray] = []  # by height; the last of an odd row lacks a sibling

    @classmethod
    def restore(cls, size: int, reader: TileReader) -> GrowingTree:
        """Rebuild the edge of a stored tree of `size` leaves."""
        tree = cls()
        tree.size, level = size, 0
        while size >> (TILE_HEIGHT * level):
            full, width = tile_widths(level, size)
            rows = reader.rows(level, full, width) if width else []
            for inner in range(min(TILE_HEIGHT, size.bit_length() - TILE_HEIGHT * level)):
                kept = rows[inner] if inner < len(rows) else b""
                tree._rows.append(bytearray(kept[: (width >> inner) * HASH_BYTES]))
            level += 1
        return tree

    def append(self, leaves: Iterable[bytes]) -> list[FullTile]:
        """Add leaf hashes of 32 bytes each; return the tiles that became full, in order."""
        nodes, height, before = list(leaves), 0, self.size
        self.size += len(nodes)
        while nodes:
            if height == len(self._rows):
                self._rows.append(bytearray())
            row = self._rows[height]
            alone = len(row) % (2 * HASH_BYTES)  # the last one waits for its sibling
            new = b"".join(nodes)
            nodes = _parents(bytes(row[len(row) - alone :]) + new)
            row += new
            height += 1
        if before >> TILE_HEIGHT == self.size >> TILE_HEIGHT:
            return []
        levels = range(-(-height // TILE_HEIGHT))
        return [tile for level in levels for tile in self._complete(level, before)]

    def _complete(self, level: int, before: int) -> Iterator[FullTile]:
        """Cut off the tiles of a level that are full since the tree had `before` leaves."""
        height = TILE_HEIGHT * (level + 1)
        for tile_index in range(before >> height, self.size >> height):
            cut: list[bytes] = []
            for row in self._rows[height - TILE_HEIGHT : height]:
                length = (HASH_BYTES << TILE_HEIGHT) >> len(cut)
                cut.append(bytes(row[:length]))
                del row[:length]
            # the root is in the row above, which the next level has not cut yet
            position = (tile_index - (before >> height)) + self._kept_before(height, before)
            root = self._rows[height][position * HASH_BYTES : (position + 1) * HASH_BYTES]
            yield FullTile(level, tile_index, cut[0], b"".join([*cut[1:], root]))

    @staticmethod
    def _kept_before(height: int, before: int) -> int:
        """Return how many nodes the row of a tile's roots held when there were `before` leaves."""
        return (before >> height) % TILE_WIDTH

    def edge(self, level: int) -> bytes:
        """Return the partial tile of a level, empty if the level ends with a full one."""
        height = TILE_HEIGHT * level
        return bytes(self._rows[height]) if height < len(self._rows) else b""

    def root(self) -> bytes:
        """Return the RFC 6962 root over all leaves so far, 32 bytes."""
        peaks = [
            row[-HASH_BYTES:] for height, row in enumerate(self._rows) if self.size >> height & 1
        ]
        if not peaks:
            return EMPTY_ROOT
        node = bytes(peaks[0])
        for peak in peaks[1:]:  # from the right: the lowest is the last subtree
            node = node_hash(bytes(peak), node)
        return node


class TileReader:
    """Reads nodes of a stored tree of at least the size asked for.

    Complete subtrees do not depend on the tree's size, so one reader serves every size up
    to the stored one. Tiles once read are kept: make a reader per request, or bound it.
    """

    def __init__(
        self,
        tile: Callable[[int, int], tuple[bytes, bytes] | None],
        leaves: Callable[[int, int], bytes],
        roots: Callable[[int, int, int], bytes] | None = None,
    ) -> None:
        """Take the ways into the store.

        Args:
            tile: (level, tile index) to a full tile's 8,192 bytes and the 8,160 bytes of its
                inner nodes, or nothing where those are not kept; or None for no full tile.
            leaves: (first leaf index, count) to as many leaf hashes, concatenated.
            roots: (level, first tile index, count) to the roots of as many full tiles,
                concatenated, where they can be had without the tiles.
        """
        self._tile = tile
        self._leaves = leaves
        self._roots = roots
        self._kept: dict[tuple[int, int], list[bytes]] = {}

    def node(self, height: int, index: int) -> bytes:
        """Return the root over leaves [index << height, (index + 1) << height)."""
        level, inner = height // TILE_HEIGHT, height % TILE_HEIGHT
        first = index << inner
        offset = first % TILE_WIDTH
        row = self.rows(level, first // TILE_WIDTH, offset + (1 << inner))[inner]
        begin = (offset >> inner) * HASH_BYTES
        return row[begin : begin + HASH_BYTES]

    def hashes(self, level: int, tile_index: int, width: int) -> bytes:
        """Return the first `width` hashes of a tile; it may be the partial one at the edge."""
        return self.rows(level, tile_index, width)[0][: width * HASH_BYTES]

    def rows(self, level: int, tile_index: int, width: int) -> list[bytes]:
        """Return the rows over at least the first `width` hashes of a tile, `rows_above` them."""
        kept = self._kept.get((level, tile_index))
        if kept is None or len(kept[0]) < width * HASH_BYTES:
            kept = self._kept[level, tile_index] = self._read(level, tile_index, width)
        return kept

    def _read(self, level: int, tile_index: int, width: int) -> list[bytes]:
        stored = self._tile(level, tile_index)
        if stored is not None:
            hashes, inner = stored
            return [hashes, *_split(inner)] if inner else rows_above(hashes)
        first = tile_index * TILE_WIDTH
        if level == 0:
            return rows_above(self._leaves(first, width))
        if self._roots is not None:
            return rows_above(self._roots(level - 1, first, width))
        roots = [self.rows(level - 1, first + i, TILE_WIDTH)[-1] for i in range(width)]
        return rows_above(b"".join(roots))


def _split(inner: bytes) -> list[bytes]:
    """Cut a full tile's inner nodes into rows of 128, 64, ... 1 nodes."""
    rows, begin, length = [], 0, TILE_WIDTH * HASH_BYTES // 2
    while length >= HASH_BYTES:
        rows.append(inner[begin : begin + length])
        begin, length = begin + length, length // 2
    return rows
