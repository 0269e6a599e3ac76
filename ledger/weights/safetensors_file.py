"""Reading safetensors files strictly: every byte belongs to exactly one tensor, or it is refused.

Nothing is executed and nothing is trusted: a header that overlaps, leaves holes, repeats a name
or claims another size than its dtype and shape demand is not read at all. Without torch, NumPy
or the safetensors package.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rlhf_audit_trail.ledger.proof.bundle import parse_json
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError, MalformedBundle
from rlhf_audit_trail.ledger.weights.digest import InvalidTensor, check_record

__all__ = ["FileTensor", "UnreadableModel", "read_safetensors"]

_HEADER_BYTES_MAX: Final = 100_000_000  # as the format's own reader
_LENGTH_BYTES: Final = 8
_FIELDS: Final = {"dtype", "shape", "data_offsets"}


class UnreadableModel(AuditTrailError):
    """A file or folder does not hold a model that can be read safely."""


@dataclass(frozen=True)
class FileTensor:
    """A tensor of a file; its bytes stay where they are."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview


def read_safetensors(path: Path) -> list[FileTensor]:
    """Return a file's tensors, in the order in which their bytes lie.

    Raises:
        UnreadableModel: not exactly one header and its tensors.
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        file.seek(0, 2)
        if file.tell() < _LENGTH_BYTES:
            raise _refused(path, "it is shorter than a header's length")
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    length = struct.unpack("<Q", view[:_LENGTH_BYTES])[0]
    begin = _LENGTH_BYTES + length
    if length > _HEADER_BYTES_MAX or begin > len(view):
        raise _refused(path, "its header is longer than the file")
    try:
        found = parse_json(bytes(view[_LENGTH_BYTES:begin]))
        tensors = _tensors(found, view[begin:])
    except InvalidTensor as error:
        raise _refused(path, error.message) from error
    except MalformedBundle as error:
        raise _refused(path, "its header is not JSON with each name once") from error
    if tensors is None:
        raise _refused(path, "its tensors overlap, leave holes or reach beyond the file")
    return tensors


def _tensors(header: Any, data: memoryview) -> list[FileTensor] | None:
    """Return the tensors, or None where they do not cover the data exactly."""
    if not isinstance(header, dict):
        raise InvalidTensor("its header is no object")
    if not isinstance(header.pop("__metadata__", {}), dict):
        raise InvalidTensor("its metadata is no object")
    placed = sorted((*_span(name, item), name) for name, item in header.items())
    at, found = 0, []
    for begin, end, name in placed:
        item = header[name]
        record = check_record(name, item["dtype"], item["shape"], b"")
        if begin != at or end > len(data) or end - begin != record.size_bytes:
            return None
        found.append(FileTensor(name, record.dtype, record.shape, data[begin:end]))
        at = end
    return found if at == len(data) else None


def _span(name: str, item: Any) -> tuple[int, int]:
    if not isinstance(item, dict) or set(item) != _FIELDS:
        raise InvalidTensor(f"{name:.200} has other fields than dtype, shape, data_offsets")
    offsets = item["data_offsets"]
    is_pair = isinstance(offsets, list) and [type(x) for x in offsets] == [int, int]
    if not is_pair or not 0 <= offsets[0] <= offsets[1]:
        raise InvalidTensor(f"{name:.200} has impossible offsets")
    return offsets[0], offsets[1]


def _refused(path: Path, why: str) -> UnreadableModel:
    return UnreadableModel(
        f"{path.name} is no sound safetensors file: {why}",
        next_step="save the model again, or fetch the file again",
    )
