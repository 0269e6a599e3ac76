"""Where blobs lie: a directory, S3, Google Cloud Storage or Azure, by URL.

Credentials come from the environment or the machine's own identity, as the provider's tools
take them; a URL that holds some is refused, and no message repeats what a store said.
Trusted for neither integrity nor order: what comes back is hashed. A put is immutable: it
succeeds only where nothing stood.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import LocalStore, from_url

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

__all__ = [
    "BACKENDS",
    "InvalidPlace",
    "ObjectPlace",
    "ObjectStoreFailed",
    "check_place",
    "place_of",
]

# The words of the first proposal of this software, and the URLs that they stand for.
BACKENDS: Final = {"s3": ("s3",), "gcp": ("gs",), "azure": ("az", "abfss")}
_SCHEMES: Final = tuple(scheme for schemes in BACKENDS.values() for scheme in schemes)
_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    # S3 demands a checksum of what is put where objects are locked
    "s3": {"aws_checksum_algorithm": "SHA256"},
}
_RETRIES: Final[Any] = {"max_retries": 3}
# Into a directory, obstore writes a file NAME#1, or the next number that is free, and renames it.
_HALF_WRITTEN_MAX: Final = 8


class ObjectStoreFailed(AuditTrailError):
    """An object store refused, or could not be reached."""


class InvalidPlace(AuditTrailError):
    """A URL names no object store that is known here, or holds a secret."""


def check_place(url: str) -> str:
    """Return a URL of an object store; an empty one is the ledger's own directory.

    Raises:
        InvalidPlace: another scheme, no bucket, or credentials in it.
    """
    if not url:
        return ""
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or not parts.hostname:
        raise InvalidPlace(
            "the address of the object store is none that is known",
            next_step="write s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX"
            " or abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/PREFIX",
        )
    is_account = parts.scheme == "abfss" and parts.password is None
    if parts.query or parts.fragment or (parts.username is not None and not is_account):
        raise InvalidPlace(
            "the address of the object store holds more than bucket and prefix",
            next_step="leave keys out of it: they are taken from the environment",
        )
    return url.rstrip("/")


def place_of(backend: str, configured: str) -> str:
    """Return the URL that a word of the first proposal, or a URL itself, stands for.

    Args:
        backend: local, s3, gcp, azure, or a URL.
        configured: `blobs.url` of the ledger's settings.

    Raises:
        InvalidPlace: an unknown word, or one that the settings give no bucket for.
    """
    if backend == "local":
        return ""
    if backend not in BACKENDS:
        return check_place(backend)
    if urlsplit(configured).scheme not in BACKENDS[backend]:
        scheme = BACKENDS[backend][0]
        raise InvalidPlace(
            f"storage_backend {backend!r} does not say which bucket",
            next_step=f"pass {scheme}://BUCKET/PREFIX, or set url in [blobs] of rlhf-audit.toml",
        )
    return check_place(configured)


class _NoObject(FileNotFoundError):
    """There is no such object; of the name only, where the store's own error says more."""


class ObjectPlace:
    """Objects below one directory or URL."""

    def __init__(self, directory: Path, url: str = "") -> None:
        """Use `url`, or `directory` where that is empty; nothing is asked yet."""
        self.url, self._directory = check_place(url), directory
        scheme = urlsplit(self.url).scheme
        with self._told():
            self._store: ObjectStore = (
                from_url(self.url, retry_config=_RETRIES, **_OPTIONS.get(scheme, {}))
                if self.url
                else LocalStore(str(directory), mkdir=True)
            )

    def create(self, name: str, data: bytes) -> bool:
        """Put an object where none stood; False if one stood there, which is left as it is."""
        with self._told():
            try:
                obstore.put(self._store, name, data, mode="create")
            except (AlreadyExistsError, PreconditionError):
                return False
        return True

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield an object's bytes; raises FileNotFoundError where there is none."""
        with self._told():
            try:
                found = obstore.get(self._store, name)
            except FileNotFoundError:
                raise _NoObject(name) from None
            for chunk in found.stream():
                yield bytes(chunk)

    def file_bytes(self, name: str) -> bytes | None:
        """Return an object's bytes by one read, None where it lies in no file of this machine.

        Not mapped into memory: a file that somebody shortens while it is mapped ends the process.
        """
        if self.url:
            return None
        with suppress(OSError), (self._directory / name).open("rb", buffering=0) as file:
            return file.readall()
        return None

    def delete(self, name: str) -> None:
        """Delete an object; none there is as good.

        Raises:
            ObjectStoreFailed: for example because it is retained.
        """
        with self._told(), suppress(FileNotFoundError):
            obstore.delete(self._store, name)
        if not self.url:  # a process that was killed while it wrote left the file it wrote to
            with self._told():
                for number in range(1, _HALF_WRITTEN_MAX + 1):
                    (self._directory / f"{name}#{number}").unlink(missing_ok=True)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Name the store, and never repeat its words: some of them hold signed addresses."""
        try:
            yield
        except _NoObject:
            raise
        except (BaseError, OSError, ValueError) as error:
            raise ObjectStoreFailed(
                f"the object store {self._name} failed: {type(error).__name__}",
                next_step="check its address, credentials and permissions, then try again",
            ) from None

    @property
    def _name(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.hostname}" if self.url else "in the ledger's directory"
