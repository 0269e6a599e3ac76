"""What one writer hands over in one call, and what the writer thread makes of it."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from rlhf_audit_trail.ledger.budgets import Terms
from rlhf_audit_trail.ledger.drafts import (
    ANNOTATOR,
    Draft,
    DraftColumns,
    DraftGroup,
    Drafts,
    Frame,
    PlainDrafts,
    commitments_template,
    encode_draft,
    grouped,
)
from rlhf_audit_trail.ledger.proof.merkle import leaf_hash
from rlhf_audit_trail.ledger.sealing import NONCE_BYTES, cut, sealer_of
from rlhf_audit_trail.ledger.vault import Vault

__all__ = ["Batch", "Encoded", "bare_entry"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Entries that have all but their indices, column by column.

    Attributes:
        seq: sequence numbers.
        kind: of each entry.
        data: the entries' bytes.
        leaf_hash: 32 bytes each.
        sealed: positions of those entries that have sealed values, growing.
        subject: of each of those the subject's tag.
        ciphertext: of each of those the sealed values.
    """

    seq: Sequence[int]
    kind: Sequence[str]
    data: Sequence[bytes]
    leaf_hash: Sequence[bytes]
    sealed: Sequence[int] = ()
    subject: Sequence[bytes] = ()
    ciphertext: Sequence[bytes] = ()

    def __len__(self) -> int:
        """Count the entries."""
        return len(self.data)

    def columns(self) -> tuple[Sequence[Any], ...]:
        """Return all columns but the positions."""
        return (self.seq, self.kind, self.data, self.leaf_hash, self.subject, self.ciphertext)

    def only(self, positions: Sequence[int]) -> Encoded:
        """Return the entries at these positions, in their order."""
        if list(positions) == list(range(len(self))):
            return self
        vault = {x: number for number, x in enumerate(self.sealed)}
        kept = [vault[x] for x in positions if x in vault]
        return Encoded(
            [self.seq[x] for x in positions],
            [self.kind[x] for x in positions],
            [self.data[x] for x in positions],
            [self.leaf_hash[x] for x in positions],
            [number for number, x in enumerate(positions) if x in vault],
            [self.subject[x] for x in kept],
            [self.ciphertext[x] for x in kept],
        )


