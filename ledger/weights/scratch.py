"""Room for one copy of a model's weights, on disk and mapped into memory."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from pathlib import Path
from typing import Final

from rlhf_audit_trail.ledger.weights.delta import ChunkPlace, Layout

__all__ = ["Scratch"]

_CANNOT: Final = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


class Scratch:
    """A nameless file, mapped into memory, that holds one copy of all weights.

    On disk rather than in memory, which a training has none of to spare; the system writes it
    out when it needs the room. It is gone when the process ends.
    """

    def __init__(self, layout: Layout, directory: Path | None = None) -> None:
        """Make room for the tensors of `layout` below `directory`, or where temporary files go.

        Raises:
            OSError: there is not enough of it.
        """
        self.layout = layout
        self._starts: list[int] = []
        size = 0
        for tensor in layout.tensors:
            self._starts.append(size)
            size += -(-tensor.size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        with tempfile.TemporaryFile(prefix=".weights-", dir=directory) as file:
            _make_room(file.fileno(), max(size, 1))
            self._map = mmap.mmap(file.fileno(), max(size, 1))
        self._view = memoryview(self._map)

    def read(self, chunk: ChunkPlace) -> memoryview:
        """Return a chunk's bytes, in place."""
        start = self._starts[chunk.tensor] + chunk.start
        return self._view[start : start + chunk.size_bytes]

    def tensor(self, number: int) -> memoryview:
        """Return the room of one tensor, in order of names."""
        size = self.layout.tensors[number].size_bytes
        return self._view[self._starts[number] : self._starts[number] + size]


def _make_room(file: int, size: int) -> None:
    """Reserve the file's blocks: writing to a mapped page that gets none ends the process."""
    try:
        os.posix_fallocate(file, 0, size)
    except (AttributeError, OSError) as error:  # macOS has no such call, some file systems neither
        if isinstance(error, OSError) and error.errno not in _CANNOT:
            raise
        os.truncate(file, size)
