"""Writer tokens: which machine may append to which run over HTTP.

A grant is an event of the registry log first; the permission derives from it. What a token's
thief gains: he appends to the runs it is for, and reads nothing. He cannot change what is
there, write what only the ledger itself says, or go on in another writer's name.
"""

from __future__ import annotations

import hmac
import re
import threading
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection, Row, select, update

from rlhf_audit_trail.ledger.bearer import new_token, require_token, token_digest
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import (
    REGISTRY,
    InvalidName,
    Ledger,
    Log,
    RunClosed,
    StoredEntry,
)
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.refusals import BadToken, NotPermitted
from rlhf_audit_trail.ledger.signing import now_text
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.database import insert_missing, transact
from rlhf_audit_trail.ledger.store.spans import next_seq

__all__ = ["RemoteWriter", "WriterExists", "WriterMissing", "WriterToken", "WriterTokens"]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TOKENS = models.WriterTokenRow.__table__  # type: ignore[attr-defined]
_WRITERS = models.RemoteWriterRow.__table__  # type: ignore[attr-defined]
_LOGS = models.LogRow.__table__  # type: ignore[attr-defined]


class WriterExists(AuditTrailError):
    """A writer of this name was granted a token already."""


class WriterMissing(AuditTrailError):
    """No writer of this name was granted a token."""


@dataclass(frozen=True)
class WriterToken:
    """What the ledger knows of a token; the token itself it does not know.

    Attributes:
        writer: its name, which stands in the registry log.
        run_id: the run it is for; empty: every run.
        digest: SHA-256 of the token, 32 bytes.
        created_at: when it was made.
        revoked_at: since when it is refused; empty while it is in force.
    """

    writer: str
    run_id: str
    digest: bytes
    created_at: str
    revoked_at: str

    def require_run(self, run_id: str) -> None:
        """Refuse a run that this token is not for; raises NotPermitted."""
        if run_id == REGISTRY:
            raise NotPermitted("the registry log is written by the ledger itself only")
        if self.run_id not in ("", run_id):
            raise NotPermitted(
                "this writer token is for another run",
                next_step="ask the operator for a token for this run",
            )


@dataclass(frozen=True)
class RemoteWriter:
    """A process that appended with a token: `writer_id` stands in each of its entries."""

    writer: str
    run_id: str
    writer_id: str
    first_seen_at: str


class WriterTokens:
    """The writer tokens of a ledger; safe to share between threads and processes."""

    def __init__(self, ledger: Ledger) -> None:
        """Use the open `ledger`, which the caller closes."""
        self._ledger = ledger
        self._engine = ledger.engine
        self._binding = threading.Lock()  # who waits for the store waits with one connection only

    # --- the operator's side ------------------------------------------------------------

    def grant(self, writer: str, run_id: str = "") -> str:
        """Make a token, and return it: it cannot be had a second time.

        Args:
            writer: a name that is used once, and public: it stands in the registry log.
            run_id: the run it is for, which is opened if it is new; empty: every run.

        Raises:
            InvalidName: of the writer or the run.
            WriterExists: the name was used before.
            RunClosed: nothing can be appended to the run any more.
        """
        if _NAME.fullmatch(writer) is None:
            raise InvalidName(
                f"{writer!r:.80} cannot name a writer",
                next_step="use up to 64 letters, digits, dots, dashes and underscores",
            )
        if run_id and self._ledger.open_run(run_id).closed:
            raise RunClosed(f"the run {run_id} is closed", next_step="name another run")
        token = new_token()
        digest = token_digest(token)
        transact(self._engine, lambda connection: _claim(connection, writer, run_id, digest))
        index = self._announce("writer.granted", writer, run_id, digest)
        transact(self._engine, lambda connection: _grant(connection, writer, digest, index))
        return token

    def revoke(self, writer: str) -> WriterToken:
        """Refuse a writer's token from now on; again, it finishes what was interrupted.

        Raises:
            WriterMissing: there is no such writer.
        """
        row = transact(self._engine, lambda connection: _revoke(connection, writer))
        if row is None:
            raise WriterMissing(
                f"no writer is named {writer!r:.80}", next_step="run: rlhf-audit writer list"
            )
        if row.revoked_index is None:
            digest = bytes(row.token_digest)
            index = self._announce("writer.revoked", writer, row.run_id, digest)
            told = update(_TOKENS).where(_TOKENS.c.writer == writer).values(revoked_index=index)
            transact(self._engine, lambda connection: connection.execute(told))
        return _token(row)

    def tokens(self) -> list[WriterToken]:
        """Return all tokens that were granted, oldest first, the revoked ones among them."""
        query = select(_TOKENS).where(_TOKENS.c.granted_index.is_not(None))
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(_TOKENS.c.granted_index))
            return [_token(row) for row in rows]

    def writers(self) -> list[RemoteWriter]:
        """Return the processes that used a token, oldest first: whose entries are whose."""
        columns = _WRITERS.c
        query = select(columns.writer, _LOGS.c.run_id, columns.writer_id, columns.first_seen_at)
        query = query.join(_LOGS, _LOGS.c.number == columns.log_number)
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(columns.first_seen_at, columns.writer_id))
            return [RemoteWriter(*row) for row in rows]

    def put_back(self) -> None:
        """Bring the table to what the registry log says, after that was put back from a copy.

        Tokens that were granted since the backup are in force again, and revoked ones are not.
        """
        registry = self._ledger.registry
        granted = {str(x.event["writer"]): x for x in registry.entries(kind="writer.granted")}
        for (
            entry
        ) in granted.values():  # of several grants of one name, only the last can be in force
            transact(self._engine, partial(_put_back_grant, entry=entry))
        for entry in registry.entries(kind="writer.revoked"):
            transact(self._engine, partial(_put_back_revocation, entry=entry))

    def _announce(self, kind: str, writer: str, run_id: str, digest: bytes) -> int:
        fields = {"writer": writer, "run": run_id or None, "token_digest": digest.hex()}
        return self._ledger.registry.record(Event(kind, fields)).result()

    # --- the service's side -------------------------------------------------------------

    def authenticate(self, token: str) -> WriterToken:
        """Return what a token stands for, asking the store each time: revoking works at once.

        Raises:
            BadToken: not one of this ledger's, or revoked.
        """
        digest = token_digest(require_token(token))
        with self._engine.connect() as connection:
            row = connection.execute(
                select(_TOKENS).where(_TOKENS.c.token_digest == digest)
            ).first()
        # looked up by a digest of randomness: how long that takes tells nothing of use
        is_known = row is not None and hmac.compare_digest(bytes(row.token_digest), digest)
        if row is None or not is_known or row.granted_index is None:
            raise BadToken(
                "this writer token is not one of this ledger's",
                next_step="ask the operator for one: rlhf-audit writer add NAME --run RUN",
            )
        if row.revoked_at:
            raise BadToken("this writer token was revoked", next_step="ask the operator for one")
        return _token(row)

    def admit(self, token: WriterToken, log: Log, writer_id: str) -> None:
        """Bind a process to its token with its first entries; later ones must come with it.

        Writer ids stand in every entry, for all to read: without this, one writer could go
        on in the name of another, or of the ledger's own process.

        Raises:
            NotPermitted: the writer id is used by someone else.
        """
        with self._engine.connect() as connection:
            owner = _owner(connection, log.number, writer_id)
        if owner is None:
            with self._binding:
                owner = transact(
                    self._engine, lambda connection: _bind(connection, token, log.number, writer_id)
                )
        if owner != token.writer:
            raise NotPermitted(
                "another writer uses this writer id",
                next_step="take 16 random bytes as writer id at each start of a process",
            )


