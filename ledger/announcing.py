"""Announcing: how a log gets its row, its entry in the registry log, and its file of keys."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, select

from rlhf_audit_trail.ledger.appending import Log, now_text
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.keyring import KeyRing, KeysChanged
from rlhf_audit_trail.ledger.keys import GENERATED_KEY
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.reading import RolledBack
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.database import insert_missing, transact
from rlhf_audit_trail.ledger.succession import REGISTRY, KeyHistory
from rlhf_audit_trail.ledger.vkey_file import WrongLedger, write_key_file

__all__ = ["Announcer", "InvalidName"]

_ANNOUNCEMENTS_MAX: Final = 4
_LOGS = models.LogRow.__table__  # type: ignore[attr-defined]
_LEDGER = models.LedgerRow.__table__  # type: ignore[attr-defined]


class InvalidName(AuditTrailError):
    """An organisation or run id cannot be part of a log's origin."""


class Announcer:
    """Makes the logs of one ledger known."""

    def __init__(
        self, engine: Engine, directory: Path, key_ring: KeyRing, organisation: str
    ) -> None:
        """Keep rows in the database `engine`, and key files below `directory`."""
        self._engine = engine
        self._directory = directory
        self._key_ring = key_ring
        self._organisation = organisation

    def number_of(self, run_id: str) -> int:
        """Return the number of a log's row, made where it is missing.

        Raises:
            WrongLedger: the row is of another organisation's log.
        """
        origin = f"{self._organisation}/rlhf/{run_id}"
        query = select(_LOGS).where(_LOGS.c.run_id == run_id)
        with self._engine.connect() as connection:
            row = connection.execute(query).first()
        if row is None:
            row = transact(
                self._engine, lambda connection: self._make_row(connection, run_id, origin)
            )
        if row.origin != origin:
            raise WrongLedger(
                f"the database belongs to another ledger: its log is {row.origin}, ours {origin}",
                next_step="correct `organisation` or `database` in rlhf-audit.toml",
            )
        return int(row.number)

    def _make_row(self, connection: Connection, run_id: str, origin: str) -> Any:
        made = {"run_id": run_id, "origin": origin, "size": 0, "closed": False}
        # under the lock by which all rows are changed: no erasure comes in between
        query = select(_LOGS.c.erasures).where(_LOGS.c.run_id == REGISTRY).with_for_update()
        made["erasures"] = connection.scalar(query) or 0
        insert_missing(connection, _LOGS, [made | {"created_at": now_text()}])
        if run_id == REGISTRY:
            owner = {"id": 1, "organisation": self._organisation}
            insert_missing(connection, _LEDGER, [owner | {"created_at": now_text()}])
        return connection.execute(select(_LOGS).where(_LOGS.c.run_id == run_id)).one()

    def announce(self, log: Log, registry: Log) -> None:
        """Enter a log's beginning in the registry log, which may be itself, and write its key file.

        Raises:
            KeysChanged: the operator's keys are being rotated again and again.
        """
        if log.run_id == REGISTRY:
            fields: dict[str, Any] = {"organisation": self._organisation, "format": 1}
            log.announce(Event("ledger.created", fields))
            self.write_key_file(log.run_id, log.key_history)
            return
        for _ in range(_ANNOUNCEMENTS_MAX):
            with self._engine.connect() as connection:
                generation = self._key_ring.look(connection).generation
                keys = [str(key) for key in self._key_ring.of(log.run_id).look(connection).now]
            fields = {"run": log.run_id, "origin": log.origin, "log_keys": keys}
            with suppress(KeysChanged):  # in between: then it begins with the newer keys
                registry.announce(Event("run.opened", fields), generation=generation)
                log.keys_now()
                self.write_key_file(log.run_id, log.key_history)
                return
        raise KeysChanged("the keys are being rotated again and again", next_step="try again")

    def require_own_key(self, registry: Log) -> None:
        """Refuse a database that other operator keys sign: any announced run shows it.

        Raises:
            WrongLedger: it is one.
        """
        first = next(registry.entries(kind="run.opened"), None)
        with self._engine.connect() as connection:
            self._key_ring.of(REGISTRY).signers(connection)  # that this machine has them
            if first is None:
                return
            own = self._key_ring.of(str(first.event.get("run"))).look(connection)
        if first.event.get("log_keys") != [str(key) for key in own.first]:
            raise WrongLedger(
                f"the registry log has other keys for {own.origin} than {GENERATED_KEY} gives",
                next_step=f"copy {GENERATED_KEY} from the machine that made the ledger",
            )

    def key_file(self, run_id: str) -> Path:
        """Return the file with a log's public keys."""
        return self._directory / "keys" / f"{run_id}.vkey"

    def write_key_file(self, run_id: str, history: KeyHistory) -> Path:
        """Bring a log's key file to what signs its next tree head; see `vkey_file`."""
        path = self.key_file(run_id)
        write_key_file(path, history, self._key_ring.later_keys(run_id))
        return path

    def bring_key_file(self, log: Log) -> None:
        """Bring a log's key file to the store, or find that the store is older than the file."""
        with suppress(RolledBack, WrongLedger):
            self.write_key_file(log.run_id, log.key_history)
            return
        log.keys_now()  # another process may have rotated them, and written the file, just now
        try:
            self.write_key_file(log.run_id, log.key_history)
        except RolledBack as finding:
            log.stop(finding)
