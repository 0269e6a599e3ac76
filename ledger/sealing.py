"""Sealing values: a commitment for the entry, and the plaintext that the vault encrypts.

Done for every annotation, so each step takes all fields at once; what commitments and
openings are is said once, in the kernel, and tests compare.

Plaintext: version 1 in one byte, u16 length of the field paths, the paths joined by line
feeds, 32 bytes of salt for each, u32 length of each value, the values. All big-endian.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Final

from rlhf_audit_trail.ledger.proof.commitment import COMMITMENT_DOMAIN, SALT_BYTES, Opening

__all__ = ["NONCE_BYTES", "Randomness", "Sealer", "UnknownPlaintext", "sealer_of", "unpack"]

NONCE_BYTES: Final = 12
_VERSION: Final = 1
_BLOCK_BYTES: Final = 64  # of SHA-256
_TO_INNER: Final = bytes(byte ^ 0x36 for byte in range(256))
_TO_OUTER: Final = bytes(byte ^ 0x5C for byte in range(256))
_INNER_REST: Final = b"\x36" * (_BLOCK_BYTES - SALT_BYTES)
_OUTER_REST: Final = b"\x5c" * (_BLOCK_BYTES - SALT_BYTES)


class UnknownPlaintext(ValueError):
    """Decrypted bytes are not what `Sealer` makes."""


class Randomness:
    """Random bytes for many entries, fetched at once; each is given out once."""

    def __init__(self, count: int) -> None:
        """Fetch `count` bytes from the operating system."""
        self.data = os.urandom(count)
        # both keys of HMAC, for all salts in one step
        self.inner = self.data.translate(_TO_INNER)
        self.outer = self.data.translate(_TO_OUTER)
        self.position = 0


class Sealer:
    """Commits to the values of one set of fields, and packs them for encryption."""

    def __init__(self, paths: tuple[str, ...]) -> None:
        """Prepare for the sealed fields `paths`."""
        names = [path.encode() for path in paths]
        self._prefixes = [
            _INNER_REST + COMMITMENT_DOMAIN + len(name).to_bytes(2, "big") + name for name in names
        ]
        joined = b"\n".join(names)
        self._header = bytes([_VERSION]) + len(joined).to_bytes(2, "big") + joined
        self._lengths = struct.Struct(f">{len(paths)}I").pack
        self._salts_bytes = SALT_BYTES * len(paths)
        self.random_bytes = self._salts_bytes + NONCE_BYTES

    def seal(
        self, values: Sequence[bytes], randomness: Randomness
    ) -> tuple[tuple[str, ...], bytes, bytes]:
        """Return the commitments in hex, a nonce of 12 bytes, and the plaintext.

        A commitment is HMAC-SHA256 under its salt. Spelled as its two hashes it takes two
        thirds of the time of `hmac.digest`.
        """
        at = begin = randomness.position
        end = begin + self._salts_bytes
        inner, outer = randomness.inner, randomness.outer
        commitments = []
        for prefix, value in zip(self._prefixes, values, strict=True):
            stop = at + SALT_BYTES
            digest = sha256(inner[at:stop] + prefix + value).digest()
            commitments.append(sha256(outer[at:stop] + _OUTER_REST + digest).hexdigest())
            at = stop
        randomness.position = end + NONCE_BYTES
        salts, nonce = randomness.data[begin:end], randomness.data[end : end + NONCE_BYTES]
        lengths = self._lengths(*map(len, values))
        return tuple(commitments), nonce, b"".join((self._header, salts, lengths, *values))


@lru_cache(maxsize=256)
def sealer_of(paths: tuple[str, ...]) -> Sealer:
    """Return the sealer for these fields, made once."""
    return Sealer(paths)


def unpack(plain: bytes) -> list[Opening]:
    """Read what `Sealer.seal` packed.

    Raises:
        UnknownPlaintext: it is nothing of the kind.
    """
    if plain[:1] != bytes([_VERSION]):
        raise UnknownPlaintext("a version that is not known here")
    salts_at = 3 + int.from_bytes(plain[1:3], "big")
    paths = plain[3:salts_at].decode().split("\n")
    lengths_at = salts_at + SALT_BYTES * len(paths)
    at = lengths_at + 4 * len(paths)
    if at > len(plain):
        raise UnknownPlaintext("cut short")
    lengths = struct.unpack(f">{len(paths)}I", plain[lengths_at:at])
    if at + sum(lengths) != len(plain):
        raise UnknownPlaintext("lengths that do not add up")
    openings = []
    for number, (path, length) in enumerate(zip(paths, lengths, strict=True)):
        begin = salts_at + SALT_BYTES * number
        openings.append(Opening(path, plain[begin : begin + SALT_BYTES], plain[at : at + length]))
        at += length
    return openings
