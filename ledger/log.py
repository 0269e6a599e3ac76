"""The ledger: one store with a registry log and one log per run; where all else begins."""

from __future__ import annotations

import re
import shutil
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

from sqlalchemy import select
from sqlalchemy.engine import make_url

from rlhf_audit_trail.ledger.appending import Log, Pending, RunClosed, now_text
from rlhf_audit_trail.ledger.blobs import BlobStore
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.keys import LogKeys, read_secret, write_secret
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.reading import (
    EntryMissing,
    Forked,
    NotPublished,
    RolledBack,
    StoredEntry,
)
from rlhf_audit_trail.ledger.settings import ChainSettings, LedgerSettings, read_tables
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.database import keys_engine, ledger_engine, writing
from rlhf_audit_trail.ledger.vault import Vault
from rlhf_audit_trail.ledger.writer import Receipt, Ticket, Writer, WriterClosed

__all__ = [
    "GENERATED_KEY",
    "KEYS_URL",
    "REGISTRY",
    "SETTINGS_FILE",
    "EntryMissing",
    "Forked",
    "InvalidName",
    "Ledger",
    "LedgerExists",
    "LedgerMissing",
    "Log",
    "NotPublished",
    "Receipt",
    "RolledBack",
    "RunClosed",
    "StoredEntry",
    "resolve",
]

SETTINGS_FILE: Final = "rlhf-audit.toml"
REGISTRY: Final = "registry"
_RUN_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ORGANISATION: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,99}(:[0-9]{1,5})?")
GENERATED_KEY: Final = "operator.key"
KEYS_URL: Final = "sqlite:///vault-keys.db"

_LOGS = models.LogRow.__table__  # type: ignore[attr-defined]
_LEDGER = models.LedgerRow.__table__  # type: ignore[attr-defined]


class LedgerMissing(AuditTrailError):
    """There is no ledger in this directory."""


class LedgerExists(AuditTrailError):
    """A ledger, or something else, is already there."""


class InvalidName(AuditTrailError):
    """An organisation or run id cannot be part of a log's origin."""


