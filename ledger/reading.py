"""Reading a stored log: entries, opened values, proofs, signed tree heads, bundles."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Engine, and_, func, select

from rlhf_audit_trail.ledger.contradictions import Forked, RolledBack
from rlhf_audit_trail.ledger.proof.bundle import AnchoredHead, Bundle, BundledEntry, encode_bundle
from rlhf_audit_trail.ledger.proof.commitment import Opening
from rlhf_audit_trail.ledger.proof.merkle import (
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    root_from_nodes,
)
from rlhf_audit_trail.ledger.proof.note import Note, SignatureLine, VerifierKey
from rlhf_audit_trail.ledger.proof.tree_head import SignedTreeHead, log_id, open_tree_head
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.database import fetch_first
from rlhf_audit_trail.ledger.store.entries import newest_of_kinds, spans_of_kinds
from rlhf_audit_trail.ledger.stored_entry import (
    AnchorView,
    EntryMissing,
    NeverOpened,
    NotPublished,
    NotSealed,
    Pruned,
    SealedEntry,
    StoredEntry,
)
from rlhf_audit_trail.ledger.stored_tree import StoredTree
from rlhf_audit_trail.ledger.succession import KeyHistory
from rlhf_audit_trail.ledger.vault import Erased, Vault

__all__ = [
    "AnchorView",
    "EntryMissing",
    "Forked",
    "NotPublished",
    "NotSealed",
    "Pruned",
    "RolledBack",
    "SealedEntry",
    "StoredEntry",
    "StoredLog",
    "place_of",
]

_PAGE_ROWS: Final = 1_000
# a round's secret gives all its noise away, and accounts are the same people's in every run
_NEVER_OPENED: Final = frozenset({"secret", "accounts"})
_LOGS = models.LogRow.__table__  # type: ignore[attr-defined]
_ENTRIES = models.EntryRow.__table__  # type: ignore[attr-defined]
_READ = (_ENTRIES.c.leaf_index, _ENTRIES.c.writer_id, _ENTRIES.c.seq, _ENTRIES.c.data)
_TILES = models.HashTileRow.__table__  # type: ignore[attr-defined]
_HEADS = models.TreeHeadRow.__table__  # type: ignore[attr-defined]
_COSIGNATURES = models.CosignatureRow.__table__  # type: ignore[attr-defined]
_ANCHORS = models.AnchorRow.__table__  # type: ignore[attr-defined]
_VAULT = models.VaultRow.__table__  # type: ignore[attr-defined]


class StoredLog:
    """One log as the store holds it; safe to share between threads."""

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

    # --- prove ------------------------------------------------------------------------

    def root_at(self, tree_size: int) -> bytes:
        """Return the root of the first `tree_size` entries."""
        return root_from_nodes(tree_size, self._stored_tree.proving.node)

    def prove_inclusion(self, leaf_index: int, tree_size: int) -> tuple[bytes, ...]:
        """Return the inclusion proof; `0 <= leaf_index < tree_size <= size`."""
        return inclusion_proof(leaf_index, tree_size, self._stored_tree.proving.node)

    def prove_consistency(self, old_size: int, new_size: int) -> tuple[bytes, ...]:
        """Return the consistency proof; `1 <= old_size <= new_size <= size`."""
        return consistency_proof(old_size, new_size, self._stored_tree.proving.node)

    def anchors(self) -> list[AnchorView]:
        """Return the log's anchors, dropped ones left out, in growing tree size."""
        columns = _ANCHORS.c
        query = select(_ANCHORS).where(columns.log_number == self.number)
        query = query.where(columns.state != "dropped").order_by(columns.tree_size, columns.id)
        with self._engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
        names = AnchorView.__dataclass_fields__
        return [AnchorView(**{name: row[name] for name in names}) for row in rows]

    def anchored_sizes(self) -> list[int]:
        """Return the tree sizes that were seen in a block, growing."""
        return sorted({item.tree_size for item in self.anchors() if item.state != "pending"})

    def hash_tile(self, level: int, tile_index: int, width: int) -> bytes:
        """Return the first `width` hashes of a tile, for the tile endpoints."""
        return self._stored_tree.proving.hashes(level, tile_index, width)

    def bundle(
        self,
        indices: Iterable[int],
        *,
        opened: Iterable[str] = (),
        anchored_sizes: Iterable[int] = (),
        chain: bytes = b"",
    ) -> bytes:
        """Make a bundle for entries under the newest signed tree head.

        Args:
            indices: leaf indices.
            opened: names of sealed fields to disclose; values then travel in the file.
            anchored_sizes: sizes of signed tree heads that are on chain. Those that other
                keys signed, before a rotation, are left out: a bundle has one set of signers.
            chain: chain evidence of one of these heads.

        Raises:
            NotPublished: the newest signed tree head does not cover the entries.
            NeverOpened: one of the fields is disclosed to nobody.
        """
        wanted = sorted(set(indices))
        signed = self.published()
        if signed is None or not wanted or wanted[-1] >= signed.head.size:
            raise NotPublished(
                f"no signed tree head of {self.origin} covers these entries",
                next_step="publish the log first: rlhf-audit anchor, or Log.publish()",
            )
        fields, size = set(opened), signed.head.size
        if fields & _NEVER_OPENED:
            raise NeverOpened(
                f"sealed values {', '.join(sorted(fields & _NEVER_OPENED))} are opened to nobody",
                next_step="open single noise slots, or the participants of a charge",
            )
        entries = []
        for index in wanted:
            chosen = [x for x in self.openings(index) if x.path in fields] if fields else []
            path = self.prove_inclusion(index, size)
            entries.append(BundledEntry(index, self.read(index).data, path, tuple(chosen)))
        missing = fields - {item.path for entry in entries for item in entry.openings}
        if missing:
            raise NotSealed(
                f"none of these entries has a sealed value {', '.join(sorted(missing))}",
                next_step="see the names below `c` in the entries",
            )
        anchored = [
            AnchoredHead(str(head.note), self.prove_consistency(*sorted((head.head.size, size))))
            for head in (self.published(at) for at in sorted(set(anchored_sizes) - {size}))
            if head is not None and head.signed_by == signed.signed_by
        ]
        keys = tuple(str(key) for key in signed.signed_by)
        bundle = Bundle(keys, str(signed.note), tuple(entries), tuple(anchored), chain)
        return encode_bundle(bundle)

    def published(self, tree_size: int | None = None) -> SignedTreeHead | None:
        """Return the newest signed tree head, or the one of exactly `tree_size`."""
        with self._engine.connect() as connection:
            return self._published(connection, tree_size)

    def served_note(self, tree_size: int | None = None) -> str | None:
        """Return the newest signed tree head, or that of `tree_size`, as strangers get it.

        It is the note as the log signed it, and after it the lines of witnesses.
        """
        columns = _COSIGNATURES.c
        with self._engine.connect() as connection:
            signed = self._published(connection, tree_size)
            if signed is None:
                return None
            query = select(columns.witness, columns.key_id, columns.blob).where(
                columns.log_number == self.number, columns.tree_size == signed.head.size
            )
            rows = connection.execute(query.order_by(columns.witness, columns.key_id)).all()
        lines = (SignatureLine(x.witness, bytes.fromhex(x.key_id), bytes(x.blob)) for x in rows)
        return str(Note(signed.note.text, (*signed.note.signatures, *lines)))

    def published_sizes(self) -> list[int]:
        """Return the sizes of all signed tree heads, growing."""
        query = select(_HEADS.c.tree_size).where(_HEADS.c.log_number == self.number)
        with self._engine.connect() as connection:
            return list(connection.scalars(query.order_by(_HEADS.c.tree_size)))

    def _published(self, connection: Connection, tree_size: int | None) -> SignedTreeHead | None:
        query = select(_HEADS.c.tree_size, _HEADS.c.note).where(_HEADS.c.log_number == self.number)
        if tree_size is not None:
            query = query.where(_HEADS.c.tree_size == tree_size)
        row = connection.execute(query.order_by(_HEADS.c.tree_size.desc()).limit(1)).first()
        if row is None:
            return None
        keys = self._look(connection).at(row.tree_size)
        signed = open_tree_head(row.note, keys)
        # lines by unknown keys are skipped there; and a retired key must not sign what is new
        if signed.signed_by != keys or signed.head.size != row.tree_size:
            raise Forked(
                f"{self.origin}: a stored tree head is not signed by this log's keys",
                next_step="run rlhf-audit fsck to see which, then restore it from a backup",
            )
        return signed

    # --- the store ----------------------------------------------------------------------

    def _size(self, connection: Connection, *, lock: bool = False) -> int:
        query = select(_LOGS.c.size).where(_LOGS.c.number == self.number)
        return int(connection.scalar(query.with_for_update() if lock else query) or 0)


def place_of(writer_id: str, seq: int) -> bytes:
    """Return what binds a vault row to its entry before the index is known, 24 bytes."""
    return bytes.fromhex(writer_id) + seq.to_bytes(8, "big")
