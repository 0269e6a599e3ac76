"""What the registry log says about the runs, and which keys sign by its word."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, func, select

from rlhf_audit_trail.ledger.events import MAX_ENTRY_BYTES
from rlhf_audit_trail.ledger.findings import Finding
from rlhf_audit_trail.ledger.fsck.columns import raw, table
from rlhf_audit_trail.ledger.fsck.ranges import Record
from rlhf_audit_trail.ledger.fsck.tokens import GRANTED, REVOKED, ToldTokens
from rlhf_audit_trail.ledger.proof.bundle import parse_json
from rlhf_audit_trail.ledger.proof.errors import MalformedBundle, ProofError
from rlhf_audit_trail.ledger.proof.merkle import leaf_hash
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.succession import KEY_KINDS, OPENED, REGISTRY, Succession

__all__ = ["TOLD_KINDS", "Announced", "follow_keys"]

_CLOSED: Final = "run.closed"
_ERASED: Final = frozenset({"subject.erased", "values.expired"})
TOLD_KINDS: Final = (
    frozenset({OPENED, _CLOSED, "run.pruned", "log.restored", GRANTED, REVOKED}) | _ERASED
)
_LOGS = table(models.LogRow)
_ENTRIES = table(models.EntryRow)


@dataclass
class Announced:
    """What the registry log says about runs, run id to (index of the entry, record); and tokens."""

    opened: dict[str, tuple[int, Record]] = field(default_factory=dict)
    closed: dict[str, tuple[int, Record]] = field(default_factory=dict)
    pruned: set[str] = field(default_factory=set)
    restored: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    erased: dict[str, int] = field(default_factory=dict)  # entries whose values are gone
    tokens: ToldTokens = field(default_factory=ToldTokens)

    def see(self, index: int, record: Record) -> Iterator[Finding]:
        """Take one entry of the registry log; announcing a run twice alike is no fault."""
        kind, run = record.get("kind"), str(record.get("run"))
        if kind in {GRANTED, REVOKED}:
            self.tokens.see(index, record)
        elif kind in _ERASED:
            count = record.get("entries")
            self.erased[run] = self.erased.get(run, 0) + (count if type(count) is int else 0)
        elif kind == "run.pruned":
            self.pruned.add(run)
        elif kind == "log.restored":
            first, end = record.get("from_size"), record.get("to_size")
            if type(first) is int and type(end) is int:
                self.restored.setdefault(run, []).append((first, end))
        else:
            known = self.opened if kind == OPENED else self.closed
            earlier = known.setdefault(run, (index, record))[1]
            if any(earlier.get(x) != record.get(x) for x in ("origin", "log_keys", "root")):
                detail = f"it contradicts an earlier {kind} of the same run"
                yield Finding(REGISTRY, "registry", f"index {index}", detail)


def follow_keys(connection: Connection, succession: Succession) -> Iterator[Finding]:
    """Have `succession` take what the registry log says about keys; yield what does not fit.

    Read before all else, since it says by whom heads must be signed. An entry that is not
    what was hashed is passed over here: it is a finding of its own later.
    """
    columns = _ENTRIES.c
    number = select(_LOGS.c.number).where(_LOGS.c.run_id == REGISTRY).scalar_subquery()
    query = select(
        columns.leaf_index,
        func.substr(columns.data, 1, MAX_ENTRY_BYTES + 1).label("data"),
        columns.leaf_hash,
    ).where(columns.log_number == number, columns.kind.in_((OPENED, *KEY_KINDS)))
    for row in connection.execute(query.order_by(columns.leaf_index)):
        data = raw(row.data) or b""
        record = _parsed(data) if leaf_hash(data) == raw(row.leaf_hash) else None
        if record is None:
            continue
        try:
            succession.see(row.leaf_index, record)
        except ProofError as error:
            yield Finding(REGISTRY, "registry", f"index {row.leaf_index!r:.40}", error.message)


def _parsed(data: bytes) -> dict[str, Any] | None:
    try:
        record = parse_json(data)
    except MalformedBundle:
        return None
    return record if isinstance(record, dict) else None
