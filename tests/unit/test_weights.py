"""Weights digest: bytes fixed by known values, independent of order, exact about shapes."""

from __future__ import annotations

import hashlib
import struct

import pytest

from rlhf_audit_trail.ledger.proof.merkle import EMPTY_ROOT
from rlhf_audit_trail.ledger.weights.digest import (
    CHUNK_BYTES,
    InvalidTensor,
    tensor_record,
    tensor_root,
    weights_digest,
)


def slow_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, transcribed."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    middle = 1
    while middle * 2 < len(leaves):
        middle *= 2
    parts = slow_root(leaves[:middle]) + slow_root(leaves[middle:])
    return hashlib.sha256(b"\x01" + parts).digest()


@pytest.mark.parametrize(
    "size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * CHUNK_BYTES + 7]
)
def test_a_tensor_root_is_the_rfc_6962_root_over_chunks_of_one_mebibyte(size: int) -> None:
    data = hashlib.shake_128(b"weights").digest(size)
    chunks = [data[at : at + CHUNK_BYTES] for at in range(0, size, CHUNK_BYTES)]
    assert tensor_root(data) == slow_root(chunks)
    assert tensor_root(memoryview(bytearray(data))) == slow_root(chunks)


def test_the_exact_bytes_of_a_record() -> None:
    data = struct.pack("<6f", *range(6))
    record = tensor_record("wé", "F32", (2, 3), data)
    assert record.encode() == (
        b"rlhf-audit/tensor/v1\x00"
        b"\x03\x00\x00\x00w\xc3\xa9"
        b"\x03F32"
        b"\x02"
        b"\x02\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00"
        b"\x18\x00\x00\x00\x00\x00\x00\x00" + hashlib.sha256(b"\x00" + data).digest()
    )


def test_known_digests() -> None:
    matrix = tensor_record("w", "F32", (2, 3), struct.pack("<6f", *range(6)))
    scalar = tensor_record("b", "BF16", (), b"\x80\x3f")
    empty = tensor_record("e", "I64", (0, 4), b"")
    assert empty.root == EMPTY_ROOT
    assert weights_digest([]) == EMPTY_ROOT
    digest = weights_digest([matrix, scalar, empty])
    assert digest == slow_root([scalar.encode(), empty.encode(), matrix.encode()])
    assert digest.hex() == "015748710b128c65136f683f0b166f039845091ec115f459bed49afae30f2813"


def test_the_order_of_tensors_does_not_matter_and_every_bit_does() -> None:
    first = tensor_record("a", "U8", (4,), b"abcd")
    second = tensor_record("b", "U8", (4,), b"abcd")
    digest = weights_digest([first, second])
    assert weights_digest([second, first]) == digest
    others = [
        tensor_record("c", "U8", (4,), b"abcd"),
        tensor_record("b", "I8", (4,), b"abcd"),
        tensor_record("b", "U8", (2, 2), b"abcd"),
        tensor_record("b", "U8", (4, 1), b"abcd"),
        tensor_record("b", "U8", (4,), b"abce"),
    ]
    assert len({weights_digest([first, other]) for other in others} | {digest}) == 6


def test_names_are_ordered_by_their_utf8_bytes() -> None:
    """UTF-16 would order these two the other way round."""
    low, high = "\uffee", "\U0001f600"
    records = [tensor_record(name, "U8", (1,), b"x") for name in (high, low)]
    assert weights_digest(records) == slow_root([r.encode() for r in reversed(records)])


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "data", "finding"),
    [
        ("", "U8", (1,), b"x", "name"),
        ("w", "F31", (1,), b"x", "unknown dtype"),
        ("w", "F32", (2,), b"1234567", "demand 8"),
        ("w", "F32", (), b"", "demand 4"),
        ("w", "F32", (0,), b"1234", "demand 0"),
        ("w", "U8", (-1, -1), b"x", "impossible shape"),
        ("w", "U8", (1,) * 256, b"x", "impossible shape"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    name: str, dtype: str, shape: tuple[int, ...], data: bytes, finding: str
) -> None:
    with pytest.raises(InvalidTensor, match=finding):
        tensor_record(name, dtype, shape, data)


def test_two_tensors_of_one_name_are_refused() -> None:
    record = tensor_record("w", "U8", (1,), b"x")
    with pytest.raises(InvalidTensor, match="two tensors"):
        weights_digest([record, tensor_record("w", "U8", (1,), b"y")])
