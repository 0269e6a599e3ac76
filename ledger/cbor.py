"""CBOR as far as COSE receipts need it, in its deterministic form and no other.

Integers, byte and text strings, arrays, maps, tags and null; definite lengths, shortest
integers, map keys in bytewise order. What other encoders may write otherwise is refused, so
that no two byte strings say the same. Reference: RFC 8949, section 4.2.1.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from rlhf_audit_trail.ledger.proof.errors import MalformedBundle

__all__ = ["Tag", "decode", "encode"]

MAX_DEPTH: Final = 16
_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_NULL: Final = 0xF6
_DIRECT_MAX: Final = 23  # larger arguments follow in 1, 2, 4 or 8 bytes, marked 24 to 27
_FORMATS: Final = {24: ">B", 25: ">H", 26: ">I", 27: ">Q"}
_ARGUMENT_MAX: Final = 2**64 - 1


@dataclass(frozen=True)
class Tag:
    """A value with a tag number, for example 18 for COSE_Sign1."""

    number: int
    value: Any


def encode(value: Any) -> bytes:
    """Encode ints, bytes, text, lists, tuples, dicts, tags and None.

    Raises TypeError for other types, OverflowError for integers beyond 64 bits.
    """
    if value is None:
        return bytes([_NULL])
    if isinstance(value, int) and not isinstance(value, bool):
        return _head(_UNSIGNED, value) if value >= 0 else _head(_NEGATIVE, -1 - value)
    if isinstance(value, bytes | str):
        data, major = (value, _BYTES) if isinstance(value, bytes) else (value.encode(), _TEXT)
        return _head(major, len(data)) + data
    if isinstance(value, list | tuple):
        return _head(_ARRAY, len(value)) + b"".join(map(encode, value))
    if isinstance(value, dict):
        pairs = sorted((encode(key), encode(item)) for key, item in value.items())
        return _head(_MAP, len(pairs)) + b"".join(key + item for key, item in pairs)
    if isinstance(value, Tag):
        return _head(_TAG, value.number) + encode(value.value)
    raise TypeError(f"{type(value).__name__} has no form in this subset of CBOR")


def _head(major: int, argument: int) -> bytes:
    if argument <= _DIRECT_MAX:
        return bytes([major << 5 | argument])
    for info, form in _FORMATS.items():
        if argument < 1 << (8 * struct.calcsize(form)):
            return bytes([major << 5 | info]) + struct.pack(form, argument)
    raise OverflowError("an integer does not fit in 64 bits")


def decode(data: bytes) -> Any:
    """Decode one item that fills the data.

    Raises:
        MalformedBundle: any other encoding, deep nesting, or bytes after the item.
    """
    reader = _Reader(data)
    value = reader.item(0)
    if reader.at != len(data):
        raise MalformedBundle("there are bytes after the end of a CBOR item")
    return value


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def item(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise MalformedBundle("CBOR nested too deep")
        first = self._take(1)[0]
        if first == _NULL:
            return None
        major, argument = first >> 5, self._argument(first & 31)
        read: dict[int, Callable[[], Any]] = {
            _UNSIGNED: lambda: argument,
            _NEGATIVE: lambda: -1 - argument,
            _BYTES: lambda: self._take(argument),
            _TEXT: lambda: self._text(argument),
            _ARRAY: lambda: [self.item(depth + 1) for _ in self._count(argument)],
            _MAP: lambda: self._map(argument, depth),
            _TAG: lambda: Tag(argument, self.item(depth + 1)),
        }
        if major == _SIMPLE:
            raise MalformedBundle("CBOR of a kind that no receipt has")
        return read[major]()

    def _argument(self, info: int) -> int:
        if info <= _DIRECT_MAX:
            return info
        if info not in _FORMATS:
            raise MalformedBundle("CBOR of indefinite length, or reserved")
        form = _FORMATS[info]
        (argument,) = struct.unpack(form, self._take(struct.calcsize(form)))
        least = 1 << (4 * struct.calcsize(form)) if info > min(_FORMATS) else _DIRECT_MAX + 1
        if argument < least:
            raise MalformedBundle("a CBOR integer is not in its shortest form")
        return int(argument)

    def _count(self, argument: int) -> range:
        if argument > len(self._data) - self.at:  # each item has at least one byte
            raise MalformedBundle("CBOR ends too early")
        return range(argument)

    def _map(self, argument: int, depth: int) -> dict[Any, Any]:
        record, spelt = {}, []
        for _ in self._count(argument):
            begin = self.at
            key = self.item(depth + 1)
            if not isinstance(key, int | str | bytes):
                raise MalformedBundle("a CBOR map's key is no number and no string")
            spelt.append(self._data[begin : self.at])
            record[key] = self.item(depth + 1)
        if any(left >= right for left, right in pairwise(spelt)):
            raise MalformedBundle("a CBOR map's keys are not in order, or one is there twice")
        return record

    def _text(self, length: int) -> str:
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as error:
            raise MalformedBundle("a CBOR text is not UTF-8") from error

    def _take(self, length: int) -> bytes:
        if length > len(self._data) - self.at:
            raise MalformedBundle("CBOR ends too early")
        self.at += length
        return self._data[self.at - length : self.at]
