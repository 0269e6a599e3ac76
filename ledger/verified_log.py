"""A public log under one signed tree head: nothing is handed out before it is shown to fit.

The right edge of every level is read first and must lead to the signed root; from there each
full tile is confirmed by the hash that the tile above holds of it, and each entry by its leaf
hash. So any part can be read alone, in bounded memory. c2sp.org/tlog-tiles.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from rlhf_audit_trail.ledger.proof.errors import Inconsistent
from rlhf_audit_trail.ledger.proof.merkle import (
    HASH_BYTES,
    inclusion_proof,
    leaf_hash,
    root_from_nodes,
)
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.proof.tree_head import SignedTreeHead, TreeHead
from rlhf_audit_trail.ledger.tiles import (
    TILE_HEIGHT,
    TILE_WIDTH,
    GrowingTree,
    TileReader,
    rows_above,
    tile_path,
    tile_widths,
)
from rlhf_audit_trail.ledger.tlog_policy import TlogPolicy, check_policy

__all__ = ["TiledLog", "VerifiedLog", "compare_heads", "open_pinned"]

_KEPT_TILES_MAX: Final = 512  # 4 MiB; in index order one tile of each level would do


class TiledLog(Protocol):
    """What can be read as tiles; `PublicLog` has it, and so has a log of our own store."""

    def tree_head(self) -> str:
        """Return the newest signed tree head."""

    def hash_tile(self, level: int, tile_index: int, width: int) -> bytes:
        """Return the first `width` hashes of a tile."""

    def entries(self, tile_index: int, width: int) -> tuple[bytes, ...]:
        """Return the first `width` entries of an entry tile."""


def open_pinned(note: str, keys: Iterable[VerifierKey]) -> SignedTreeHead:
    """Return a signed tree head after showing that all of `keys` signed it.

    Raises:
        MalformedBundle: the note does not parse.
        BadSignature: a key's line is bad, or none of them signed.
        PolicyUnmet: some of them did not sign.
    """
    return check_policy(TlogPolicy(), note, pinned=keys).signed


class VerifiedLog:
    """Reads a log's tiles and entries under a tree head; not safe to share between threads."""

    def __init__(self, log: TiledLog, head: TreeHead) -> None:
        """Read the right edge of every level and compare it with the signed root.

        Args:
            log: where to read; nothing it says is believed.
            head: whose signatures were checked.

        Raises:
            Inconsistent: the edge does not lead to the root.
            NotServed, MalformedBundle, Unreachable: it cannot be read.
        """
        self.head = head
        self._log = log
        self._kept: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._edges = self._read_edges()

    def _read_edges(self) -> dict[int, tuple[int, bytes]]:
        """Return of each level that has one the partial tile: its index and hashes."""
        edges = {}
        for level in self.levels():
            tile_index, width = tile_widths(level, self.head.size)
            if width:
                edges[level] = tile_index, self._log.hash_tile(level, tile_index, width)

        def tile(level: int, tile_index: int) -> tuple[bytes, bytes]:
            if edges[level][0] != tile_index:  # the restored tree asks for its edge only
                raise LookupError(tile_path(level, tile_index, TILE_WIDTH))
            return edges[level][1], b""

        tree = GrowingTree.restore(self.head.size, TileReader(tile, _no_leaves))
        if tree.root() != self.head.root:
            raise Inconsistent(
                f"the tiles of {self.head.origin} do not lead to the signed root of "
                f"{self.head.size:,} entries",
                expected=self.head.root.hex(),
                actual=tree.root().hex(),
            )
        return edges

    def levels(self) -> range:
        """Return the levels that the tree has, none if it is empty."""
        return range(-(-self.head.size.bit_length() // TILE_HEIGHT))

    def hash_tile(self, level: int, tile_index: int, width: int = TILE_WIDTH) -> bytes:
        """Return the first `width` hashes of a tile, which must be in the tree.

        Raises:
            Inconsistent: what is served there does not lead to the signed root.
            NotServed, MalformedBundle, Unreachable: it cannot be read.
        """
        edge_index, edge = self._edges.get(level, (-1, b""))
        if tile_index == edge_index:
            return edge[: width * HASH_BYTES]
        kept = self._kept.get((level, tile_index))
        if kept is None:
            kept = self._log.hash_tile(level, tile_index, TILE_WIDTH)
            self.confirm_tile(level, tile_index, kept)
            self._keep(level, tile_index, kept)
        return kept[: width * HASH_BYTES]

    def _keep(self, level: int, tile_index: int, hashes: bytes) -> None:
        self._kept[level, tile_index] = hashes
        if len(self._kept) > _KEPT_TILES_MAX:
            self._kept.popitem(last=False)

    def confirm_tile(self, level: int, tile_index: int, hashes: bytes) -> None:
        """Show that these are the hashes of a full tile of the tree; raises as `hash_tile`."""
        above, slot = divmod(tile_index, TILE_WIDTH)
        expected = self.hash_tile(level + 1, above, slot + 1)[-HASH_BYTES:]
        actual = rows_above(hashes)[-1] if len(hashes) == TILE_WIDTH * HASH_BYTES else b""
        _same(tile_path(level, tile_index, TILE_WIDTH), expected, actual)

    def entries(self, tile_index: int, width: int = TILE_WIDTH) -> tuple[bytes, ...]:
        """Return the first `width` entries of an entry tile; raises as `hash_tile`."""
        entries = self._log.entries(tile_index, width)
        if len(entries) != width:
            raise Inconsistent(
                f"{tile_path('entries', tile_index, width)} has too few entries",
                expected=f"{width}",
                actual=f"{len(entries)}",
            )
        self.confirm_entries(tile_index, entries)
        return entries

    def confirm_entries(self, tile_index: int, entries: tuple[bytes, ...]) -> None:
        """Show that these are the first entries of an entry tile; raises as `hash_tile`."""
        expected = self.hash_tile(0, tile_index, len(entries))
        actual = b"".join(map(leaf_hash, entries))
        _same(tile_path("entries", tile_index, len(entries)), expected, actual)

    def tiles(self, level: int, old_size: int = 0) -> Iterator[tuple[int, int]]:
        """Yield index and width of a level's tiles that a tree of `old_size` had not whole."""
        full, partial = tile_widths(level, self.head.size)
        first, _ = tile_widths(level, old_size)
        yield from ((index, TILE_WIDTH) for index in range(first, full))
        if partial:
            yield full, partial

    def root_at(self, size: int) -> bytes:
        """Return the root of the first `size` entries; raises as `hash_tile`."""
        return root_from_nodes(size, self._reader().node)

    def prove_inclusion(self, leaf_index: int) -> tuple[bytes, ...]:
        """Return the path from an entry to the signed root; raises as `hash_tile`."""
        return inclusion_proof(leaf_index, self.head.size, self._reader().node)

    def tree_at(self, size: int) -> GrowingTree:
        """Return the tree of the first `size` entries, to be grown; raises as `hash_tile`."""
        return GrowingTree.restore(size, self._reader())

    def _reader(self) -> TileReader:
        def tile(level: int, tile_index: int) -> tuple[bytes, bytes]:
            full, width = tile_widths(level, self.head.size)
            return self.hash_tile(
                level, tile_index, TILE_WIDTH if tile_index < full else width
            ), b""

        return TileReader(tile, _no_leaves)

    def extends(self, old: TreeHead) -> None:
        """Show that the tree extends that of an earlier head of the same log.

        Raises:
            Inconsistent: it is smaller, of another log, or another tree.
        """
        compare_heads(old, self.head)
        _same_root(old, self.root_at(old.size))


def compare_heads(old: TreeHead, new: TreeHead) -> None:
    """Show what two heads alone can show: one log, not fewer entries, one root for a size.

    Raises:
        Inconsistent: one of these does not hold.
    """
    if old.origin != new.origin:
        raise Inconsistent(
            "another log is here than before", expected=old.origin, actual=new.origin
        )
    if new.size < old.size:
        raise Inconsistent(
            f"{old.origin} shows fewer entries than before",
            expected=f"at least {old.size:,}",
            actual=f"{new.size:,}",
        )
    if new.size == old.size:
        _same_root(old, new.root)


def _same_root(old: TreeHead, root: bytes) -> None:
    if root != old.root:
        raise Inconsistent(
            f"{old.origin} signed another tree of {old.size:,} entries before",
            expected=old.root.hex(),
            actual=root.hex(),
        )


def _no_leaves(first: int, count: int) -> bytes:
    raise LookupError(f"leaves {first} to {first + count} are in no tile")


def _same(path: str, expected: bytes, actual: bytes) -> None:
    if expected != actual:
        raise Inconsistent(f"{path} does not lead to the signed root")
