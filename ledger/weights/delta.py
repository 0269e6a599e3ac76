"""Lossless differences between the weights of two checkpoints, and the chains they form.

A delta names the weights it starts from and the weights it leads to by their digests. It has
a header, which is a table of all tensors of the result, and segments of encoded chunks, which
can be written and read side by side. Weights that start from nothing are called whole.

Spec: FORMAT.md, section 19.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, BinaryIO, Final, Protocol

from rlhf_audit_trail.ledger.proof.bundle import parse_json
from rlhf_audit_trail.ledger.proof.errors import MalformedBundle
from rlhf_audit_trail.ledger.proof.merkle import root_hash
from rlhf_audit_trail.ledger.weights.arithmetic import PLAIN, ByteArithmetic
from rlhf_audit_trail.ledger.weights.chunks import (
    NOTHING,
    EncodedChunk,
    MalformedDelta,
    encode_chunk,
    parse_chunk,
)
from rlhf_audit_trail.ledger.weights.digest import (
    CHUNK_BYTES,
    DTYPE_BITS,
    Bytes,
    InvalidTensor,
    TensorRecord,
    check_record,
    chunk_hash,
    weights_digest,
)

__all__ = [
    "HEADER_BYTES_MAX",
    "MAGIC",
    "SEGMENT_BYTES",
    "ChunkPlace",
    "DeltaHeader",
    "DeltaTensor",
    "EncodedSegment",
    "Layout",
    "TensorPlace",
    "encode_segment",
    "parse_header",
    "parse_segment",
    "read_delta",
    "write_delta",
]

MAGIC: Final = b"rlhf-audit/weight-delta/v1\n"
SEGMENT_BYTES: Final = 16 * CHUNK_BYTES  # of weights: enough for a thread, little to hold at once
HEADER_BYTES_MAX: Final = 64 * 1024 * 1024
_TENSORS_MAX: Final = 1_000_000
_SCHEMA: Final = "rlhf-audit/weight-delta/v1"
_FIELDS: Final = ("schema", "base", "result", "tensors")
_TENSOR_FIELDS: Final = ("name", "dtype", "shape", "root", "whole")
_DIGEST_HEX: Final = 64
# plane by plane, a chunk takes at most its own size, and a form and a length for each plane
_CHUNK_ENCODED_MAX: Final = CHUNK_BYTES + 64


@dataclass(frozen=True)
class TensorPlace:
    """A tensor without its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int

    @property
    def width(self) -> int:
        """Bytes of an element."""
        return DTYPE_BITS[self.dtype] // 8

    def fits(self, other: TensorPlace) -> bool:
        """Whether the difference between the two can be told bit by bit."""
        return (self.name, self.dtype, self.shape) == (other.name, other.dtype, other.shape)


@dataclass(frozen=True)
class ChunkPlace:
    """Where a chunk belongs: tensor number in order of names, offset, and size in bytes."""

    tensor: int
    start: int
    size_bytes: int


