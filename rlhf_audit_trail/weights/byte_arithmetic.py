"""The loops over bytes of a weight delta, done by NumPy: many times as fast, same bytes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from rlhf_audit_trail.ledger.weights.digest import Bytes

__all__ = ["NUMPY", "NumpyArithmetic"]

_WORD: Final = 8
_BLOCK_BYTES: Final = 1 << 18  # so much, and what is made of it, stays in a core's cache
_BEGINNING: Final = 512  # elements
_DIGITS: Final = 0x5555_5555_5555_5555
_UNSIGNED: Final = {1: "<u1", 2: "<u2", 4: "<u4", 8: "<u8"}
_LOW, _EVEN = 0x0F0F_0F0F_0F0F_0F0F, 0x3333_3333_3333_3333


class _Buffers(threading.local):
    """Memory used again for each chunk: fresh pages cost more than the loops themselves."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, int], Any] = {}

    def take(self, use: str, size: int) -> Any:
        """Return `size` bytes, overwritten by the next one who takes them for the same use."""
        key = (use, size)
        if key not in self.held:
            if len(self.held) >= 128:  # noqa: PLR2004 - the ends of tensors have odd sizes
                self.held.clear()
            self.held[key] = np.empty(size, np.uint8)
        return self.held[key]


_BUFFERS: Final = _Buffers()


class NumpyArithmetic:
    """See `ByteArithmetic`; results are valid until the thread's next call of the same method."""

    def difference(self, new: Bytes, base: Bytes, width: int) -> Sequence[Bytes] | None:
        """Return the planes of what two equally long pieces differ in, None if in nothing."""
        left, right = _elements(new, width), _elements(base, width)
        if _are_equal(left, right):
            return None
        planes = [_BUFFERS.take(f"plane {number}", left.size) for number in range(width)]
        room = _BUFFERS.take("difference", _BLOCK_BYTES).view(left.dtype)
        digits = _digits(room)
        for start in range(0, left.size, len(room)):
            part = slice(start, start + len(room))
            change = room[: len(left[part])]
            np.subtract(left[part], right[part], out=change)
            np.add(change, digits, out=change)
            np.bitwise_xor(change, digits, out=change)
            _split(change, [plane[part] for plane in planes])
        return [memoryview(plane) for plane in planes]

    def moved(
        self, base: Bytes, planes: Sequence[Bytes | None], out: memoryview | None = None
    ) -> Bytes:
        """Undo `difference`; without `out`, into memory of its own."""
        width = len(planes)
        before = _elements(base, width)
        found: Any = np.empty(before.nbytes, np.uint8) if out is None else _array(out)
        change = _BUFFERS.take("moved", before.nbytes).view(_UNSIGNED[width])
        _join(planes, change)
        digits = _digits(change)
        np.bitwise_xor(change, digits, out=change)
        np.subtract(change, digits, out=change)
        np.add(before, change, out=found.view(_UNSIGNED[width]))
        return memoryview(found) if out is None else out

    def split(self, data: Bytes, width: int) -> Sequence[Bytes]:
        """Return `width` planes."""
        if width == 1:
            return [data]
        elements = _elements(data, width)
        planes = [_BUFFERS.take(f"plane {number}", elements.size) for number in range(width)]
        room = _BUFFERS.take("split", _BLOCK_BYTES).view(elements.dtype)
        for start in range(0, elements.size, len(room)):
            part = slice(start, start + len(room))
            copied = room[: len(elements[part])]
            np.copyto(copied, elements[part])
            _split(copied, [plane[part] for plane in planes])
        return [memoryview(plane) for plane in planes]

    def join(self, planes: Sequence[Bytes]) -> Bytes:
        """Undo `split`."""
        whole: Any = np.empty(len(planes) * len(planes[0]), np.uint8)
        _join(planes, whole.view(_UNSIGNED[len(planes)]))
        return memoryview(whole)

    def gather(self, plane: Bytes) -> Sequence[Bytes]:
        """Return four planes of digits, in the place of `plane` where that may be written to."""
        whole = _array(plane)
        if not whole.flags.writeable:
            whole = _BUFFERS.take("gathered", whole.size)
            whole[:] = _array(plane)
        _exchange(whole)
        return [memoryview(quarter) for quarter in whole.reshape(4, -1)]

    def scatter(self, digits: Sequence[Bytes | None], size: int, number: int) -> Bytes:
        """Undo `gather`."""
        whole = _BUFFERS.take(f"scattered {number}", size)
        for quarter, digit in zip(whole.reshape(4, -1), digits, strict=True):
            quarter[:] = 0 if digit is None else _array(digit)
        _exchange(whole)
        return memoryview(whole)

    def sparse(self, plane: Bytes) -> tuple[Bytes, Bytes]:
        """Return which bytes are not zero, a bit for each, and these bytes."""
        whole = _array(plane)
        flags = _BUFFERS.take("flags", whole.size).view(np.bool_)
        np.not_equal(whole, 0, out=flags)
        bitmap: Any = np.packbits(flags, bitorder="little")
        values: Any = np.compress(flags, whole)
        return memoryview(bitmap), memoryview(values)

    def spread(self, bitmap: Bytes, values: Bytes) -> Bytes:
        """Undo `sparse`, into memory of its own."""
        flags: Any = np.unpackbits(_array(bitmap), bitorder="little")
        # the places are found first: to assign by flags themselves takes four times as long
        flags[np.flatnonzero(flags.view(np.bool_))] = _array(values)
        return memoryview(flags)

    def is_zero(self, data: Bytes) -> bool:
        """Return whether no bit is set."""
        return not _has_bits(_array(data))

    def count_moved(self, data: Bytes) -> int:
        """Return how many bytes are not zero."""
        return int(np.count_nonzero(_array(data)))


