"""A small log with known keys: the raw material of the vectors and of the kernel's tests.

Its keys are published here on purpose. Never use them for anything else.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rlhf_audit_trail.ledger.keys import LogKeys
from rlhf_audit_trail.ledger.proof.bundle import (
    AnchoredHead,
    Bundle,
    BundledEntry,
    encode_bundle,
)
from rlhf_audit_trail.ledger.proof.commitment import Opening, commit
from rlhf_audit_trail.ledger.proof.merkle import (
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    root_hash,
)
from rlhf_audit_trail.ledger.proof.note import Note, VerifierKey, parse_note
from rlhf_audit_trail.ledger.proof.tree_head import TreeHead

ORIGIN = "example.com/rlhf/run42"
SECRET = hashlib.sha256(b"keys of test vectors").digest()
SIGNED_AT_S = 1_794_700_800
NOTES = Path(__file__).parent / "inputs" / "signed_notes.json"


def sample_openings(index: int) -> tuple[Opening, ...]:
    """The sealed values of entry `index`: none for every third entry."""
    if index % 3 == 0:
        return ()
    values = {"annotator": f"person-{index}", "reward": index / 4}
    return tuple(
        Opening(
            path,
            hashlib.sha256(f"salt of {path} in entry {index}".encode()).digest(),
            json.dumps(value, separators=(",", ":")).encode(),
        )
        for path, value in values.items()
    )


def sample_entry(index: int) -> bytes:
    """Exact bytes of entry `index`, with commitments to its sealed values."""
    record: dict[str, Any] = {
        "v": 1,
        "kind": "annotation.recorded" if index % 3 else "metrics.logged",
        "run_id": "run42",
        "writer_id": "00112233445566778899aabbccddeeff",
        "seq": index,
        "recorded_at": f"2026-11-20T10:15:{index:02}.000000Z",
    }
    record |= {"source": "human", "batch": index // 4} if index % 3 else {"step": index}
    if index % 3:
        record["c"] = {item.path: commit(item).hex() for item in sample_openings(index)}
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()


@dataclass(frozen=True)
class SampleLog:
    """A log of a few entries; `fork_at` changes one as a forger would, `replaced` gives bytes."""

    origin: str = ORIGIN
    secret: bytes = SECRET
    count: int = 13
    fork_at: int | None = None
    replaced: tuple[tuple[int, bytes], ...] = ()
    notes: dict[str, str] = field(default_factory=dict)

    @cached_property
    def keys(self) -> LogKeys:
        return LogKeys.derive(self.secret, self.origin)

    @property
    def ed25519(self) -> VerifierKey:
        return self.keys.verifier_keys[0]

    @property
    def mldsa(self) -> VerifierKey:
        return self.keys.verifier_keys[1]

    def entry(self, index: int) -> bytes:
        data = dict(self.replaced).get(index) or sample_entry(index)
        return data.replace(b'"seq"', b'"SEQ"') if index == self.fork_at else data

    @cached_property
    def leaves(self) -> list[bytes]:
        return [leaf_hash(self.entry(index)) for index in range(self.count)]

    def node(self, level: int, index: int) -> bytes:
        return root_hash(self.leaves[index << level : (index + 1) << level])

    def head(self, size: int) -> TreeHead:
        return TreeHead(self.origin, size, root_hash(self.leaves[:size]))

    def path(self, index: int, size: int) -> tuple[bytes, ...]:
        return inclusion_proof(index, size, self.node)

    def consistency(self, old_size: int, new_size: int) -> tuple[bytes, ...]:
        return consistency_proof(old_size, new_size, self.node)

    def note(self, size: int) -> Note:
        """The tree head signed with both keys; ML-DSA is randomised, so it is kept in a file."""
        head = self.head(size)
        if head.text not in self.notes:
            self.notes[head.text] = self.keys.sign(head, time_s=SIGNED_AT_S)
        return parse_note(self.notes[head.text])

    def short_note(self, size: int) -> Note:
        """The tree head signed with Ed25519 alone: 4 kB less, and the same each time."""
        full = self.note(size)
        return Note(full.text, full.signatures[:1])

    def bundled(self, index: int, size: int, *, opened: tuple[str, ...] = ()) -> BundledEntry:
        openings = tuple(item for item in sample_openings(index) if item.path in opened)
        return BundledEntry(index, self.entry(index), self.path(index, size), openings)

    def bundle(
        self,
        indices: tuple[int, ...] = (5,),
        size: int = 8,
        *,
        opened: tuple[str, ...] = (),
        anchored: tuple[int, ...] = (),
        post_quantum: bool = True,
    ) -> Bundle:
        """A good bundle; `anchored` are sizes of further tree heads."""
        note = self.note if post_quantum else self.short_note
        keys = self.keys.verifier_keys[: 2 if post_quantum else 1]
        heads, newest = [], size
        for other in anchored:
            old, new = sorted((other, newest))
            heads.append(AnchoredHead(str(note(other)), self.consistency(old, new)))
            newest = new
        return Bundle(
            tuple(str(key) for key in keys),
            str(note(size)),
            tuple(self.bundled(index, size, opened=opened) for index in indices),
            tuple(heads),
        )


def read_notes() -> dict[str, str]:
    """Signed notes kept from an earlier run, by their text."""
    return json.loads(NOTES.read_text("utf-8")) if NOTES.exists() else {}


def reseal(record: dict[str, Any]) -> bytes:
    """Write a bundle record as a forger would: compact, with a digest that fits."""
    body = {name: value for name, value in record.items() if name != "sha256"}
    digest = hashlib.sha256(compact(body)).hexdigest()
    return compact(body | {"sha256": digest}) + b"\n"


def compact(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def record_of(bundle: Bundle) -> dict[str, Any]:
    """A good bundle's JSON, to be spoilt."""
    record: dict[str, Any] = json.loads(encode_bundle(bundle))
    return record
