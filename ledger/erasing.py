"""Erasing: a person's secret and sealed values are destroyed, and every proof stays.

In this order, each step durable before the next: the journal says what is to be erased; under
the lock by which all logs give out indices, the secret goes and the count of erasures grows,
so that no writer seals under it any more; sealed values go, some tiles at a time, each time
with an entry in the registry log that counts them; the files are cleansed; the journal forgets.
Killed anywhere, the next `Ledger.open` goes on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, Engine, select, update

from rlhf_audit_trail.ledger.appending import Log
from rlhf_audit_trail.ledger.erasure_journal import ErasureJournal, PendingErasure
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.cleansing import cleanse
from rlhf_audit_trail.ledger.store.database import transact
from rlhf_audit_trail.ledger.store.entries import FILED_ENTRIES, unfile_subjects
from rlhf_audit_trail.ledger.vault import Vault

__all__ = ["ERASED_KIND", "Eraser", "Erasure"]

ERASED_KIND: Final = "subject.erased"
_TILES_AT_ONCE: Final = 64  # 16,384 entries: a transaction of a fraction of a second
_LOGS = models.LogRow.__table__  # type: ignore[attr-defined]
_VAULT = models.VaultRow.__table__  # type: ignore[attr-defined]
_SUBJECTS = models.SubjectTileRow.__table__  # type: ignore[attr-defined]


@dataclass
class Erasure:
    """What an erasure has done, in this process.

    Attributes:
        subject: the tag of whoever was erased.
        entries: run id to the number of entries whose sealed values were destroyed.
        is_secret_destroyed: whether the subject's secret was to go, too.
        leftovers: places where destroyed bytes may still be, in words.
    """

    subject: bytes = field(repr=False)
    entries: dict[str, int] = field(default_factory=dict)
    is_secret_destroyed: bool = False
    leftovers: list[str] = field(default_factory=list)


class Eraser:
    """Erases subjects from the vault of one ledger; safe beside writers in other processes."""

    def __init__(self, engine: Engine, vault: Vault, registry: Log) -> None:
        """Erase from the database `engine` and the secrets of `vault`; tell `registry`."""
        self._engine = engine
        self._vault = vault
        self._registry = registry
        self._journal = ErasureJournal(vault.keys)

    def erase(self, subject: bytes, *, run_id: str = "", basis: str) -> Erasure:
        """Erase what is stored about a subject.

        Args:
            subject: its tag.
            run_id: only what is in this run, and not the secret.
            basis: why, for the public registry log; names nobody.

        Raises:
            RolledBack, Forked: this store is not the newest copy; nothing was done.
            StoreError: a database failed; `finish` goes on with what was begun.
        """
        self._registry.require_writable()
        item = PendingErasure(subject, run_id, basis)
        self._journal.begin(item)
        return self._finish(item)

    def finish(self) -> list[Erasure]:
        """Complete what a process that ended before has left undone."""
        pending = self._journal.pending()  # mostly none, and this is all
        if pending:
            self._registry.require_writable()
        return [self._finish(item) for item in pending]

    def _finish(self, item: PendingErasure) -> Erasure:
        done = Erasure(item.subject, is_secret_destroyed=not item.run_id)
        decided = transact(self._engine, lambda connection: self._decide(connection, item))
        if decided is None:  # another process was first, and is through
            return done
        self._vault.heed(decided.erasures)
        for number, size in sorted((decided.limits or {}).items()):
            self._erase_values(decided, number, size, done)
        self._cleanse(done)
        if not done.leftovers:  # else the next start tries again
            nameless = self._journal.forget_whom(decided)
            self._cleanse(done)
            if not done.leftovers:
                self._journal.end(nameless)
        return done

    # --- deciding -----------------------------------------------------------------------

    def _decide(self, connection: Connection, item: PendingErasure) -> PendingErasure | None:
        """Destroy the secret while nobody can append, and have all writers notice."""
        self._registry.hold(connection)
        columns = (_LOGS.c.number, _LOGS.c.run_id, _LOGS.c.size, _LOGS.c.erasures)
        logs = connection.execute(select(*columns).order_by(_LOGS.c.number).with_for_update()).all()
        erasures = max(row.erasures for row in logs)
        known = self._journal.again(item)
        if known is None or (known.limits is not None and erasures >= known.erasures):
            return known
        limits = {row.number: row.size for row in logs if item.run_id in ("", row.run_id)}
        decided = self._journal.decide(known, limits, erasures + 1)
        connection.execute(update(_LOGS).values(erasures=erasures + 1))
        return decided

    # --- values -------------------------------------------------------------------------

    def _erase_values(self, item: PendingErasure, number: int, size: int, done: Erasure) -> None:
        """Destroy a subject's sealed values below `size` in one log, and count them."""
        filed = _SUBJECTS.c
        query = select(filed.tile_index).where(
            filed.log_number == number,
            filed.subject == item.subject,
            filed.tile_index < -(-size // FILED_ENTRIES),
        )
        with self._engine.connect() as connection:
            tiles = list(connection.scalars(query.order_by(filed.tile_index)))
            run_id = str(connection.scalar(select(_LOGS.c.run_id).where(_LOGS.c.number == number)))
        for begin in range(0, len(tiles), _TILES_AT_ONCE):
            some = tiles[begin : begin + _TILES_AT_ONCE]

            def work(connection: Connection, some: Sequence[int] = some) -> int:
                return self._erase_tiles(connection, item, (number, run_id, size), some)

            count = transact(self._engine, work)
            if count:
                done.entries[run_id] = done.entries.get(run_id, 0) + count

    def _erase_tiles(
        self,
        connection: Connection,
        item: PendingErasure,
        place: tuple[int, str, int],
        tiles: Sequence[int],
    ) -> int:
        number, run_id, size = place
        self._registry.hold(connection)
        connection.execute(select(_LOGS.c.size).where(_LOGS.c.number == number).with_for_update())
        sealed, count = _VAULT.c, 0
        theirs = (sealed.log_number == number) & (sealed.subject == item.subject)
        for tile_index in tiles:
            first, end = tile_index * FILED_ENTRIES, (tile_index + 1) * FILED_ENTRIES
            inside = sealed.leaf_index.between(first, min(end, size) - 1)
            emptied = update(_VAULT).where(theirs, inside).values(subject=b"", ciphertext=b"")
            count += connection.execute(emptied).rowcount
        unfile_subjects(connection, number, tiles)
        if count:
            fields: dict[str, Any] = {"run": run_id, "entries": count, "basis": item.basis}
            self._registry.enter(connection, [Event(ERASED_KIND, fields)])
        return count

    def _cleanse(self, done: Erasure) -> None:
        # the secrets lie in a small database, which is written anew; ciphertexts that a page of
        # the large one may keep beside its rows are nothing without them
        found = [
            cleanse(self._engine, "vault", "subject_tile", is_whole=False),
            cleanse(self._vault.keys, "subject_key", "erasure", is_whole=True),
        ]
        done.leftovers = [place for place in found if place]
