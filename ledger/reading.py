"""Reading a stored log: entries, opened values, proofs, signed tree heads, bundles."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sqlalchemy import Connection, select

from rlhf_audit_trail.ledger.contradictions import Forked, RolledBack
from rlhf_audit_trail.ledger.proof.bundle import AnchoredHead, Bundle, BundledEntry, encode_bundle
from rlhf_audit_trail.ledger.proof.merkle import (
    consistency_proof,
    inclusion_proof,
    root_from_nodes,
)
from rlhf_audit_trail.ledger.proof.note import Note, SignatureLine
from rlhf_audit_trail.ledger.proof.tree_head import SignedTreeHead, open_tree_head
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.stored_entries import StoredEntries, place_of
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

# a round's secret gives all its noise away, and accounts are the same people's in every run
_NEVER_OPENED: Final = frozenset({"secret", "accounts"})
_HEADS = models.TreeHeadRow.__table__  # type: ignore[attr-defined]
_COSIGNATURES = models.CosignatureRow.__table__  # type: ignore[attr-defined]
_ANCHORS = models.AnchorRow.__table__  # type: ignore[attr-defined]


class StoredLog(StoredEntries):
    """One log as the store holds it; safe to share between threads."""

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
