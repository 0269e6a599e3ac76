"""The ledger: one store with a registry log and one log per run; where all else begins."""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Final, Self

from sqlalchemy import func, select

from rlhf_audit_trail.ledger.announcing import Announcer, InvalidName
from rlhf_audit_trail.ledger.appending import Log, LossPolicy, RunClosed
from rlhf_audit_trail.ledger.batches import Batch
from rlhf_audit_trail.ledger.blobs import BlobStore
from rlhf_audit_trail.ledger.committing import Committer
from rlhf_audit_trail.ledger.erasing import Eraser, Erasure
from rlhf_audit_trail.ledger.forks import finish_at_exit, survive_forks
from rlhf_audit_trail.ledger.guard import Peer
from rlhf_audit_trail.ledger.keyring import KeyRing
from rlhf_audit_trail.ledger.keys import GENERATED_KEY, OperatorSecrets, write_secret
from rlhf_audit_trail.ledger.location import (
    LedgerExists,
    LedgerMissing,
    missing_file,
    parse_url,
    resolve,
)
from rlhf_audit_trail.ledger.reading import (
    EntryMissing,
    Forked,
    NotPublished,
    RolledBack,
    StoredEntry,
)
from rlhf_audit_trail.ledger.settings import (
    LEDGER_TABLES,
    STRICT,
    AnchorSettings,
    BlobSettings,
    ChainSettings,
    GuardSettings,
    LedgerSettings,
    SettingsError,
    WitnessSettings,
    read_tables,
)
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.database import (
    go_on,
    hold_still,
    keys_engine,
    leave_connections,
    ledger_engine,
)
from rlhf_audit_trail.ledger.store.errors import StoreError
from rlhf_audit_trail.ledger.succession import REGISTRY, KeyHistory
from rlhf_audit_trail.ledger.vault import Vault
from rlhf_audit_trail.ledger.vkey_file import WrongLedger
from rlhf_audit_trail.ledger.watch import Watch
from rlhf_audit_trail.ledger.writer import AppendFailed, Receipt, Writer, WriterClosed

__all__ = [
    "GENERATED_KEY",
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
    "WrongLedger",
    "resolve",
]

SETTINGS_FILE: Final = "rlhf-audit.toml"
_RUN_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ORGANISATION: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,99}(:[0-9]{1,5})?")
_logger = logging.getLogger(__name__)

_LOGS = models.LogRow.__table__  # type: ignore[attr-defined]


