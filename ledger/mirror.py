"""A mirror: another ledger's public log, kept as a static directory that is itself a log.

Everything is verified before it is written: signatures by the pinned keys, growth from the
head kept here, every tile against the signed root, every entry against its leaf hash. Tiles
come first and the tree head last, each whole or not at all, so that what a reader finds is a
sound log at every moment, also after the process was killed. Standard library, `cryptography`
and the kernel. c2sp.org/tlog-tiles.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rlhf_audit_trail.ledger.files import sync_directory, write_whole
from rlhf_audit_trail.ledger.monitor import Contradiction, evidence_of
from rlhf_audit_trail.ledger.proof.errors import (
    AuditTrailError,
    BadSignature,
    Inconsistent,
    ProofError,
)
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.proof.tree_head import SignedTreeHead, TreeHead
from rlhf_audit_trail.ledger.public_log import DirectoryLog, NotServed, PublicLog
from rlhf_audit_trail.ledger.tiles import TILE_WIDTH, encode_entry_tile, tile_path, tile_widths
from rlhf_audit_trail.ledger.trust import read_keys
from rlhf_audit_trail.ledger.verified_log import (
    TiledLog,
    VerifiedLog,
    compare_heads,
    open_pinned,
)

__all__ = [
    "KEYS_FILE",
    "DirectoryInUse",
    "DirectoryTaken",
    "Mirror",
    "MirrorDamaged",
    "SourceContradiction",
    "Synced",
    "keys_in",
]

KEYS_FILE: Final = "vkey"
_HEAD_FILE: Final = "checkpoint"
# the head being worked towards: what was once accepted as signed is never forgotten
_NEXT_FILE: Final = ".checkpoint.next"
_DRAFTS: Final = ".*-????????"  # as `write_whole` names them


class DirectoryTaken(AuditTrailError):
    """The directory holds something that is no log of ours."""


class DirectoryInUse(AuditTrailError):
    """Another process is writing to this directory."""


class MirrorDamaged(AuditTrailError):
    """A file of the mirror is not what was written there; it is never overwritten."""


class SourceContradiction(Contradiction):
    """The source contradicts itself, or what it showed before; nothing of it was taken.

    Attributes:
        file: where the evidence was written, beside the mirror.
    """

    def __init__(self, finding: ProofError, evidence: bytes, file: Path) -> None:
        super().__init__(finding, evidence)
        self.file = file
        self.next_step = f"keep {file}, and show it to others who rely on this log"


@dataclass(frozen=True)
class Synced:
    """What one look at the source brought.

    Attributes:
        head: the tree head that the mirror has now.
        new_entries: how many entries came since the one before.
        files: how many files were written.
    """

    head: TreeHead
    new_entries: int
    files: int


def keys_in(directory: Path) -> tuple[VerifierKey, ...]:
    """Return the keys a mirror was made with, none if there is no mirror; raises InvalidTrust."""
    path = directory / KEYS_FILE
    return read_keys(str(path)) if path.is_file() else ()


class Mirror:
    """Follows one log into one directory; not safe to share between threads."""

    def __init__(self, source: TiledLog, directory: Path, keys: Iterable[VerifierKey]) -> None:
        """Prepare; nothing is read or written yet.

        Args:
            source: where to read.
            directory: new, empty, or a mirror of the same log.
            keys: the log's keys, which must all have signed.
        """
        self._source = source
        self._directory = directory.absolute()
        self._keys = tuple(keys)
        self._own = PublicLog(DirectoryLog(self._directory))
        self._files = 0

    def sync(self) -> Synced:
        """Bring the directory to the source's newest tree head; fetch only what is new.

        Raises:
            SourceContradiction: the source rolled back, forked, or its files do not lead to
                the signed root; the evidence was written beside the mirror.
            MalformedBundle: its tree head does not parse, so nobody signed it.
            PolicyUnmet: not all pinned keys signed it.
            NotServed, Unreachable: it cannot be read now; the next call goes on.
            DirectoryTaken, DirectoryInUse, MirrorDamaged: the directory cannot be written to.
        """
        self._require_ours()
        self._directory.mkdir(parents=True, exist_ok=True)
        with _locked(self._directory):
            return self._sync()

    def _require_ours(self) -> None:
        """Refuse a directory in which there is something, and no log of ours."""
        path = self._directory
        if not path.exists() or any((path / x).exists() for x in (_HEAD_FILE, _NEXT_FILE)):
            return
        if not path.is_dir() or any(not x.name.startswith(".") for x in path.iterdir()):
            raise DirectoryTaken(
                f"{path} is not empty, and no mirror", next_step="choose a new directory"
            )

    def _sync(self) -> Synced:
        self._files = 0
        kept, was_interrupted = self._kept(_HEAD_FILE), self._kept(_NEXT_FILE)
        seen = max(
            (x for x in (kept, was_interrupted) if x is not None),
            key=lambda x: x.head.size,
            default=None,
        )
        note = self._source.tree_head()
        before = kept.head.size if kept else 0
        head = self._judge(note, seen)
        if kept is None or was_interrupted is not None or str(kept.note) != note:
            try:
                self._take(note, VerifiedLog(self._source, head), seen)
            except ProofError as error:
                raise self._alarm(error, note, seen) from error
            self._tidy(before, head.size, thoroughly=was_interrupted is not None)
        return Synced(head, head.size - before, self._files)

    def _kept(self, name: str) -> SignedTreeHead | None:
        """Return a signed tree head that this mirror has kept."""
        path = self._directory / name
        if not path.exists():
            return None
        # the keys may have been exchanged since: it was verified by those that stand beside it
        for keys in (self._keys, keys_in(self._directory)):
            try:
                return open_pinned(path.read_text("utf-8"), keys)
            except (ProofError, UnicodeDecodeError):
                continue
        raise _damaged(name)

    def _judge(self, note: str, seen: SignedTreeHead | None) -> TreeHead:
        """Return the source's head after showing who signed it, and that it did not shrink."""
        try:
            head = open_pinned(note, self._keys).head
            if seen is not None:
                compare_heads(seen.head, head)
        except (Inconsistent, BadSignature) as error:
            raise self._alarm(error, note, seen) from error
        return head

    def _alarm(
        self, finding: ProofError, note: str, seen: SignedTreeHead | None
    ) -> SourceContradiction:
        """Write both signed notes beside the mirror; the same finding goes to the same file."""
        before = str(seen.note) if seen else ""
        evidence = evidence_of(finding, note, before)
        digest = hashlib.sha256(f"{before}\n{note}\n{finding.message}".encode()).hexdigest()
        file = self._directory.with_name(f"{self._directory.name}.evidence-{digest[:16]}.json")
        if not file.exists():
            write_whole(file, evidence)
        return SourceContradiction(finding, evidence, file)

    # --- taking over ------------------------------------------------------------------

    def _take(self, note: str, source: VerifiedLog, seen: SignedTreeHead | None) -> None:
        """Write what is new, the tree head last."""
        old_size = 0
        if seen is not None:
            source.extends(seen.head)
            kept = self._kept(_HEAD_FILE)
            old_size = kept.head.size if kept else 0
        self._put(_NEXT_FILE, note.encode())
        keys = "".join(f"{key}\n" for key in self._keys).encode()
        if self._read(KEYS_FILE) != keys:
            self._put(KEYS_FILE, keys)
        for level in reversed(source.levels()):  # a tile is confirmed by the one above it
            for tile_index, width in source.tiles(level, old_size):
                self._take_hashes(source, level, tile_index, width)
                if level == 0:
                    self._take_entries(source, tile_index, width)
        self._put(_HEAD_FILE, note.encode())

    def _take_hashes(self, source: VerifiedLog, level: int, tile_index: int, width: int) -> None:
        path = tile_path(level, tile_index, width)
        if width == TILE_WIDTH and self._has(path):  # from an attempt that was interrupted
            try:
                source.confirm_tile(
                    level, tile_index, self._own.hash_tile(level, tile_index, width)
                )
            except ProofError as error:
                raise _damaged(path) from error
            return
        self._put_once(path, source.hash_tile(level, tile_index, width))

    def _take_entries(self, source: VerifiedLog, tile_index: int, width: int) -> None:
        path = tile_path("entries", tile_index, width)
        if self._has(path):
            try:
                source.confirm_entries(tile_index, self._own.entries(tile_index, width))
            except (ProofError, NotServed) as error:
                raise _damaged(path) from error
            return
        self._put_once(path, encode_entry_tile(source.entries(tile_index, width)))

    # --- files ------------------------------------------------------------------------

    def _has(self, name: str) -> bool:
        return (self._directory / name).is_file()

    def _read(self, name: str) -> bytes | None:
        path = self._directory / name
        return path.read_bytes() if path.is_file() else None

    def _put_once(self, name: str, data: bytes) -> None:
        """Write a file that never changes again."""
        there = self._read(name)
        if there is None:
            self._put(name, data)
        elif there != data:
            raise _damaged(name)

    def _put(self, name: str, data: bytes) -> None:
        path = self._directory / name
        for parent in reversed([x for x in path.parents if not x.exists()]):
            parent.mkdir()
            sync_directory(parent.parent)
        write_whole(path, data)
        self._files += 1

    def _tidy(self, old_size: int, size: int, *, thoroughly: bool) -> None:
        """Remove partial tiles that a full one stands for now, then the note of what was begun."""
        for draft in self._directory.glob(_DRAFTS):
            draft.unlink()
        if thoroughly:  # a killed process may have left drafts, and partials of an older size
            for draft in self._directory.rglob(_DRAFTS):
                draft.unlink()
            for partials in self._directory.rglob("*.p"):
                if partials.with_suffix("").is_file():
                    shutil.rmtree(partials)
        else:
            for path in _full_since(old_size, size):
                shutil.rmtree(self._directory / f"{path}.p", ignore_errors=True)
        (self._directory / _NEXT_FILE).unlink()
        sync_directory(self._directory)


def _full_since(old_size: int, size: int) -> Iterator[str]:
    """Yield the paths of tiles that were partial at `old_size` and are full at `size`."""
    level = 0
    while old_size >> (8 * level):
        tile_index, width = tile_widths(level, old_size)
        if width and tile_index < tile_widths(level, size)[0]:
            yield tile_path(level, tile_index, TILE_WIDTH)
            if level == 0:
                yield tile_path("entries", tile_index, TILE_WIDTH)
        level += 1


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep other processes from writing here; the lock ends with the process."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DirectoryInUse(
                f"another process is writing to {directory}", next_step="wait for it, or stop it"
            ) from error
        yield
    finally:
        os.close(handle)


def _damaged(name: str) -> MirrorDamaged:
    return MirrorDamaged(
        f"{name} in the mirror is not what was written there",
        next_step="keep a copy if it may be evidence; remove the file, and mirror again",
    )