class Ledger:
    """One deployment: a store with a registry log and one log per run.

    Safe to share between threads; several processes may open the same directory.
    """

    def __init__(self, directory: Path, settings: LedgerSettings, chain: ChainSettings) -> None:
        """Use `open` or `create` instead."""
        self.directory = directory
        self.settings = settings
        self.chain = chain
        self.secret = read_secret(directory / GENERATED_KEY)
        self.engine = ledger_engine(resolve(settings.database, directory))
        self._keys_engine = keys_engine(resolve(KEYS_URL, directory))
        self.vault = Vault(self._keys_engine, self.secret)
        self.blobs = BlobStore(self.engine, directory / "blobs")
        self._logs: dict[str, Log] = {}
        self._lock = threading.RLock()
        self._writer: Writer[Pending] = Writer(self._commit, self._lost)
        try:
            self.registry = self._log(REGISTRY)
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, directory: Path | str, *, organisation: str) -> Ledger:
        """Make a ledger in a new or empty directory.

        Args:
            directory: where settings, key and databases go.
            organisation: first part of every origin, for example `acme.example`.

        Raises:
            LedgerExists: the directory is not empty.
            InvalidName: the organisation is not a host name in small letters.
        """
        target = Path(directory).absolute()
        if _ORGANISATION.fullmatch(organisation) is None:
            raise InvalidName(
                f"{organisation!r} cannot name an organisation",
                next_step="use a domain name in small letters, for example acme.example",
            )
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise LedgerExists(
                f"{target} is not empty", next_step="choose a new directory, or open that ledger"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        # made beside the target and renamed into place: an interrupted call leaves no ledger
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            write_secret(draft / GENERATED_KEY)
            text = f'[ledger]\norganisation = "{organisation}"\n'
            (draft / SETTINGS_FILE).write_text(text, "utf-8")
            draft.replace(target)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        return cls.open(target)

    @classmethod
    def open(cls, directory: Path | str) -> Ledger:
        """Open a ledger, and check what is stored against what was signed.

        Raises:
            LedgerMissing: no settings file here.
            LedgerTooNew: the database is from a newer version.
            RolledBack, Forked: the store contradicts a tree head that was signed.
        """
        path = Path(directory).absolute()
        if not (path / SETTINGS_FILE).is_file():
            raise LedgerMissing(
                f"there is no ledger in {path}", next_step=f"run: rlhf-audit init {directory}"
            )
        tables: dict[str, type[Any]] = {"ledger": LedgerSettings, "chain": ChainSettings}
        found = read_tables(path / SETTINGS_FILE, tables)
        return cls(path, found["ledger"], found["chain"])

    def open_run(self, run_id: str) -> Log:
        """Return the log of a run, making it on first use.

        A new run's origin and keys are entered in the registry log first, so that hiding
        the run later is visible.

        Raises:
            InvalidName: characters that an origin cannot have.
        """
        if _RUN_ID.fullmatch(run_id) is None or run_id == REGISTRY:
            raise InvalidName(
                f"{run_id!r:.120} cannot name a run",
                next_step="use up to 100 letters, digits, dots, dashes and underscores",
            )
        return self._log(run_id)

    def runs(self) -> list[str]:
        """Return the ids of all runs, oldest first."""
        with self.engine.connect() as connection:
            rows = connection.scalars(select(_LOGS.c.run_id).order_by(_LOGS.c.number))
            return [run_id for run_id in rows if run_id != REGISTRY]

    def find(self, run_id: str) -> Log:
        """Return the log of an existing run, or the registry log.

        Raises:
            LedgerMissing: this ledger has no such run.
        """
        if run_id != REGISTRY and run_id not in self.runs():
            known = ", ".join(self.runs()[-10:]) or "none yet"
            raise LedgerMissing(
                f"this ledger has no run {run_id!r:.120}", next_step=f"known runs: {known}"
            )
        return self._log(run_id)

    def close(self) -> None:
        """Make everything durable and let go of the databases; closing again does nothing."""
        try:
            for log in self._logs.values():
                log.flush()
        except WriterClosed:
            return
        self._writer.close()
        self.engine.dispose()
        self._keys_engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _log(self, run_id: str) -> Log:
        with self._lock:
            if run_id not in self._logs:
                origin = f"{self.settings.organisation}/rlhf/{run_id}"
                number, is_new = self._log_row(run_id, origin)
                log = Log(
                    self.engine,
                    self.vault,
                    self._writer,
                    number=number,
                    run_id=run_id,
                    keys=LogKeys.derive(self.secret, origin),
                    registry=None if run_id == REGISTRY else self.registry,
                )
                log.recover()
                self._logs[run_id] = log
                if is_new:
                    self._announce(log)
                if log.closed:  # perhaps only half: the registry log must know, too
                    log.close()
                self._write_keys(log)
            return self._logs[run_id]

    def _log_row(self, run_id: str, origin: str) -> tuple[int, bool]:
        with writing(self.engine) as connection:
            row = connection.execute(select(_LOGS).where(_LOGS.c.run_id == run_id)).first()
            if row is not None:
                return int(row.number), row.size == 0
            made = {"run_id": run_id, "origin": origin, "size": 0, "closed": False}
            result = connection.execute(_LOGS.insert(), made | {"created_at": now_text()})
            if run_id == REGISTRY:
                owner = {"id": 1, "organisation": self.settings.organisation}
                connection.execute(_LEDGER.insert(), owner | {"created_at": now_text()})
            (number,) = result.inserted_primary_key or (0,)
            return int(number), True

    def _announce(self, log: Log) -> None:
        if log.run_id == REGISTRY:
            fields: dict[str, Any] = {"organisation": self.settings.organisation, "format": 1}
            log.record(Event("ledger.created", fields)).result()
            return
        if self.registry.announces("run.opened", log.run_id):
            return
        keys = [str(key) for key in log.verifier_keys]
        fields = {"run": log.run_id, "origin": log.origin, "log_keys": keys}
        self.registry.record(Event("run.opened", fields)).result()

    def key_file(self, run_id: str) -> Path:
        """Return the file with a log's public keys, the ones an auditor pins."""
        return self.directory / "keys" / f"{run_id}.vkey"

    def _write_keys(self, log: Log) -> None:
        path = self.key_file(log.run_id)
        text = "".join(f"{key}\n" for key in log.verifier_keys)
        if not path.is_file() or path.read_text("utf-8") != text:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, "utf-8")

    def _commit(self, tickets: Sequence[Ticket[Pending]], retry: bool) -> None:  # noqa: FBT001 - the writer's callback
        """Make a group durable: indices, tree and rows in one transaction."""
        by_log: dict[str, list[Ticket[Pending]]] = {}
        for ticket in tickets:
            if ticket.items:
                by_log.setdefault(ticket.log, []).append(ticket)
        if not by_log:
            return
        logs = [self._logs[run_id] for run_id in by_log]
        try:
            if retry:  # a failed commit leaves a connection in doubt: look through new ones
                self.engine.dispose()
            with writing(self.engine) as connection:
                for log in logs:
                    log.assign(connection, by_log[log.run_id], retry=retry)
        except BaseException:
            for log in logs:
                log.forget_tree()
            raise

    def _lost(self, tickets: Sequence[Ticket[Pending]]) -> None:
        for ticket in tickets:
            if ticket.items:
                self._logs[ticket.log].note_loss(ticket)


def resolve(url: str, directory: Path) -> str:
    """Make a relative SQLite path one below the ledger's directory."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        parsed = parsed.set(database=str(directory / parsed.database))
    return parsed.render_as_string(hide_password=False)
