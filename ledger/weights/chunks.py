"""How one chunk of a weight delta is written: differences, planes, digits, zstd.

What two checkpoints differ in is small numbers. They are taken apart into one plane for each byte
of an element, and planes in which little moved into one for each digit to the base 4. Each of
these is left out, kept, or compressed; where few bytes are not zero, which ones and what they are
is compressed apart: both are then mere noise, which is quickly packed and packs well.

Spec: FORMAT.md, section 19.2.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import zstandard

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.weights.arithmetic import PLAIN, ByteArithmetic
from rlhf_audit_trail.ledger.weights.digest import CHUNK_BYTES, Bytes

__all__ = [
    "NOTHING",
    "EncodedChunk",
    "EncodedPlane",
    "MalformedDelta",
    "combine",
    "encode_chunk",
    "parse_chunk",
]

_ZERO, _PLAIN, _PLANES = 0, 1, 2  # forms of a chunk
NOTHING: Final[Sequence[Bytes]] = (bytes([_ZERO]),)
_LEFT_OUT, _RAW, _ZSTD, _DIGITS, _SPARSE = 0, 1, 2, 3, 4  # forms of a plane
_ANY: Final = (_LEFT_OUT, _RAW, _ZSTD, _DIGITS, _SPARSE)
_OF_DIGITS: Final = (_LEFT_OUT, _RAW, _ZSTD, _SPARSE)
_OF_SPARSE: Final = (_RAW, _ZSTD)
_DIGIT_PLANES: Final = 4  # digits to the base 4 of a byte
_LEVEL: Final = 1  # higher ones take several times as long for a few hundredths
# Where bytes moved they are noise: long matches and a table that stays in the nearest cache
# lose nothing, and are faster than the level's own choice.
_MIN_MATCH, _HASH_LOG = 7, 6
_SAMPLE_BYTES: Final = 16_384
_FULL: Final = 0.9  # the share of bytes that are not zero in what may be noise
_WORTH: Final = 0.95  # a plane that hardly shrinks is kept: reading it back then costs nothing
# In planes where fewer bytes moved than this, zstd alone is as small and faster; where more
# did, digits shrink no more than bytes.
_DIGITS_FROM, _DIGITS_TO = 0.004, 0.97
_DIGITS_ALIGNED: Final = 32  # bytes: each digit's plane then has whole words
# Shares of bytes that are not zero between which it takes less time, and less room, to tell
# which they are apart from what they are.
_SPARSE_FROM, _SPARSE_TO = 0.02, 0.4


class MalformedDelta(AuditTrailError):
    """The bytes are no weight delta of this format, or not the one they are said to be."""


@dataclass(frozen=True)
class EncodedPlane:
    """A plane where it lies in a segment.

    Attributes:
        size_bytes: of the plane itself.
        form: how it is written.
        data: its bytes, or its zstd frame.
        parts: instead, the four planes of its digits, or those of which bytes are not zero,
            a bit for each, and of these bytes.
    """

    size_bytes: int
    form: int
    data: memoryview
    parts: tuple[EncodedPlane, ...] = ()


@dataclass(frozen=True)
class EncodedChunk:
    """A chunk's pieces where they lie in a segment; nothing is decompressed yet.

    Attributes:
        size_bytes: of the chunk itself.
        width: bytes of an element, which is the number of planes.
        plain: the bytes as they are, or None.
        planes: one for each byte of an element; empty for a chunk of zeros.
    """

    size_bytes: int
    width: int
    plain: memoryview | None = None
    planes: tuple[EncodedPlane, ...] = ()


def encode_chunk(
    data: Bytes, base: Bytes | None, width: int, arithmetic: ByteArithmetic = PLAIN
) -> Sequence[Bytes]:
    """Write a chunk as its difference from `base`, or whole; return its pieces, to be joined.

    `NOTHING` is returned, itself, where there is no difference.

    Args:
        data: 1 to `CHUNK_BYTES` bytes, a multiple of `width`; may itself be among the pieces.
        base: as many bytes, or None.
        width: bytes of an element.
        arithmetic: does the loops.
    """
    if base is None:
        return _encode_whole(data, width, arithmetic)
    planes = arithmetic.difference(data, base, width)
    if planes is None:
        return NOTHING
    return [bytes([_PLANES]), *(x for plane in planes for x in _plane(plane, arithmetic))]


def _encode_whole(data: Bytes, width: int, arithmetic: ByteArithmetic) -> list[Bytes]:
    """Write planes if all of them shrink: else reading it must cost no more than a copy does."""
    parts: list[Bytes] = [bytes([_PLANES])]
    for plane in arithmetic.split(data, width):
        if arithmetic.is_zero(plane):
            parts.append(bytes([_LEFT_OUT]))
        elif (packed := _compressed(plane, arithmetic)) is not None:
            parts += (struct.pack("<BI", _ZSTD, len(packed)), packed)
        else:
            return [bytes([_PLAIN]), data]
    return parts


def _plane(plane: Bytes, arithmetic: ByteArithmetic) -> Iterator[Bytes]:
    """Yield the pieces of a plane of differences."""
    share = _moved_share(plane, arithmetic)
    if len(plane) % _DIGITS_ALIGNED == 0 and _DIGITS_FROM < share < _DIGITS_TO:
        yield bytes([_DIGITS])
        for digits in arithmetic.gather(plane):
            yield from _digits(digits, arithmetic)
        return
    yield from _packed(plane, arithmetic)


def _digits(plane: Bytes, arithmetic: ByteArithmetic) -> Iterator[Bytes]:
    """Yield the pieces of a plane of digits."""
    if not _SPARSE_FROM < _moved_share(plane, arithmetic) < _SPARSE_TO:
        yield from _packed(plane, arithmetic)
        return
    bitmap, values = arithmetic.sparse(plane)
    yield struct.pack("<BI", _SPARSE, len(values))
    yield from _packed(bitmap, arithmetic)
    yield from _packed(values, arithmetic)


def _packed(plane: Bytes, arithmetic: ByteArithmetic) -> Iterator[Bytes]:
    if arithmetic.is_zero(plane):
        yield bytes([_LEFT_OUT])
    elif (packed := _compressed(plane, arithmetic)) is not None:
        yield struct.pack("<BI", _ZSTD, len(packed))
        yield packed
    else:
        yield bytes([_RAW])
        yield bytes(plane)  # its memory is used again


def _moved_share(plane: Bytes, arithmetic: ByteArithmetic) -> float:
    """Return about how many of a plane's bytes are not zero."""
    size = len(plane)
    begin = max(0, size // 2 - _SAMPLE_BYTES // 2)
    sample = memoryview(plane)[begin : begin + _SAMPLE_BYTES]
    return arithmetic.count_moved(sample) / len(sample)


class _Contexts(threading.local):
    """A compressor and a decompressor for each thread: neither may be used by two at once."""

    def __init__(self) -> None:
        self.packers: dict[int, zstandard.ZstdCompressor] = {}
        self.unpacker = zstandard.ZstdDecompressor()

    def packer(self, size: int) -> zstandard.ZstdCompressor:
        if size not in self.packers:
            if len(self.packers) >= 8:  # noqa: PLR2004 - odd sizes are the ends of tensors
                self.packers.clear()
            chosen = zstandard.ZstdCompressionParameters.from_level(
                _LEVEL, source_size=size, min_match=_MIN_MATCH, hash_log=_HASH_LOG
            )
            self.packers[size] = zstandard.ZstdCompressor(compression_params=chosen)
        return self.packers[size]


_CONTEXTS: Final = _Contexts()


def _compressed(plane: Bytes, arithmetic: ByteArithmetic) -> bytes | None:
    """Return a zstd frame that states its content's size, or None where it saves nothing."""
    size = len(plane)
    is_large = size >= 4 * _SAMPLE_BYTES
    if is_large and _moved_share(plane, arithmetic) > _FULL:  # noise is told by a piece of it
        sample = memoryview(plane)[size // 2 : size // 2 + _SAMPLE_BYTES]
        if len(_CONTEXTS.packer(_SAMPLE_BYTES).compress(sample)) > _WORTH * _SAMPLE_BYTES:
            return None
    packed = _CONTEXTS.packer(size).compress(plane)
    return packed if len(packed) < _WORTH * size else None


def parse_chunk(
    segment: memoryview, at: int, *, size_bytes: int, width: int
) -> tuple[EncodedChunk, int]:
    """Find a chunk's pieces, and where the next chunk begins; nothing is decompressed.

    Args:
        segment: encoded chunks, one after the other.
        at: where this one begins.
        size_bytes: what the tensor's shape demands, 1 to `CHUNK_BYTES`.
        width: bytes of an element.

    Raises:
        MalformedDelta: an unknown form, or the segment ends inside the chunk.
    """
    if not 0 < size_bytes <= CHUNK_BYTES or size_bytes % width:
        raise MalformedDelta("a chunk does not have whole elements")
    form, at = _taken(segment, at, 1)
    if form[0] == _ZERO:
        return EncodedChunk(size_bytes, width), at
    if form[0] == _PLAIN:
        plain, at = _taken(segment, at, size_bytes)
        return EncodedChunk(size_bytes, width, plain=plain), at
    if form[0] != _PLANES:
        raise MalformedDelta(f"a chunk has the unknown form {form[0]}")
    planes = []
    for _ in range(width):
        plane, at = _parse_plane(segment, at, size_bytes // width)
        planes.append(plane)
    return EncodedChunk(size_bytes, width, planes=tuple(planes)), at


def _parse_plane(
    segment: memoryview, at: int, size: int, forms: Sequence[int] = _ANY
) -> tuple[EncodedPlane, int]:
    """Find a plane of `size` bytes that has one of these forms."""
    form, at = _taken(segment, at, 1)
    if form[0] not in forms:
        raise MalformedDelta(f"a plane has the unknown form {form[0]}")
    if form[0] == _LEFT_OUT:
        return EncodedPlane(size, _LEFT_OUT, segment[:0]), at
    if form[0] == _RAW:
        data, at = _taken(segment, at, size)
        return EncodedPlane(size, _RAW, data), at
    if form[0] == _DIGITS:
        return _parse_digits(segment, at, size)
    length, at = _taken(segment, at, 4)
    wanted = struct.unpack("<I", length)[0]
    if form[0] == _SPARSE:
        return _parse_sparse(segment, at, size, wanted)
    if not 0 < wanted < size:
        raise MalformedDelta("a compressed plane is not smaller than the plane itself")
    data, at = _taken(segment, at, wanted)
    return EncodedPlane(size, _ZSTD, data), at


def _parse_digits(segment: memoryview, at: int, size: int) -> tuple[EncodedPlane, int]:
    if size % _DIGIT_PLANES:
        raise MalformedDelta("a plane cannot be taken apart into digits")
    digits = []
    for _ in range(_DIGIT_PLANES):
        found, at = _parse_plane(segment, at, size // _DIGIT_PLANES, _OF_DIGITS)
        digits.append(found)
    return EncodedPlane(size, _DIGITS, segment[:0], tuple(digits)), at


def _parse_sparse(segment: memoryview, at: int, size: int, count: int) -> tuple[EncodedPlane, int]:
    if size % 8 or not 0 < count <= size:
        raise MalformedDelta("a plane cannot have so many bytes that are not zero")
    bitmap, at = _parse_plane(segment, at, size // 8, _OF_SPARSE)
    values, at = _parse_plane(segment, at, count, _OF_SPARSE)
    return EncodedPlane(size, _SPARSE, segment[:0], (bitmap, values)), at


def _taken(segment: memoryview, at: int, size: int) -> tuple[memoryview, int]:
    if at + size > len(segment):
        raise MalformedDelta("a segment ends inside a chunk")
    return segment[at : at + size], at + size


def combine(
    chunks: Sequence[EncodedChunk],
    arithmetic: ByteArithmetic = PLAIN,
    out: memoryview | None = None,
) -> Bytes:
    """Return the weights that a whole chunk and the differences from it lead to.

    Args:
        chunks: of equal size and width, the newest first, the whole one last.
        arithmetic: does the loops.
        out: where to write them, as long as the chunk; what is returned is then this.

    Raises:
        MalformedDelta: a plane does not decompress to exactly its length.
    """
    size, width = chunks[0].size_bytes, chunks[0].width
    if any((chunk.size_bytes, chunk.width) != (size, width) for chunk in chunks):
        raise MalformedDelta("the chunks of a chain differ in size")
    *differences, whole = chunks
    found = _whole(whole, arithmetic)
    for chunk in reversed(differences):
        planes = _planes(chunk, arithmetic)
        if any(plane is not None for plane in planes):
            found = arithmetic.moved(found, planes, out)
    if out is not None and found is not out:
        out[:] = found
        return out
    return found


def _whole(chunk: EncodedChunk, arithmetic: ByteArithmetic) -> Bytes:
    if chunk.plain is not None:
        return chunk.plain
    planes = _planes(chunk, arithmetic)
    if all(plane is None for plane in planes):
        return bytes(chunk.size_bytes)
    nothing = bytes(chunk.size_bytes // chunk.width)
    return arithmetic.join([nothing if plane is None else plane for plane in planes])


def _planes(chunk: EncodedChunk, arithmetic: ByteArithmetic) -> Sequence[Bytes | None]:
    if chunk.plain is not None:
        return arithmetic.split(chunk.plain, chunk.width)
    return [_decoded(plane, number, arithmetic) for number, plane in enumerate(chunk.planes)]


def _decoded(plane: EncodedPlane, number: int, arithmetic: ByteArithmetic) -> Bytes | None:
    if plane.form == _LEFT_OUT:
        return None
    if plane.form == _RAW:
        return plane.data
    if plane.form == _ZSTD:
        return _unpacked(plane.data, plane.size_bytes)
    parts = [_decoded(part, number, arithmetic) for part in plane.parts]
    if plane.form == _SPARSE:
        bitmap, values = parts
        if bitmap is None or values is None or _bits_set(bitmap) != len(values):
            raise MalformedDelta("a plane does not have as many bytes that are not zero as it says")
        return arithmetic.spread(bitmap, values)
    if all(digit is None for digit in parts):
        return None
    return arithmetic.scatter(parts, plane.size_bytes, number)


def _bits_set(bitmap: Bytes) -> int:
    return int.from_bytes(bitmap, "little").bit_count()


def _unpacked(data: memoryview, size: int) -> bytes:
    """Decompress one frame to exactly `size` bytes, allocating no more than that."""
    try:
        told = zstandard.get_frame_parameters(data)
        # without this check the frame's own word would decide how much is allocated
        if told.content_size != size or told.dict_id:
            raise MalformedDelta("a compressed plane does not say that it has its length")
        plane: bytes = _CONTEXTS.unpacker.decompress(
            data, max_output_size=size, read_across_frames=False, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise MalformedDelta("a plane does not decompress") from error
    if len(plane) != size:
        raise MalformedDelta("a plane has another length than its chunk demands")
    return plane
