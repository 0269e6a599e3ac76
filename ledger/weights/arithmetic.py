"""The loops over bytes of a weight delta, in plain Python: no install is needed to read one.

Tensors are lists of little-endian unsigned integers here, as wide as their elements. What moves
by a little gives a difference of -1, 0, 1 or 2 more often than not; written in balanced digits to
the base 4, all digits but the lowest are then zero, and digits of equal weight, put together,
compress several times as fast, and better, than bytes do.

Spec: FORMAT.md, section 19.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Final, Protocol

from rlhf_audit_trail.ledger.weights.digest import Bytes

__all__ = ["PLAIN", "ByteArithmetic"]

_DIGITS: Final = 0x55  # a balanced digit 0 in each place
_IS_SET: Final = bytes(value != 0 for value in range(256))


class ByteArithmetic(Protocol):
    """What it takes; NumPy's is in the training's install. Results last until the next call."""

    def difference(self, new: Bytes, base: Bytes, width: int) -> Sequence[Bytes] | None:
        """Return the planes of what two equally long pieces differ in, None if in nothing."""

    def moved(
        self, base: Bytes, planes: Sequence[Bytes | None], out: memoryview | None = None
    ) -> Bytes:
        """Undo `difference`: return the new piece, in `out` if given; None is a zero plane."""

    def split(self, data: Bytes, width: int) -> Sequence[Bytes]:
        """Return `width` planes: plane i holds every byte whose place is i modulo `width`."""

    def join(self, planes: Sequence[Bytes]) -> Bytes:
        """Undo `split`."""

    def gather(self, plane: Bytes) -> Sequence[Bytes]:
        """Return four planes: of the first digit of each byte, of the second, and so on.

        The plane, of a multiple of four bytes, may be used up.
        """

    def scatter(self, digits: Sequence[Bytes | None], size: int, number: int) -> Bytes:
        """Undo `gather` for plane `number` of `size` bytes; None stands for zeros."""

    def sparse(self, plane: Bytes) -> tuple[Bytes, Bytes]:
        """Return which bytes are not zero, a bit for each, the lowest first, and these bytes.

        The plane is of a multiple of eight bytes.
        """

    def spread(self, bitmap: Bytes, values: Bytes) -> Bytes:
        """Undo `sparse`, into memory of its own; there are as many values as bits are set."""

    def is_zero(self, data: Bytes) -> bool:
        """Return whether no bit is set."""

    def count_moved(self, data: Bytes) -> int:
        """Return how many bytes are not zero."""


class _PlainArithmetic:
    """On integers of as many bytes as a chunk has: all its elements are worked on at once."""

    def difference(self, new: Bytes, base: Bytes, width: int) -> Sequence[Bytes] | None:
        size = len(new)
        one, other = int.from_bytes(new, "little"), int.from_bytes(base, "little")
        if one == other:
            return None
        digits = _repeated(bytes([_DIGITS]), size)
        moved = _sum(_less(one, other, size, width), digits, size, width) ^ digits
        return self.split(moved.to_bytes(size, "little"), width)

    def moved(
        self, base: Bytes, planes: Sequence[Bytes | None], out: memoryview | None = None
    ) -> Bytes:
        size, width = len(base), len(planes)
        joined = self.join([bytes(size // width) if x is None else x for x in planes])
        digits = _repeated(bytes([_DIGITS]), size)
        change = _less(int.from_bytes(joined, "little") ^ digits, digits, size, width)
        found = _sum(int.from_bytes(base, "little"), change, size, width).to_bytes(size, "little")
        if out is None:
            return found
        out[:] = found
        return out

    def split(self, data: Bytes, width: int) -> Sequence[Bytes]:
        whole = bytes(data)
        return [whole[start::width] for start in range(width)]

    def join(self, planes: Sequence[Bytes]) -> Bytes:
        whole = bytearray(len(planes) * len(planes[0]))
        for start, plane in enumerate(planes):
            whole[start :: len(planes)] = plane
        return whole

    def gather(self, plane: Bytes) -> Sequence[Bytes]:
        quarter = len(plane) // 4
        view = memoryview(plane)
        return _exchanged([view[n * quarter : (n + 1) * quarter] for n in range(4)])

    def scatter(self, digits: Sequence[Bytes | None], size: int, number: int) -> Bytes:
        del number
        return b"".join(_exchanged([bytes(size // 4) if x is None else x for x in digits]))

    def sparse(self, plane: Bytes) -> tuple[Bytes, Bytes]:
        whole = bytes(plane)
        flags = whole.translate(_IS_SET)
        bits = sum(int.from_bytes(flags[n::8], "little") << n for n in range(8))
        return bits.to_bytes(len(whole) // 8, "little"), whole.translate(None, b"\0")

    def spread(self, bitmap: Bytes, values: Bytes) -> Bytes:
        size, bits = len(bitmap), int.from_bytes(bitmap, "little")
        ones, flags = _repeated(b"\1", size), bytearray(8 * size)
        for n in range(8):
            flags[n::8] = (bits >> n & ones).to_bytes(size, "little")
        for place, value in zip(compress(range(8 * size), flags), values, strict=True):
            flags[place] = value
        return flags

    def is_zero(self, data: Bytes) -> bool:
        return not bytes(data).strip(b"\0")

    def count_moved(self, data: Bytes) -> int:
        return len(bytes(data).translate(None, b"\0"))


PLAIN: Final[ByteArithmetic] = _PlainArithmetic()


def _repeated(element: bytes, size: int) -> int:
    return int.from_bytes(element * (size // len(element)), "little")


def _tops(size: int, width: int) -> int:
    """Return the highest bit of every element: it is worked on apart, so that none carries."""
    return _repeated(b"\0" * (width - 1) + b"\x80", size)


def _sum(one: int, other: int, size: int, width: int) -> int:
    tops = _tops(size, width)
    return ((one & ~tops) + (other & ~tops)) ^ ((one ^ other) & tops)


def _less(one: int, other: int, size: int, width: int) -> int:
    tops = _tops(size, width)
    return ((one | tops) - (other & ~tops)) ^ (~(one ^ other) & tops)


def _exchanged(quarters: Sequence[Bytes]) -> list[bytes]:
    """Exchange digit i of quarter k with digit k of quarter i; twice, and all is as before."""
    size = len(quarters[0])
    low, even = _repeated(b"\x0f", size), _repeated(b"\x33", size)
    a, b, c, d = (int.from_bytes(quarter, "little") for quarter in quarters)
    a, c = _swapped(a, c, 4, low)
    b, d = _swapped(b, d, 4, low)
    a, b = _swapped(a, b, 2, even)
    c, d = _swapped(c, d, 2, even)
    return [number.to_bytes(size, "little") for number in (a, b, c, d)]


def _swapped(one: int, other: int, shift: int, mask: int) -> tuple[int, int]:
    """Exchange the bits that `mask` selects in `other` with those it selects in `one`, shifted."""
    moving = ((one >> shift) ^ other) & mask
    return one ^ (moving << shift), other ^ moving