@dataclass(eq=False, slots=True)
class Batch:
    """Drafts of one writer with consecutive sequence numbers.

    Attributes:
        writer_id: 32 hex digits.
        first_seq: the first draft's sequence number.
        recorded_at: the writer's clock, for all of them.
        drafts: in order.
        is_foreign: whether the writer is not of this process: it may send again what is stored.
        terms: what must hold, and be charged, in the transaction that stores it; None for nothing.
        encoded: made once, by the thread that writes: an entry tried twice is the same bytes.
        erasures: how many the vault knew of when it gave the secrets for `encoded`.
    """

    writer_id: str
    first_seq: int
    recorded_at: str
    drafts: Drafts
    is_foreign: bool = False
    terms: Terms | None = None
    encoded: Encoded = Encoded((), (), (), ())
    erasures: int = 0

    def __len__(self) -> int:
        """Count the entries."""
        return len(self.drafts)

    @property
    def is_light(self) -> bool:
        """Whether making the entries costs less than handing them to a thread would.

        Without sealed values it is a string and a hash for each; and whoever waits for Python's
        lock waits longer, the more threads compute.
        """
        return self._plain() is not None

    def _plain(self) -> PlainDrafts | None:
        """Return the drafts if none of them has sealed values."""
        drafts = self.drafts
        if isinstance(drafts, PlainDrafts):
            return drafts
        if isinstance(drafts, DraftColumns) or any(item.paths for item in drafts):
            return None
        return PlainDrafts([item.kind for item in drafts], [item.public for item in drafts])

    @property
    def last_seq(self) -> int:
        """The last draft's sequence number."""
        return self.first_seq + len(self) - 1

    def encode(self, vault: Vault, origin: str, run_id: str) -> None:
        """Make the entries: salts, commitments, ciphertexts, bytes and leaf hashes."""
        if self.encoded.data:
            return
        self.erasures = vault.erasures  # before the secrets are taken: rather too old than too new
        frame = Frame(run_id, self.writer_id, self.recorded_at)
        seqs = range(self.first_seq, self.first_seq + len(self))
        plain = self._plain()
        if plain is not None:
            data = frame.entries(plain.kinds, seqs, plain.publics, [""] * len(plain))
            self.encoded = Encoded(seqs, plain.kinds, data, list(map(leaf_hash, data)))
            return
        groups = grouped(cast("list[Draft] | DraftColumns", self.drafts))
        parts = [self._encode_group(x, frame, vault, origin) for x in groups]
        self.encoded = parts[0] if len(parts) == 1 else _merged(parts)

    def renew(self, vault: Vault, origin: str, run_id: str, erasures: int) -> None:
        """Make the entries again if a secret that was erased meanwhile may have sealed them."""
        if self.erasures != erasures and self.encoded.sealed:
            self.encoded = Encoded((), (), (), ())
            self.encode(vault, origin, run_id)

    def bare(self, run_id: str, number: int) -> bytes:
        """Return what the bytes of a draft's entry begin with, up to its commitments."""
        item = cast("list[Draft]", self.drafts)[number]
        place = (run_id, self.writer_id, self.first_seq + number, self.recorded_at)
        return bare_entry(encode_draft(item, *place, ("",) * len(item.paths)))

    def _encode_group(self, group: DraftGroup, frame: Frame, vault: Vault, origin: str) -> Encoded:
        """Make entries with the same sealed fields, column by column."""
        seqs = [self.first_seq + position for position in group.positions]
        if group.paths:
            members, tags, texts = self._seal(group, seqs, vault, origin)
        else:
            members, tags, texts = [""] * len(seqs), [], []
        data = frame.entries(group.kinds, seqs, group.publics, members)
        leaf_hashes = list(map(leaf_hash, data))
        sealed = range(len(tags))
        return Encoded(seqs, group.kinds, data, leaf_hashes, sealed, tags, texts)

    def _seal(
        self, group: DraftGroup, seqs: Sequence[int], vault: Vault, origin: str
    ) -> tuple[list[str], list[bytes], list[bytes]]:
        """Return each entry's member of commitments, its subject's tag and its ciphertext."""
        subjects = vault.prepare(set(group.subjects), origin)
        about = [subjects[name] for name in group.subjects]
        columns = list(group.columns)
        if ANNOTATOR in group.paths:  # of a person only the pseudonym in this log
            columns[group.paths.index(ANNOTATOR)] = [subject.pseudonym for subject in about]
        commitments, plain = sealer_of(group.paths).seal(columns)
        # what binds a ciphertext to its entry, before the index is known; see `place_of`
        place = origin.encode() + bytes.fromhex(self.writer_id)
        numbers = cut(struct.pack(f">{len(seqs)}Q", *seqs), 8)
        nonces = cut(os.urandom(NONCE_BYTES * len(plain)), NONCE_BYTES)
        texts = [
            nonce + subject.cipher.encrypt(nonce, text, place + number)
            for nonce, subject, text, number in zip(nonces, about, plain, numbers, strict=True)
        ]
        members = list(map(commitments_template(group.paths).__mod__, commitments))
        return members, [subject.tag for subject in about], texts


def _merged(parts: Sequence[Encoded]) -> Encoded:
    """Put entries of several groups into the order of their sequence numbers."""
    begins = itertools.accumulate((len(part) for part in parts), initial=0)
    sealed = [begin + x for begin, part in zip(begins, parts, strict=False) for x in part.sealed]
    chained = [
        [item for part in column for item in part]
        for column in zip(*(part.columns() for part in parts), strict=True)
    ]
    seqs, kinds, data, leaf_hashes, tags, texts = chained
    order = sorted(range(len(seqs)), key=seqs.__getitem__)
    return Encoded(seqs, kinds, data, leaf_hashes, sealed, tags, texts).only(order)


def bare_entry(data: bytes) -> bytes:
    """Return an entry's bytes before its commitments, which new salts make different."""
    return data.removesuffix(b"}").split(b',"c":{"', 1)[0]