class Ledger:
    """One deployment: a store with a registry log and one log per run.

    Safe to share between threads; several processes may open the same directory.
    """

    def __init__(
        self,
        directory: Path,
        settings: LedgerSettings,
        chain: ChainSettings,
        *,
        witnesses: WitnessSettings | None = None,
        guard: GuardSettings | None = None,
        anchoring: AnchorSettings | None = None,
        blobs: BlobSettings | None = None,
    ) -> None:
        """Use `open` or `create` instead."""
        self.directory = directory
        self.settings = settings
        self.chain = chain
        self.anchoring = anchoring or AnchorSettings()
        secrets = OperatorSecrets(directory / GENERATED_KEY)
        self.key_ring = KeyRing(secrets, settings.organisation)
        self.secret = secrets.first
        if settings.database == settings.keys_database:
            raise SettingsError(
                "`database` and `keys_database` are one and the same",
                next_step="keep the subjects' secrets apart, in a database with its own backups",
            )
        self.watch = Watch(
            directory,
            chain=chain,
            witnesses=witnesses or WitnessSettings(),
            guard=guard or GuardSettings(),
        )
        self.engine = ledger_engine(resolve(settings.database, directory))
        self._keys_engine = keys_engine(resolve(settings.keys_database, directory))
        self.vault = Vault(self._keys_engine, self.secret)
        with self.engine.connect() as connection:
            newest = connection.scalar(select(func.max(_LOGS.c.erasures)))
        self.vault.heed(int(newest or 0))
        self.blobs = BlobStore(self.engine, directory / "blobs", (blobs or BlobSettings()).url)
        self._announcer = Announcer(self.engine, directory, self.key_ring, settings.organisation)
        self._logs: dict[str, Log] = {}
        self._lock = threading.RLock()
        self._policy = LossPolicy(settings.on_loss == STRICT, settings.queue_wait_ms / 1000)
        self._committer = Committer(self.engine, self._logs)
        self._writer: Writer[Batch] = self._committer.make_writer(lambda: finish_at_exit(self))
        survive_forks(self)
        try:
            self.watch.begin(self.engine, self.find)
            self.registry = self._log(REGISTRY)
            self._complete(self.registry, is_reading=True)
            self._announcer.require_own_key(self.registry)
            self.watch.resume()
            self.resumed_erasures = self._finish_erasures()
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(
        cls,
        directory: Path | str,
        *,
        organisation: str,
        database: str = LedgerSettings.database,
        keys_database: str = LedgerSettings.keys_database,
    ) -> Ledger:
        """Make a ledger in a new or empty directory.

        Args:
            directory: where settings, key and databases go.
            organisation: first part of every origin, for example `acme.example`.
            database: URL, see `LedgerSettings`.
            keys_database: URL, see `LedgerSettings`.

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
            chosen = {"database": database, "keys_database": keys_database}
            lines = ["[ledger]", f'organisation = "{organisation}"']
            lines += [
                f"{name} = {json.dumps(url)}"  # a JSON string is a TOML string
                for name, url in chosen.items()
                if url != getattr(LedgerSettings, name)
            ]
            (draft / SETTINGS_FILE).write_text("\n".join([*lines, ""]), "utf-8")
            cls._read(draft).close()  # only here are databases made
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
        return cls._read(path, must_exist=True)

    @classmethod
    def _read(cls, path: Path, *, must_exist: bool = False) -> Ledger:
        found = read_tables(path / SETTINGS_FILE, LEDGER_TABLES)
        settings: LedgerSettings = found["ledger"]
        if _ORGANISATION.fullmatch(settings.organisation) is None:
            raise InvalidName(
                f"{settings.organisation!r} cannot name an organisation",
                next_step=f"correct `organisation` in {SETTINGS_FILE}",
            )
        own = parse_url(settings.database).get_backend_name() == "sqlite"
        # beside a shared database, a new machine begins with no secrets of its own
        for url in (settings.database, settings.keys_database) if own else ():
            if must_exist and (missing := missing_file(url, path)):
                raise StoreError(
                    f"the database {missing} is missing",
                    next_step="restore it from a backup; a new one would hide what was lost",
                )
        return cls(
            path,
            settings,
            found["chain"],
            witnesses=found["witnesses"],
            guard=found["guard"],
            anchoring=found["anchor"],
            blobs=found["blobs"],
        )

    def open_run(self, run_id: str) -> Log:
        """Return the log of a run, making it on first use.

        A new run's origin and keys are entered in the registry log first, so that hiding
        the run later is visible. Peers are asked first whether this store is the newest copy.

        Raises:
            InvalidName: characters that an origin cannot have.
            RolledBack, Forked: a peer can prove that it is not; `find` still reads it.
        """
        if _RUN_ID.fullmatch(run_id) is None or run_id == REGISTRY:
            raise InvalidName(
                f"{run_id!r:.120} cannot name a run",
                next_step="use up to 100 letters, digits, dots, dashes and underscores",
            )
        log = self._log(run_id)
        log.require_writable()
        self._complete(log)
        return log

    def add_peer(self, peer: Peer) -> None:
        """Have one more peer asked whether this store is the newest copy."""
        with self._lock:
            self.watch.add_peer(peer, self._logs.values())

    @property
    def eraser(self) -> Eraser:
        """What erases people from this ledger; see `subjects`."""
        return Eraser(self.engine, self.vault, self.registry)

    def _finish_erasures(self) -> list[Erasure]:
        """Complete erasures that a crash interrupted; what hinders that hinders no training."""
        try:
            return self.eraser.finish()
        except (RolledBack, Forked, StoreError) as error:
            _logger.warning("an erasure that was begun is not complete: %s", error)
            return []

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
        is_first = run_id not in self._logs
        log = self._log(run_id)
        if is_first:
            self._complete(log, is_reading=True)
        return log

    def close(self) -> None:
        """Make everything durable and let go of the databases; closing again does nothing.

        Raises:
            AppendFailed: under the strict policy, entries were lost; all else is done.
        """
        failure: AppendFailed | None = None
        for log in list(self._logs.values()):  # the collector may open another meanwhile
            try:
                log.flush()
            except AppendFailed as error:
                failure = error
            except WriterClosed:
                return
        self.watch.close()
        self._writer.close()
        for log in self._logs.values():
            log.end()
        self.engine.dispose()
        self._keys_engine.dispose()
        if failure is not None:
            raise failure

    def hold_still(self) -> None:
        """Return when no thread uses the databases, and keep other threads from them."""
        for engine in (self.engine, self._keys_engine):
            hold_still(engine)

    def go_on(self) -> None:
        """Let other threads use the databases again."""
        for engine in (self.engine, self._keys_engine):
            go_on(engine)

    def begin_anew(self) -> None:
        """In a forked child: nothing of the parent's is used, neither threads nor connections."""
        self._lock = threading.RLock()
        self._writer = self._committer.make_writer(lambda: finish_at_exit(self))
        for engine in (self.engine, self._keys_engine):
            leave_connections(engine)
        self.vault.begin_anew()
        self.watch.begin_anew()
        for log in self._logs.values():
            log.begin_anew(self._writer)
            self.watch.over(log, log.run_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _log(self, run_id: str) -> Log:
        with self._lock:
            if run_id not in self._logs:
                log = Log(
                    self.engine,
                    self.vault,
                    self._writer,
                    number=self._announcer.number_of(run_id),
                    run_id=run_id,
                    keys=self.key_ring.of(run_id),
                    registry=None if run_id == REGISTRY else self.registry,
                    policy=self._policy,
                    counters=self.directory / "writers",
                )
                log.keys_now()
                if log.size:  # else its keys are settled when it is announced
                    self._announcer.bring_key_file(log)
                log.recover()
                self.watch.over(log, run_id)
                self._logs[run_id] = log
            return self._logs[run_id]

    def _complete(self, log: Log, *, is_reading: bool = False) -> None:
        """Enter in the registry log what a crash left out of it: a run's beginning or end."""
        try:
            with self._lock:
                if log.size == 0:
                    self._announcer.announce(log, self.registry)
                if log.closed:  # perhaps only half: the registry log must know, too
                    log.close()
        except (RolledBack, Forked):
            if not is_reading or self.registry.alarm is None:  # which still lets it be read
                raise

    def key_file(self, run_id: str) -> Path:
        """Return the file with a log's public keys, the ones an auditor pins."""
        return self._announcer.key_file(run_id)

    def write_key_file(self, run_id: str, history: KeyHistory) -> Path:
        """Bring the file with a log's public keys to what signs its next tree head; return it."""
        return self._announcer.write_key_file(run_id, history)
