"""Blobs: bytes too large for an entry, named by their SHA-256.

Small ones lie in the SQL store, large ones in an object store (a local directory by
default). Trusted for neither: what comes back is hashed before it is handed out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import LocalStore
from sqlalchemy import Engine, select

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.store.database import insert_missing, transact
from rlhf_audit_trail.ledger.store.models import BlobRow

__all__ = ["INLINE_BYTES_MAX", "BlobDamaged", "BlobMissing", "BlobStore"]

INLINE_BYTES_MAX: Final = 64 * 1024
_BLOBS = BlobRow.__table__  # type: ignore[attr-defined]


class BlobMissing(AuditTrailError):
    """No blob of this digest is stored."""


class BlobDamaged(AuditTrailError):
    """The stored bytes have another digest than their name."""


class BlobStore:
    """Puts and gets immutable bytes by digest."""

    def __init__(self, engine: Engine, directory: Path) -> None:
        """Keep small blobs in `engine`'s database and large ones below `directory`."""
        self._engine = engine
        self._objects = LocalStore(str(directory), mkdir=True)

    def put(self, data: bytes) -> str:
        """Store bytes and return their SHA-256 in hex; storing them again changes nothing."""
        digest = hashlib.sha256(data).hexdigest()
        inline = len(data) <= INLINE_BYTES_MAX
        if not inline:
            try:  # the object first: a row without its object would promise what is not there
                obstore.put(self._objects, digest, data, mode="create")
            except AlreadyExistsError:
                self._object(digest)  # left by an interrupted put: only whole ones are accepted
        row = {"digest": digest, "size_bytes": len(data), "data": data if inline else None}
        transact(self._engine, lambda connection: insert_missing(connection, _BLOBS, [row]))
        return digest

    def get(self, digest: str) -> bytes:
        """Return the bytes of a digest.

        Raises:
            BlobMissing: never stored, or its object is gone.
            BlobDamaged: the bytes no longer fit their digest.
        """
        with self._engine.connect() as connection:
            row = connection.execute(select(_BLOBS).where(_BLOBS.c.digest == digest)).first()
        if row is None:
            raise BlobMissing(f"no blob {digest} is stored here")
        return _checked(digest, bytes(row.data)) if row.data is not None else self._object(digest)

    def check(self, digest: str) -> int:
        """Hash a stored blob without holding it in memory; return its size in bytes.

        Raises:
            BlobMissing, BlobDamaged: as `get`; also when the recorded size is another one.
        """
        with self._engine.connect() as connection:
            row = connection.execute(select(_BLOBS).where(_BLOBS.c.digest == digest)).first()
        if row is None:
            raise BlobMissing(f"no blob {digest} is stored here")
        found, size_bytes = hashlib.sha256(), 0
        for chunk in [row.data] if row.data is not None else self._chunks(digest):
            found.update(chunk)
            size_bytes += len(chunk)
        if found.hexdigest() != digest or size_bytes != row.size_bytes:
            raise _damaged(digest)
        return size_bytes

    def digests(self) -> list[str]:
        """Return the digests of all stored blobs, sorted."""
        with self._engine.connect() as connection:
            return list(connection.scalars(select(_BLOBS.c.digest).order_by(_BLOBS.c.digest)))

    def _object(self, digest: str) -> bytes:
        return _checked(digest, b"".join(self._chunks(digest)))

    def _chunks(self, digest: str) -> Iterator[bytes]:
        try:
            found = obstore.get(self._objects, digest)
        except FileNotFoundError as error:
            raise BlobMissing(
                f"the object of blob {digest} is gone", next_step="restore it from a backup"
            ) from error
        for chunk in found.stream():
            yield bytes(chunk)


def _checked(digest: str, data: bytes) -> bytes:
    if hashlib.sha256(data).hexdigest() != digest:
        raise _damaged(digest)
    return data


def _damaged(digest: str) -> BlobDamaged:
    return BlobDamaged(
        f"blob {digest} does not have this digest any more",
        next_step="restore it from a backup",
    )
