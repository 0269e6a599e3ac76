"""A witness: remembers the largest tree head of each log, and cosigns only what extends it.

It needs no database server and no part of a ledger, so that somebody else can run it:
standard library, `cryptography`, and the kernel. Trusted for: never cosigning two histories
of one log. A thief of its key can cosign a fork; a thief of its database learns nothing that
is not public. Reference: c2sp.org/tlog-witness.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from rlhf_audit_trail.ledger.cosignature import (
    CosignedHead,
    Cosigner,
    CosignerKey,
    format_lines,
    log_signers,
    parse_cosigned_head,
)
from rlhf_audit_trail.ledger.proof.errors import (
    AuditTrailError,
    BadSignature,
    MalformedBundle,
    PolicyUnmet,
    ProofError,
)
from rlhf_audit_trail.ledger.proof.merkle import EMPTY_ROOT, verify_consistency
from rlhf_audit_trail.ledger.proof.note import Note, SignatureLine, VerifierKey
from rlhf_audit_trail.ledger.witness_request import AddCheckpoint, parse_request

__all__ = [
    "Evidence",
    "Stale",
    "UnknownLog",
    "Untrusted",
    "Unverifiable",
    "Witness",
    "WitnessStoreError",
    "origin_hash",
]

EVIDENCE_ROWS_MAX: Final = 1_000  # per log and kind; anyone may send old heads with bad proofs
_BUSY_TIMEOUT_S: Final = 10.0
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS seen (
    origin TEXT PRIMARY KEY, size INTEGER NOT NULL, root BLOB NOT NULL, note TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS evidence (
    origin TEXT NOT NULL, kind TEXT NOT NULL, size INTEGER NOT NULL, root BLOB NOT NULL,
    held TEXT NOT NULL, offered TEXT NOT NULL, seen_at_s INTEGER NOT NULL,
    PRIMARY KEY (origin, kind, size, root));
"""


class UnknownLog(AuditTrailError):
    """This witness does not follow a log of that origin."""


class Untrusted(AuditTrailError):
    """No key that the witness trusts for this log signed, or a trusted key's line is bad."""


class Unverifiable(AuditTrailError):
    """The tree head was not shown to extend the one held; it may be of another history."""


class WitnessStoreError(AuditTrailError):
    """The witness's own database cannot be read or written."""


class Stale(AuditTrailError):
    """The request begins at another size than the one held.

    Attributes:
        size: what the witness holds.
    """

    def __init__(self, size: int) -> None:
        super().__init__(f"the witness holds a head of {size:,} entries")
        self.size = size


@dataclass(frozen=True)
class Evidence:
    """Two signed tree heads that a log should explain.

    Attributes:
        kind: `fork` when both have one size and two roots, which proves two histories;
            `unproven` when the proof failed, which may also be the sender's fault.
        held: the signed note that the witness held; empty if none yet.
        offered: the signed note that was refused.
    """

    origin: str
    kind: str
    size: int
    held: str
    offered: str
    seen_at_s: int


@dataclass(frozen=True)
class _Seen:
    size: int
    root: bytes
    note: str


def origin_hash(origin: str) -> str:
    """Return the name of a log in a witness's monitoring address: hex SHA-256 of its origin."""
    return hashlib.sha256(origin.encode()).hexdigest()


