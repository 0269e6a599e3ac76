"""The operator's keys as the registry log says that they sign now.

Which generation signs is decided by entries in the store, never by files beside it: several
processes and machines share the store, and each looks there, in the same transaction in
which it signs. What the entries name must be what our own secrets give, so who can write the
store, but has no secret, can stop us from signing and make us sign nothing.
"""

from __future__ import annotations

import json
from itertools import chain, count, takewhile
from typing import Any, NamedTuple

from sqlalchemy import Connection, select

from rlhf_audit_trail.ledger.contradictions import Forked
from rlhf_audit_trail.ledger.keys import BadKeyFile, LogKeys, OperatorSecrets
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError, ProofError
from rlhf_audit_trail.ledger.proof.merkle import leaf_hash
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.entries import newest_of_kinds, spans_of_kinds
from rlhf_audit_trail.ledger.succession import (
    KEY_KINDS,
    OPENED,
    REGISTRY,
    KeyHistory,
    Succession,
)

__all__ = ["KeyRing", "KeysChanged", "LogKeyRing", "RetiredKey", "WrongKey", "read_succession"]

_LOGS = models.LogRow.__table__  # type: ignore[attr-defined]
_ENTRIES = models.EntryRow.__table__  # type: ignore[attr-defined]
_REGISTRY_NUMBER = select(_LOGS.c.number).where(_LOGS.c.run_id == REGISTRY).scalar_subquery()


class WrongKey(BadKeyFile):
    """A secret gives other keys than the registry log names."""


class RetiredKey(AuditTrailError):
    """Only keys that were retired could sign this."""


class KeysChanged(AuditTrailError):
    """The keys were rotated or retired meanwhile; what was prepared does not fit any more."""


def read_succession(
    connection: Connection, succession: Succession, first_index: int = 0
) -> Succession:
    """Take what the stored registry log says about keys from an index on; return what was given.

    Raises:
        Forked: a stored entry is not the one that was hashed.
        Inconsistent, MalformedBundle: the entries contradict each other.
    """
    columns = _ENTRIES.c
    query = select(columns.leaf_index, columns.data, columns.leaf_hash).order_by(columns.leaf_index)
    kinds = (OPENED, *KEY_KINDS)
    spans = spans_of_kinds(connection, _REGISTRY_NUMBER, kinds, start=first_index)
    for row in chain.from_iterable(connection.execute(query.where(span)) for span in spans):
        data = bytes(row.data)
        if leaf_hash(data) != bytes(row.leaf_hash):
            raise Forked(
                f"{succession.origin}: entry {row.leaf_index:,} is not the one that was hashed",
                next_step="run rlhf-audit fsck, then restore it from a backup or mirror",
            )
        record: dict[str, Any] = json.loads(data)
        succession.see(row.leaf_index, record)
    return succession


class _Newest(NamedTuple):
    """The newest entry about keys; no two have the same hash, since each has a writer's id."""

    leaf_index: int
    leaf_hash: bytes


