"""Keccak-256, the hash of Ethereum: SHA-3 as it was before NIST changed its padding.

Neither `hashlib` nor `cryptography` has it. In Python the number of operations counts, hardly the
width of their numbers. So a round is written out without loops over the 25 lanes, and each lane
stands five times side by side in one number: shifting that rotates the lane, which else takes two
shifts, a mask and an "or". Each shift spoils bits at one end. A round shifts by at most 1 + 28 to
the left and 28 to the right: after four rounds bits 116 to 207 are still right, and with them a
whole copy, from bit 128 on. Lane x + 5y is A[x, y] of FIPS 202, section 3.2.
"""

from __future__ import annotations

import struct
from typing import Final

RATE_BYTES: Final = 136
_LANES: Final = struct.Struct("<17Q")  # of one block
_FIVE_TIMES: Final = sum(1 << 64 * copy for copy in range(5))
_MASK: Final = 2**64 - 1
_ROUND_CONSTANTS: Final = (
    0x0000000000000001, 0x0000000000008082, 0x800000000000808A, 0x8000000080008000,
    0x000000000000808B, 0x0000000080000001, 0x8000000080008081, 0x8000000000008009,
    0x000000000000008A, 0x0000000000000088, 0x0000000080008009, 0x000000008000000A,
    0x000000008000808B, 0x800000000000008B, 0x8000000000008089, 0x8000000000008003,
    0x8000000000008002, 0x8000000000000080, 0x000000000000800A, 0x800000008000000A,
    0x8000000080008081, 0x8000000000008080, 0x0000000080000001, 0x8000000080008008,
)  # fmt: skip
_FOUR_ROUNDS: Final = tuple(
    [constant * _FIVE_TIMES for constant in _ROUND_CONSTANTS[first : first + 4]]
    for first in range(0, len(_ROUND_CONSTANTS), 4)
)


def keccak256(data: bytes) -> bytes:
    """Hash bytes, 32 bytes; FIPS 202 with the padding 0x01 … 0x80 of the Keccak submission."""
    padding = bytearray(RATE_BYTES - len(data) % RATE_BYTES)
    padding[0], padding[-1] = 0x01, 0x80 | (len(padding) == 1)
    state: tuple[int, ...] = (0,) * 25
    for block in _LANES.iter_unpack(data + padding):
        state = _permute(*map(int.__xor__, state, block), *state[len(block) :])
    return struct.pack("<4Q", *state[:4])


