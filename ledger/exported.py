"""Check a log that lies in a directory, as `export` and `mirror` write it: every single file.

The monitor stops at the first contradiction; here every damaged, missing and surplus file is
named. Each fact is there twice (a hash in its tile, and what it is the hash of), so the file
that disagrees with all others is told from those that only follow. One pass, in bounded
memory: standard library, `cryptography` and the kernel. c2sp.org/tlog-tiles.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from rlhf_audit_trail.ledger.findings import Finding
from rlhf_audit_trail.ledger.proof.bundle import MAX_ENTRY_BYTES
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError, ProofError
from rlhf_audit_trail.ledger.proof.merkle import HASH_BYTES, leaf_hash, root_hash
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.proof.tree_head import TreeHead, open_tree_head
from rlhf_audit_trail.ledger.public_log import DirectoryLog, NotServed, PublicLog
from rlhf_audit_trail.ledger.tiles import (
    TILE_HEIGHT,
    TILE_WIDTH,
    GrowingTree,
    tile_path,
    tile_widths,
)
from rlhf_audit_trail.ledger.trust import read_keys
from rlhf_audit_trail.ledger.web import Unreachable

__all__ = ["ExportCheck", "NoExport", "exports_in"]

_HEAD_FILE: Final = "checkpoint"
_KEYS_FILE: Final = "vkey"
_NEXT_FILE: Final = ".checkpoint.next"  # a mirror that was interrupted works towards it
_MISSING_MAX: Final = 1_000
_TILE: Final = re.compile(
    r"tile/(entries|[0-9]{1,2})/((?:x[0-9]{3}/)*[0-9]{3})(?:\.p/([0-9]{1,3}))?"
)
_FILE_BYTES_MAX: Final = TILE_WIDTH * (2 + MAX_ENTRY_BYTES)


class NoExport(AuditTrailError):
    """There is no log in this directory."""


def exports_in(directory: Path) -> list[Path]:
    """Return the directories with a log: this one, or those directly below it.

    Raises:
        NoExport: there is none.
    """
    candidates = [directory, *sorted(directory.iterdir())] if directory.is_dir() else []
    found = [
        path
        for path in candidates
        if any((path / name).exists() for name in (_HEAD_FILE, _KEYS_FILE, "tile"))
    ]
    if not found:
        raise NoExport(
            f"there is no log in {directory}", next_step="give the directory of an export or mirror"
        )
    return found[:1] if found[0] == directory else found


class ExportCheck:
    """One pass over one directory.

    Attributes:
        name: what findings call the log: its origin if that can be read, else the directory.
        head: size and root that all else is compared with, once the tree head could be read.
        entries: how many entries were looked at.
        files: how many files were looked at.
    """

    def __init__(self, directory: Path, pinned: Iterable[VerifierKey] = ()) -> None:
        """Prepare; nothing is read yet.

        Args:
            directory: of an export or mirror.
            pinned: the log's keys; if left out, those in the directory are believed.
        """
        self.name = directory.name
        self.head: TreeHead | None = None
        self.entries = 0
        self.files = 0
        self._directory = directory
        self._pinned = tuple(pinned)
        self._public = PublicLog(DirectoryLog(directory))
        self._expected: set[str] = set()
        self._missing = 0
        self._tree = GrowingTree()

    def findings(self) -> Iterator[Finding]:
        """Yield everything that is wrong with the directory."""
        keys: list[VerifierKey] = []
        yield from self._check_keys(keys)
        yield from self._check_head(keys or self._pinned)
        if self.head is None:
            return
        for tile_index in range(-(-self.head.size // TILE_WIDTH)):
            yield from self._check_tile(self.head, tile_index)
            if self._missing > _MISSING_MAX:
                detail = (
                    f"over {_MISSING_MAX:,} tiles are missing or unreadable; the rest is unknown"
                )
                yield self._finding("file", "tile", detail)
                return
        yield from self._check_edges(self.head)
        if not (self._directory / _NEXT_FILE).exists():  # else tiles may be ahead of the tree head
            yield from self._check_surplus(self.head)

    # --- keys and tree head -----------------------------------------------------------

    def _check_keys(self, found: list[VerifierKey]) -> Iterator[Finding]:
        self._expect(_KEYS_FILE)
        try:
            found += read_keys(str(self._directory / _KEYS_FILE))
        except AuditTrailError as error:
            yield self._finding("vkey", _KEYS_FILE, error.message)
            return
        if len({key.name for key in found}) > 1:
            yield self._finding("vkey", _KEYS_FILE, "it holds keys of several logs")
        elif self._pinned and set(found) != set(self._pinned):
            yield self._finding("vkey", _KEYS_FILE, "it holds other keys than those pinned")
            found[:] = self._pinned

    def _check_head(self, keys: Iterable[VerifierKey]) -> Iterator[Finding]:
        self._expect(_HEAD_FILE)
        wanted = tuple(keys)
        try:
            note = self._public.tree_head()
            self.head = open_tree_head(note, ()).head  # what it says is compared whoever signed it
            self.name = self.head.origin
            signed = open_tree_head(note, wanted)
        except (ProofError, NotServed, Unreachable) as error:
            yield self._finding("tree_head", _HEAD_FILE, error.message)
            return
        if not wanted or signed.signed_by != wanted:
            yield self._finding(
                "tree_head", _HEAD_FILE, "it is not signed by all of the log's keys"
            )

    # --- tiles ------------------------------------------------------------------------

    def _check_tile(self, head: TreeHead, tile_index: int) -> Iterator[Finding]:
        """Compare an entry tile with the tile of its hashes, and grow the tree by the right one."""
        width = min(TILE_WIDTH, head.size - tile_index * TILE_WIDTH)
        paths = [tile_path(kind, tile_index, width) for kind in ("entries", 0)]
        found: list[list[bytes] | None] = []
        for path, kind in zip(paths, ("entries", "hashes"), strict=True):
            self._expect(path)
            try:
                found.append(self._leaves(kind, tile_index, width))
            except (ProofError, NotServed, Unreachable) as error:
                found.append(None)
                self._missing += 1
                yield self._finding("file", path, error.message)
        from_entries, from_hashes = found
        self.entries += len(from_entries or ())
        leaves = from_entries or from_hashes
        if from_entries and from_hashes and from_entries != from_hashes:
            leaves = self._likelier(head, tile_index, from_entries, from_hashes)
            index = next(i for i, leaf in enumerate(from_entries) if leaf != from_hashes[i])
            wrong = paths[0] if leaves is from_hashes else paths[1]
            detail = f"entry {tile_index * TILE_WIDTH + index} is not what the other tile has of it"
            yield self._finding("file", wrong, detail)
        if leaves is None:  # both are named; the tree goes on, and its root will not be the signed
            leaves = [bytes(HASH_BYTES)] * width
        for tile in self._tree.append(leaves):
            if tile.level > 0:
                yield from self._compare(tile.level, tile.tile_index, tile.hashes)

    def _leaves(self, kind: str, tile_index: int, width: int) -> list[bytes]:
        if kind == "entries":
            return [leaf_hash(entry) for entry in self._public.entries(tile_index, width)]
        data = self._public.hash_tile(0, tile_index, width)
        return [data[i : i + HASH_BYTES] for i in range(0, len(data), HASH_BYTES)]

    def _likelier(
        self, head: TreeHead, tile_index: int, first: list[bytes], second: list[bytes]
    ) -> list[bytes]:
        """Return that of two versions of a tile which the tile above, or the root, confirms."""
        if len(first) == TILE_WIDTH:
            above, slot = divmod(tile_index, TILE_WIDTH)
            full, width = tile_widths(1, head.size)
            try:
                hashes = self._public.hash_tile(1, above, TILE_WIDTH if above < full else width)
            except (ProofError, NotServed, Unreachable):
                return first
            return second if root_hash(second) == _slot(hashes, slot) else first
        tree = copy.deepcopy(self._tree)
        tree.append(second)
        return second if tree.root() == head.root else first

    def _compare(self, level: int, tile_index: int, hashes: bytes) -> Iterator[Finding]:
        width = len(hashes) // HASH_BYTES
        path = tile_path(level, tile_index, width)
        self._expect(path)
        try:
            served = self._public.hash_tile(level, tile_index, width)
        except (ProofError, NotServed, Unreachable) as error:
            yield self._finding("file", path, error.message)
            return
        wrong = [i for i in range(width) if _slot(served, i) != _slot(hashes, i)]
        if wrong:
            detail = f"hash {wrong[0]}, and {len(wrong) - 1} more, is not that of the tile below"
            yield self._finding("file", path, detail)

    def _check_edges(self, head: TreeHead) -> Iterator[Finding]:
        """Compare the partial tiles above level 0, and the root."""
        level = 1
        while head.size >> (TILE_HEIGHT * level):
            full, width = tile_widths(level, head.size)
            if width:
                yield from self._compare(level, full, self._tree.edge(level))
            level += 1
        if self._tree.root() != head.root:
            detail = f"its {head.size:,} entries do not lead to the root that it names"
            yield self._finding("tree_head", _HEAD_FILE, detail)

    # --- surplus files ----------------------------------------------------------------

    def _check_surplus(self, head: TreeHead) -> Iterator[Finding]:
        """Name files that no reader asks for; those that begin with a dot are a mirror's drafts."""
        for path in sorted(self._directory.rglob("*")):
            name = path.relative_to(self._directory).as_posix()
            if path.name.startswith(".") or (path.is_dir() and not path.is_symlink()):
                continue
            if name not in self._expected and not self._is_old_partial(head, name):
                yield self._finding("file", name, "no such file belongs to this log")

    def _is_old_partial(self, head: TreeHead, name: str) -> bool:
        """Whether a file is a partial tile of an earlier size: the beginning of today's tile."""
        match = _TILE.fullmatch(name)
        if match is None or match[3] is None:
            return False
        level, digits, width = match[1], match[2], int(match[3])
        tile_index = int(re.sub(r"[x/]", "", digits))
        size = head.size >> (0 if level == "entries" else TILE_HEIGHT * int(level))
        now = min(TILE_WIDTH, size - tile_index * TILE_WIDTH)
        if not 0 < width < now or tile_path(level, tile_index, width) != name:
            return False
        kind = level if level == "entries" else int(level)
        old, new = self._bytes(name), self._bytes(tile_path(kind, tile_index, now))
        return new.startswith(old) and (level == "entries" or len(old) == width * HASH_BYTES)

    def _bytes(self, name: str) -> bytes:
        try:
            with (self._directory / name).open("rb") as file:
                return file.read(_FILE_BYTES_MAX)
        except OSError:
            return b""

    def _expect(self, path: str) -> None:
        self._expected.add(path)
        self.files += 1

    def _finding(self, what: str, where: str, detail: str) -> Finding:
        return Finding(self.name, what, where, detail)


def _slot(hashes: bytes, index: int) -> bytes:
    return hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES]
