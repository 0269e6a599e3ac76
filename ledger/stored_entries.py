"""Reading a stored log's entries: their bytes, their kinds, and what they seal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Engine, and_, func, select

from rlhf_audit_trail.ledger.contradictions import Forked
from rlhf_audit_trail.ledger.proof.commitment import Opening
from rlhf_audit_trail.ledger.proof.merkle import (
    leaf_hash,
)
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.proof.tree_head import log_id
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.database import fetch_first
from rlhf_audit_trail.ledger.store.entries import newest_of_kinds, spans_of_kinds
from rlhf_audit_trail.ledger.stored_entry import (
    EntryMissing,
    Pruned,
    SealedEntry,
    StoredEntry,
)
from rlhf_audit_trail.ledger.stored_tree import StoredTree
from rlhf_audit_trail.ledger.succession import KeyHistory
from rlhf_audit_trail.ledger.vault import Erased, Vault

__all__ = ["StoredEntries", "place_of"]

_PAGE_ROWS: Final = 1_000
_LOGS = models.LogRow.__table__  # type: ignore[attr-defined]
_ENTRIES = models.EntryRow.__table__  # type: ignore[attr-defined]
_READ = (_ENTRIES.c.leaf_index, _ENTRIES.c.writer_id, _ENTRIES.c.seq, _ENTRIES.c.data)
_VAULT = models.VaultRow.__table__  # type: ignore[attr-defined]


class StoredEntries:
    """The entries of one log as the store holds them; safe to share between threads."""

    def __init__(self, engine: Engine, vault: Vault, number: int, history: KeyHistory) -> None:
        """Read the log whose row has this `number`, and whose keys are these."""
        self.number = number
        self.origin = history.origin
        self._history = history
        self._engine = engine
        self._vault = vault
        self._stored_tree = StoredTree(engine, number, history.origin)
        self._entry_at: Callable[[int], bytes] | None = None

    @property
    def key_history(self) -> KeyHistory:
        """The log's public keys through all rotations, as they stood at the last look."""
        return self._history

    @property
    def verifier_keys(self) -> tuple[VerifierKey, ...]:
        """The public keys that sign the next tree head; see `keys_now`.

        Ed25519, then ML-DSA-44; in the overlap of a rotation the old ones before the new.
        """
        return self._history.now

    @property
    def log_id(self) -> bytes:
        """The 32 bytes that name this log on chain: by its first key, whatever came after."""
        return log_id(self._history.first[0])

    def keys_now(self) -> tuple[VerifierKey, ...]:
        """Look in the store which keys sign the next tree head."""
        with self._engine.connect() as connection:
            return self._look(connection).now

    def keys_at(self, tree_size: int) -> tuple[VerifierKey, ...]:
        """Look in the store which keys must have signed a tree head of this size."""
        with self._engine.connect() as connection:
            return self._look(connection).at(tree_size)

    def later_keys(self) -> tuple[VerifierKey, ...]:
        """Return keys that are the log's, too, though the store does not know of them yet."""
        return ()

    def _look(self, connection: Connection) -> KeyHistory:
        """Return the log's keys as this transaction sees them."""
        del connection  # read once, they are what they were
        return self._history

    @property
    def size(self) -> int:
        """Number of durable entries."""
        row = fetch_first(self._engine, "SELECT size FROM log WHERE number = ?", (self.number,))
        return 0 if row is None else int(row[0])

    # --- read -------------------------------------------------------------------------

    def read(self, leaf_index: int) -> StoredEntry:
        """Return one entry.

        Raises:
            EntryMissing: the log is shorter.
            Pruned: its bytes are in an archive.
        """
        found = next(self.entries(leaf_index, leaf_index + 1), None)
        if found is None:
            raise EntryMissing(f"{self.origin} has no entry {leaf_index:,}")
        return found

    def leaf_at(self, leaf_index: int) -> bytes:
        """Return an entry's leaf hash, which stays when its bytes are pruned.

        Raises:
            Forked: the log is shorter, or the row is damaged.
        """
        with self._engine.connect() as connection:
            return self._stored_tree.leaves(connection, leaf_index, 1)

    @property
    def archive(self) -> str:
        """Where the bytes of pruned entries went; empty if none were."""
        query = select(_LOGS.c.archive).where(_LOGS.c.number == self.number)
        with self._engine.connect() as connection:
            return str(connection.scalar(query) or "")

    def read_pruned_from(self, entry_at: Callable[[int], bytes]) -> None:
        """Have entries that were pruned read from an archive, by leaf index, and compared."""
        self._entry_at = entry_at

    def _archived(self, leaf_index: int) -> bytes:
        if self._entry_at is None:
            raise Pruned(self.origin, self.archive)
        data = self._entry_at(leaf_index)
        if leaf_hash(data) != self.leaf_at(leaf_index):
            raise Forked(
                f"{self.origin}: the archive's entry {leaf_index:,} is not the one that was pruned",
                next_step="find another copy of the archive; the registry log has its digest",
            )
        return data

    def entries(
        self, start: int = 0, stop: int | None = None, *, kind: str = ""
    ) -> Iterator[StoredEntry]:
        """Yield entries in index order, `start <= leaf_index < stop`, of one kind if given.

        Raises:
            Pruned: the bytes of one of them are in an archive.
        """
        for where in self._pages(start, stop, kind):
            query = select(*_READ).where(where).order_by(_ENTRIES.c.leaf_index)
            with self._engine.connect() as connection:
                rows = connection.execute(query).all()
            for row in rows:
                data = bytes(row.data) or self._archived(row.leaf_index)
                yield StoredEntry(row.leaf_index, row.writer_id, row.seq, data)

    def _pages(self, start: int, stop: int | None, kind: str) -> Iterator[ColumnElement[bool]]:
        """Yield what selects some entries at a time; in the end, all that were asked for."""
        if kind:
            with self._engine.connect() as connection:
                pages = spans_of_kinds(connection, self.number, (kind,), start=start, stop=stop)
                yield from list(pages)
            return
        columns = _ENTRIES.c
        with self._engine.connect() as connection:
            query = select(func.max(columns.leaf_index)).where(columns.log_number == self.number)
            newest = connection.scalar(query)
        end = 0 if newest is None else int(newest) + 1
        for begin in range(start, end if stop is None else min(stop, end), _PAGE_ROWS):
            last = min(begin + _PAGE_ROWS, end if stop is None else stop) - 1
            yield and_(columns.log_number == self.number, columns.leaf_index.between(begin, last))

    def newest(self, kind: str) -> StoredEntry | None:
        """Return the last entry of a kind, None if there is none.

        Raises:
            Pruned: its bytes are in an archive.
        """
        with self._engine.connect() as connection:
            row = newest_of_kinds(connection, _READ, self.number, (kind,))
        if row is None:
            return None
        data = bytes(row.data) or self._archived(row.leaf_index)
        return StoredEntry(row.leaf_index, row.writer_id, row.seq, data)

    def openings(self, leaf_index: int) -> list[Opening]:
        """Open an entry's sealed values; an entry without any gives an empty list.

        Raises:
            EntryMissing, Erased, VaultDamaged.
        """
        entry = self.read(leaf_index)
        with self._engine.connect() as connection:
            return self._openings(connection, leaf_index, entry.writer_id, entry.seq)

    def _openings(
        self, connection: Connection, leaf_index: int, writer_id: str, seq: int
    ) -> list[Opening]:
        row = connection.execute(
            select(_VAULT.c.subject, _VAULT.c.ciphertext, _LOGS.c.erasures)
            .join(_LOGS, _LOGS.c.number == _VAULT.c.log_number)
            .where(_VAULT.c.log_number == self.number, _VAULT.c.leaf_index == leaf_index)
        ).first()
        if row is None:
            return []
        self._vault.heed(row.erasures)
        if not row.ciphertext:
            raise Erased("these values were erased and cannot be opened any more")
        place = place_of(writer_id, seq)
        return self._vault.unseal(bytes(row.subject), bytes(row.ciphertext), self.origin, place)

    def opened(self, leaf_index: int) -> dict[str, Any]:
        """Return an entry's sealed values, decoded; the operator's view."""
        return {item.path: json.loads(item.value) for item in self.openings(leaf_index)}

    def sealed_entries(self, start: int, stop: int, *, kind: str) -> Iterator[SealedEntry]:
        """Yield entries of a kind with what they seal, page by page; the operator's view.

        Raises:
            VaultDamaged: a vault row is not what was sealed.
            Pruned: the bytes of one of them are in an archive.
        """
        join = (_VAULT.c.log_number == _ENTRIES.c.log_number) & (
            _VAULT.c.leaf_index == _ENTRIES.c.leaf_index
        )
        columns = (*_READ, _VAULT.c.subject, _VAULT.c.ciphertext, _LOGS.c.erasures)
        tables = _ENTRIES.join(_LOGS, _LOGS.c.number == _ENTRIES.c.log_number)
        query = select(*columns).select_from(tables.outerjoin(_VAULT, join))
        for where in self._pages(start, stop, kind):
            with self._engine.connect() as connection:
                rows = connection.execute(query.where(where).order_by(_ENTRIES.c.leaf_index)).all()
            for row in rows:
                self._vault.heed(row.erasures)
                data = bytes(row.data) or self._archived(row.leaf_index)
                yield self._unsealed(row, json.loads(data))

    def _unsealed(self, row: Any, event: dict[str, Any]) -> SealedEntry:
        """Open the vault row beside an entry; None for values that were erased, or are not here."""
        index, tag = int(row.leaf_index), bytes(row.subject or b"")
        if not row.ciphertext:
            return SealedEntry(index, event, tag, {} if "c" not in event else None)
        place = place_of(row.writer_id, row.seq)
        try:
            found = self._vault.unseal(tag, bytes(row.ciphertext), self.origin, place)
        except Erased:
            return SealedEntry(index, event, tag, None)
        return SealedEntry(index, event, tag, {x.path: json.loads(x.value) for x in found})

    def account_of(self, tag: bytes) -> bytes:
        """Return under which account the budget of a subject, given by its tag, is kept."""
        return self._vault.account_of(tag)

    def pseudonym_of(self, subject: str) -> str | None:
        """Return a person's name in this log; None if the vault knows no such person."""
        known = self._vault.known(subject, self.origin)
        return None if known is None else str(json.loads(known.pseudonym))

    # --- the store ----------------------------------------------------------------------

    def _size(self, connection: Connection, *, lock: bool = False) -> int:
        query = select(_LOGS.c.size).where(_LOGS.c.number == self.number)
        return int(connection.scalar(query.with_for_update() if lock else query) or 0)


def place_of(writer_id: str, seq: int) -> bytes:
    """Return what binds a vault row to its entry before the index is known, 24 bytes."""
    return bytes.fromhex(writer_id) + seq.to_bytes(8, "big")
