"""Canonical digest of model weights: bytes only, the same for every sharding and file format.

A tensor's contiguous little-endian bytes are cut into chunks of 1 MiB; the RFC 6962 root
over the chunks is its `tensor_root`. A record of name, dtype, shape, size and that root
stands for the tensor, and the RFC 6962 root over all records, in UTF-8 order of names, is
the `weights_digest`. So one chunk, or one tensor, can be proven alone.

Whoever holds tensors (torch, safetensors, plain Python) hands over their bytes; aliases of
one storage are left out by the caller, since files do not hold them either.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.proof.merkle import leaf_hash, root_hash

__all__ = [
    "CHUNK_BYTES",
    "DTYPE_BITS",
    "Bytes",
    "InvalidTensor",
    "TensorRecord",
    "check_record",
    "chunk_hash",
    "chunk_hashes",
    "tensor_record",
    "tensor_root",
    "weights_digest",
]

CHUNK_BYTES: Final = 1 << 20  # the fastest size measured for SHA-256 in threads
Bytes = bytes | bytearray | memoryview

_RECORD_DOMAIN: Final = b"rlhf-audit/tensor/v1\x00"
_NAME_BYTES_MAX: Final = 0xFFFF
_DIMS_MAX: Final = 0xFF
_DIM_MAX: Final = 2**64 - 1
_SIZE_MAX: Final = 2**63 - 1

# The names that safetensors writes, and how many bits one element takes.
DTYPE_BITS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
        "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
        "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
        "I32": 32, "U32": 32, "F32": 32,
        "I64": 64, "U64": 64, "F64": 64, "C64": 64,
    }
)  # fmt: skip


class InvalidTensor(AuditTrailError):
    """A tensor's name, dtype, shape and bytes do not fit together."""


@dataclass(frozen=True)
class TensorRecord:
    """What stands for one tensor in the weights digest.

    Attributes:
        name: as in the state dict, for example `transformer.h.0.attn.c_attn.weight`.
        dtype: safetensors name, for example `BF16`.
        shape: sizes of the dimensions; empty for a scalar.
        size_bytes: length of the contiguous bytes.
        root: RFC 6962 root over chunks of `CHUNK_BYTES`, 32 bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    root: bytes

    def encode(self) -> bytes:
        """Return the record's bytes: domain, u32 length and name, u8 length and dtype,
        u8 number of dimensions, u64 each dimension, u64 size, root; integers little-endian.
        """
        name, dtype = self.name.encode(), self.dtype.encode()
        return b"".join(
            (
                _RECORD_DOMAIN,
                struct.pack("<I", len(name)), name,
                struct.pack("<B", len(dtype)), dtype,
                struct.pack("<B", len(self.shape)),
                struct.pack(f"<{len(self.shape)}Q", *self.shape),
                struct.pack("<Q", self.size_bytes),
                self.root,
            )
        )  # fmt: skip


def tensor_root(data: Bytes) -> bytes:
    """Return the RFC 6962 root over a tensor's bytes in chunks; no bytes give the empty root."""
    return root_hash(chunk_hashes(data))


def chunk_hashes(data: Bytes) -> list[bytes]:
    """Return the RFC 6962 leaf hash of each chunk of a tensor's bytes."""
    view = memoryview(data).cast("B")
    chunks = (view[start : start + CHUNK_BYTES] for start in range(0, len(view), CHUNK_BYTES))
    return [chunk_hash(chunk) for chunk in chunks]


def chunk_hash(chunk: Bytes) -> bytes:
    """Hash a chunk as a leaf, without the copy that joining the prefix would make."""
    digest = hashlib.sha256(b"\x00")
    digest.update(chunk)
    return digest.digest()


def tensor_record(name: str, dtype: str, shape: Iterable[int], data: Bytes) -> TensorRecord:
    """Make the record of one tensor.

    Args:
        name: non-empty, unique among the model's tensors.
        dtype: a key of `DTYPE_BITS`.
        shape: sizes of the dimensions, each 0 or more.
        data: its contiguous little-endian bytes, exactly as many as dtype and shape demand.

    Raises:
        InvalidTensor: they do not fit together.
    """
    record = check_record(name, dtype, list(shape), tensor_root(data))
    size_bytes = memoryview(data).nbytes
    if size_bytes != record.size_bytes:
        raise InvalidTensor(
            f"{name} has {size_bytes:,} bytes, but its dtype and shape demand"
            f" {record.size_bytes:,}",
            next_step="pass the tensor's contiguous bytes, without padding",
        )
    return record


def check_record(name: Any, dtype: Any, shape: Any, root: bytes) -> TensorRecord:
    """Make a record from what a file says about a tensor, without its bytes.

    Raises:
        InvalidTensor: as `tensor_record`, or a value has another type.
    """
    if not isinstance(name, str) or not 0 < len(name.encode()) <= _NAME_BYTES_MAX:
        raise InvalidTensor(f"a tensor's name must have 1 to {_NAME_BYTES_MAX:,} bytes")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise InvalidTensor(
            f"{name} has the unknown dtype {dtype!r:.40}",
            next_step=f"known dtypes: {', '.join(sorted(DTYPE_BITS))}",
        )
    is_list = isinstance(shape, list) and len(shape) <= _DIMS_MAX
    if not is_list or any(type(dim) is not int or not 0 <= dim <= _DIM_MAX for dim in shape):
        raise InvalidTensor(f"{name} has an impossible shape")
    size_bytes = math.prod(shape) * DTYPE_BITS[dtype] // 8
    if size_bytes > _SIZE_MAX:
        raise InvalidTensor(f"{name} has an impossible shape")
    return TensorRecord(name, dtype, tuple(shape), size_bytes, root)


def weights_digest(records: Iterable[TensorRecord]) -> bytes:
    """Return the digest of a model, 32 bytes; the order of `records` does not matter.

    Raises:
        InvalidTensor: two records bear one name.
    """
    by_name: dict[bytes, TensorRecord] = {}
    for record in records:
        if by_name.setdefault(record.name.encode(), record) is not record:
            raise InvalidTensor(f"two tensors are named {record.name}")
    return root_hash([leaf_hash(by_name[name].encode()) for name in sorted(by_name)])
