"""Weight deltas: bit for bit over every dtype, the same bytes by any arithmetic, strict to read."""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_audit_trail.ledger.weights.arithmetic import PLAIN, ByteArithmetic
from rlhf_audit_trail.ledger.weights.chain import ChainLink, restored_chunks
from rlhf_audit_trail.ledger.weights.chunks import (
    MalformedDelta,
    combine,
    encode_chunk,
    parse_chunk,
)
from rlhf_audit_trail.ledger.weights.delta import (
    MAGIC,
    SEGMENT_BYTES,
    ChunkPlace,
    DeltaHeader,
    DeltaTensor,
    Layout,
    TensorPlace,
    encode_segment,
    parse_header,
    parse_segment,
    read_delta,
    write_delta,
)
from rlhf_audit_trail.ledger.weights.digest import (
    CHUNK_BYTES,
    DTYPE_BITS,
    chunk_hash,
    tensor_record,
    weights_digest,
)
from rlhf_audit_trail.weights.byte_arithmetic import NUMPY

BOTH = pytest.mark.parametrize("arithmetic", [PLAIN, NUMPY], ids=["plain", "numpy"])
Weights = dict[str, tuple[str, tuple[int, ...], bytes]]


def place(name: str, dtype: str, shape: tuple[int, ...]) -> TensorPlace:
    count = int(np.prod(shape, dtype=np.int64)) if shape else 1
    return TensorPlace(name, dtype, shape, count * DTYPE_BITS[dtype] // 8)


def layout_of(weights: Weights) -> Layout:
    return Layout(place(name, dtype, shape) for name, (dtype, shape, _) in weights.items())


def reader(weights: Weights, layout: Layout):
    def read(chunk: ChunkPlace) -> memoryview:
        data = weights[layout.tensors[chunk.tensor].name][2]
        return memoryview(data)[chunk.start : chunk.start + chunk.size_bytes]

    return read


def make_delta(
    new: Weights, old: Weights | None, arithmetic: ByteArithmetic = PLAIN
) -> tuple[DeltaHeader, list[bytes]]:
    layout = layout_of(new)
    wholes = [
        old is None or x.name not in old or old[x.name][:2] != (x.dtype, x.shape)
        for x in layout.tensors
    ]

    def base(chunk: ChunkPlace) -> tuple[memoryview, bytes] | None:
        if wholes[chunk.tensor]:
            return None
        assert old is not None
        data = memoryview(old[layout.tensors[chunk.tensor].name][2])
        piece = data[chunk.start : chunk.start + chunk.size_bytes]
        return piece, chunk_hash(piece)

    read = reader(new, layout)
    done = [
        encode_segment(layout, n, read, base if old is not None else None, arithmetic)
        for n in range(len(layout.segments))
    ]
    records = layout.records([x.hashes for x in done])
    digest = None if old is None else digest_of(old)
    tensors = [DeltaTensor(x, whole) for x, whole in zip(records, wholes, strict=True)]
    return DeltaHeader(digest, tuple(tensors)), [x.data for x in done]


def digest_of(weights: Weights) -> bytes:
    return weights_digest(tensor_record(name, *rest) for name, rest in weights.items())


def restore(chain: list[tuple[DeltaHeader, list[bytes]]], arithmetic: ByteArithmetic) -> Weights:
    links = []
    for header, segments in chain:
        layout = header.layout
        parsed = [parse_segment(layout, n, data) for n, data in enumerate(segments)]

        def find(chunk: ChunkPlace, layout=layout, parsed=parsed):
            segment, within = layout.where[chunk.tensor, chunk.start]
            return parsed[segment][within]

        links.append(ChainLink(header, find))
    last = chain[-1][0]
    found: dict[int, bytes] = dict.fromkeys(range(len(last.tensors)), b"")
    chunks = list(last.layout.chunks())
    for chunk, data in zip(chunks, restored_chunks(links, chunks, arithmetic), strict=True):
        found[chunk.tensor] += bytes(data)
    return {
        x.record.name: (x.record.dtype, x.record.shape, found[n])
        for n, x in enumerate(last.tensors)
    }


def moved(data: bytes, seed: int, share: float) -> bytes:
    chosen = np.random.default_rng(seed)
    changed = np.frombuffer(data, np.uint8).copy()
    hit = chosen.random(changed.size) < share
    changed[hit] ^= chosen.integers(1, 256, changed.size, dtype=np.uint8)[hit]
    return changed.tobytes()


@BOTH
@pytest.mark.parametrize("dtype", sorted(DTYPE_BITS))
@pytest.mark.parametrize("share", [0.0, 0.01, 1.0])
def test_every_dtype_comes_back_bit_for_bit(
    dtype: str, share: float, arithmetic: ByteArithmetic
) -> None:
    data = np.random.default_rng(3).bytes(1024 * DTYPE_BITS[dtype] // 8)
    old: Weights = {"w": (dtype, (32, 32), data)}
    new: Weights = {"w": (dtype, (32, 32), moved(data, 4, share))}
    chain = [make_delta(old, None, arithmetic), make_delta(new, old, arithmetic)]
    assert restore(chain[:1], arithmetic) == old
    assert restore(chain, arithmetic) == new
    assert chain[1][0].result == digest_of(new)


@st.composite
def models(draw: st.DrawFn) -> Weights:
    names = draw(
        st.lists(st.text(min_size=1, max_size=6).filter(printable), unique=True, max_size=5)
    )
    found: Weights = {}
    for name in names:
        dtype = draw(st.sampled_from(sorted(DTYPE_BITS)))
        shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
        size = place(name, dtype, shape).size_bytes
        found[name] = (dtype, shape, draw(st.binary(min_size=size, max_size=size)))
    return found


def printable(text: str) -> bool:
    return not any(0xD800 <= ord(x) <= 0xDFFF for x in text)


@given(chain=st.lists(models(), min_size=1, max_size=4), which=st.sampled_from([PLAIN, NUMPY]))
@settings(max_examples=80, deadline=None)
def test_any_chain_of_models_comes_back(chain: list[Weights], which: ByteArithmetic) -> None:
    """New, removed, reshaped, cast, empty and 0-dim tensors, and empty models."""
    links, before = [], None
    for model in chain:
        links.append(make_delta(model, before, which))
        before = model
        assert restore(links, which) == model


@BOTH
def test_large_tensors_are_cut_into_chunks_and_segments(arithmetic: ByteArithmetic) -> None:
    size = SEGMENT_BYTES + CHUNK_BYTES + 12
    data = np.random.default_rng(1).bytes(size)
    old: Weights = {"a": ("F32", (size // 4,), data), "b": ("F32", (), b"\0\0\x80\x3f")}
    new: Weights = old | {"a": ("F32", (size // 4,), moved(data, 2, 0.001))}
    header, segments = make_delta(new, old, arithmetic)
    assert [len(x) for x in header.layout.segments] == [16, 3]
    assert restore([make_delta(old, None), (header, segments)], arithmetic) == new
    assert sum(map(len, segments)) < 0.05 * size


@BOTH
@pytest.mark.parametrize("size", [4, 32, 4096, 4096 + 4, CHUNK_BYTES])
def test_digits_come_back(size: int, arithmetic: ByteArithmetic) -> None:
    data = np.random.default_rng(size).bytes(size)
    digits = [bytes(x) for x in arithmetic.gather(data)]
    wanted = PLAIN.gather(data)
    assert digits == wanted
    assert digits[0][0] == sum((data[k * size // 4] & 3) << 2 * k for k in range(4))
    assert arithmetic.scatter(digits, size, 0) == data
    assert arithmetic.scatter([None] * 4, size, 1) == bytes(size)


@BOTH
@pytest.mark.parametrize("share", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("size", [8, 24, 4096, 131_072])
def test_sparse_planes_come_back(size: int, share: float, arithmetic: ByteArithmetic) -> None:
    plane = moved(bytes(size), size, share)
    bitmap, values = (bytes(x) for x in arithmetic.sparse(plane))
    assert (bitmap, values) == PLAIN.sparse(plane)
    assert [bitmap[i // 8] >> i % 8 & 1 for i in range(size)] == [int(x != 0) for x in plane]
    assert arithmetic.spread(bitmap, values) == plane


def test_where_little_moved_the_places_are_told_apart_from_the_values() -> None:
    old = np.random.default_rng(7).bytes(65_536)
    new = bytearray(old)
    new[::60] = bytes(x ^ 1 for x in new[::60])
    encoded = b"".join(encode_chunk(bytes(new), old, 2, NUMPY))
    assert encoded[:3] == b"\2\3\4"  # planes, digits, and of the first which ones they are
    assert encoded == b"".join(encode_chunk(bytes(new), old, 2, PLAIN))
    for arithmetic in (PLAIN, NUMPY):
        parts = [
            parse_chunk(memoryview(data), 0, size_bytes=65_536, width=2)[0]
            for data in (encoded, b"\1" + old)
        ]
        assert combine(parts, arithmetic) == new


@BOTH
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_a_difference_is_a_number_in_balanced_digits(
    width: int, arithmetic: ByteArithmetic
) -> None:
    """Wherever an element carries into its highest bit, its neighbours stay as they are."""
    numbers = np.random.default_rng(width)
    high = 2 ** (8 * width) - 1
    kind = f"<u{width}"
    old = numbers.integers(0, high, 64, dtype=kind, endpoint=True)
    moves = [0, 1, -1, 2, -2, 3, 170, -86, high // 2 + 1, *range(100, 155)]
    new = np.array([(int(x) + move) & high for x, move in zip(old, moves, strict=True)], kind)
    planes = arithmetic.difference(new.tobytes(), old.tobytes(), width)
    assert planes is not None
    first = [bytes(plane) for plane in planes]
    assert list(first[0][:5]) == [0, 3, 1, 2, 6]  # 1 is 0 + 1, less 1: digits less one, flipped
    assert all(plane[:5] == bytes(5) for plane in first[1:])
    assert arithmetic.moved(old.tobytes(), first) == new.tobytes()
    assert arithmetic.difference(old.tobytes(), old.tobytes(), width) is None


def test_both_arithmetics_write_the_same_bytes() -> None:
    data = np.random.default_rng(5).bytes(4096)
    for dtype in ("I8", "BF16", "F32", "F64"):
        old: Weights = {"w": (dtype, (4096 * 8 // DTYPE_BITS[dtype],), data)}
        new: Weights = {"w": (*old["w"][:2], moved(data, 6, 0.2))}
        assert make_delta(new, old, PLAIN)[1] == make_delta(new, old, NUMPY)[1]


def test_unchanged_weights_take_a_byte_for_each_chunk() -> None:
    weights: Weights = {"w": ("BF16", (CHUNK_BYTES,), bytes(range(256)) * 8192)}
    assert make_delta(weights, weights)[1] == [b"\0\0"]


def test_a_file_comes_back_and_ends_where_it_says() -> None:
    old: Weights = {"w": ("F32", (64,), bytes(256)), "e": ("I64", (0, 3), b"")}
    new: Weights = old | {"w": ("F32", (64,), bytes(range(256)))}
    header, segments = make_delta(new, old)
    file = io.BytesIO()
    write_delta(file, header, segments)
    read_header, read_segments = read_delta(io.BytesIO(file.getvalue()))
    assert (read_header, list(read_segments)) == (header, segments)
    data = file.getvalue()
    for broken in (data[:-1], data + b"\0", data[:20], b"x" + data[1:], data[: len(MAGIC) + 8]):
        with pytest.raises(MalformedDelta):
            list(read_delta(io.BytesIO(broken))[1])
    huge = MAGIC + struct.pack("<Q", 1 << 40)
    with pytest.raises(MalformedDelta, match="impossibly long"):
        read_delta(io.BytesIO(huge))


@pytest.fixture
def _raised_limit() -> Iterator[None]:
    """A library of the training raised the recursion limit: then JSON overruns the C stack."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1_000_000)
    yield
    sys.setrecursionlimit(limit)


@pytest.mark.usefixtures("_raised_limit")
def test_a_header_has_one_spelling_and_leads_where_it_says() -> None:
    header, _ = make_delta({"a": ("U8", (2,), b"ab"), "b": ("U8", (1,), b"c")}, None)
    data = header.encode()
    assert parse_header(data) == header
    hostile = [
        data.replace(b'"a"', b'"c"'),  # out of order
        data.replace(b'"b"', b'"a"'),  # twice
        data.replace(b'"shape":[2]', b'"shape":[3]'),  # another record, so another digest
        data.replace(b'"shape":[2]', b'"shape":[2.0]'),
        data.replace(b'"shape":[2]', b'"shape":[-2]'),
        data.replace(b'"shape":[2]', b'"shape":[' + b"9" * 40 + b"]"),
        data.replace(b'"shape":[2]', b'"shape":[true,2]'),
        data.replace(b'"whole":true', b'"whole":false'),  # a difference from nothing
        data.replace(b'"U8"', b'"U7"'),
        data.replace(b'{"schema"', b'{ "schema"'),
        data.replace(b"v1", b"v2"),
        data[:-1],
        b"[]",
        b"\xff",
        b"[" * 100_000,
        data.replace(header.result.hex().encode(), b"0" * 64),
        data.replace(b'"name":"a"', b'"name":"\\ud800"'),
    ]
    for broken in hostile:
        assert broken != data
        with pytest.raises(MalformedDelta):
            parse_header(broken)


def planes_of(data: bytes) -> bytes:
    encoded = b"".join(encode_chunk(data, bytes(len(data)), 2))
    assert encoded[0] == 2
    return encoded


def test_hostile_segments_are_refused() -> None:
    weights: Weights = {"w": ("BF16", (2048,), bytes(4096))}
    layout = layout_of(weights)
    frame = zstandard.compress(bytes(2048))
    long = zstandard.compress(bytes(1 << 20))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(2048))

    def planes(packed: bytes) -> bytes:
        return b"\2\0\2" + struct.pack("<I", len(packed)) + packed

    def decoded(data: bytes) -> bytes:
        return bytes(combine(parse_segment(layout, 0, data)))

    def sparse(count: int, bitmap: bytes, values: bytes) -> bytes:
        return b"\2\0\4" + struct.pack("<I", count) + b"\1" + bitmap + values

    bitmap = b"\3" + bytes(255)  # of the 2,048 bytes of a plane the first two
    assert decoded(planes(frame)) == bytes(4096)
    assert decoded(sparse(2, bitmap, b"\1ab")) == b"\0a\0b" + bytes(4092)
    hostile = {
        "form of a chunk": b"\3",
        "form of a plane": b"\2\5",
        "digits of a digit": b"\2\0\3" + b"\3",
        "digits that end early": b"\2\0\3" + b"\0\0\0",
        "more bits than values": sparse(1, bitmap, b"\1a"),
        "more values than bits": sparse(3, bitmap, b"\1abc"),
        "no values": sparse(0, bytes(256), b"\1"),
        "values that are all zero": sparse(2, bitmap, b"\0"),
        "bits that are all zero": b"\2\0\4" + struct.pack("<I", 2) + b"\0" + b"\1ab",
        "sparse values": sparse(2, bitmap, b"\4" + struct.pack("<I", 1) + b"\1\1\1a"),
        "more values than bytes": sparse(2049, b"\xff" * 256, b"\1" + b"a" * 2049),
        "empty": b"",
        "plain too short": b"\1" + bytes(4095),
        "plain too long": b"\1" + bytes(4097),
        "after the last": b"\0\0",
        "bomb": planes(long),
        "no size": planes(unsized),
        "two frames": planes(frame + frame),
        "a byte behind the frame": planes(frame + b"\0"),
        "cut frame": planes(frame[:-1]),
        "as long as the plane": b"\2\0\2" + struct.pack("<I", 2048) + bytes(2048),
        "longer than the segment": b"\2\0\2" + struct.pack("<I", 2047) + frame,
        "no frame at all": planes(b"\0" * 40),
    }
    for what, data in hostile.items():
        with pytest.raises(MalformedDelta):
            pytest.fail(f"{what}: {decoded(data)!r:.60}")


def test_a_frame_whose_content_is_longer_than_it_says() -> None:
    honest = bytearray(zstandard.compress(bytes(2048)))
    wanted = zstandard.get_frame_parameters(bytes(honest))
    assert wanted.content_size == 2048
    at = bytes(honest).index(struct.pack("<H", 2048 - 256))  # two bytes hold the size less 256
    honest[at : at + 2] = struct.pack("<H", 1024 - 256)
    encoded = b"\2\0\2" + struct.pack("<I", len(honest)) + bytes(honest)
    chunk, _ = parse_chunk(memoryview(encoded), 0, size_bytes=2048, width=2)
    with pytest.raises(MalformedDelta):
        combine([chunk])


def test_a_chain_that_does_not_hang_together() -> None:
    old: Weights = {"w": ("U8", (4,), b"abcd")}
    new: Weights = {"w": ("U8", (4,), b"abce")}
    delta = make_delta(new, old)
    with pytest.raises(MalformedDelta, match="whole"):
        restore([delta], PLAIN)
    other = make_delta({"v": ("U8", (4,), b"abcd")}, None)
    with pytest.raises(MalformedDelta, match="does not hold w"):
        restore([other, delta], PLAIN)


def test_whole_float_weights_are_kept_as_they_are() -> None:
    noise = np.random.default_rng(0).standard_normal(1 << 18).astype(np.float32).tobytes()
    encoded = b"".join(encode_chunk(noise, None, 4))
    assert encoded == b"\1" + noise
    assert b"".join(encode_chunk(bytes(1 << 20), None, 4)) == bytes([2, 0, 0, 0, 0])
    assert planes_of(noise[:64])[:1] == b"\2"
