"""What one writer hands over in one call, and what the writer thread makes of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from rlhf_audit_trail.ledger.drafts import Draft, DraftColumns, encode_draft
from rlhf_audit_trail.ledger.proof.merkle import leaf_hash
from rlhf_audit_trail.ledger.sealing import Randomness, sealer_of
from rlhf_audit_trail.ledger.vault import Subject, Vault

__all__ = ["Batch", "Encoded", "bare_entry"]

_LIGHT_DRAFTS_MAX: Final = 8


class Encoded(NamedTuple):
    """An entry that has all but its index; without sealed values, `subject` is None."""

    seq: int
    kind: str
    data: bytes
    leaf_hash: bytes
    subject: bytes | None
    ciphertext: bytes


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
    encoded: tuple[Encoded, ...] = ()

    def __len__(self) -> int:
        """Count the entries."""
        return len(self.drafts)

    @property
    def is_light(self) -> bool:
        """Whether making the entries costs no more than handing them to a thread would."""
        drafts = self.drafts
        few = isinstance(drafts, list) and len(drafts) <= _LIGHT_DRAFTS_MAX
        return few and not any(item.paths for item in drafts)

    @property
    def last_seq(self) -> int:
        """The last draft's sequence number."""
        return self.first_seq + len(self) - 1

    def encode(self, vault: Vault, origin: str, run_id: str) -> None:
        """Make the entries: salts, commitments, ciphertexts, bytes and leaf hashes."""
        if self.encoded:
            return
        drafts = list(self.drafts)
        subjects = vault.prepare({item.subject for item in drafts if item.paths}, origin)
        self.encoded = tuple(self._entries(drafts, subjects, origin, run_id))

    def _entries(
        self, drafts: list[Draft], subjects: Mapping[str, Subject], origin: str, run_id: str
    ) -> Iterator[Encoded]:
        needed = [sealer_of(item.paths).random_bytes for item in drafts if item.paths]
        randomness = Randomness(sum(needed))
        # what binds a ciphertext to its entry, before the index is known; see `place_of`
        place = origin.encode() + bytes.fromhex(self.writer_id)
        writer_id, recorded_at = self.writer_id, self.recorded_at
        for seq, item in enumerate(drafts, self.first_seq):
            if not item.paths:
                data = encode_draft(item, run_id, writer_id, seq, recorded_at, ())
                yield Encoded(seq, item.kind, data, leaf_hash(data), None, b"")
                continue
            subject = subjects[item.subject]
            values = subject.shown(item)
            commitments, nonce, plain = sealer_of(item.paths).seal(values, randomness)
            sealed = subject.cipher.encrypt(nonce, plain, place + seq.to_bytes(8, "big"))
            data = encode_draft(item, run_id, writer_id, seq, recorded_at, commitments)
            yield Encoded(seq, item.kind, data, leaf_hash(data), subject.tag, nonce + sealed)


def bare_entry(data: bytes) -> bytes:
    """Return an entry's bytes before its commitments, which new salts make different."""
    return data.removesuffix(b"}").split(b',"c":{"', 1)[0]
