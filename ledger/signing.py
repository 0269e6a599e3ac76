"""Signing a log: what extends the last signed tree head, and nothing else.

`publish` signs; `recover` is the same check on the same stored state, made when a log is
opened, so that a start after a crash and any other start are one and the same.
"""

from __future__ import annotations

from abc import abstractmethod
from datetime import UTC, datetime

from sqlalchemy import Connection, Engine, select

from rlhf_audit_trail.ledger.keys import LogKeys
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.proof.merkle import (
    consistency_proof,
    root_from_nodes,
    verify_consistency,
)
from rlhf_audit_trail.ledger.proof.tree_head import SignedTreeHead, TreeHead, open_tree_head
from rlhf_audit_trail.ledger.reading import Forked, RolledBack, StoredLog
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.database import transact
from rlhf_audit_trail.ledger.vault import Vault

__all__ = ["SigningLog", "now_text"]

_LOGS = models.LogRow.__table__  # type: ignore[attr-defined]
_HEADS = models.TreeHeadRow.__table__  # type: ignore[attr-defined]


class SigningLog(StoredLog):
    """A stored log together with the keys that sign it."""

    def __init__(self, engine: Engine, vault: Vault, number: int, keys: LogKeys) -> None:
        """Read the log whose row has this `number`, and sign it with `keys`."""
        super().__init__(engine, vault, number, keys.origin)
        self.verifier_keys = keys.verifier_keys
        self._keys = keys
        self._known_closed = False  # once true, it stays true

    @abstractmethod
    def flush(self) -> None:
        """Wait until everything handed over so far is durable or known to have failed."""

    def publish(self) -> SignedTreeHead:
        """Sign the log as it stands durably, and store the tree head.

        Idempotent: a size is signed once, and the first note is kept. Only what extends
        the last signed head is signed.

        Raises:
            RolledBack, Forked: the store contradicts the last signed head; nothing is signed.
        """
        self.flush()
        return transact(self._engine, self._sign)

    def _sign(self, connection: Connection) -> SignedTreeHead:
        size = self._size(connection, lock=True)
        last = self._published(connection, None)
        head = self._check_signed(connection, size, last)
        if last is not None and last.head.size == size:
            return last
        now = datetime.now(UTC)
        note = self._keys.sign(head, time_s=int(now.timestamp()))
        signed = open_tree_head(note, self.verifier_keys)  # asserted before it is stored
        row = {"log_number": self.number, "tree_size": size, "root": head.root}
        connection.execute(_HEADS.insert(), row | {"note": note, "signed_at": now_text()})
        return signed

    def recover(self) -> None:
        """Check the stored tree against the last signed head; raise if they contradict."""
        with self._engine.connect() as connection:
            last = self._published(connection, None)
            self._check_signed(connection, self._size(connection), last)

    def _check_signed(
        self, connection: Connection, size: int, last: SignedTreeHead | None
    ) -> TreeHead:
        """Return the head to sign after showing that it extends the last signed one."""
        reader = self._reader(connection)
        if last is not None and size < last.head.size:
            raise RolledBack(
                f"{self.origin}: the store has {size:,} entries, "
                f"but a tree of {last.head.size:,} was signed",
                next_step="an old copy is in place: restore the newest backup or a mirror",
            )
        root = root_from_nodes(size, reader.node)
        if last is not None and last.head.size:
            proof = consistency_proof(last.head.size, size, reader.node)
            try:
                verify_consistency(last.head.size, last.head.root, size, root, proof)
            except AuditTrailError as error:
                raise Forked(
                    f"{self.origin}: the stored entries are not those that were signed "
                    f"at size {last.head.size:,}",
                    next_step="run rlhf-audit fsck to find the entry, then restore it",
                ) from error
        return TreeHead(self.origin, size, root)

    @property
    def closed(self) -> bool:
        """Whether the run was ended: nothing more is recorded."""
        with self._engine.connect() as connection:
            return self._closed(connection)

    def _closed(self, connection: Connection) -> bool:
        if not self._known_closed:
            query = select(_LOGS.c.closed).where(_LOGS.c.number == self.number)
            self._known_closed = bool(connection.scalar(query))
        return self._known_closed


def now_text() -> str:
    """Return the writer's clock as entries carry it, `2026-11-20T10:15:00.123456Z`."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
