"""The operator's secrets, and the keys of every log derived from them.

Each log signs with its own Ed25519 and ML-DSA-44 key. Seeds come from one 32-byte
secret by HKDF-SHA256, so that the operator guards one file however many runs there are.
What a thief of that file gains: he can sign tree heads of every log, and open the vault's
index; he cannot rewrite what was anchored.

Rotating the keys adds a file: `operator.key` is the first generation, `operator-2.key` the
second. No file is ever replaced: the vault's index stays keyed by the first.
"""

from __future__ import annotations

import os
import secrets
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from rlhf_audit_trail.ledger.files import sync_directory
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.proof.note import Algorithm, Note, SignatureLine, VerifierKey
from rlhf_audit_trail.ledger.proof.tree_head import TreeHead, mldsa_message

__all__ = [
    "GENERATED_KEY",
    "SECRET_BYTES",
    "BadKeyFile",
    "KeyMissing",
    "LogKeys",
    "OperatorSecrets",
    "derive",
    "read_secret",
    "sign_jointly",
    "write_secret",
]

SECRET_BYTES: Final = 32
GENERATED_KEY: Final = "operator.key"  # generation 1; later ones are numbered


class BadKeyFile(AuditTrailError):
    """The operator's key file is missing, readable by others, or not a key."""


class KeyMissing(BadKeyFile):
    """The keys were rotated, and this machine does not have the new secret."""


def derive(secret: bytes, purpose: bytes, context: str) -> bytes:
    """Derive 32 bytes for one purpose and context; HKDF-SHA256, RFC 5869."""
    info = b"rlhf-audit/v1\x00" + purpose + b"\x00" + context.encode()
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(secret)


def write_secret(path: Path) -> bytes:
    """Make a new operator secret and write it, readable by its owner only.

    The file is there whole or not at all.

    Raises:
        BadKeyFile: a file of that name exists; it is never overwritten.
    """
    secret = secrets.token_bytes(SECRET_BYTES)
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(handle, "w") as file:
            file.write(secret.hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)  # a rename would replace what is there
    except FileExistsError as error:
        raise BadKeyFile(
            f"{path} exists and is not overwritten", next_step="move it away, or use that ledger"
        ) from error
    finally:
        Path(draft).unlink(missing_ok=True)
    sync_directory(path.parent)
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


class OperatorSecrets:
    """The secrets of all generations, a file each; safe to share between threads."""

    def __init__(self, first_path: Path) -> None:
        """Read the first generation's file; raises BadKeyFile if that cannot be done."""
        self._first_path = first_path
        self._read = {1: read_secret(first_path)}

    @property
    def first(self) -> bytes:
        """The first generation's secret, with which the vault's index is keyed for ever."""
        return self._read[1]

    def path(self, generation: int) -> Path:
        """Return the file of a generation: `operator.key`, `operator-2.key` and so on."""
        first = self._first_path
        return first if generation == 1 else first.with_stem(f"{first.stem}-{generation}")

    def of(self, generation: int) -> bytes:
        """Return the secret of a generation.

        Raises:
            KeyMissing: the file is not on this machine.
            BadKeyFile: it is not usable.
        """
        if generation not in self._read:
            path = self.path(generation)
            if not path.exists():
                raise KeyMissing(
                    f"the keys were rotated, and {path} is not on this machine",
                    next_step="copy it from the machine that rotated them, with mode 600",
                )
            self._read[generation] = read_secret(path)
        return self._read[generation]

    def prepare(self, generation: int) -> bytes:
        """Return the secret of a generation to come; made unless an earlier attempt has."""
        path = self.path(generation)
        if not path.exists():
            write_secret(path)
        return self.of(generation)


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
        """Sign a tree head with both keys; return the note. See `sign_jointly`."""
        return sign_jointly((self,), head, time_s=time_s)

    def lines(self, head: TreeHead, *, time_s: int) -> tuple[SignatureLine, SignatureLine]:
        """Return the signature lines of both keys, Ed25519 first."""
        ed25519, mldsa = self.verifier_keys
        message = mldsa_message(mldsa.name, time_s, head)
        timed = struct.pack(">Q", time_s) + self._mldsa.sign(message)
        return (
            SignatureLine(self.origin, ed25519.key_id, self._ed25519.sign(head.text.encode())),
            SignatureLine(self.origin, mldsa.key_id, timed),
        )

    def sign_receipt(self, message: bytes, algorithm: Algorithm) -> bytes:
        """Sign the Sig_structure of a COSE receipt, which no tree head's message can equal."""
        key = self._ed25519 if algorithm is Algorithm.ED25519 else self._mldsa
        return key.sign(message)


def sign_jointly(keys: Sequence[LogKeys], head: TreeHead, *, time_s: int) -> str:
    """Sign a tree head with one or more generations of keys; return the note as it is stored.

    `time_s` is POSIX seconds, covered by the ML-DSA signatures. ML-DSA draws fresh
    randomness, so signing twice gives two notes: keep the first one.
    """
    lines = (line for item in keys for line in item.lines(head, time_s=time_s))
    return str(Note(head.text, tuple(lines)))
