"""Export a log's public side as a static directory that any C2SP client can read.

The directory holds what strangers may see: the signed tree head, hash tiles, entries and
the log's keys; no vault value. c2sp.org/tlog-tiles.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rlhf_audit_trail.ledger.mirror import Mirror, Synced
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.proof.tree_head import SignedTreeHead
from rlhf_audit_trail.ledger.reading import NotPublished, StoredLog
from rlhf_audit_trail.ledger.tiles import TILE_WIDTH, encode_entry_tile, tile_path, tile_widths

__all__ = ["ExportTargetTaken", "export_log", "static_files", "update_export"]


class ExportTargetTaken(AuditTrailError):
    """The directory to export to holds something already."""


def static_files(log: StoredLog) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of every public file at the newest signed tree head.

    The tree head comes last: who sees it can rely on the tiles it needs.

    Raises:
        NotPublished: nothing was signed yet.
    """
    signed = _newest(log)
    size, level = signed.head.size, 0
    while size >> (8 * level):
        for index, width in _tiles(level, size):
            yield tile_path(level, index, width), log.hash_tile(level, index, width)
        level += 1
    for index, width in _tiles(0, size):
        first = index * TILE_WIDTH
        entries = (entry.data for entry in log.entries(first, first + width))
        yield tile_path("entries", index, width), encode_entry_tile(entries)
    yield "vkey", "".join(f"{key}\n" for key in signed.signed_by).encode()
    yield "checkpoint", (log.served_note(size) or str(signed.note)).encode()


def _newest(log: StoredLog) -> SignedTreeHead:
    signed = log.published()
    if signed is None or signed.head.size == 0:
        raise NotPublished(
            f"{log.origin} has no signed tree head", next_step="sign one: rlhf-audit anchor"
        )
    return signed


def _tiles(level: int, size: int) -> Iterator[tuple[int, int]]:
    full, partial = tile_widths(level, size)
    yield from ((index, TILE_WIDTH) for index in range(full))
    if partial:
        yield full, partial


def export_log(log: StoredLog, target: Path) -> tuple[int, int]:
    """Write the public files to a new or empty directory, all or none.

    Returns:
        The count of files and their size in bytes.

    Raises:
        NotPublished: nothing was signed yet.
        ExportTargetTaken: the directory is not empty.
    """
    target = target.absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ExportTargetTaken(f"{target} is not empty", next_step="choose a new directory")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    count = size_bytes = 0
    try:
        for name, data in static_files(log):
            path = draft / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            count, size_bytes = count + 1, size_bytes + len(data)
        draft.chmod(0o755)  # it is there to be served
        draft.replace(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return count, size_bytes


def update_export(log: StoredLog, target: Path) -> Synced:
    """Bring an export of an earlier state to the newest signed tree head; a new one is made.

    Only what is new is written, durably, tiles first and the tree head last; all of it is
    checked against the signed root on the way. Killed anywhere, the directory stays sound.

    Raises:
        NotPublished: nothing was signed yet.
        Contradiction: the export is of another history than the store, or the store is damaged.
        DirectoryTaken, DirectoryInUse, MirrorDamaged: the directory cannot be written to.
    """
    signed = _newest(log)
    return Mirror(_Published(log, signed), target, signed.signed_by).sync()


class _Published:
    """A stored log as its readers see it, at one signed tree head."""

    def __init__(self, log: StoredLog, signed: SignedTreeHead) -> None:
        self._log = log
        self._signed = signed

    def tree_head(self) -> str:
        return self._log.served_note(self._signed.head.size) or str(self._signed.note)

    def hash_tile(self, level: int, tile_index: int, width: int) -> bytes:
        return self._log.hash_tile(level, tile_index, width)

    def entries(self, tile_index: int, width: int) -> tuple[bytes, ...]:
        first = tile_index * TILE_WIDTH
        return tuple(entry.data for entry in self._log.entries(first, first + width))
