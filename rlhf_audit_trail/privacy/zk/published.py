r"""The bytes of a verifiable count: what is anchored before the coin, and what is opened after.

Commitments, with proofs:

    "rlhf-audit/zk/commitments/v1\n" || context (32) || u32 participants || u32 coins
    || for each participant, then for each coin:  commitment (33) || proof (128)

Their digest, which an entry holds and an anchor covers before the coin is known, is SHA-256
over the same without the proofs. The opened count is compact JSON, keys in this order:

    {"blinding":"<64 hex digits>","count":<a whole number>}
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final

from rlhf_audit_trail.privacy.errors import WrongProof
from rlhf_audit_trail.privacy.zk.bit_proof import PROOF_BYTES
from rlhf_audit_trail.privacy.zk.group import POINT_BYTES, scalar_bytes, scalar_of
from rlhf_audit_trail.privacy.zk.statement import CountStatement

__all__ = ["COUNT_JSON_BYTES_MAX", "Commitments", "OpenedCount", "Proven"]

_MAGIC: Final = b"rlhf-audit/zk/commitments/v1\n"
_HEADER: Final = Struct(f">{len(_MAGIC)}s32sII")
_BIT_BYTES: Final = POINT_BYTES + PROOF_BYTES
COUNT_JSON_BYTES_MAX: Final = 128


@dataclass(frozen=True)
class Commitments:
    """Committed bits with their proofs; parsed, and not yet believed.

    Attributes:
        statement: what they are for.
        points: of participants, then of coins; 33 bytes each.
        proofs: in the same order; 128 bytes each.
    """

    statement: CountStatement
    points: tuple[bytes, ...]
    proofs: tuple[bytes, ...]

    def digest(self) -> bytes:
        """Return what has to be anchored before the coin is known, 32 bytes."""
        return hashlib.sha256(_header(self.statement) + b"".join(self.points)).digest()

    def to_bytes(self) -> bytes:
        """Write them."""
        pairs = zip(self.points, self.proofs, strict=True)
        return _header(self.statement) + b"".join(point + proof for point, proof in pairs)

    @classmethod
    def from_bytes(cls, data: bytes, statement: CountStatement) -> Commitments:
        """Read the commitments of a known statement; proofs are for `verify_commitments`.

        Raises:
            WrongProof: they are of another statement, of another length, or hold a commitment
                twice.
        """
        bits = statement.participants + statement.coins
        if len(data) != _HEADER.size + bits * _BIT_BYTES or not data.startswith(_header(statement)):
            raise WrongProof(
                "these are not the commitments of this count",
                next_step="compare origin, statistic, participants and coins",
            )
        starts = range(_HEADER.size, len(data), _BIT_BYTES)
        points = tuple(data[at : at + POINT_BYTES] for at in starts)
        if len(set(points)) != bits:
            raise WrongProof("a commitment stands for two bits")
        return cls(
            statement, points, tuple(data[at + POINT_BYTES : at + _BIT_BYTES] for at in starts)
        )


@dataclass(frozen=True)
class Proven(Commitments):
    """Commitments that `verify_commitments` has shown to hold bits; nothing else makes one."""


@dataclass(frozen=True)
class OpenedCount:
    """The one number that leaves, and what shows it.

    Attributes:
        count: participants' ones plus heads, less half of the coins.
        blinding: sum of all blindings, 1 to n - 1; tells nothing else.
    """

    count: int
    blinding: int

    def to_json(self) -> str:
        """Write it."""
        found = {"blinding": scalar_bytes(self.blinding).hex(), "count": self.count}
        return json.dumps(found, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> OpenedCount:
        """Read it, in its one spelling.

        Raises:
            WrongProof: it has another form.
        """
        given = text.encode("utf-8", "replace") if isinstance(text, str) else text
        if len(given) > COUNT_JSON_BYTES_MAX:
            raise _malformed()
        try:
            found = cls(*_count_and_blinding(json.loads(given)))
        except (ValueError, TypeError, RecursionError):
            raise _malformed() from None
        if found.to_json().encode() != given:
            raise _malformed()
        return found


def _count_and_blinding(fields: Any) -> tuple[int, int]:
    if not isinstance(fields, dict) or tuple(fields) != ("blinding", "count"):
        raise ValueError
    if type(fields["count"]) is not int:
        raise TypeError
    return fields["count"], scalar_of(bytes.fromhex(fields["blinding"]))


def _header(statement: CountStatement) -> bytes:
    return _HEADER.pack(_MAGIC, statement.digest(), statement.participants, statement.coins)


def _malformed() -> WrongProof:
    return WrongProof("this is no opened count: its form is another")
