"""What fsck looks at: a ledger's stores, opened read-only however damaged they are.

`Ledger.open` refuses a store that contradicts what was signed. That is right for whoever
wants to append, and useless to whoever wants to know what is broken.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from sqlalchemy import Engine
from sqlalchemy.engine import make_url

from rlhf_audit_trail.ledger.blobs import BlobStore
from rlhf_audit_trail.ledger.keys import read_secret
from rlhf_audit_trail.ledger.log import GENERATED_KEY, SETTINGS_FILE, LedgerMissing, resolve
from rlhf_audit_trail.ledger.settings import LEDGER_TABLES, LedgerSettings, read_tables
from rlhf_audit_trail.ledger.store.database import (
    LedgerTooNew,
    StoreError,
    keys_engine,
    ledger_engine,
)
from rlhf_audit_trail.ledger.vault import Vault

__all__ = ["Inspectable", "Storage", "open_damaged"]


class Inspectable(Protocol):
    """What fsck needs; `Ledger` has it, and so has a `Storage` that no `Ledger` would open."""

    @property
    def directory(self) -> Path:
        """The ledger's directory, from which other processes can open it again."""

    @property
    def settings(self) -> LedgerSettings:
        """The ledger's settings; origins begin with their organisation."""

    @property
    def secret(self) -> bytes:
        """The operator's first secret, from which every log's first keys are derived."""

    @property
    def engine(self) -> Engine:
        """The ledger's database."""

    @property
    def vault(self) -> Vault | None:
        """None when the subjects' secrets cannot be read at all."""

    @property
    def blobs(self) -> BlobStore:
        """The blobs."""


@dataclass(frozen=True)
class Storage:
    """A ledger's stores, opened to look and never to write."""

    directory: Path
    settings: LedgerSettings
    secret: bytes
    engine: Engine
    vault: Vault | None
    blobs: BlobStore
    _keys_engine: Engine | None

    def close(self) -> None:
        """Let go of the databases."""
        self.engine.dispose()
        if self._keys_engine is not None:
            self._keys_engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_damaged(directory: Path | str) -> Storage:
    """Open a ledger's stores read-only and unchecked.

    Raises:
        LedgerMissing, SettingsError, BadKeyFile: there is nothing to check against.
        StoreError: the ledger's database is missing, or is no database.
        LedgerTooNew: written by a newer version.
    """
    path = Path(directory).absolute()
    if not (path / SETTINGS_FILE).is_file():
        raise LedgerMissing(
            f"there is no ledger in {path}", next_step="check the path; nothing was changed"
        )
    settings: LedgerSettings = read_tables(path / SETTINGS_FILE, LEDGER_TABLES)["ledger"]
    secret = read_secret(path / GENERATED_KEY)
    engine = ledger_engine(_in_directory(settings.database, path), read_only=True)
    try:
        keys: Engine | None = keys_engine(
            _in_directory(settings.keys_database, path), read_only=True
        )
    except LedgerTooNew:
        engine.dispose()
        raise
    except StoreError:  # without it everything but the sealed values can still be checked
        keys = None
    vault = None if keys is None else Vault(keys, secret)
    return Storage(path, settings, secret, engine, vault, BlobStore(engine, path / "blobs"), keys)


def _in_directory(url: str, directory: Path) -> str:
    found = make_url(resolve(url, directory))
    name = found.database
    if found.get_backend_name() == "sqlite" and name and not Path(name).is_file():
        raise StoreError(f"the database {name} is missing", next_step="restore it from a backup")
    return found.render_as_string(hide_password=False)