class KeyRing:
    """The keys of all logs of one ledger; safe to share between threads.

    It holds no lock, which a forked child could inherit locked: what is found is exchanged
    in one assignment, and finding it twice does no harm.
    """

    def __init__(self, secrets: OperatorSecrets, organisation: str) -> None:
        """Derive keys from `secrets`; nothing is read yet."""
        self.secrets = secrets
        self._organisation = organisation
        self._seen: tuple[_Newest | None, Succession] = (None, self._begin())
        self._derived: dict[tuple[int, str], LogKeys] = {}

    def origin(self, run_id: str) -> str:
        """Return the origin of a run's log."""
        return f"{self._organisation}/rlhf/{run_id}"

    def of(self, run_id: str) -> LogKeyRing:
        """Return the keys of one log."""
        return LogKeyRing(self, run_id)

    def derive(self, generation: int, run_id: str) -> LogKeys:
        """Return a log's keys of one generation; raises BadKeyFile without its secret."""
        origin = self.origin(run_id)
        known = self._derived.get((generation, origin))
        if known is None:
            known = LogKeys.derive(self.secrets.of(generation), origin)
            self._derived[generation, origin] = known
        return known

    def seen(self) -> Succession:
        """Return what was found at the last look, to be read only."""
        return self._seen[1]

    def look(self, connection: Connection) -> Succession:
        """Return what the registry log says about keys in this transaction, to be read only.

        Raises:
            WrongKey: it began with other keys than our secret gives.
            Forked: its entries contradict each other.
        """
        seen, succession = self._seen
        newest = self._newest_entry(connection)
        if newest != seen:
            succession = self._read(connection)
            self._seen = newest, succession
        return succession

    def later_keys(self, run_id: str) -> tuple[VerifierKey, ...]:
        """Return a log's keys of generations that our secrets have, and the store does not name.

        There are some where an older copy of the store is in place than the secrets beside it,
        and while a rotation is prepared. Raises BadKeyFile if a secret is there, but unusable.
        """
        later = count(self.seen().generation + 1)
        there = takewhile(lambda generation: self.secrets.path(generation).exists(), later)
        return tuple(key for item in there for key in self.derive(item, run_id).verifier_keys)

    def require_newest(self, connection: Connection, generation: int) -> None:
        """Raise KeysChanged if there is a newer generation of keys than this one."""
        if self.look(connection).generation != generation:
            raise KeysChanged(
                "the keys were rotated or retired meanwhile", next_step="open the run again"
            )

    def _newest_entry(self, connection: Connection) -> _Newest | None:
        columns = (_ENTRIES.c.leaf_index, _ENTRIES.c.leaf_hash)
        row = newest_of_kinds(connection, columns, _REGISTRY_NUMBER, tuple(KEY_KINDS))
        return None if row is None else _Newest(row.leaf_index, bytes(row.leaf_hash))

    def _begin(self) -> Succession:
        origin = self.origin(REGISTRY)
        first = LogKeys.derive(self.secrets.first, origin)
        return Succession.begin(origin, first.verifier_keys)

    def _read(self, connection: Connection) -> Succession:
        """Read on from what was seen, or from the beginning if that is not there."""
        seen, known = self._seen
        try:
            if seen is None or not self._is_there(connection, seen):
                return read_succession(connection, self._begin())
            return read_succession(connection, known.copy(), seen.leaf_index + 1)
        except ProofError as error:
            raise WrongKey(
                f"what the registry log says about keys does not fit {self.secrets.path(1)}: "
                f"{error.message}",
                next_step="use the operator keys of this ledger; if they are, run rlhf-audit fsck",
            ) from error

    @staticmethod
    def _is_there(connection: Connection, seen: _Newest) -> bool:
        """Whether this transaction sees the entry: it may be older, or the other rolled back."""
        columns = _ENTRIES.c
        query = select(columns.leaf_hash).where(
            columns.log_number == _REGISTRY_NUMBER, columns.leaf_index == seen.leaf_index
        )
        found = connection.scalar(query)
        return found is not None and bytes(found) == seen.leaf_hash


class LogKeyRing:
    """One log's keys: who must have signed what, and who signs next."""

    def __init__(self, ring: KeyRing, run_id: str) -> None:
        """Use `KeyRing.of` instead."""
        self.ring = ring
        self.run_id = run_id

    @property
    def history(self) -> KeyHistory:
        """The log's keys, as found at the last look."""
        return self._history(self.ring.seen())

    def look(self, connection: Connection) -> KeyHistory:
        """Return the log's keys as this transaction sees them; raises as `KeyRing.look`."""
        return self._history(self.ring.look(connection))

    def signers(self, connection: Connection) -> tuple[LogKeys, ...]:
        """Return the keys that must sign the log's next tree head, together.

        Raises:
            KeyMissing, BadKeyFile: a secret is not on this machine, or unusable.
            WrongKey: it gives other keys than the registry log names.
            RetiredKey: the log has none but retired keys.
        """
        succession = self.ring.look(connection)
        era = self._history(succession).eras[-1]
        if not set(era.generations) <= set(succession.generations):
            raise RetiredKey(
                f"the keys of {self.ring.origin(self.run_id)} were retired",
                next_step="run rlhf-audit fsck: its registry log entries are incomplete",
            )
        signers = tuple(self.ring.derive(item, self.run_id) for item in era.generations)
        if tuple(key for item in signers for key in item.verifier_keys) != era.keys:
            paths = ", ".join(self.ring.secrets.path(item).name for item in era.generations)
            raise WrongKey(
                f"{paths}: not the keys that the registry log names for run {self.run_id}",
                next_step="copy the operator keys from the machine that rotated them",
            )
        return signers

    def _history(self, succession: Succession) -> KeyHistory:
        known = succession.histories.get(self.run_id)
        if known is not None:
            return known
        # not announced yet, or nothing was ever rotated and the announcements were not read
        keys = self.ring.derive(succession.generation, self.run_id)
        return KeyHistory.begin(keys.origin, keys.verifier_keys, succession.generation)
