"""Rotating the operator's keys: a new generation signs beside the old one, later alone.

One log after the other changes, each in one transaction: the registry log says so, the log
itself says so, and a tree head that holds it is signed, by old and new keys together. So
every state that a crash can leave is a sound one, and calling again goes on from there: the
store says what is done. The new secret is in its file before the store names its keys.

The registry log turns first when keys are added, and last when they are taken away: what
the others do is always covered by what it has said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.keyring import KeysChanged
from rlhf_audit_trail.ledger.log import REGISTRY, Ledger, Log
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.proof.tree_head import SignedTreeHead
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.database import transact
from rlhf_audit_trail.ledger.succession import RETIRED, ROTATED, Succession

__all__ = ["KeyChange", "NothingToRetire", "retire", "rotate"]

_LOGS = models.LogRow.__table__  # type: ignore[attr-defined]

_Turn = Callable[[Connection, Log], Event | None]


class NothingToRetire(AuditTrailError):
    """The keys were never rotated: without them nothing could be signed."""


@dataclass(frozen=True)
class KeyChange:
    """What a call has done, and how the keys stand now.

    Attributes:
        generation: number of the newest generation.
        is_overlapping: whether the one before it signs as well.
        runs: logs whose keys this call has changed; none if an earlier call had done it all.
        key_files: files with public keys of all logs, as auditors should get them now.
    """

    generation: int
    is_overlapping: bool
    runs: tuple[str, ...]
    key_files: tuple[Path, ...]


def rotate(ledger: Ledger) -> KeyChange:
    """Make a new secret, and have its keys sign every open log, together with the old ones.

    While the generations overlap, nothing new begins: a rotation that was interrupted is
    finished. Closed runs keep the keys with which they were closed.

    Raises:
        RolledBack, Forked, PeersUnreachable: as `Log.publish`; calling again goes on.
        BadKeyFile: the new secret cannot be written, or one is there that cannot be used.
    """
    seen = _look(ledger)
    if not seen.is_overlapping:
        ledger.registry.require_publishable()
        ledger.key_ring.secrets.prepare(seen.generation + 1)
    turned = _turn_all(ledger, [REGISTRY, *ledger.runs()], _rotation)
    ledger.registry.publish()  # its head covers what it says about the runs
    return _changed(ledger, turned)


def retire(ledger: Ledger) -> KeyChange:
    """Have the old generation sign no more; its secret stays where it is, for the vault.

    An auditor who has only the old keys finds the new ones by the entries in between:
    `rlhf-audit keys trace`.

    Raises:
        NothingToRetire: there is but one generation.
        RolledBack, Forked, PeersUnreachable: as `Log.publish`; calling again goes on.
    """
    seen = _look(ledger)
    if seen.generation == 1:
        raise NothingToRetire(
            "the keys were never rotated", next_step="run first: rlhf-audit keys rotate"
        )
    turned: list[str] = []
    if seen.is_overlapping:
        rotate(ledger)  # what an interrupted one has left
        turned = _turn_all(ledger, [*ledger.runs(), REGISTRY], _retirement)
    return _changed(ledger, turned)


def _look(ledger: Ledger) -> Succession:
    with ledger.engine.connect() as connection:
        return ledger.key_ring.look(connection)


def _changed(ledger: Ledger, runs: list[str]) -> KeyChange:
    seen = _look(ledger)
    files = [ledger.write_key_file(run, known) for run, known in seen.histories.items()]
    return KeyChange(seen.generation, seen.is_overlapping, tuple(runs), tuple(files))


def _turn_all(ledger: Ledger, runs: list[str], turn: _Turn) -> list[str]:
    """Change the keys of logs in this order; return those for which there was something to do."""
    return [run for run in runs if _turn(ledger, ledger.find(run), turn)]


def _turn(ledger: Ledger, log: Log, turn: _Turn) -> bool:
    """Have both logs say how a log's keys change, and sign it, in one transaction."""

    def needed(connection: Connection) -> Event | None:
        is_closed = connection.scalar(select(_LOGS.c.closed).where(_LOGS.c.number == log.number))
        return None if is_closed else turn(connection, log)

    def work(connection: Connection) -> bool:
        registry = ledger.registry
        registry.lock(connection)  # the registry log always first, as everywhere
        log.lock(connection)
        event = needed(connection)
        if event is None:
            return False
        registry.enter(connection, [event])
        if log is not registry:
            log.enter(connection, [event])
        log.sign_within(connection)
        return True

    with ledger.engine.connect() as connection:
        if needed(connection) is None:  # no peer need be asked
            return False
    log.require_publishable()
    is_turned = transact(ledger.engine, work)
    log.tell_signed()
    return is_turned


def _rotation(connection: Connection, log: Log) -> Event | None:
    """Return the event that adds the newest generation's keys to a log that has not got them."""
    seen = log.key_ring.ring.look(connection)
    generation = seen.generation + (log.run_id == REGISTRY and not seen.is_overlapping)
    history = seen.histories.get(log.run_id)  # a run that is not announced begins with them
    if history is None or generation in history.eras[-1].generations:
        return None
    new = log.key_ring.ring.derive(generation, log.run_id)
    fields: dict[str, Any] = {"run": log.run_id, "origin": log.origin, "generation": generation}
    fields |= {"old_keys": _texts(history.now), "new_keys": _texts(new.verifier_keys)}
    return Event(ROTATED, fields | {"from_size": _next_size(log.last_signed(connection))})


def _retirement(connection: Connection, log: Log) -> Event | None:
    """Return the event that takes the old generation's keys from a log that still has them."""
    seen = log.key_ring.ring.look(connection)
    history = seen.histories.get(log.run_id)
    if not seen.is_overlapping or history is None:
        return None
    *old, newest = history.eras[-1].generations
    if not old:
        return None
    if log.run_id == REGISTRY:
        _require_alone(connection, seen)
    left = log.key_ring.ring.derive(newest, log.run_id).verifier_keys
    fields: dict[str, Any] = {"run": log.run_id, "origin": log.origin, "generation": newest - 1}
    fields |= {"old_keys": _texts(key for key in history.now if key not in left)}
    # signed when the keys were added, at the latest: by both, and holding the entry that says so
    signed = log.last_signed(connection)
    fields |= {"from_size": _next_size(signed)}
    return Event(RETIRED, fields | {"tree_head": str(signed.note) if signed else ""})


def _require_alone(connection: Connection, seen: Succession) -> None:
    """Make sure that no open run still needs the old keys."""
    is_open = set(connection.scalars(select(_LOGS.c.run_id).where(_LOGS.c.closed.is_(False))))
    for run, history in seen.histories.items():
        if run != REGISTRY and run in is_open and len(history.eras[-1].generations) > 1:
            raise KeysChanged(f"run {run} still has two generations of keys", next_step="try again")


def _next_size(signed: SignedTreeHead | None) -> int:
    """Return the smallest tree size that was not signed yet."""
    return 0 if signed is None else signed.head.size + 1


def _texts(keys: Iterable[VerifierKey]) -> list[str]:
    return [str(key) for key in keys]