# fmt: off
def _permute(  # noqa: PLR0915, PLR0917 - 25 lanes and no loop over them, for speed
    a0: int, a1: int, a2: int, a3: int, a4: int, a5: int, a6: int, a7: int, a8: int, a9: int,
    a10: int, a11: int, a12: int, a13: int, a14: int, a15: int, a16: int, a17: int, a18: int,
    a19: int, a20: int, a21: int, a22: int, a23: int, a24: int,
) -> tuple[int, ...]:
    """Keccak-f[1600]: theta, rho and pi together, chi, iota, 24 times."""
    wide, mask = _FIVE_TIMES, _MASK
    for constants in _FOUR_ROUNDS:
        a0, a1, a2 = a0 * wide, a1 * wide, a2 * wide
        a3, a4 = a3 * wide, a4 * wide
        a5, a6, a7 = a5 * wide, a6 * wide, a7 * wide
        a8, a9 = a8 * wide, a9 * wide
        a10, a11, a12 = a10 * wide, a11 * wide, a12 * wide
        a13, a14 = a13 * wide, a14 * wide
        a15, a16, a17 = a15 * wide, a16 * wide, a17 * wide
        a18, a19 = a18 * wide, a19 * wide
        a20, a21, a22 = a20 * wide, a21 * wide, a22 * wide
        a23, a24 = a23 * wide, a24 * wide
        for constant in constants:
            c0 = a0 ^ a5 ^ a10 ^ a15 ^ a20
            c1 = a1 ^ a6 ^ a11 ^ a16 ^ a21
            c2 = a2 ^ a7 ^ a12 ^ a17 ^ a22
            c3 = a3 ^ a8 ^ a13 ^ a18 ^ a23
            c4 = a4 ^ a9 ^ a14 ^ a19 ^ a24
            d0 = c4 ^ c1 << 1
            d1 = c0 ^ c2 << 1
            d2 = c1 ^ c3 << 1
            d3 = c2 ^ c4 << 1
            d4 = c3 ^ c0 << 1
            b0 = a0 ^ d0
            b1 = (a6 ^ d1) >> 20
            b2 = (a12 ^ d2) >> 21
            b3 = (a18 ^ d3) << 21
            b4 = (a24 ^ d4) << 14
            b5 = (a3 ^ d3) << 28
            b6 = (a9 ^ d4) << 20
            b7 = (a10 ^ d0) << 3
            b8 = (a16 ^ d1) >> 19
            b9 = (a22 ^ d2) >> 3
            b10 = (a1 ^ d1) << 1
            b11 = (a7 ^ d2) << 6
            b12 = (a13 ^ d3) << 25
            b13 = (a19 ^ d4) << 8
            b14 = (a20 ^ d0) << 18
            b15 = (a4 ^ d4) << 27
            b16 = (a5 ^ d0) >> 28
            b17 = (a11 ^ d1) << 10
            b18 = (a17 ^ d2) << 15
            b19 = (a23 ^ d3) >> 8
            b20 = (a2 ^ d2) >> 2
            b21 = (a8 ^ d3) >> 9
            b22 = (a14 ^ d4) >> 25
            b23 = (a15 ^ d0) >> 23
            b24 = (a21 ^ d1) << 2
            a0, a1, a2 = constant ^ b0 ^ b2 ^ b1 & b2, b1 ^ b3 ^ b2 & b3, b2 ^ b4 ^ b3 & b4
            a3, a4 = b3 ^ b0 ^ b4 & b0, b4 ^ b1 ^ b0 & b1
            a5, a6, a7 = b5 ^ b7 ^ b6 & b7, b6 ^ b8 ^ b7 & b8, b7 ^ b9 ^ b8 & b9
            a8, a9 = b8 ^ b5 ^ b9 & b5, b9 ^ b6 ^ b5 & b6
            a10, a11, a12 = b10 ^ b12 ^ b11 & b12, b11 ^ b13 ^ b12 & b13, b12 ^ b14 ^ b13 & b14
            a13, a14 = b13 ^ b10 ^ b14 & b10, b14 ^ b11 ^ b10 & b11
            a15, a16, a17 = b15 ^ b17 ^ b16 & b17, b16 ^ b18 ^ b17 & b18, b17 ^ b19 ^ b18 & b19
            a18, a19 = b18 ^ b15 ^ b19 & b15, b19 ^ b16 ^ b15 & b16
            a20, a21, a22 = b20 ^ b22 ^ b21 & b22, b21 ^ b23 ^ b22 & b23, b22 ^ b24 ^ b23 & b24
            a23, a24 = b23 ^ b20 ^ b24 & b20, b24 ^ b21 ^ b20 & b21
        a0, a1, a2 = a0 >> 128 & mask, a1 >> 128 & mask, a2 >> 128 & mask
        a3, a4 = a3 >> 128 & mask, a4 >> 128 & mask
        a5, a6, a7 = a5 >> 128 & mask, a6 >> 128 & mask, a7 >> 128 & mask
        a8, a9 = a8 >> 128 & mask, a9 >> 128 & mask
        a10, a11, a12 = a10 >> 128 & mask, a11 >> 128 & mask, a12 >> 128 & mask
        a13, a14 = a13 >> 128 & mask, a14 >> 128 & mask
        a15, a16, a17 = a15 >> 128 & mask, a16 >> 128 & mask, a17 >> 128 & mask
        a18, a19 = a18 >> 128 & mask, a19 >> 128 & mask
        a20, a21, a22 = a20 >> 128 & mask, a21 >> 128 & mask, a22 >> 128 & mask
        a23, a24 = a23 >> 128 & mask, a24 >> 128 & mask
    return (
        a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15, a16, a17, a18, a19,
        a20, a21, a22, a23, a24,
    )
# fmt: on
