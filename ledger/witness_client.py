"""Asking witnesses for cosignatures, and believing nothing that they answer unchecked.

`collect` is a step of its own: appending and signing never wait for it, and running it again
goes on where it stopped. Only the newest signed tree head is sent, since a witness signs no
older one. A witness on the log's own machine adds no trust.
Reference: c2sp.org/tlog-witness.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Engine, func, select

from rlhf_audit_trail.ledger.cosignature import verify_cosignature
from rlhf_audit_trail.ledger.guard import PeerHead, judge, open_own_head
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError, MalformedBundle, ProofError
from rlhf_audit_trail.ledger.proof.note import MAX_NOTE_BYTES, SignatureLine
from rlhf_audit_trail.ledger.proof.tree_head import SignedTreeHead, TreeHead
from rlhf_audit_trail.ledger.reading import Forked, NotPublished, RolledBack, StoredLog
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.database import insert_missing, transact
from rlhf_audit_trail.ledger.tlog_policy import PolicyWitness, TlogPolicy
from rlhf_audit_trail.ledger.web import Answer, Unreachable, ask
from rlhf_audit_trail.ledger.witness import origin_hash
from rlhf_audit_trail.ledger.witness_request import (
    MAX_REPLY_BYTES,
    AddCheckpoint,
    encode_request,
    parse_reply,
    parse_size,
)

__all__ = [
    "Collection",
    "LyingWitness",
    "Outcome",
    "WitnessRefused",
    "collect",
    "compare",
    "held_head",
    "size_cosigned",
]

TIMEOUT_S: Final = 10.0
CLOCK_SKEW_S: Final = 600  # a cosignature from further in the future is not believed
_ATTEMPTS: Final = 3  # one to learn the size held, one to use it, one for a race with ourselves
_THREADS_MAX: Final = 32
_OK, _NOT_FOUND, _CONFLICT, _UNPROCESSABLE = 200, 404, 409, 422
_COSIGNATURES = models.CosignatureRow.__table__  # type: ignore[attr-defined]


class WitnessRefused(AuditTrailError):
    """A witness did not cosign; what it says about the reason is not proven."""


class LyingWitness(AuditTrailError):
    """A witness answered with what cannot be its cosignature of this tree head."""


@dataclass(frozen=True)
class Outcome:
    """What became of asking one witness.

    Attributes:
        witness: its name in the policy.
        state: `cosigned`; `pending`, ask again; or `alarm`, shown by the log's own signature.
        finding: why it is not `cosigned`.
        head: for an alarm, the tree head that the witness showed.
    """

    witness: str
    state: str
    finding: AuditTrailError | None = None
    head: PeerHead | None = None

    @property
    def evidence(self) -> str:
        """For an alarm, the signed note that the witness showed."""
        return self.head.note if self.head else ""


@dataclass(frozen=True)
class Collection:
    """What one round of asking gave."""

    head: TreeHead
    outcomes: tuple[Outcome, ...]
    is_quorum: bool

    @property
    def alarms(self) -> tuple[Outcome, ...]:
        """Witnesses that showed that this log was rolled back or forked."""
        return tuple(item for item in self.outcomes if item.state == "alarm")


class _Alarm(Exception):
    """Carries what a witness could prove, and the head that proves it, to its outcome."""

    def __init__(self, finding: RolledBack | Forked, head: PeerHead) -> None:
        super().__init__(finding.message)
        self.finding = finding
        self.head = head


_Lines = dict[PolicyWitness, tuple[SignatureLine, int]]
_NO_LINE: Final = (SignatureLine("", b"", b""), 0)


def collect(
    engine: Engine,
    log: StoredLog,
    policy: TlogPolicy,
    *,
    timeout_s: float = TIMEOUT_S,
    clock: Callable[[], float] = time.time,
) -> Collection:
    """Ask every witness that has not cosigned the newest signed tree head; store what is right.

    Args:
        engine: the ledger's database.
        log: the log; nothing in it is locked while witnesses are asked.
        policy: the witnesses, their addresses, and the quorum.
        timeout_s: for the whole round.
        clock: POSIX seconds.

    Raises:
        NotPublished: there is no signed tree head yet.
    """
    signed = log.published()
    if signed is None:
        raise NotPublished(f"{log.origin} has no signed tree head", next_step="sign one first")
    with engine.connect() as connection:
        held = {item: _size_held(connection, log, item) for item in policy.witnesses}
    size = signed.head.size
    outcomes = {x: Outcome(x.shown, "cosigned") for x in policy.witnesses if held[x] == size}
    asked = [item for item in policy.witnesses if item not in outcomes]
    round_ = _Round(log, signed, held, time.monotonic() + timeout_s, clock)
    got: _Lines = {}
    for group, result in _in_parallel(asked, round_.ask):
        got |= result if isinstance(result, dict) else {}
        outcomes |= {item: _outcome(item, result) for item in group}
    _store(engine, log, size, got)
    is_quorum = policy.is_met_by(x.key for x in outcomes if outcomes[x].state == "cosigned")
    return Collection(signed.head, tuple(outcomes[x] for x in policy.witnesses), is_quorum)


def compare(
    log: StoredLog, policy: TlogPolicy, *, timeout_s: float = TIMEOUT_S
) -> tuple[Outcome, ...]:
    """Compare the store with what witnesses hold, without sending anything: the rollback guard.

    An outcome `cosigned` says that the witness holds a head of this very history.
    """
    deadline = time.monotonic() + timeout_s

    def look(group: Sequence[PolicyWitness]) -> _Lines:
        _judge(log, group, deadline)
        return dict.fromkeys(group, _NO_LINE)

    return tuple(
        _outcome(item, result)
        for group, result in _in_parallel(policy.witnesses, look)
        for item in group
    )


def _outcome(item: PolicyWitness, result: _Lines | AuditTrailError | _Alarm) -> Outcome:
    if isinstance(result, _Alarm):
        return Outcome(item.shown, "alarm", result.finding, result.head)
    if isinstance(result, AuditTrailError):
        return Outcome(item.shown, "pending", result)
    if item in result:
        return Outcome(item.shown, "cosigned")
    return Outcome(item.shown, "pending", LyingWitness("the reply has no line by this key"))


@dataclass(frozen=True)
class _Round:
    """One round of asking for cosignatures of one signed tree head."""

    log: StoredLog
    signed: SignedTreeHead
    held: Mapping[PolicyWitness, int | None]
    deadline: float
    clock: Callable[[], float]

    def ask(self, group: Sequence[PolicyWitness]) -> _Lines:
        """Send the head to one address, behind which are one or more keys."""
        url, size = group[0].url, self.signed.head.size
        old = min(size, *(self.held[item] or 0 for item in group))
        for _ in range(_ATTEMPTS):
            proof = self.log.prove_consistency(old, size) if old else ()
            body = encode_request(AddCheckpoint(old, proof, self.signed.note))
            answer = _ask_within(f"{url.rstrip('/')}/add-checkpoint", self.deadline, body)
            if answer.status == _OK:
                return self._verified(group, answer.body)
            if answer.status not in (_CONFLICT, _UNPROCESSABLE):
                raise WitnessRefused(f"the witness answered with status {answer.status}")
            said = _size_of(answer)
            if said is None or said == old or said > size:
                _judge(self.log, group, self.deadline)  # raises what the witness can prove
                claim = "another history" if said is None else f"a head of {said:,} entries"
                raise WitnessRefused(f"the witness says that it holds {claim}, unproven")
            old = said
        raise WitnessRefused("the witness names another size each time it is asked")

    def _verified(self, group: Sequence[PolicyWitness], body: bytes) -> _Lines:
        """Take the lines by the keys asked for, each of them verified; ignore all others."""
        try:
            lines, got = parse_reply(body), {}
            for item in group:
                wanted = (item.key.name, item.key.key_id)
                for line in lines:
                    if (line.name, line.key_id) == wanted:
                        got[item] = (line, self._time_of(item, line))
        except ProofError as error:
            raise LyingWitness(error.message) from error
        return got

    def _time_of(self, item: PolicyWitness, line: SignatureLine) -> int:
        time_s = verify_cosignature(item.key, self.signed.head, line.blob)
        if not 0 < time_s <= self.clock() + CLOCK_SKEW_S:
            raise LyingWitness(f"a cosignature by {item.key.name} is of time {time_s}, not of now")
        return time_s


# --- one thread for each address --------------------------------------------------------


def _in_parallel(
    witnesses: Iterable[PolicyWitness], ask_group: Callable[[Sequence[PolicyWitness]], _Lines]
) -> list[tuple[list[PolicyWitness], _Lines | AuditTrailError | _Alarm]]:
    """Ask each address for all of its keys; what goes wrong at one stops nobody else."""

    def guarded(group: list[PolicyWitness]) -> _Lines | AuditTrailError | _Alarm:
        if not group[0].url:
            return WitnessRefused("the policy gives no address for this witness")
        try:
            return ask_group(group)
        except (AuditTrailError, _Alarm) as error:
            return error

    by_url: dict[str, list[PolicyWitness]] = {}
    for item in witnesses:
        by_url.setdefault(item.url, []).append(item)
    groups = list(by_url.values())
    with ThreadPoolExecutor(min(_THREADS_MAX, len(groups) or 1), "witness") as pool:
        return list(zip(groups, pool.map(guarded, groups), strict=True))


def _ask_within(url: str, deadline: float, body: bytes | None = None) -> Answer:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise Unreachable("there was no time left to ask this witness", next_step="ask again later")
    most = max(MAX_REPLY_BYTES, MAX_NOTE_BYTES)
    return ask(url, body=body, timeout_s=left_s, answer_bytes_max=most)


def _size_of(answer: Answer) -> int | None:
    """Return the size that a refusal names; deployed witnesses answer a fork with 409, too."""
    if answer.status != _CONFLICT:
        return None
    try:
        return parse_size(answer.body)
    except MalformedBundle:
        return None


def held_head(log: StoredLog, url: str, *, timeout_s: float, peer: str) -> PeerHead | None:
    """Return the tree head of this log that a witness shows; None if it shows none.

    The witness's word alone proves nothing: a tree head that this log signed does.

    Args:
        log: whose origin is asked about, and whose keys must have signed.
        url: the witness's address.
        timeout_s: for the whole call.
        peer: what messages call the witness.

    Raises:
        Unreachable, BadAddress, WitnessRefused: no answer, or a refusal.
        LyingWitness: what it shows was not signed by this log.
    """
    address = f"{url.rstrip('/')}/{origin_hash(log.origin)}/checkpoint"
    answer = _ask_within(address, time.monotonic() + timeout_s)
    if answer.status == _NOT_FOUND:
        return None
    if answer.status != _OK:
        raise WitnessRefused(f"the witness answered with status {answer.status}")
    try:
        return open_own_head(log, answer.body, peer)
    except ProofError as error:
        raise LyingWitness(
            "the witness shows a tree head that this log did not sign", next_step=error.next_step
        ) from error


def size_cosigned(engine: Engine, log: StoredLog, witnesses: Iterable[PolicyWitness]) -> int:
    """Return the largest size that one of these keys is known to have cosigned, 0 for none."""
    with engine.connect() as connection:
        return max((_size_held(connection, log, item) or 0 for item in witnesses), default=0)


def _judge(log: StoredLog, group: Sequence[PolicyWitness], deadline: float) -> None:
    """Raise an alarm if what the witness holds contradicts the store."""
    left_s, name = deadline - time.monotonic(), f"witness {group[0].shown}"
    head = held_head(log, group[0].url, timeout_s=left_s, peer=name)
    if head is None:
        raise WitnessRefused("the witness shows no tree head of this log")
    try:
        judge(log, head)
    except (RolledBack, Forked) as finding:
        raise _Alarm(finding, head) from finding


# --- the store --------------------------------------------------------------------------


def _of(log: StoredLog, item: PolicyWitness) -> Any:
    columns = _COSIGNATURES.c
    return (
        (columns.log_number == log.number)
        & (columns.witness == item.key.name)
        & (columns.key_id == item.key.key_id.hex())
    )


def _size_held(connection: Connection, log: StoredLog, item: PolicyWitness) -> int | None:
    """Return the largest size that this witness cosigned for us; 0 is one, too."""
    query = select(func.max(_COSIGNATURES.c.tree_size)).where(_of(log, item))
    size = connection.scalar(query)
    return None if size is None else int(size)


def _store(engine: Engine, log: StoredLog, size: int, got: _Lines) -> None:
    """Keep each key's first line for this head; another process may have asked as well."""
    rows = [
        {"log_number": log.number, "tree_size": size, "witness": line.name,
         "key_id": line.key_id.hex(), "vkey": str(item.key), "blob": line.blob,
         "cosigned_at_s": time_s}
        for item, (line, time_s) in got.items()
    ]  # fmt: skip
    if rows:
        transact(engine, lambda connection: insert_missing(connection, _COSIGNATURES, rows))
