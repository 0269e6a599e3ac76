"""Which account signed: the public key of a secp256k1 signature, and Ethereum's address of it.

Neither the standard library nor `cryptography` recovers keys, and this check must run where
no chain library is installed. It sees public values only, so it need not take equal time.
References: SEC 1 version 2, section 4.1.6; EIP-2 for the low s; EIP-55 for the spelling.
"""

from __future__ import annotations

from typing import Final

from rlhf_audit_trail.ledger.proof.errors import MalformedBundle
from rlhf_audit_trail.ledger.proof.evm.keccak import keccak256

__all__ = ["is_spelled", "signer_of"]

_P: Final = 2**256 - 2**32 - 977
_N: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_ADDRESS_BYTES: Final = 20

# X, Y, Z with x = X / Z^2 and y = Y / Z^3; Z = 0 is the point at infinity.
_Point = tuple[int, int, int]
_INFINITY: Final = (1, 1, 0)
_G: Final = (
    0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798,
    0x483ADA7726A3C4655DA4FBFC0E1108A8FD17B448A68554199C47D08FFB10D4B8,
    1,
)


def signer_of(digest: bytes, y_parity: int, r: int, s: int) -> bytes:
    """Return the address, 20 bytes, whose key signed a digest of 32 bytes.

    Raises:
        MalformedBundle: these numbers are no signature that Ethereum takes.
    """
    if y_parity not in {0, 1} or not 0 < r < _N or not 0 < s <= _N // 2:
        raise MalformedBundle("the signature's numbers are out of range")
    square = (pow(r, 3, _P) + 7) % _P
    root = pow(square, (_P + 1) // 4, _P)
    if root * root % _P != square:
        raise MalformedBundle("the signature's r is not on the curve")
    nonce_point = (r, root if root % 2 == y_parity else _P - root, 1)
    inverse = pow(r, -1, _N)
    x, y = _affine(_sum_of(-int.from_bytes(digest) * inverse % _N, s * inverse % _N, nonce_point))
    return keccak256(x.to_bytes(32) + y.to_bytes(32))[-_ADDRESS_BYTES:]


def is_spelled(text: str) -> bool:
    """Whether a text is an address in small letters, or in the cases that EIP-55 asks for."""
    digits = text.removeprefix("0x")
    if len(text) != 2 + 2 * _ADDRESS_BYTES or len(digits) != 2 * _ADDRESS_BYTES:
        return False
    small = digits.lower()
    if not set(small) <= set("0123456789abcdef"):
        return False
    checks = keccak256(small.encode()).hex()
    cased = (
        c.upper() if check in "89abcdef" else c for c, check in zip(small, checks, strict=False)
    )
    return digits in {small, "".join(cased)}


def _sum_of(of_generator: int, of_other: int, other: _Point) -> _Point:
    """Return the sum of two multiples, bit by bit for both at once."""
    choices = (None, _G, other, _add(_G, other))
    total: _Point = _INFINITY
    for bit in range(255, -1, -1):
        total = _double(total)
        chosen = choices[(of_generator >> bit & 1) + 2 * (of_other >> bit & 1)]
        if chosen is not None:
            total = _add(total, chosen)
    return total


def _double(point: _Point) -> _Point:
    x, y, z = point
    square = y * y % _P
    middle = 4 * x * square % _P
    slope = 3 * x * x % _P
    new_x = (slope * slope - 2 * middle) % _P
    return new_x, (slope * (middle - new_x) - 8 * square * square) % _P, 2 * y * z % _P


def _add(left: _Point, right: _Point) -> _Point:
    if not left[2]:
        return right
    if not right[2]:
        return left
    (x1, y1, z1), (x2, y2, z2) = left, right
    z1_square, z2_square = z1 * z1 % _P, z2 * z2 % _P
    u1, u2 = x1 * z2_square % _P, x2 * z1_square % _P
    s1, s2 = y1 * z2 * z2_square % _P, y2 * z1 * z1_square % _P
    if u1 == u2:
        return _double(left) if s1 == s2 else _INFINITY
    rise, run = (s2 - s1) % _P, (u2 - u1) % _P
    square = run * run % _P
    cube, part = run * square % _P, u1 * square % _P
    x = (rise * rise - cube - 2 * part) % _P
    return x, (rise * (part - x) - s1 * cube) % _P, run * z1 * z2 % _P


def _affine(point: _Point) -> tuple[int, int]:
    x, y, z = point
    if not z:
        raise MalformedBundle("the signature belongs to no key")
    inverse = pow(z, -1, _P)
    return x * inverse * inverse % _P, y * inverse**3 % _P
