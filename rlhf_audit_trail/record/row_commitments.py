"""Salted commitments to the rows of a table: one root for all, each row to be opened alone.

A table's key is 32 random bytes. From it follows the salt of every row, so that one sealed
value is enough to open any of them, and to destroy the means of opening all of them.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rlhf_audit_trail.capture import InvalidColumn, plain_value
from rlhf_audit_trail.ledger.events import InvalidEvent, encode_value
from rlhf_audit_trail.ledger.proof.commitment import SALT_BYTES, Opening, commit
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.proof.merkle import leaf_hash, root_hash

__all__ = ["TableDamaged", "TableKey", "row_bytes"]

_BLOB_DOMAIN: Final = b"rlhf-audit/rows/v1"
_NONCE_BYTES: Final = 12


class TableDamaged(AuditTrailError):
    """A stored table does not open under its key: damaged, or another one's."""


class TableKey:
    """Commits to the rows of one table, and encrypts them; the key itself gets sealed."""

    def __init__(self, key: bytes | None = None) -> None:
        """Draw a new key, or take the 32 bytes of a known one."""
        self.key = secrets.token_bytes(SALT_BYTES) if key is None else key

    def opening(self, row: int, data: bytes) -> Opening:
        """Return what opens a row: path `row/<number>`, salt HMAC-SHA256(key, path)."""
        path = f"row/{row}"
        return Opening(path, hmac.digest(self.key, path.encode(), hashlib.sha256), data)

    def root(self, rows: Iterable[bytes]) -> bytes:
        """Return the RFC 6962 root over the commitments to all rows, in order."""
        opened = (self.opening(row, data) for row, data in enumerate(rows))
        return root_hash([leaf_hash(commit(opening)) for opening in opened])

    def encrypt(self, data: bytes) -> bytes:
        """Return 12 bytes of nonce and the AES-256-GCM ciphertext of a whole table."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher().encrypt(nonce, data, _BLOB_DOMAIN)

    def decrypt(self, blob: bytes) -> bytes:
        """Return what `encrypt` was given; raises TableDamaged for anything else."""
        try:
            return self._cipher().decrypt(blob[:_NONCE_BYTES], blob[_NONCE_BYTES:], _BLOB_DOMAIN)
        except (InvalidTag, ValueError) as error:
            raise TableDamaged(
                "a table of rows does not open under its key",
                next_step="restore the blob from a backup; the entry is not affected",
            ) from error

    def _cipher(self) -> AESGCM:
        return AESGCM(hmac.digest(self.key, b"rows", hashlib.sha256))


def row_bytes(row: Any) -> bytes:
    """Return a row as compact JSON, its columns in the order of their names.

    Bytes and images stand there by their SHA-256, numbers that JSON has not as text.

    Raises:
        InvalidColumn: a value has no bytes that could be committed to.
    """
    if isinstance(row, Mapping):
        row = {name: row[name] for name in sorted(row)}
    try:
        return encode_value(row)
    except InvalidEvent:
        return encode_value(_committable(row))


def _committable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _committable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_committable(item) for item in value]
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if not isinstance(value, bytes) and not hasattr(value, "tolist") and hasattr(value, "tobytes"):
        value = value.tobytes()  # an image
    if isinstance(value, bytes):
        return {"sha256": hashlib.sha256(value).hexdigest()}
    try:
        return plain_value("row", value)
    except AuditTrailError as error:
        raise InvalidColumn(
            f"a value of type {type(value).__name__} cannot be committed to",
            next_step="leave the column out, or turn it into text, numbers or bytes",
        ) from error