def _array(data: Bytes) -> Any:
    return np.frombuffer(data, np.uint8)


def _elements(data: Bytes, width: int) -> Any:
    return np.frombuffer(data, _UNSIGNED[width])


def _digits(like: Any) -> Any:
    """Return what is added so that each digit, -1 to 2, is written as 0 to 3."""
    return like.dtype.type(_DIGITS >> (64 - 8 * like.dtype.itemsize))


def _split(elements: Any, planes: Sequence[Any]) -> None:
    """Write byte k of each element into plane k; `elements` are used up for it."""
    for plane in planes:
        np.copyto(plane, elements, casting="unsafe")
        if plane is not planes[-1]:
            np.right_shift(elements, elements.dtype.type(8), out=elements)


def _are_equal(left: Any, right: Any) -> bool:
    # mostly the beginning tells: all of it is only read where little or nothing moved
    if (left[:_BEGINNING] != right[:_BEGINNING]).any():
        return False
    return bool(np.array_equal(left, right))


def _has_bits(data: Any) -> bool:
    words = data.view(np.uint64) if data.size % _WORD == 0 else data
    return bool(words[:_BEGINNING].any() or words.any())


def _join(planes: Sequence[Bytes | None], whole: Any) -> None:
    """Put planes together; `whole` has elements as wide as there are planes."""
    started = False
    for number, plane in enumerate(planes):
        if plane is None:
            continue
        room = _BUFFERS.take("joined", whole.nbytes).view(whole.dtype) if started else whole
        np.copyto(room, _array(plane))
        if number:
            np.left_shift(room, whole.dtype.type(8 * number), out=room)
        if started:
            np.bitwise_or(whole, room, out=whole)
        started = True
    if not started:
        whole[:] = 0


def _exchange(whole: Any) -> None:
    """Exchange digit i of quarter k with digit k of quarter i, in place."""
    # words, where quarters are made of whole ones: shifted bits that leave a byte are masked off
    kind: Any = np.uint64 if whole.size % (4 * _WORD) == 0 else np.uint8
    a, b, c, d = whole.view(kind).reshape(4, -1)
    room = _BUFFERS.take("exchanged", whole.size // 4).view(kind)
    for one, other, shift, mask in (
        (a, c, 4, _LOW), (b, d, 4, _LOW), (a, b, 2, _EVEN), (c, d, 2, _EVEN),
    ):  # fmt: skip
        fit = kind(mask & np.iinfo(kind).max)
        np.right_shift(one, kind(shift), out=room)
        np.bitwise_xor(room, other, out=room)
        np.bitwise_and(room, fit, out=room)
        np.bitwise_xor(other, room, out=other)
        np.left_shift(room, kind(shift), out=room)
        np.bitwise_xor(one, room, out=one)


NUMPY: Final = NumpyArithmetic()
