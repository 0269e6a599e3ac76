"""What one writer hands over in one call, and what the writer thread makes of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Final

from rlhf_audit_trail.ledger.drafts import (
    ANNOTATOR,
    Draft,
    DraftColumns,
    DraftGroup,
    Frame,
    commitments_template,
    grouped,
)
from rlhf_audit_trail.ledger.proof.merkle import leaf_hash
from rlhf_audit_trail.ledger.sealing import NONCE_BYTES, sealer_of
from rlhf_audit_trail.ledger.vault import Vault

__all__ = ["Batch", "Encoded", "bare_entry"]

_LIGHT_DRAFTS_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class Encoded:
    """Entries that have all but their indices, column by column.

    Attributes:
        seqs: sequence numbers, growing.
        kinds: of each entry.
        data: the entries' bytes.
        leaf_hashes: 32 bytes each.
        sealed: (position in the other columns, subject's tag, ciphertext) of those that have
            sealed values, in growing order.
    """

    seqs: Sequence[int]
    kinds: Sequence[str]
    data: Sequence[bytes]
    leaf_hashes: Sequence[bytes]
    sealed: Sequence[tuple[int, bytes, bytes]]

    def __len__(self) -> int:
        """Count the entries."""
        return len(self.data)

    def only(self, positions: Sequence[int]) -> Encoded:
        """Return some of the entries; the positions grow."""
        if len(positions) == len(self):
            return self
        new = {position: number for number, position in enumerate(positions)}
        return Encoded(
            [self.seqs[x] for x in positions],
            [self.kinds[x] for x in positions],
            [self.data[x] for x in positions],
            [self.leaf_hashes[x] for x in positions],
            [(new[x], tag, text) for x, tag, text in self.sealed if x in new],
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
        encoded: made once, by the thread that writes: an entry tried twice is the same bytes.
    """

    writer_id: str
    first_seq: int
    recorded_at: str
    drafts: list[Draft] | DraftColumns
    is_foreign: bool = False
    encoded: Encoded = Encoded((), (), (), (), ())

    def __len__(self) -> int:
        """Count the entries."""
        return len(self.drafts)

    @property
    def is_light(self) -> bool:
        """Whether making the entries costs no more than handing them to a thread would."""
        drafts = self.drafts
        if isinstance(drafts, DraftColumns) or len(drafts) > _LIGHT_DRAFTS_MAX:
            return False
        return not any(item.paths for item in drafts)

    @property
    def last_seq(self) -> int:
        """The last draft's sequence number."""
        return self.first_seq + len(self) - 1

    def encode(self, vault: Vault, origin: str, run_id: str) -> None:
        """Make the entries: salts, commitments, ciphertexts, bytes and leaf hashes."""
        if self.encoded:
            return
        frame = Frame(run_id, self.writer_id, self.recorded_at)
        seqs = range(self.first_seq, self.first_seq + len(self))
        sealed: list[tuple[int, bytes, bytes]] = []
        if isinstance(self.drafts, list) and not any(item.paths for item in self.drafts):
            kinds = [item.kind for item in self.drafts]
            rows = zip(seqs, self.drafts, strict=True)
            data = [frame.entry(item.kind, seq, item.public, "") for seq, item in rows]
        else:
            kinds, data = [""] * len(self), [b""] * len(self)
            for group in grouped(self.drafts):
                made, texts = self._seal(group, vault, origin)
                sealed += texts
                columns = (group.positions, group.kinds, group.publics, made)
                for position, kind, public, commitments in zip(*columns, strict=True):
                    kinds[position] = kind
                    data[position] = frame.entry(kind, seqs[position], public, commitments)
            sealed.sort()  # by position
        self.encoded = Encoded(seqs, kinds, data, list(map(leaf_hash, data)), sealed)

    def _seal(
        self, group: DraftGroup, vault: Vault, origin: str
    ) -> tuple[Iterable[str], list[tuple[int, bytes, bytes]]]:
        """Return the commitments of each draft as an entry has them, and what the vault keeps."""
        if not group.paths:
            return repeat("", len(group.kinds)), []
        subjects = vault.prepare(set(group.subjects), origin)
        about = [subjects[name] for name in group.subjects]
        columns = list(group.columns)
        if ANNOTATOR in group.paths:  # of a person only the pseudonym in this log
            columns[group.paths.index(ANNOTATOR)] = [subject.pseudonym for subject in about]
        commitments, plain = sealer_of(group.paths).seal(columns)
        # what binds a ciphertext to its entry, before the index is known; see `place_of`
        place = origin.encode() + bytes.fromhex(self.writer_id)
        nonces, begin, sealed = os.urandom(NONCE_BYTES * len(plain)), 0, []
        for position, subject, text in zip(group.positions, about, plain, strict=True):
            nonce = nonces[begin : begin + NONCE_BYTES]
            begin += NONCE_BYTES
            seq = (self.first_seq + position).to_bytes(8, "big")
            ciphertext = nonce + subject.cipher.encrypt(nonce, text, place + seq)
            sealed.append((position, subject.tag, ciphertext))
        template = commitments_template(group.paths)
        return [template % hexes for hexes in commitments], sealed


def bare_entry(data: bytes) -> bytes:
    """Return an entry's bytes before its commitments, which new salts make different."""
    return data.removesuffix(b"}").split(b',"c":{"', 1)[0]
