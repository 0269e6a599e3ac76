"""The operator's one secret, and the keys of every log derived from it.

Each log signs with its own Ed25519 and ML-DSA-44 key. Seeds come from one 32-byte
secret by HKDF-SHA256, so that the operator guards one file however many runs there are.
What a thief of that file gains: he can sign tree heads of every log, and open the vault's
index; he cannot rewrite what was anchored.
"""

from __future__ import annotations

import os
import secrets
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.proof.note import Algorithm, Note, SignatureLine, VerifierKey
from rlhf_audit_trail.ledger.proof.tree_head import TreeHead, mldsa_message

__all__ = ["SECRET_BYTES", "BadKeyFile", "LogKeys", "derive", "read_secret", "write_secret"]

SECRET_BYTES: Final = 32


class BadKeyFile(AuditTrailError):
    """The operator's key file is missing, readable by others, or not a key."""


def derive(secret: bytes, purpose: bytes, context: str) -> bytes:
    """Derive 32 bytes for one purpose and context; HKDF-SHA256, RFC 5869."""
    info = b"rlhf-audit/v1\x00" + purpose + b"\x00" + context.encode()
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(secret)


def write_secret(path: Path) -> bytes:
    """Make a new operator secret and write it, readable by its owner only.

    Raises:
        BadKeyFile: a file of that name exists; it is never overwritten.
    """
    secret = secrets.token_bytes(SECRET_BYTES)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise BadKeyFile(
            f"{path} exists and is not overwritten", next_step="move it away, or use that ledger"
        ) from error
    with os.fdopen(handle, "w") as file:
        file.write(secret.hex() + "\n")
        file.flush()
        os.fsync(file.fileno())
    return secret


def read_secret(path: Path) -> bytes:
    """Read the operator secret.

    Raises:
        BadKeyFile: missing, open to other users, or not 64 hex digits.
    """
    try:
        mode, text = path.stat().st_mode, path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadKeyFile(
            f"cannot read the operator key {path}",
            next_step="restore it from your backup; without it nothing new can be signed",
        ) from error
    if mode & 0o077:
        raise BadKeyFile(f"{path} can be read by other users", next_step=f"run: chmod 600 {path}")
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        secret = b""
    if len(secret) != SECRET_BYTES:
        raise BadKeyFile(f"{path} is not a key of {SECRET_BYTES} bytes in hex")
    return secret


@dataclass(frozen=True)
class LogKeys:
    """One log's private keys; both sign every tree head."""

    origin: str
    _ed25519: Ed25519PrivateKey = field(repr=False)
    _mldsa: MLDSA44PrivateKey = field(repr=False)

    @classmethod
    def derive(cls, secret: bytes, origin: str) -> LogKeys:
        """Derive the keys of the log `origin` from the operator's 32-byte secret."""
        return cls(
            origin,
            Ed25519PrivateKey.from_private_bytes(derive(secret, b"log-ed25519", origin)),
            MLDSA44PrivateKey.from_seed_bytes(derive(secret, b"log-ml-dsa-44", origin)),
        )

    @property
    def verifier_keys(self) -> tuple[VerifierKey, VerifierKey]:
        """The public keys, Ed25519 first."""
        return (
            VerifierKey(
                self.origin, Algorithm.ED25519, self._ed25519.public_key().public_bytes_raw()
            ),
            VerifierKey(
                self.origin, Algorithm.ML_DSA_44, self._mldsa.public_key().public_bytes_raw()
            ),
        )

    def sign(self, head: TreeHead, *, time_s: int) -> str:
        """Sign a tree head; return the note as it is stored and served.

        `time_s` is POSIX seconds, covered by the ML-DSA signature. ML-DSA draws fresh
        randomness, so signing twice gives two notes: keep the first one.
        """
        ed25519, mldsa = self.verifier_keys
        message = mldsa_message(mldsa.name, time_s, head)
        timed = struct.pack(">Q", time_s) + self._mldsa.sign(message)
        lines = (
            SignatureLine(self.origin, ed25519.key_id, self._ed25519.sign(head.text.encode())),
            SignatureLine(self.origin, mldsa.key_id, timed),
        )
        return str(Note(head.text, lines))

    def sign_receipt(self, message: bytes, algorithm: Algorithm) -> bytes:
        """Sign the Sig_structure of a COSE receipt, which no tree head's message can equal."""
        key = self._ed25519 if algorithm is Algorithm.ED25519 else self._mldsa
        return key.sign(message)