class Layout:
    """The tensors of a model in UTF-8 order of names, their chunks, and the chunks' segments.

    All of it follows from names, dtypes and shapes; nothing structural is stored.
    """

    def __init__(self, tensors: Iterable[TensorPlace]) -> None:
        self.tensors = tuple(sorted(tensors, key=lambda tensor: tensor.name.encode()))
        self.number = {tensor.name: at for at, tensor in enumerate(self.tensors)}
        self.segments = tuple(self._segments())
        self.where = {
            (chunk.tensor, chunk.start): (at, within)
            for at, segment in enumerate(self.segments)
            for within, chunk in enumerate(segment)
        }

    @property
    def size_bytes(self) -> int:
        """Of all weights together."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    def chunks(self) -> Iterator[ChunkPlace]:
        """Yield all chunks in order; a tensor without bytes has none."""
        for number, tensor in enumerate(self.tensors):
            for start in range(0, tensor.size_bytes, CHUNK_BYTES):
                yield ChunkPlace(number, start, min(CHUNK_BYTES, tensor.size_bytes - start))

    def _segments(self) -> Iterator[tuple[ChunkPlace, ...]]:
        held: list[ChunkPlace] = []
        size = 0
        for chunk in self.chunks():
            if held and size + chunk.size_bytes > SEGMENT_BYTES:
                yield tuple(held)
                held, size = [], 0
            held.append(chunk)
            size += chunk.size_bytes
        if held:
            yield tuple(held)

    def records(self, hashes: Sequence[Sequence[bytes]]) -> tuple[TensorRecord, ...]:
        """Return the tensors' records from the leaf hashes of each segment's chunks."""
        leaves: list[list[bytes]] = [[] for _ in self.tensors]
        for segment, found in zip(self.segments, hashes, strict=True):
            for chunk, leaf in zip(segment, found, strict=True):
                leaves[chunk.tensor].append(leaf)
        return tuple(
            TensorRecord(x.name, x.dtype, x.shape, x.size_bytes, root_hash(own))
            for x, own in zip(self.tensors, leaves, strict=True)
        )


@dataclass(frozen=True)
class DeltaTensor:
    """A tensor of the result, and whether it is written whole or as a difference."""

    record: TensorRecord
    is_whole: bool

    @property
    def place(self) -> TensorPlace:
        """The tensor without its bytes."""
        record = self.record
        return TensorPlace(record.name, record.dtype, record.shape, record.size_bytes)


@dataclass(frozen=True)
class DeltaHeader:
    """What a delta starts from and leads to.

    Attributes:
        base: weights digest; None where nothing is needed.
        tensors: of the result, in UTF-8 order of names.
    """

    base: bytes | None
    tensors: tuple[DeltaTensor, ...]

    @property
    def result(self) -> bytes:
        """The weights digest that the delta leads to."""
        return weights_digest(tensor.record for tensor in self.tensors)

    @property
    def layout(self) -> Layout:
        """Tensors, chunks and segments."""
        return Layout(tensor.place for tensor in self.tensors)

    def encode(self) -> bytes:
        """Return the header's one spelling: compact JSON, fields in the fixed order."""
        tensors = [
            {
                "name": x.record.name,
                "dtype": x.record.dtype,
                "shape": list(x.record.shape),
                "root": x.record.root.hex(),
                "whole": x.is_whole,
            }
            for x in self.tensors
        ]
        base = None if self.base is None else self.base.hex()
        values = (_SCHEMA, base, self.result.hex(), tensors)
        return _spelled(dict(zip(_FIELDS, values, strict=True)))


