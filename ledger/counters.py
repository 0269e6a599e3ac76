"""Counting what a process hands over, so that the next one can tell what died with it.

A file of 32 bytes for each writer, mapped into memory: the kernel keeps what was written
there when the process is killed. After a power loss it may hold an older number, so
the loss is then a lower bound, and said to be one.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Counter", "DeadWriter", "dead_writers"]

_LAYOUT: Final = struct.Struct(">8s16sQ")  # magic, boot id, sequence numbers given out
_MAGIC: Final = b"rlhfseq1"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Counter:
    """The count of one writer of this process; its lock says that the writer lives."""

    def __init__(self, directory: Path, run_id: str, writer_id: str) -> None:
        """Make the file; nobody sees it before it is locked."""
        directory.mkdir(exist_ok=True)
        self._handle, draft = tempfile.mkstemp(prefix=".", dir=directory)
        self._path = directory / f"{run_id}.{writer_id}"
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX)
            os.write(self._handle, _LAYOUT.pack(_MAGIC, _boot_id(), 0))
            self._map = mmap.mmap(self._handle, _LAYOUT.size)
            Path(draft).rename(self._path)
        except BaseException:
            os.close(self._handle)
            Path(draft).unlink(missing_ok=True)
            raise

    def put(self, count: int) -> None:
        """Keep how many sequence numbers were given out."""
        self._map[-8:] = count.to_bytes(8, "big")

    def close(self, *, remove: bool) -> None:
        """Let go of the file; `remove` it when all that was handed over is accounted for."""
        if remove:
            self._path.unlink(missing_ok=True)
        self._map.close()
        os.close(self._handle)


@dataclass(frozen=True)
class DeadWriter:
    """A writer whose process ended without saying what became of its last entries.

    Attributes:
        writer_id: 32 hex digits.
        count: sequence numbers that it gave out.
        is_exact: False if the machine was started anew since; then it is a lower bound.
    """

    writer_id: str
    count: int
    is_exact: bool
    path: Path
    handle: int

    def bury(self) -> None:
        """Remove its file; what was lost stands in the log now."""
        self.path.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Leave the file to the next process that looks."""
        os.close(self.handle)


def dead_writers(directory: Path, run_id: str) -> Iterator[DeadWriter]:
    """Yield the dead writers of a run, each locked until it is buried or released."""
    for path in sorted(directory.glob(f"{run_id}.*")):
        _, _, writer_id = path.name.rpartition(".")
        if path.name != f"{run_id}.{writer_id}":  # of a run whose name begins alike
            continue
        try:
            handle = os.open(path, os.O_RDWR)
        except FileNotFoundError:  # another process was faster
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            continue
        data = os.read(handle, _LAYOUT.size)
        if len(data) != _LAYOUT.size or not data.startswith(_MAGIC) or not path.exists():
            os.close(handle)
            continue
        _, boot_id, count = _LAYOUT.unpack(data)
        exact = boot_id == _boot_id() != bytes(16)
        yield DeadWriter(writer_id, count, exact, path, handle)


def _boot_id() -> bytes:
    try:
        return bytes.fromhex(_BOOT_ID.read_text("ascii").strip().replace("-", ""))
    except (OSError, ValueError):
        return bytes(16)  # not known here
