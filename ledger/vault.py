"""The vault: sealed values and their salts, encrypted per data subject.

An entry holds commitments; here lies what opens them. Each subject has one random secret
in a database of its own; encryption key and pseudonyms follow from it, so that destroying
it leaves nothing to open and no one to recognise. A thief of the ledger's database without
that one and the operator's secret gains ciphertexts and keyed tags.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Connection, Engine, select

from rlhf_audit_trail.ledger.drafts import ANNOTATOR, Draft
from rlhf_audit_trail.ledger.events import encode_value
from rlhf_audit_trail.ledger.keys import derive
from rlhf_audit_trail.ledger.proof.commitment import Opening
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.sealing import NONCE_BYTES, unpack
from rlhf_audit_trail.ledger.store.database import insert_missing, transact
from rlhf_audit_trail.ledger.store.models import SubjectKeyRow

__all__ = ["Erased", "Subject", "Vault", "VaultDamaged"]

_TAG_BYTES: Final = 16
_KEYS = SubjectKeyRow.__table__  # type: ignore[attr-defined]


class Erased(AuditTrailError):
    """The subject's secret no longer exists; the values cannot be opened by anyone."""


class VaultDamaged(AuditTrailError):
    """A ciphertext does not decrypt under its subject's key: damaged, or moved."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What sealing under a subject needs, derived once.

    Attributes:
        tag: under which the vault files it.
        cipher: with the subject's key.
        pseudonym: JSON of the subject's name in one log.
    """

    tag: bytes
    cipher: AESGCM
    pseudonym: bytes

    def shown(self, item: Draft) -> tuple[bytes, ...]:
        """Return a draft's values as they are sealed: the person's id never is.

        The field `annotator` holds the person's pseudonym in this log, which cannot be
        linked to another log's.
        """
        values = item.values
        if ANNOTATOR not in item.paths:
            return values
        place = item.paths.index(ANNOTATOR)
        return (*values[:place], self.pseudonym, *values[place + 1 :])


class Vault:
    """Seals and opens values; safe to share between threads."""

    def __init__(self, keys: Engine, operator_secret: bytes) -> None:
        """Use the subject-key database `keys`; the index of subjects is keyed too."""
        self._engine = keys
        self._index_key = derive(operator_secret, b"vault-index", "")
        self._budget_key = derive(operator_secret, b"budget", "")
        self._secrets: dict[bytes, bytes] = {}
        self._subjects: dict[str, dict[str, Subject]] = {}
        self._erasures = 0
        self._lock = threading.Lock()

    @property
    def keys(self) -> Engine:
        """The database of the subjects' secrets."""
        return self._engine

    @property
    def erasures(self) -> int:
        """How many erasures the ledger had when the secrets known here were looked up."""
        return self._erasures

    def heed(self, erasures: int) -> None:
        """Forget all secrets if the ledger has had other erasures than this vault knows of.

        Args:
            erasures: what a transaction found in a log's row that is committed. Secrets are
                then looked up after those erasures, and not destroyed by any of them.
        """
        with self._lock:
            if erasures != self._erasures:
                self._secrets, self._subjects, self._erasures = {}, {}, erasures

    def begin_anew(self) -> None:
        """In a forked child: a lock that another thread of the parent held stays locked."""
        self._lock = threading.Lock()

    def subject_tag(self, subject: str, origin: str) -> bytes:
        """Return the 16 bytes under which a subject is filed; keyed, so ids cannot be tried.

        An empty subject is the run itself; a person is the same in every run.
        """
        name = f"person\x00{subject}" if subject else f"run\x00{origin}"
        return _keyed(self._index_key, name.encode())[:_TAG_BYTES]

    def account_of(self, tag: bytes) -> bytes:
        """Return the 32 bytes under which the budget of the subject with this tag is kept.

        They follow from the person's id and the operator's first secret alone, so that they are
        the same in every run, after an erasure and after a rotation of the keys.
        """
        return _keyed(self._budget_key, tag)

    def prepare(self, names: Iterable[str], origin: str) -> Mapping[str, Subject]:
        """Return the subjects of these names, all of whose secrets are durable then.

        Nothing may be sealed under a secret that could still be lost.
        """
        with self._lock:
            known = self._subjects.setdefault(origin, {})
            tags = {x: self.subject_tag(x, origin) for x in names if x not in known}
            missing = sorted(set(tags.values()) - self._secrets.keys())
            if missing:
                self._secrets |= self._create(missing)
            for name, tag in tags.items():
                secret = self._secrets[tag]
                pseudonym = encode_value(self.pseudonym(secret, origin))
                known[name] = Subject(tag, _cipher(secret), pseudonym)
        return known

    def known(self, name: str, origin: str) -> Subject | None:
        """Return a subject if it has a secret; none is made."""
        tag = self.subject_tag(name, origin)
        try:
            secret = self._secret(tag)
        except Erased:
            return None
        return Subject(tag, _cipher(secret), encode_value(self.pseudonym(secret, origin)))

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

    def unseal(self, subject: bytes, ciphertext: bytes, origin: str, place: bytes) -> list[Opening]:
        """Decrypt what `seal` made.

        Raises:
            Erased: the subject's secret is gone.
            VaultDamaged: the bytes are not what was sealed at this place.
        """
        secret = self._secret(subject)
        nonce, body = ciphertext[:NONCE_BYTES], ciphertext[NONCE_BYTES:]
        try:
            return unpack(_cipher(secret).decrypt(nonce, body, origin.encode() + place))
        except (InvalidTag, ValueError) as error:
            raise VaultDamaged(
                "a vault row does not open under its subject's key",
                next_step="restore the vault table from a backup; the entries are not affected",
            ) from error

    def _secret(self, subject: bytes) -> bytes:
        with self._lock:
            known, erasures = self._secrets.get(subject), self._erasures
        if known is not None:
            return known
        with self._engine.connect() as connection:
            row = connection.execute(select(_KEYS).where(_KEYS.c.subject == subject)).first()
        if row is None:
            raise Erased("these values were erased and cannot be opened any more")
        with self._lock:
            if erasures == self._erasures:  # else it may be one that was destroyed meanwhile
                self._secrets[subject] = bytes(row.secret)
        return bytes(row.secret)

    @staticmethod
    def pseudonym(secret: bytes, origin: str) -> str:
        """Return a subject's name in one log: 128 bits in hex, HMAC-SHA256(secret, origin)."""
        message = b"pseudonym\x00" + origin.encode()
        return _keyed(secret, message)[:_TAG_BYTES].hex()


def _cipher(secret: bytes) -> AESGCM:
    return AESGCM(_keyed(secret, b"seal"))


def _keyed(key: bytes, message: bytes) -> bytes:
    """Return HMAC-SHA256.

    Not by `hmac.digest`, which lets other threads run while it is inside OpenSSL: of a child
    forked just then, a thread was once seen to wait there for ever.
    """
    return hmac.new(key, message, hashlib.sha256).digest()
