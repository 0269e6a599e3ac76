"""Blobs: bytes too large for an entry, named by their SHA-256.

Small ones lie in the SQL store, large ones in an object store (a local directory by
default). Trusted for neither: what comes back is hashed before it is handed out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine, delete, func, select

from rlhf_audit_trail.ledger.object_stores import ObjectPlace, check_place
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

    def __init__(self, engine: Engine, directory: Path, url: str = "") -> None:
        """Keep small blobs in `engine`'s database and large ones below `directory`, or at `url`.

        Each blob remembers where it was put, so that another address leaves old ones readable.
        """
        self._engine = engine
        self._directory = directory
        self.url = check_place(url)
        self._places: dict[str, ObjectPlace] = {}
        self._place("")

    @staticmethod
    def digest_of(data: bytes) -> str:
        """Return the name that a blob of these bytes has."""
        return hashlib.sha256(data).hexdigest()

    def put(self, data: bytes, digest: str = "") -> str:
        """Store bytes and return their SHA-256 in hex; storing them again changes nothing.

        Args:
            data: the bytes.
            digest: their digest, where the caller has computed it.
        """
        digest = digest or self.digest_of(data)
        inline = len(data) <= INLINE_BYTES_MAX
        # the object first: a row without its object would promise what is not there
        if not inline and not self._place(self.url).create(digest, data):
            self._object(digest, self.url)  # of an interrupted put: only whole ones are accepted
        row = {"digest": digest, "size_bytes": len(data), "data": data if inline else None}
        row["place"] = "" if inline else self.url
        transact(self._engine, lambda connection: insert_missing(connection, _BLOBS, [row]))
        return digest

    def get(self, digest: str) -> bytes:
        """Return the bytes of a digest.

        Raises:
            BlobMissing: never stored, or its object is gone.
            BlobDamaged: the bytes no longer fit their digest.
        """
        return _checked(digest, self.read(digest))

    def read(self, digest: str) -> bytes:
        """Return what is stored under a digest without hashing it, for who checks its content.

        Raises:
            BlobMissing: as `get`.
        """
        with self._engine.connect() as connection:
            row = connection.execute(select(_BLOBS).where(_BLOBS.c.digest == digest)).first()
        if row is None:
            raise BlobMissing(f"no blob {digest} is stored here")
        return bytes(row.data) if row.data is not None else self._joined(digest, row.place)

    def read_whole(self, digest: str) -> bytes:
        """As `read`; a file of this machine in one go.

        Raises:
            BlobMissing: as `get`.
        """
        with self._engine.connect() as connection:
            row = connection.execute(select(_BLOBS).where(_BLOBS.c.digest == digest)).first()
        if row is not None and row.data is None:
            data = self._place(row.place).file_bytes(digest)
            if data is not None:
                return data
        return self.read(digest)

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
        for chunk in [row.data] if row.data is not None else self._chunks(digest, row.place):
            found.update(chunk)
            size_bytes += len(chunk)
        if found.hexdigest() != digest or size_bytes != row.size_bytes:
            raise _damaged(digest)
        return size_bytes

    def digests(self) -> list[str]:
        """Return the digests of all stored blobs, sorted."""
        with self._engine.connect() as connection:
            return list(connection.scalars(select(_BLOBS.c.digest).order_by(_BLOBS.c.digest)))

    def hold(self, connection: Connection, digest: str, *, is_shared: bool) -> None:
        """Keep a blob from being discarded, or from being held, until the transaction ends.

        For who is about to put it, and for who is about to discard it: so neither decides by what
        the other one has just changed. By its name, since it may have no row yet. SQLite's
        writers are alone anyway.
        """
        if connection.dialect.name == "postgresql":
            wanted = func.pg_advisory_xact_lock_shared if is_shared else func.pg_advisory_xact_lock
            key = int.from_bytes(bytes.fromhex(digest[:16]), "big", signed=True)
            connection.execute(select(wanted(key)))

    def discard(self, connection: Connection, digest: str) -> None:
        """Delete a blob for good, within a transaction that knows that nobody refers to it.

        Also what has no row yet, since the process that put it was killed.

        Raises:
            ObjectStoreFailed: its store did not delete it; then the row must stay as well.
        """
        row = connection.execute(select(_BLOBS).where(_BLOBS.c.digest == digest)).first()
        if row is None:
            self._place(self.url).delete(digest)
        elif row.data is None:
            self._place(row.place).delete(digest)
        connection.execute(delete(_BLOBS).where(_BLOBS.c.digest == digest))

    def _object(self, digest: str, place: str) -> bytes:
        return _checked(digest, self._joined(digest, place))

    def _joined(self, digest: str, place: str) -> bytes:
        return b"".join(self._chunks(digest, place))

    def _chunks(self, digest: str, place: str) -> Iterator[bytes]:
        try:
            yield from self._place(place).chunks(digest)
        except FileNotFoundError as error:
            raise BlobMissing(
                f"the object of blob {digest} is gone", next_step="restore it from a backup"
            ) from error

    def _place(self, url: str) -> ObjectPlace:
        if url not in self._places:
            self._places[url] = ObjectPlace(self._directory, url)
        return self._places[url]


def _checked(digest: str, data: bytes) -> bytes:
    if hashlib.sha256(data).hexdigest() != digest:
        raise _damaged(digest)
    return data


def _damaged(digest: str) -> BlobDamaged:
    return BlobDamaged(
        f"blob {digest} does not have this digest any more",
        next_step="restore it from a backup",
    )
