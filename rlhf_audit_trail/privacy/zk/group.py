"""The group secp256k1: scalars and points in one spelling each, and a second generator.

A scalar is 32 bytes big-endian, 1 to n - 1; a point is 33 bytes, SEC 1 compressed. Zero, the
point at infinity and every other spelling are refused.

Commitments are b H + r G. The blinding stands on the curve's own generator G, whose multiples
are the quicker ones. H must be a point whose logarithm to G nobody knows: it is the first of

    x = SHA-256("rlhf-audit/zk/second-generator/v1" || i)      i = 0, 1, 2, ..., one byte

that is the x-coordinate of a point, with even y; that is i = 1.
"""

from __future__ import annotations

import hashlib
from functools import cache
from os import urandom
from typing import Final

from coincurve import PublicKey

from rlhf_audit_trail.privacy.errors import WrongProof

__all__ = [
    "ORDER",
    "POINT_BYTES",
    "SCALAR_BYTES",
    "added",
    "base_times",
    "negated",
    "point_of",
    "random_scalar",
    "scalar_bytes",
    "scalar_of",
    "second_generator",
]

ORDER: Final = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
SCALAR_BYTES: Final = 32
POINT_BYTES: Final = 33
_EVEN: Final = b"\x02"
_GENERATOR_DOMAIN: Final = b"rlhf-audit/zk/second-generator/v1"


@cache
def second_generator() -> PublicKey:
    """Return H."""
    for attempt in range(256):
        x = hashlib.sha256(_GENERATOR_DOMAIN + bytes([attempt])).digest()
        try:
            return PublicKey(_EVEN + x)
        except ValueError:  # half of all numbers are no x-coordinate
            continue
    raise AssertionError("no point in 256 tries")  # pragma: no cover


def scalar_of(data: bytes) -> int:
    """Read a scalar.

    Raises:
        WrongProof: it is not 32 bytes, or not from 1 to n - 1.
    """
    found = int.from_bytes(data)
    if len(data) != SCALAR_BYTES or not 0 < found < ORDER:
        raise WrongProof("a scalar is 32 bytes, from 1 to the group's order less one")
    return found


def scalar_bytes(value: int) -> bytes:
    """Write a scalar, after reducing it by the group's order.

    Raises:
        WrongProof: it is zero, which has no spelling.
    """
    reduced = value % ORDER
    if not reduced:
        raise WrongProof("a scalar is not zero")
    return reduced.to_bytes(SCALAR_BYTES)


def random_scalar() -> int:
    """Draw a scalar from the operating system, all alike; every call asks anew (`fork`)."""
    while not 0 < (found := int.from_bytes(urandom(SCALAR_BYTES))) < ORDER:
        pass
    return found


def point_of(data: bytes) -> PublicKey:
    """Read a point.

    Raises:
        WrongProof: it is not 33 bytes, or not on the curve.
    """
    try:
        if len(data) == POINT_BYTES:
            return PublicKey(data)
    except ValueError:
        pass
    raise WrongProof("a point is 33 bytes, compressed, on the curve secp256k1")


def base_times(scalar: int) -> PublicKey:
    """Return scalar G, in time that does not depend on the scalar."""
    return PublicKey.from_valid_secret(scalar_bytes(scalar))


def added(*points: PublicKey) -> PublicKey:
    """Return the sum of points.

    Raises:
        WrongProof: it is the point at infinity.
    """
    try:
        return PublicKey.combine_keys(list(points))
    except ValueError:
        raise WrongProof("a sum of points is not the point at infinity") from None


def negated(point: bytes) -> bytes:
    """Return minus a point, in its 33 bytes: the other y of the same x."""
    return bytes([point[0] ^ 1]) + point[1:]
