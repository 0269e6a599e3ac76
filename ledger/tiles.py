"""The Merkle tree as tiles of 256 hashes: growing it, and reading it back.

Level 0 holds leaf hashes; a hash at level n + 1 is the root over one full tile at level n.
Only full tiles are stored; the ragged right edge is derived. c2sp.org/tlog-tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from rlhf_audit_trail.ledger.proof.merkle import EMPTY_ROOT, HASH_BYTES, node_hash, root_hash

__all__ = [
    "TILE_HEIGHT",
    "TILE_WIDTH",
    "FullTile",
    "GrowingTree",
    "TileReader",
    "encode_entry_tile",
    "tile_path",
    "tile_widths",
]

TILE_HEIGHT: Final = 8
TILE_WIDTH: Final = 1 << TILE_HEIGHT


@dataclass(frozen=True)
class FullTile:
    """256 hashes that will not change again, 8,192 bytes."""

    level: int
    tile_index: int
    hashes: bytes


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


class GrowingTree:
    """The right edge of a tree: enough to append, to give a root, and to complete tiles.

    One hash for each one-bit of the size, and the partial tile of each level; at most
    8 kB a level. Not thread-safe: the thread that commits entries owns it.
    """

    def __init__(self) -> None:
        """Start empty; `restore` starts from a stored tree."""
        self.size = 0
        self._peaks: list[bytes] = []
        self._edges: list[bytearray] = []

    @classmethod
    def restore(cls, size: int, reader: TileReader) -> GrowingTree:
        """Rebuild the edge of a stored tree of `size` leaves."""
        tree = cls()
        tree.size = size
        begin = 0
        for height in reversed(range(size.bit_length())):
            if (size >> height) & 1:
                tree._peaks.append(reader.node(height, begin >> height))
                begin += 1 << height
        level = 0
        while size >> (TILE_HEIGHT * level):
            full, width = tile_widths(level, size)
            tree._edges.append(bytearray(reader.hashes(level, full, width)))
            level += 1
        return tree

    def append(self, leaves: Iterable[bytes]) -> list[FullTile]:
        """Add leaf hashes of 32 bytes each; return the tiles that became full, in order."""
        full: list[FullTile] = []
        for leaf in leaves:
            node, rest, height = leaf, self.size, 0
            self._extend(0, node, full)
            while rest & 1:  # two complete subtrees of equal height merge
                node = node_hash(self._peaks.pop(), node)
                rest >>= 1
                height += 1
                if height % TILE_HEIGHT == 0:
                    self._extend(height // TILE_HEIGHT, node, full)
            self._peaks.append(node)
            self.size += 1
        return full

    def _extend(self, level: int, node: bytes, full: list[FullTile]) -> None:
        if level == len(self._edges):
            self._edges.append(bytearray())
        edge = self._edges[level]
        edge += node
        if len(edge) == TILE_WIDTH * HASH_BYTES:
            index = self.size >> (TILE_HEIGHT * (level + 1))
            full.append(FullTile(level, index, bytes(edge)))
            edge.clear()

    def edge(self, level: int) -> bytes:
        """Return the partial tile of a level, empty if the level ends with a full one."""
        return bytes(self._edges[level]) if level < len(self._edges) else b""

    def root(self) -> bytes:
        """Return the RFC 6962 root over all leaves so far, 32 bytes."""
        if not self._peaks:
            return EMPTY_ROOT
        node = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            node = node_hash(peak, node)
        return node


class TileReader:
    """Reads nodes of a stored tree of at least the size asked for.

    Complete subtrees do not depend on the tree's size, so one reader serves every size up
    to the stored one. Tiles once read are kept: make a reader per request, or bound it.
    """

    def __init__(
        self,
        tile: Callable[[int, int], bytes | None],
        leaves: Callable[[int, int], bytes],
        roots: dict[tuple[int, int], bytes] | None = None,
    ) -> None:
        """Take the two ways into the store.

        Args:
            tile: (level, tile index) to a full tile's 8,192 bytes, or None.
            leaves: (first leaf index, count) to as many leaf hashes, concatenated.
            roots: keeps the roots of full tiles between readers; they never change.
        """
        self._roots = {} if roots is None else roots
        self._tile = tile
        self._leaves = leaves
        self._kept: dict[tuple[int, int], bytes] = {}

    def node(self, height: int, index: int) -> bytes:
        """Return the root over leaves [index << height, (index + 1) << height)."""
        level, inner = divmod(height, TILE_HEIGHT)
        tile, offset = divmod(index << inner, TILE_WIDTH)
        data = self.hashes(level, tile, offset + (1 << inner))[offset * HASH_BYTES :]
        return root_hash([data[i : i + HASH_BYTES] for i in range(0, len(data), HASH_BYTES)])

    def hashes(self, level: int, tile_index: int, width: int) -> bytes:
        """Return the first `width` hashes of a tile; it may be the partial one at the edge."""
        size_bytes = width * HASH_BYTES
        kept = self._kept.get((level, tile_index), b"")
        if len(kept) < size_bytes:
            kept = self._kept[level, tile_index] = self._read(level, tile_index, width)
        return kept[:size_bytes]

    def _read(self, level: int, tile_index: int, width: int) -> bytes:
        stored = self._tile(level, tile_index)
        if stored is not None:
            return stored
        first = tile_index * TILE_WIDTH
        if level == 0:
            return self._leaves(first, width)
        return b"".join(self._tile_root(level - 1, first + i) for i in range(width))

    def _tile_root(self, level: int, tile_index: int) -> bytes:
        root = self._roots.get((level, tile_index))
        if root is None:
            data = self.hashes(level, tile_index, TILE_WIDTH)
            root = root_hash([data[i : i + HASH_BYTES] for i in range(0, len(data), HASH_BYTES)])
            self._roots[level, tile_index] = root
        return root