class Witness:
    """One witness with its store; safe to share between threads and between processes."""

    def __init__(
        self,
        cosigner: Cosigner,
        log_keys: Iterable[VerifierKey],
        database: Path,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open the store, making it on first use.

        Args:
            cosigner: the witness's keys.
            log_keys: keys of the logs to follow; a log's origin is its keys' name.
            database: SQLite file.
            clock: POSIX seconds.

        Raises:
            WitnessStoreError: the file is no database, or cannot be written.
        """
        self.cosigner = cosigner
        self._clock = clock
        self._logs: dict[str, list[VerifierKey]] = {}
        for key in log_keys:
            self._logs.setdefault(key.name, []).append(key)
        self._names = {origin_hash(origin): origin for origin in self._logs}
        self._lock = threading.Lock()  # owns _connection
        try:
            self._connection = sqlite3.connect(
                database, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA journal_mode=WAL")
            # a cosignature that left us must be remembered after power loss
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.executescript(_SCHEMA)
            first = [(origin, 0, EMPTY_ROOT, "") for origin in self._logs]
            self._connection.executemany("INSERT OR IGNORE INTO seen VALUES (?, ?, ?, ?)", first)
        except sqlite3.Error as error:
            raise _store_error(error) from error

    @property
    def keys(self) -> tuple[CosignerKey, CosignerKey]:
        """The witness's public keys, Ed25519 first."""
        return self.cosigner.keys

    def close(self) -> None:
        """Let go of the store."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- add-checkpoint -----------------------------------------------------------------

    def add_checkpoint(self, body: bytes) -> str:
        """Check a request in the order of the specification; return our cosignature lines.

        The head is durable before this returns.

        Raises:
            MalformedBundle: the request does not parse, or its old size is above the new one.
            UnknownLog, Untrusted: of the log, or of who signed.
            Stale: another size is held.
            Unverifiable: not shown to extend the head held; what was signed is kept as evidence.
            WitnessStoreError: nothing was decided.
        """
        request = parse_request(body)
        head = parse_cosigned_head(request.note.text)
        ours = self._log_lines(request.note, head)
        if request.old_size > head.size:
            raise MalformedBundle(f"old {request.old_size} is above the head's size {head.size}")
        seen = self._seen(head.origin)
        forked = seen.note and head.size == seen.size and head.root != seen.root
        if forked:  # whatever it begins at: two signed roots of one size
            self._keep("fork", head, seen, Note(request.note.text, ours))
        if request.old_size != seen.size:
            raise Stale(seen.size)
        if forked:
            raise Unverifiable(f"another root was signed at size {head.size:,}")
        self._check_growth(request, head, seen, ours)
        return self._cosign(request.note.text, head, seen, ours)

    def _log_lines(self, note: Note, head: CosignedHead) -> tuple[SignatureLine, ...]:
        """Return the log's own lines, all checked; further lines are nobody's business here."""
        keys = self._logs.get(head.origin)
        if keys is None:
            raise UnknownLog(f"no log {head.origin!r:.300} is followed here")
        try:
            signers = log_signers(note, head, keys)
        except (BadSignature, PolicyUnmet) as error:
            raise Untrusted(error.message) from error
        if not signers:
            raise Untrusted(f"no trusted key of {head.origin} signed")
        known = {(key.name, key.key_id) for key in signers}
        return tuple(line for line in note.signatures if (line.name, line.key_id) in known)

    def _check_growth(
        self,
        request: AddCheckpoint,
        head: CosignedHead,
        seen: _Seen,
        lines: tuple[SignatureLine, ...],
    ) -> None:
        try:
            if head.size == 0 and head.root != EMPTY_ROOT:
                raise MalformedBundle("no empty tree has this root")
            if seen.size > 0:
                verify_consistency(seen.size, seen.root, head.size, head.root, request.proof)
            elif request.proof:
                raise MalformedBundle("a proof from size 0 must be empty")
        except ProofError as error:
            self._keep("unproven", head, seen, Note(request.note.text, lines))
            raise Unverifiable(error.message) from error

    def _cosign(
        self, text: str, head: CosignedHead, seen: _Seen, lines: tuple[SignatureLine, ...]
    ) -> str:
        cosignatures = self.cosigner.cosign(head, time_s=self._now())
        note = str(Note(text, (*lines, *cosignatures)))
        if not self._swap(head, seen, note):
            raise Stale(self._seen(head.origin).size)
        return format_lines(cosignatures)

    def _now(self) -> int:
        return max(1, int(self._clock()))  # time 0 would say that a larger head may exist

    # --- the store ----------------------------------------------------------------------

    def _swap(self, head: CosignedHead, seen: _Seen, note: str) -> bool:
        """Replace the head held by one that extends it, in one statement; durable on return.

        Without the comparison two requests could be checked against one head, and the
        smaller be stored last, which would roll the witness back.
        """
        new = (head.size, head.root, note, head.origin, seen.size, seen.root)
        with self._lock:
            try:
                done = self._connection.execute(
                    "UPDATE seen SET size = ?, root = ?, note = ?"
                    " WHERE origin = ? AND size = ? AND root = ?",
                    new,
                )
            except sqlite3.Error as error:
                raise _store_error(error) from error
        return done.rowcount == 1

    def _seen(self, origin: str) -> _Seen:
        rows = self._rows("SELECT size, root, note FROM seen WHERE origin = ?", (origin,))
        if not rows:
            raise WitnessStoreError(f"the witness's record of {origin} is gone")
        return _Seen(*rows[0])

    def _keep(self, kind: str, head: CosignedHead, seen: _Seen, offered: Note) -> None:
        row = (head.origin, kind, head.size, head.root, seen.note, str(offered), self._now())
        self._rows(
            "INSERT OR IGNORE INTO evidence SELECT ?, ?, ?, ?, ?, ?, ?"
            " WHERE (SELECT count(*) FROM evidence WHERE origin = ? AND kind = ?) < ?",
            (*row, head.origin, kind, EVIDENCE_ROWS_MAX),
        )

    def _rows(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                with closing(self._connection.execute(statement, values)) as cursor:
                    return cursor.fetchall()
            except sqlite3.Error as error:
                raise _store_error(error) from error

    # --- monitoring -----------------------------------------------------------------------

    def latest(self, hashed_origin: str) -> str | None:
        """Return the newest head of a log with the log's lines and ours, or None.

        `hashed_origin` is `origin_hash(origin)`.
        """
        origin = self._names.get(hashed_origin)
        return None if origin is None else (self._seen(origin).note or None)

    def evidence(self) -> list[Evidence]:
        """Return the contradictions seen so far, oldest first."""
        rows = self._rows(
            "SELECT origin, kind, size, held, offered, seen_at_s FROM evidence"
            " ORDER BY seen_at_s, origin, size"
        )
        return [Evidence(*row) for row in rows]


def _store_error(error: sqlite3.Error) -> WitnessStoreError:
    return WitnessStoreError(
        f"the witness's database failed: {error}",
        next_step="check the disk; never put back an older copy of this database",
    )
