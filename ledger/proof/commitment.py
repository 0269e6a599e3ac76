"""Salted commitments: one per sealed field, so that each can be opened, or erased, alone.

An unsalted hash of a small reward or a known id is reversed by trying all of them, so
every commitment has its own 32 random bytes.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from rlhf_audit_trail.ledger.proof.errors import Inconsistent, MalformedBundle

SALT_BYTES: Final = 32
COMMITMENT_DOMAIN: Final = b"rlhf-audit/commitment/v1\x00"
_MAX_PATH_BYTES: Final = 0xFFFF


@dataclass(frozen=True)
class Opening:
    """What turns a commitment back into a value.

    Attributes:
        path: the sealed field's name in its entry.
        salt: 32 bytes.
        value: the committed bytes, compact JSON.
    """

    path: str
    salt: bytes
    value: bytes


def commit(opening: Opening) -> bytes:
    """Return the commitment to a field's value, 32 bytes.

    HMAC-SHA256(salt, "rlhf-audit/commitment/v1" || 0x00 || u16 length of path || path || value).

    Raises:
        MalformedBundle: the salt is not exactly 32 bytes (HMAC pads shorter keys with zeros,
            so two salts would open the same commitment), or the path is too long.
    """
    path = opening.path.encode()
    if len(opening.salt) != SALT_BYTES or len(path) > _MAX_PATH_BYTES:
        raise MalformedBundle("a salt must be 32 bytes, and a field's name at most 65,535")
    message = COMMITMENT_DOMAIN + len(path).to_bytes(2, "big") + path + opening.value
    return hmac.digest(opening.salt, message, hashlib.sha256)


def verify_opening(commitment: bytes, opening: Opening) -> bytes:
    """Return the value that `opening` proves was committed, or raise Inconsistent."""
    if not hmac.compare_digest(commit(opening), commitment):
        raise Inconsistent(
            f"the opened value of {opening.path!r} is not the one the entry committed to",
            expected=commitment.hex(),
            actual=commit(opening).hex(),
        )
    return opening.value
