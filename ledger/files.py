"""Writing a file so that it is there whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["sync_directory", "write_whole"]


def write_whole(path: Path, data: bytes | str, *, mode: int = 0o644) -> None:
    """Put `data` in the place of a file, durably; text is written as UTF-8.

    A reader sees the old content or the new, never a part: the bytes are made durable
    beside the file, which is then exchanged by one rename.

    Args:
        path: its directory must exist.
        data: the whole content.
        mode: permissions of the new file.

    Raises:
        OSError: it cannot be written; what stood there is untouched.
    """
    content = data.encode() if isinstance(data, str) else data
    try:
        handle, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    except OSError as error:  # of the file that was asked for, not of ours beside it
        raise type(error)(error.errno, error.strerror, str(path)) from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable: a rename survives power loss only then."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