def _claim(connection: Connection, writer: str, run_id: str, digest: bytes) -> None:
    """Reserve a name; one whose grant was never announced is free."""
    values = {"run_id": run_id, "token_digest": digest, "created_at": now_text()}
    insert_missing(connection, _TOKENS, [{"writer": writer, "revoked_at": ""} | values])
    claimed = connection.execute(
        update(_TOKENS)
        .where(_TOKENS.c.writer == writer, _TOKENS.c.granted_index.is_(None))
        .values(values)
    )
    if claimed.rowcount != 1:
        raise WriterExists(
            f"the name {writer} was used before",
            next_step="choose another: a name in the registry log means one token for ever",
        )


def _grant(connection: Connection, writer: str, digest: bytes, index: int) -> None:
    """Put a token in force, unless the name was claimed by someone else meanwhile."""
    mine = (_TOKENS.c.writer == writer) & (_TOKENS.c.token_digest == digest)
    connection.execute(update(_TOKENS).where(mine).values(granted_index=index))
    if connection.execute(select(_TOKENS.c.writer).where(mine)).first() is None:
        raise WriterExists(
            f"the name {writer} was granted twice at once", next_step="choose another name"
        )


def _revoke(connection: Connection, writer: str) -> Row[Any] | None:
    mine = (_TOKENS.c.writer == writer) & _TOKENS.c.granted_index.is_not(None)
    in_force = mine & (_TOKENS.c.revoked_at == "")
    connection.execute(update(_TOKENS).where(in_force).values(revoked_at=now_text()))
    return connection.execute(select(_TOKENS).where(mine)).first()


def _put_back_grant(connection: Connection, *, entry: StoredEntry) -> None:
    event = entry.event
    row = {"writer": event["writer"], "run_id": event["run"] or "", "revoked_at": ""}
    row |= {"token_digest": bytes.fromhex(event["token_digest"])}
    row |= {"created_at": event["recorded_at"], "granted_index": entry.leaf_index}
    insert_missing(connection, _TOKENS, [row])
    # a name that was reserved, and whose grant the backup did not know of yet
    reserved = (_TOKENS.c.writer == event["writer"]) & _TOKENS.c.granted_index.is_(None)
    connection.execute(update(_TOKENS).where(reserved).values(row))


def _put_back_revocation(connection: Connection, *, entry: StoredEntry) -> None:
    event, columns = entry.event, _TOKENS.c
    digest = bytes.fromhex(event["token_digest"])
    mine = (columns.writer == event["writer"]) & (columns.token_digest == digest)
    index = {"revoked_index": entry.leaf_index}
    untold = mine & columns.revoked_index.is_(None)
    connection.execute(update(_TOKENS).where(untold).values(index))
    in_force = mine & (columns.revoked_at == "")
    connection.execute(update(_TOKENS).where(in_force).values(revoked_at=event["recorded_at"]))


def _token(row: Row[Any]) -> WriterToken:
    digest = bytes(row.token_digest)
    return WriterToken(row.writer, row.run_id, digest, row.created_at, row.revoked_at)


def _owner(connection: Connection, log_number: int, writer_id: str) -> str | None:
    columns = _WRITERS.c
    query = select(columns.writer).where(
        columns.log_number == log_number, columns.writer_id == writer_id
    )
    owner: str | None = connection.scalar(query)
    return owner


def _bind(
    connection: Connection, token: WriterToken, log_number: int, writer_id: str
) -> str | None:
    """Return whose the writer id is from now on; None if a process of the ledger has it."""
    if not next_seq(connection, log_number, writer_id):
        row = {"log_number": log_number, "writer_id": writer_id, "writer": token.writer}
        insert_missing(connection, _WRITERS, [row | {"first_seen_at": now_text()}])
    return _owner(connection, log_number, writer_id)
