"""Sealing values: a commitment for the entry, and the plaintext that the vault encrypts.

Done for annotations by the thousand, so each step takes a whole column; what commitments and
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

__all__ = ["NONCE_BYTES", "Sealer", "UnknownPlaintext", "sealer_of", "unpack"]

NONCE_BYTES: Final = 12
_VERSION: Final = 1
_BLOCK_BYTES: Final = 64  # of SHA-256
_TO_INNER: Final = bytes(byte ^ 0x36 for byte in range(256))
_TO_OUTER: Final = bytes(byte ^ 0x5C for byte in range(256))
_REST: Final = bytes(_BLOCK_BYTES - SALT_BYTES)  # HMAC fills a key up to a block


class UnknownPlaintext(ValueError):
    """Decrypted bytes are not what `Sealer` makes."""


class Sealer:
    """Commits to the values of one set of fields, and packs them for encryption."""

    def __init__(self, paths: tuple[str, ...]) -> None:
        """Prepare for the sealed fields `paths`."""
        names = [path.encode() for path in paths]
        self._prefixes = [COMMITMENT_DOMAIN + len(name).to_bytes(2, "big") + name for name in names]
        joined = b"\n".join(names)
        self._header = bytes([_VERSION]) + len(joined).to_bytes(2, "big") + joined
        self._lengths = struct.Struct(f">{len(paths)}I").pack

    def seal(self, columns: Sequence[Sequence[bytes]]) -> tuple[list[tuple[str, ...]], list[bytes]]:
        """Return the commitments in hex, and the plaintext, of each row of values.

        A commitment is HMAC-SHA256 under a new salt of 32 bytes. Spelled as its two hashes,
        for a whole column at once, it takes half the time of `hmac.digest`.
        """
        blocks = range(0, _BLOCK_BYTES * len(columns[0]), _BLOCK_BYTES)
        salts, commitments = [], []
        for prefix, values in zip(self._prefixes, columns, strict=True):
            random = os.urandom(SALT_BYTES * len(values))
            column = [random[at : at + SALT_BYTES] for at in range(0, len(random), SALT_BYTES)]
            keys = _REST.join(column) + _REST
            inner, outer = keys.translate(_TO_INNER), keys.translate(_TO_OUTER)
            digests = [
                sha256(inner[at : at + _BLOCK_BYTES] + prefix + value).digest()
                for at, value in zip(blocks, values, strict=True)
            ]
            commitments.append(
                [
                    sha256(outer[at : at + _BLOCK_BYTES] + digest).hexdigest()
                    for at, digest in zip(blocks, digests, strict=True)
                ]
            )
            salts.append(column)
        header, lengths, join = self._header, self._lengths, b"".join
        rows = zip(zip(*salts, strict=True), zip(*columns, strict=True), strict=True)
        plain = [join((header, *salt, lengths(*map(len, row)), *row)) for salt, row in rows]
        return list(zip(*commitments, strict=True)), plain


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