def _spelled(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def parse_header(data: bytes) -> DeltaHeader:
    """Read a header.

    Raises:
        MalformedDelta: not in its one spelling, tensors out of order, or the digest of the
            result is not that of its tensors.
    """
    if len(data) > HEADER_BYTES_MAX:
        raise MalformedDelta(f"a header has more than {HEADER_BYTES_MAX:,} bytes")
    try:
        found = parse_json(data)
        header = _header(found)
        same = header.encode() == data
    except MalformedDelta:
        raise
    except (ValueError, TypeError, KeyError, InvalidTensor, MalformedBundle) as error:
        raise MalformedDelta("a header does not hold what it must") from error
    if not same:
        raise MalformedDelta("a header is not written in its one spelling, or leads elsewhere")
    return header


def _header(found: Any) -> DeltaHeader:
    if not isinstance(found, dict) or tuple(found) != _FIELDS or found["schema"] != _SCHEMA:
        raise MalformedDelta("this is no weight delta of version 1")
    if not isinstance(found["tensors"], list) or len(found["tensors"]) > _TENSORS_MAX:
        raise MalformedDelta("a header has no list of tensors, or a too long one")
    base = None if found["base"] is None else _digest(found["base"])
    tensors = tuple(_tensor(item, base) for item in found["tensors"])
    names = [tensor.record.name.encode() for tensor in tensors]
    if any(one >= other for one, other in pairwise(names)):
        raise MalformedDelta("tensors are not in order of their names, or one comes twice")
    return DeltaHeader(base, tensors)


def _tensor(item: Any, base: bytes | None) -> DeltaTensor:
    if not isinstance(item, dict) or tuple(item) != _TENSOR_FIELDS:
        raise MalformedDelta("a tensor of the header has other fields")
    if not isinstance(item["whole"], bool) or (base is None and not item["whole"]):
        raise MalformedDelta("a tensor starts from weights that are not named")
    record = check_record(item["name"], item["dtype"], item["shape"], _digest(item["root"]))
    return DeltaTensor(record, item["whole"])


def _digest(text: Any) -> bytes:
    if not isinstance(text, str) or len(text) != _DIGEST_HEX:
        raise MalformedDelta("a digest does not have 64 hex digits")
    return bytes.fromhex(text)


# --- segments -----------------------------------------------------------------------------


class ChunkSource(Protocol):
    """Hands out the bytes of a model's tensors."""

    def __call__(self, chunk: ChunkPlace, /) -> Bytes:
        """Return the bytes of a chunk."""


@dataclass(frozen=True)
class EncodedSegment:
    """A segment's bytes, and the RFC 6962 leaf hash of each chunk of weights in it."""

    data: bytes
    hashes: tuple[bytes, ...]


def encode_segment(
    layout: Layout,
    number: int,
    read: ChunkSource,
    base: Callable[[ChunkPlace], tuple[Bytes, bytes] | None] | None = None,
    arithmetic: ByteArithmetic = PLAIN,
) -> EncodedSegment:
    """Write one segment, and hash its weights in the same pass.

    Args:
        layout: of the result.
        number: of the segment.
        read: the result's chunks.
        base: the base's bytes at the same place, and their hash, which is not computed again
            where nothing moved; None for a tensor written whole.
        arithmetic: does the loops.
    """
    parts: list[Bytes] = []
    hashes = []
    for chunk in layout.segments[number]:
        data = read(chunk)
        before, known = (base and base(chunk)) or (None, b"")
        encoded = encode_chunk(data, before, layout.tensors[chunk.tensor].width, arithmetic)
        hashes.append(known if encoded is NOTHING else chunk_hash(data))
        parts += encoded
    return EncodedSegment(b"".join(parts), tuple(hashes))


def parse_segment(layout: Layout, number: int, data: Bytes) -> tuple[EncodedChunk, ...]:
    """Find a segment's chunks.

    Raises:
        MalformedDelta: the bytes are not exactly those chunks.
    """
    view, at, found = memoryview(data), 0, []
    for chunk in layout.segments[number]:
        width = layout.tensors[chunk.tensor].width
        part, at = parse_chunk(view, at, size_bytes=chunk.size_bytes, width=width)
        found.append(part)
    if at != len(view):
        raise MalformedDelta("a segment goes on after its last chunk")
    return tuple(found)


# --- files --------------------------------------------------------------------------------


def write_delta(file: BinaryIO, header: DeltaHeader, segments: Iterable[bytes]) -> None:
    """Write a delta as one file: magic, header, segments, each with its length in front."""
    encoded = header.encode()
    file.write(MAGIC + struct.pack("<Q", len(encoded)) + encoded)
    file.writelines(struct.pack("<Q", len(segment)) + segment for segment in segments)


def read_delta(file: BinaryIO) -> tuple[DeltaHeader, Iterator[bytes]]:
    """Read a delta from a file: its header at once, its segments one after the other.

    Raises:
        MalformedDelta: other magic, a too long header or segment, the file ends early, or
            goes on after the last segment; some of it only while segments are read.
    """
    if file.read(len(MAGIC)) != MAGIC:
        raise MalformedDelta("this is no weight delta of version 1")
    header = parse_header(_sized(file, HEADER_BYTES_MAX))
    return header, _segments(file, header.layout)


def _segments(file: BinaryIO, layout: Layout) -> Iterator[bytes]:
    for segment in layout.segments:
        yield _sized(file, len(segment) * _CHUNK_ENCODED_MAX)
    if file.read(1):
        raise MalformedDelta("the file goes on after its last segment")


def _sized(file: BinaryIO, limit: int) -> bytes:
    length = file.read(8)
    size = struct.unpack("<Q", length)[0] if len(length) == struct.calcsize("<Q") else -1
    if not 0 <= size <= limit:
        raise MalformedDelta("the file ends early, or says that a part is impossibly long")
    data = file.read(size)
    if len(data) != size:
        raise MalformedDelta("the file ends early")
    return data
