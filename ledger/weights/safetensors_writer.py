"""Writing a safetensors file from chunks that arrive in any order; whole or not at all."""

from __future__ import annotations

import json
import os
import struct
import tempfile
from pathlib import Path
from typing import Any, Final

from rlhf_audit_trail.ledger.files import sync_directory
from rlhf_audit_trail.ledger.weights.delta import ChunkPlace, Layout
from rlhf_audit_trail.ledger.weights.digest import Bytes
from rlhf_audit_trail.ledger.weights.reader import CheckpointReader

__all__ = ["safetensors_header", "write_safetensors"]

_ALIGNED_BYTES: Final = 8  # as the format's own writer pads its header


def safetensors_header(layout: Layout) -> tuple[bytes, list[int]]:
    """Return the file's beginning, and where each tensor's bytes start in the file.

    Equal weights give equal files: tensors stand in order of their names.
    """
    starts, at = [], 0
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for tensor in layout.tensors:
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.size_bytes],
        }
        starts.append(at)
        at += tensor.size_bytes
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED_BYTES)
    begin = struct.pack("<Q", len(text)) + text
    return begin, [len(begin) + start for start in starts]


def write_safetensors(reader: CheckpointReader, path: Path) -> int:
    """Restore a stored checkpoint into a file; return its size in bytes.

    The file appears under its name only when all weights were checked.

    Raises:
        CheckpointDamaged, MalformedDelta, BlobMissing, BlobDamaged: as `restore`.
        OSError: it cannot be written.
    """
    begin, starts = safetensors_header(reader.layout)
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(begin)
            file.flush()

            def write(chunk: ChunkPlace, data: Bytes) -> None:
                os.pwrite(handle, data, starts[chunk.tensor] + chunk.start)

            reader.restore(write)
            os.fchmod(handle, 0o644)
            os.fsync(handle)
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
    return len(begin) + reader.layout.size_bytes
