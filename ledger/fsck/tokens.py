"""Writer tokens as the store has them, against the registry log that granted and revoked them.

The log has the last word. Who can write the table could else let himself in, put a revoked
token in force again, or exchange a token for his own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, func, select

from rlhf_audit_trail.ledger.findings import Finding
from rlhf_audit_trail.ledger.fsck.columns import raw, table, text_bytes, word
from rlhf_audit_trail.ledger.fsck.ranges import Record
from rlhf_audit_trail.ledger.proof.merkle import HASH_BYTES
from rlhf_audit_trail.ledger.store import models

__all__ = ["GRANTED", "REVOKED", "ToldTokens", "remote_writer_findings", "token_findings"]

GRANTED: Final = "writer.granted"
REVOKED: Final = "writer.revoked"
CLOCK_SKEW: Final = timedelta(minutes=10)  # two services over one database have two clocks
_TOKENS = table(models.WriterTokenRow)
_WRITERS = table(models.RemoteWriterRow)
_WRITER_ID: Final = re.compile(r"[0-9a-f]{32}")
_PAGE_ROWS: Final = 256


@dataclass
class ToldTokens:
    """What the registry log says about tokens: leaf index to record, and the newest by name."""

    granted: dict[int, Record] = field(default_factory=dict)
    revoked: dict[int, Record] = field(default_factory=dict)
    newest: dict[str, int] = field(default_factory=dict)

    def see(self, index: int, record: Record) -> None:
        """Take one entry of either kind."""
        if record.get("kind") == GRANTED:
            self.granted[index] = record
            self.newest[str(record.get("writer"))] = index
        else:
            self.revoked[index] = record

    def is_revoked(self, said: Record) -> bool:
        """Whether the log revokes the token of which it says this."""
        return any(_is_same(record, said) for record in self.revoked.values())


def token_findings(connection: Connection, told: ToldTokens) -> Iterator[Finding]:
    """Yield each token that is not what the registry log says of it."""
    stored: set[str] = set()
    column = _TOKENS.c
    texts = (column.writer, column.run_id, column.revoked_at)
    query = select(
        *(text_bytes(connection, item).label(item.name) for item in texts),
        func.substr(column.token_digest, 1, HASH_BYTES + 1).label("token_digest"),
        column.granted_index,
        column.revoked_index,
    )
    for row in connection.execute(query.order_by(column.writer)).yield_per(_PAGE_ROWS):
        name = word(row.writer) or ""
        stored.add(name)
        for detail in _of_token(row, told):
            yield Finding("", "writer_token", repr(name)[:120], detail)
    for name in told.newest.keys() - stored:
        detail = "the registry log grants a token to this writer, and the table has none"
        yield Finding("", "writer_token", repr(name)[:120], detail)


def _of_token(row: Any, told: ToldTokens) -> Iterator[str]:
    digest = (raw(row.token_digest) or b"").hex()
    run, name = word(row.run_id), word(row.writer)
    said: Record = {"writer": name, "run": run or None, "token_digest": digest}
    if row.granted_index is None:  # a name that was reserved, and whose grant was interrupted
        if word(row.revoked_at) or row.revoked_index is not None:
            yield "it was revoked, and never granted"
        return
    granted = told.granted.get(row.granted_index, {})
    if not _is_same(granted, said):
        wrong = [key for key, value in said.items() if granted.get(key) != value]
        yield f"granted_index: the registry log has no such grant there ({', '.join(wrong)})"
    revoked = told.revoked.get(row.revoked_index, {})
    if row.revoked_index is not None and not _is_same(revoked, said):
        yield "revoked_index: the registry log does not revoke this token there"
    if not word(row.revoked_at) and (row.revoked_index is not None or told.is_revoked(said)):
        yield "the registry log revokes it, and it is in force"


def _is_same(record: Record, said: Record) -> bool:
    return all(record.get(key) == value for key, value in said.items())


# --- who appended with which token --------------------------------------------------------


def remote_writer_findings(
    connection: Connection, told: ToldTokens, runs: Mapping[int, str]
) -> Iterator[Finding]:
    """Yield each process whose writer id is bound to a token that did not admit it.

    Args:
        connection: to the ledger's database.
        told: what the registry log says.
        runs: log number to run id.
    """
    column, token = _WRITERS.c, _TOKENS.c
    texts = (column.writer_id, column.writer, column.first_seen_at)
    query = (
        select(
            column.log_number,
            *(text_bytes(connection, item).label(item.name) for item in texts),
            text_bytes(connection, token.run_id).label("run_id"),
            token.granted_index,
        )
        .outerjoin(_TOKENS, token.writer == column.writer)
        .order_by(column.log_number, column.writer_id)
    )
    for row in connection.execute(query).yield_per(_PAGE_ROWS):
        run, writer_id = runs.get(row.log_number, ""), word(row.writer_id) or ""
        for detail in _of_writer(row, run, writer_id, told):
            yield Finding(run, "remote_writer", repr(writer_id)[:80], detail)


def _of_writer(row: Any, run: str, writer_id: str, told: ToldTokens) -> Iterator[str]:
    name = word(row.writer)
    if _WRITER_ID.fullmatch(writer_id) is None:
        yield "writer_id: it is none"
    if row.run_id is None or row.granted_index is None:
        yield f"writer: nobody was granted a token as {name!r:.80}"
        return
    if word(row.run_id) not in {"", run}:
        yield f"the token of {name!r:.80} is for another run"
    granted = told.granted.get(row.granted_index, {})
    since, seen = _moment(granted.get("recorded_at")), _moment(word(row.first_seen_at))
    if seen is None:
        yield "first_seen_at: it is no moment"
    elif since is not None and seen < since - CLOCK_SKEW:
        yield "first_seen_at: it appended before its token was granted"


def _moment(text: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.tzinfo is not None else None
