"""Files of a checkpoint, held open so that they can be digested after the trainer removed them."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Final

from rlhf_audit_trail.ledger.weights.manifest import FileRecord

__all__ = ["PinnedFiles"]

_READ_BYTES: Final = 1 << 20


class PinnedFiles:
    """Every file below a path, open: rotation may delete the names, never the bytes.

    A file that is overwritten in place changes here, too; so they are digested before the next
    checkpoint is taken.
    """

    def __init__(self, path: Path) -> None:
        """Open them; raises OSError where one cannot be read."""
        self._is_folder = path.is_dir()
        names = [path]
        if self._is_folder:
            names = sorted(item for item in path.rglob("*") if item.is_file())
        self._open: list[tuple[str, BinaryIO]] = []
        with ExitStack() as opened:
            for name in names:
                file = opened.enter_context(name.open("rb"))
                shown = name.relative_to(path).as_posix() if self._is_folder else name.name
                self._open.append((shown, file))
            self._closing = opened.pop_all()

    def close(self) -> None:
        """Let go of them; again is no harm."""
        self._closing.close()

    def digest(self) -> tuple[str, tuple[FileRecord, ...]]:
        """Return what `file_digest` gives for the path, and each file's own; closes them."""
        with self._closing:
            records = tuple(_record(name, file) for name, file in self._open)
        if not self._is_folder:
            return records[0].sha256, records
        lines = "".join(f"{record.sha256}  {record.path}\n" for record in records)
        return hashlib.sha256(lines.encode()).hexdigest(), records


def _record(name: str, file: BinaryIO) -> FileRecord:
    digest, size = hashlib.sha256(), 0
    while chunk := file.read(_READ_BYTES):
        digest.update(chunk)
        size += len(chunk)
    return FileRecord(name, size, digest.hexdigest())
