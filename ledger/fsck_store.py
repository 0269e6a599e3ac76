"""What fsck looks at and what it says: a damaged ledger opened read-only, findings, counts.

`Ledger.open` refuses a store that contradicts what was signed. That is right for whoever
wants to append, and useless to whoever wants to know what is broken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from sqlalchemy import ColumnElement, Connection, Engine, LargeBinary, cast, func
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from rlhf_audit_trail.ledger.blobs import BlobStore
from rlhf_audit_trail.ledger.keys import read_secret
from rlhf_audit_trail.ledger.log import (
    GENERATED_KEY,
    SETTINGS_FILE,
    LedgerMissing,
    resolve,
)
from rlhf_audit_trail.ledger.settings import ChainSettings, LedgerSettings, read_tables
from rlhf_audit_trail.ledger.store.database import (
    LedgerTooNew,
    StoreError,
    keys_engine,
    ledger_engine,
)
from rlhf_audit_trail.ledger.vault import Vault

__all__ = [
    "Finding",
    "Inspectable",
    "Storage",
    "Summary",
    "guarded",
    "open_damaged",
    "raw",
    "text_bytes",
]


@dataclass(frozen=True)
class Finding:
    """One thing that is broken.

    Attributes:
        log: the run id, `registry`, or empty for what belongs to no log.
        what: database, ledger, log, entry, sequence, hash_tile, tree_head, vault, registry,
            anchor or blob.
        where: the index, tile, size or row, for example `index 5`.
        detail: one sentence; never a sealed value.
    """

    log: str
    what: str
    where: str
    detail: str

    def __str__(self) -> str:
        """One line, for people."""
        return f"{self.log or 'ledger'}: {self.what} {self.where}: {self.detail}"


@dataclass
class Summary:
    """How much was checked; `findings` is 0 for a sound ledger.

    `erased` counts vault rows whose subject's secret is gone: that is no damage.
    """

    logs: int = 0
    entries: int = 0
    hash_tiles: int = 0
    tree_heads: int = 0
    vault_rows: int = 0
    erased: int = 0
    anchors: int = 0
    blobs: int = 0
    findings: int = 0


class Inspectable(Protocol):
    """What fsck needs; `Ledger` has it, and so has a `Storage` that no `Ledger` would open."""

    @property
    def settings(self) -> LedgerSettings:
        """The ledger's settings; origins begin with their organisation."""

    @property
    def secret(self) -> bytes:
        """The operator's secret, from which every log's keys are derived."""

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
    tables: dict[str, type[Any]] = {"ledger": LedgerSettings, "chain": ChainSettings}
    settings: LedgerSettings = read_tables(path / SETTINGS_FILE, tables)["ledger"]
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
    return Storage(settings, secret, engine, vault, BlobStore(engine, path / "blobs"), keys)


def _in_directory(url: str, directory: Path) -> str:
    found = make_url(resolve(url, directory))
    name = found.database
    if found.get_backend_name() == "sqlite" and name and not Path(name).is_file():
        raise StoreError(f"the database {name} is missing", next_step="restore it from a backup")
    return found.render_as_string(hide_password=False)


def guarded(log: str, where: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Pass findings on; a database that fails while being read is one more finding."""
    try:
        yield from findings
    except DBAPIError as error:
        words = str(error.orig).split("\n", 1)[0]
        yield Finding(log, "database", where, f"reading it failed, the rest is unknown: {words}")


def raw(value: object) -> bytes | None:
    """Return a column's bytes, or None where SQLite holds something that is not bytes."""
    return bytes(value) if isinstance(value, bytes | memoryview | bytearray) else None


def text_bytes(connection: Connection, column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Select a text as its UTF-8 bytes: in a damaged SQLite file it need not be UTF-8."""
    if connection.dialect.name == "postgresql":  # whose cast would read backslashes as escapes
        return func.convert_to(column, "UTF8")
    return cast(column, LargeBinary)
