"""Appending to a log: how a log ends, and what the registry log itself enters.

How entries are taken stands in `recording`, how they are stored in `assigning`, and how a log is
signed in `signing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, update

from rlhf_audit_trail.ledger.batches import Batch
from rlhf_audit_trail.ledger.drafts import draft
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.keyring import LogKeyRing
from rlhf_audit_trail.ledger.proof.tree_head import TreeHead
from rlhf_audit_trail.ledger.reading import Forked
from rlhf_audit_trail.ledger.recording import LossPolicy, RecordingLog
from rlhf_audit_trail.ledger.refusals import ConflictingEntry, RunClosed, SequenceGap
from rlhf_audit_trail.ledger.signing import now_text
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.database import transact
from rlhf_audit_trail.ledger.vault import Vault
from rlhf_audit_trail.ledger.writer import Writer

__all__ = ["ConflictingEntry", "Log", "LossPolicy", "RunClosed", "SequenceGap", "now_text"]

_LOGS = models.LogRow.__table__  # type: ignore[attr-defined]
_USUAL_POLICY: Final = LossPolicy()


class Log(RecordingLog):
    """One append-only log with its own origin and keys: everything that writes."""

    def __init__(
        self,
        engine: Engine,
        vault: Vault,
        writer: Writer[Batch],
        *,
        number: int,
        run_id: str,
        keys: LogKeyRing,
        registry: Log | None,
        policy: LossPolicy = _USUAL_POLICY,
        counters: Path | None = None,
    ) -> None:
        """Use `Ledger.open_run` instead; `registry` is None for the registry log itself."""
        super().__init__(
            engine,
            vault,
            writer,
            number=number,
            run_id=run_id,
            keys=keys,
            policy=policy,
            counters=counters,
        )
        self._registry = registry

    # --- the end, and the registry's own entries -------------------------------------------

    def close(self) -> None:
        """End the run: sign its last head, and enter size and root in the registry log.

        Called again, it finishes a closing that was interrupted.
        """
        if self._registry is None:
            return
        if not self.closed:
            self.flush()
            self.require_publishable()
            registry = self._registry
            registry.require_writable()
            transact(self._engine, lambda connection: self._sign_and_close(connection, registry))
            self._known_closed = True
            self._signed()
        signed = self.published()
        if signed is None:  # signed before the flag was set, in the same transaction
            raise Forked(f"{self.origin} is closed, but has no signed tree head")
        self._registry.announce(self._closing(signed.head))  # if an older version did only half

    def _closing(self, head: TreeHead) -> Event:
        fields: dict[str, Any] = {"run": self.run_id, "origin": self.origin}
        return Event("run.closed", fields | {"tree_size": head.size, "root": head.root.hex()})

    def _sign_and_close(self, connection: Connection, registry: Log) -> None:
        """Sign, set the flag and tell the registry log: nothing comes between them."""
        registry.hold(connection)
        signed = self._sign(connection)
        connection.execute(update(_LOGS).where(_LOGS.c.number == self.number).values(closed=True))
        if not registry._announces("run.closed", self.run_id):
            registry.enter(connection, [self._closing(signed.head)])

    def announce(self, event: Event, *, generation: int | None = None) -> None:
        """Enter an event in this registry log, unless it has one of this kind and run.

        Durable on return, and entered once however many processes try: asked and answered
        under the lock by which indices are given out. Each call is a writer of its own.

        Args:
            event: with a field `run`.
            generation: of the operator's keys that the event supposes to be the newest.

        Raises:
            KeysChanged: it is not the newest any more; nothing was entered.
        """
        run_id = event.fields.get("run")
        if self._announces(event.kind, run_id):  # mostly so, and seen without a lock
            return
        self.require_writable()

        def work(connection: Connection) -> None:
            self.hold(connection)
            if generation is not None:
                self._keys.ring.require_newest(connection, generation)
            if not self._announces(event.kind, run_id):
                self.enter(connection, [event])

        transact(self._engine, work)

    def hold(self, connection: Connection) -> None:
        """Let nobody else append to this log until the transaction ends.

        Who holds several holds the registry log first: that is the order of the writers' locks.
        """
        self._size(connection, lock=True)

    def enter(self, connection: Connection, events: Sequence[Event]) -> None:
        """Append events in the caller's own transaction, in which this log's row is locked.

        Each call is a writer of its own, so that nothing waits for the writer thread.
        """
        writer = Log(
            self._engine,
            self._vault,
            self._writer,
            number=self.number,
            run_id=self.run_id,
            keys=self._keys,
            registry=None,
        )
        batch = Batch(writer.writer_id, 0, now_text(), [draft(event) for event in events])
        ticket = self._checked(batch)
        writer.encode([ticket])
        writer.assign(connection, [ticket], retry=False)
        if ticket.error is not None:
            raise ticket.error

    def _announces(self, kind: str, run_id: str | None) -> bool:
        return any(entry.event.get("run") == run_id for entry in self.entries(kind=kind))
