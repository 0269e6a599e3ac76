"""The vault: sealed values and their salts, encrypted per data subject.

An entry holds commitments; here lies what opens them. Each subject has one random secret
in a database of its own; encryption key and pseudonyms follow from it, so that destroying
it leaves nothing to open and no one to recognise. A thief of the ledger's database without
that one and the operator's secret gains ciphertexts and keyed tags.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Connection, Engine, select

from rlhf_audit_trail.ledger.events import Event, encode_value
from rlhf_audit_trail.ledger.keys import derive
from rlhf_audit_trail.ledger.proof.commitment import SALT_BYTES, Opening, commit
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.proof.note import decode_base64, encode_base64
from rlhf_audit_trail.ledger.store.database import insert_missing, transact
from rlhf_audit_trail.ledger.store.models import SubjectKeyRow

__all__ = ["Erased", "Sealed", "Vault", "VaultDamaged"]

_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_KEYS = SubjectKeyRow.__table__  # type: ignore[attr-defined]


class Erased(AuditTrailError):
    """The subject's secret no longer exists; the values cannot be opened by anyone."""


class VaultDamaged(AuditTrailError):
    """A ciphertext does not decrypt under its subject's key: damaged, or moved."""


@dataclass(frozen=True)
class Sealed:
    """An event's sealed part: commitments for the entry, ciphertext for the vault."""

    commitments: Mapping[str, str]
    subject: bytes
    ciphertext: bytes


class Vault:
    """Seals and opens values; safe to share between threads."""

    def __init__(self, keys: Engine, operator_secret: bytes) -> None:
        """Use the subject-key database `keys`; the index of subjects is keyed too."""
        self._engine = keys
        self._index_key = derive(operator_secret, b"vault-index", "")
        self._secrets: dict[bytes, bytes] = {}
        self._lock = threading.Lock()

    def subject_tag(self, subject: str, origin: str) -> bytes:
        """Return the 16 bytes under which a subject is filed; keyed, so ids cannot be tried.

        An empty subject is the run itself; a person is the same in every run.
        """
        name = f"person\x00{subject}" if subject else f"run\x00{origin}"
        return hmac.digest(self._index_key, name.encode(), hashlib.sha256)[:_TAG_BYTES]

    def prepare(self, events: Iterable[Event], origin: str) -> None:
        """Make the secrets of new subjects durable, before anything is sealed under them."""
        tags = {self.subject_tag(event.subject, origin) for event in events if event.sealed}
        with self._lock:
            missing = sorted(tags - self._secrets.keys())
            if missing:
                self._secrets |= self._create(missing)

    def _create(self, tags: list[bytes]) -> dict[bytes, bytes]:
        """Make secrets that are missing; where another process was first, its own hold."""
        query = select(_KEYS).where(_KEYS.c.subject.in_(tags))

        def work(connection: Connection) -> dict[bytes, bytes]:
            found = {bytes(row.subject): bytes(row.secret) for row in connection.execute(query)}
            new = [tag for tag in tags if tag not in found]
            if not new:
                return found
            rows = [{"subject": tag, "secret": secrets.token_bytes(32)} for tag in new]
            insert_missing(connection, _KEYS, rows)
            return {bytes(row.subject): bytes(row.secret) for row in connection.execute(query)}

        return transact(self._engine, work)

    def seal(self, event: Event, origin: str, place: bytes) -> Sealed:
        """Commit to an event's sealed values and encrypt them.

        The field `annotator` never holds the person's id: its value becomes the person's
        pseudonym in this log, which cannot be linked to another log's.

        Args:
            event: `prepare` must have seen its subject.
            origin: the log.
            place: writer id and sequence number; binds the ciphertext to its entry.
        """
        tag = self.subject_tag(event.subject, origin)
        secret = self._secrets[tag]
        salts = secrets.token_bytes(SALT_BYTES * len(event.sealed))
        openings = []
        for number, (path, value) in enumerate(event.sealed.items()):
            shown = self.pseudonym(secret, origin) if path == "annotator" else value
            salt = salts[SALT_BYTES * number : SALT_BYTES * (number + 1)]
            openings.append(Opening(path, salt, encode_value(shown)))
        nonce = os.urandom(_NONCE_BYTES)
        ciphertext = _cipher(secret).encrypt(nonce, _pack(openings), origin.encode() + place)
        commitments = {opening.path: commit(opening).hex() for opening in openings}
        return Sealed(commitments, tag, nonce + ciphertext)

    def unseal(self, subject: bytes, ciphertext: bytes, origin: str, place: bytes) -> list[Opening]:
        """Decrypt what `seal` made.

        Raises:
            Erased: the subject's secret is gone.
            VaultDamaged: the bytes are not what was sealed at this place.
        """
        secret = self._secret(subject)
        nonce, body = ciphertext[:_NONCE_BYTES], ciphertext[_NONCE_BYTES:]
        try:
            plain = _cipher(secret).decrypt(nonce, body, origin.encode() + place)
        except (InvalidTag, ValueError) as error:
            raise VaultDamaged(
                "a vault row does not open under its subject's key",
                next_step="restore the vault table from a backup; the entries are not affected",
            ) from error
        return _unpack(plain)

    def _secret(self, subject: bytes) -> bytes:
        with self._lock:
            known = self._secrets.get(subject)
        if known is not None:
            return known
        with self._engine.connect() as connection:
            row = connection.execute(select(_KEYS).where(_KEYS.c.subject == subject)).first()
        if row is None:
            raise Erased("these values were erased and cannot be opened any more")
        with self._lock:
            return self._secrets.setdefault(subject, bytes(row.secret))

    @staticmethod
    def pseudonym(secret: bytes, origin: str) -> str:
        """Return a subject's name in one log: 128 bits in hex, HMAC-SHA256(secret, origin)."""
        message = b"pseudonym\x00" + origin.encode()
        return hmac.digest(secret, message, hashlib.sha256)[:_TAG_BYTES].hex()


def _cipher(secret: bytes) -> AESGCM:
    return AESGCM(hmac.digest(secret, b"seal", hashlib.sha256))


def _pack(openings: list[Opening]) -> bytes:
    record: dict[str, Any] = {
        opening.path: [encode_base64(opening.salt), opening.value.decode()] for opening in openings
    }
    return encode_value(record)


def _unpack(plain: bytes) -> list[Opening]:
    return [
        Opening(path, decode_base64(salt, what="a salt"), value.encode())
        for path, (salt, value) in json.loads(plain).items()
    ]
