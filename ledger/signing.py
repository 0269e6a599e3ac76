"""Signing a log: what extends the last signed tree head, and nothing else.

`publish` signs; `recover` is the same check on the same stored state, made when a log is
opened, so that a start after a crash and any other start are one and the same. What the
store cannot know of itself, whether it is the newest copy, the guard asks others: before
the first append, and before each signature.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache

from sqlalchemy import Connection, Engine, select

from rlhf_audit_trail.ledger.contradictions import WAY_OUT_OF_ROLLBACK
from rlhf_audit_trail.ledger.cose import inclusion_receipt
from rlhf_audit_trail.ledger.guard import Comparison, Guard, PeerHead
from rlhf_audit_trail.ledger.keyring import LogKeyRing
from rlhf_audit_trail.ledger.keys import sign_jointly
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.proof.merkle import (
    consistency_proof,
    root_from_nodes,
    verify_consistency,
)
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.proof.tree_head import SignedTreeHead, TreeHead, open_tree_head
from rlhf_audit_trail.ledger.reading import Forked, NotPublished, RolledBack, StoredLog
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.database import transact
from rlhf_audit_trail.ledger.succession import REGISTRY, KeyHistory
from rlhf_audit_trail.ledger.tlog_proof import TlogProof, encode_tlog_proof
from rlhf_audit_trail.ledger.vault import Vault

__all__ = ["SigningLog", "now_text"]

_logger = logging.getLogger(__name__)

_LOGS = models.LogRow.__table__  # type: ignore[attr-defined]
_HEADS = models.TreeHeadRow.__table__  # type: ignore[attr-defined]


class SigningLog(StoredLog):
    """A stored log together with the keys that sign it."""

    def __init__(self, engine: Engine, vault: Vault, number: int, keys: LogKeyRing) -> None:
        """Read the log whose row has this `number`, and sign it with `keys`."""
        super().__init__(engine, vault, number, keys.history)
        self._keys = keys
        self._known_closed = False  # once true, it stays true
        self._guard = Guard()  # which has nobody to ask
        self._guarding = threading.Lock()  # owns the two below; held while peers are asked
        self._alarm: RolledBack | Forked | None = None
        self._stopped: RolledBack | None = None  # found on this machine; no peer can undo it
        self._is_compared = True
        self._signed: Callable[[], None] = lambda: None

    @property
    def key_ring(self) -> LogKeyRing:
        """The keys that sign this log."""
        return self._keys

    @abstractmethod
    def flush(self) -> None:
        """Wait until everything handed over so far is durable or known to have failed."""

    # --- guard ------------------------------------------------------------------------

    def watch(self, guard: Guard, signed: Callable[[], None] | None = None) -> None:
        """Have peers asked from now on: before the next append, and before each signature.

        Args:
            guard: who is asked.
            signed: called after a tree head was signed and stored; must return at once.
        """
        self._guarding = threading.Lock()  # in a forked child the old one may be held for ever
        self._guard, self._is_compared = guard, False
        self._signed = signed or self._signed

    @property
    def alarm(self) -> RolledBack | Forked | None:
        """Why nothing may be appended or signed, as far as this process knows."""
        return self._stopped or self._alarm

    def stop(self, finding: RolledBack) -> None:
        """Let this log be read only, for as long as this process has it open."""
        _logger.error("this log is read-only now: %s", finding)
        self._stopped = finding

    def later_keys(self) -> tuple[VerifierKey, ...]:
        """Return keys of generations that our secrets have, and the store does not name."""
        return self._keys.ring.later_keys(self._keys.run_id)

    def registry_keys(self) -> tuple[VerifierKey, ...]:
        """Return the keys of the ledger's registry log, as found at the last look."""
        return self._keys.ring.of(REGISTRY).history.now

    def compare(self) -> Comparison:
        """Ask the peers now; what they find decides whether the log may be written to."""
        with self._guarding:
            return self._compare()

    def heed(self, head: PeerHead) -> None:
        """Take notice of a tree head that somebody showed; it may make the log read-only."""
        with self._guarding:
            self._take(self._guard.heed(self, head))

    # --- proofs in the forms of others --------------------------------------------------

    def tlog_proof(self, leaf_index: int) -> bytes:
        """Return a c2sp.org/tlog-proof of an entry, with its head's witnesses' lines.

        Raises:
            NotPublished: no signed tree head covers the entry.
        """
        signed = self._covering(leaf_index)
        path = self.prove_inclusion(leaf_index, signed.head.size)
        note = self.served_note(signed.head.size) or str(signed.note)
        return encode_tlog_proof(TlogProof(leaf_index, path, note))

    def cose_receipt(self, leaf_index: int) -> bytes:
        """Return a COSE receipt of inclusion (RFC 9942) by the newest Ed25519 key.

        Raises:
            NotPublished: no signed tree head covers the entry, or it is the only one: its
                empty path has no form in the RFC.
            KeyMissing, RetiredKey: nothing can be signed here.
        """
        head = self._covering(leaf_index).head
        if head.size == 1:
            raise NotPublished(
                f"{self.origin} has one entry, which no COSE receipt can hold",
                next_step="ask for a bundle, or publish a larger tree first",
            )
        with self._engine.connect() as connection:
            *_, newest = self._keys.signers(connection)
        return inclusion_receipt(
            newest, head, leaf_index, self.prove_inclusion(leaf_index, head.size)
        )

    def _covering(self, leaf_index: int) -> SignedTreeHead:
        signed = self.published()
        if signed is None or leaf_index >= signed.head.size:
            raise NotPublished(
                f"no signed tree head of {self.origin} covers entry {leaf_index:,}",
                next_step="publish the log first: rlhf-audit anchor, or Log.publish()",
            )
        return signed

    # --- permission ---------------------------------------------------------------------

    def require_writable(self) -> None:
        """Refuse to append to a store that is not the newest copy; the first call asks peers.

        Raises:
            RolledBack, Forked: a peer can prove it; reading goes on.
        """
        if not self._is_compared:
            with self._guarding:
                if not self._is_compared:
                    self._compare()
        if (alarm := self.alarm) is not None:  # a new one each time: it carries its own traceback
            raise type(alarm)(alarm.message, next_step=alarm.next_step)

    def require_publishable(self) -> None:
        """Refuse to sign what may not be the newest copy; each call asks the peers.

        Raises:
            RolledBack, Forked: a peer can prove that it is not.
            PeersUnreachable: nobody answers, so nobody knows.
        """
        found = self.compare()
        self.require_writable()
        self._guard.require_heard(self, found)

    def _compare(self) -> Comparison:
        found = self._guard.compare(self)
        self._alarm = None if found.contradiction is None else self._alarm
        self._take(found)
        self._is_compared = True
        return found

    def _take(self, found: Comparison) -> None:
        """Hold on to a contradiction, and log it once."""
        answer = found.contradiction
        if answer is None or not isinstance(answer.finding, RolledBack | Forked):
            return
        if self._alarm is None:
            _logger.error("this log is read-only now: %s", answer.finding)
        self._alarm = answer.finding

    def _look(self, connection: Connection) -> KeyHistory:
        self._history = self._keys.look(connection)
        return self._history

    # --- sign -------------------------------------------------------------------------

    def publish(self) -> SignedTreeHead:
        """Sign the log as it stands durably, and store the tree head.

        Idempotent: a size is signed once, and the first note is kept. Only what extends
        the last signed head is signed, and only where no peer knows of more.

        Raises:
            RolledBack, Forked: the store contradicts the last signed head, or what a peer
                holds; nothing is signed.
            PeersUnreachable: no peer answers; nothing is signed.
            KeyMissing: the keys were rotated on another machine, and not copied to this one.
        """
        self.flush()
        self.require_publishable()
        signed = transact(self._engine, self._sign)
        self._signed()
        return signed

    def publish_durable(self, multiple: int = 1) -> SignedTreeHead | None:
        """Sign what is durable now, up to a multiple of so many entries; else as `publish`.

        For a thread beside the one that records: it waits for nothing that was handed over,
        and takes no error that is meant for the recording one.

        Returns:
            The tree head of that size; None if it is 0, or less than was signed already.

        Raises:
            RolledBack, Forked, PeersUnreachable, KeyMissing: see `publish`.
        """
        self.require_publishable()
        signed = transact(self._engine, lambda connection: self._sign_some(connection, multiple))
        self._signed()
        return signed

    def _sign_some(self, connection: Connection, multiple: int) -> SignedTreeHead | None:
        durable = self._size(connection, lock=True)
        last = self._published(connection, None)
        size = durable - durable % multiple
        if last is not None and size < last.head.size <= durable:
            return None  # what was signed is not signed again, in a smaller tree
        return self._sign_size(connection, size, last) if size else None

    def _sign(self, connection: Connection) -> SignedTreeHead:
        size = self._size(connection, lock=True)
        return self._sign_size(connection, size, self._published(connection, None))

    def _sign_size(
        self, connection: Connection, size: int, last: SignedTreeHead | None
    ) -> SignedTreeHead:
        """Sign the tree of the first `size` entries, if it extends the last signed one."""
        head = self._check_signed(connection, size, last)
        if last is not None and last.head.size == size:
            return last
        # looked up in this very transaction: another process may have retired a key just now
        signers, keys = self._keys.signers(connection), self._look(connection).at(size)
        note = sign_jointly(signers, head, time_s=int(datetime.now(UTC).timestamp()))
        signed = open_tree_head(note, keys)  # asserted before it is stored
        row = {"log_number": self.number, "tree_size": size, "root": head.root}
        connection.execute(_HEADS.insert(), row | {"note": note, "signed_at": now_text()})
        return signed

    def sign_within(self, connection: Connection) -> SignedTreeHead:
        """Sign in the caller's own transaction; he asks peers before, and tells of it after."""
        return self._sign(connection)

    def tell_signed(self) -> None:
        """Have done what follows a signature: witnesses are asked, and so on."""
        self._signed()

    def last_signed(self, connection: Connection) -> SignedTreeHead | None:
        """Return the newest signed tree head, as the caller's transaction sees it."""
        return self._published(connection, None)

    def lock(self, connection: Connection) -> None:
        """Keep other processes from appending and signing until the transaction ends."""
        self._size(connection, lock=True)

    def recover(self) -> None:
        """Check the stored tree against the last signed head; raise if they contradict."""
        with self._engine.connect() as connection:
            last = self._published(connection, None)
            self._check_signed(connection, self._size(connection), last)

    def _check_signed(
        self, connection: Connection, size: int, last: SignedTreeHead | None
    ) -> TreeHead:
        """Return the head to sign after showing that it extends the last signed one."""
        reader = self._stored_tree.reader(connection)
        if last is not None and size < last.head.size:
            raise RolledBack(
                f"{self.origin}: the store has {size:,} entries, "
                f"but a tree of {last.head.size:,} was signed",
                next_step=WAY_OUT_OF_ROLLBACK,
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

    def _count_erasures(self, connection: Connection) -> int:
        query = select(_LOGS.c.erasures).where(_LOGS.c.number == self.number)
        return int(connection.scalar(query) or 0)


def now_text() -> str:
    """Return the writer's clock as entries carry it, `2026-11-20T10:15:00.123456Z`."""
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return f"{_second_text(seconds)}.{nanoseconds // 1000:06d}Z"


@lru_cache(maxsize=2)
def _second_text(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").removesuffix("+00:00")
