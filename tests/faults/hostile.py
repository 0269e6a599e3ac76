"""Valid samples of everything that strangers hand us, and ways to spoil them.

Most random bytes die at the first check. A valid sample with a few edits gets further, the
more so when the pieces put in are those the format itself is made of.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from rlhf_audit_trail.ledger.cose import consistency_receipt, inclusion_receipt
from rlhf_audit_trail.ledger.cosignature import Cosigner
from rlhf_audit_trail.ledger.keys import LogKeys
from rlhf_audit_trail.ledger.proof.bundle import (
    AnchoredHead,
    Bundle,
    BundledEntry,
    encode_bundle,
)
from rlhf_audit_trail.ledger.proof.commitment import Opening, commit
from rlhf_audit_trail.ledger.proof.evm.evidence import ChainTrust
from rlhf_audit_trail.ledger.proof.merkle import (
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    root_hash,
)
from rlhf_audit_trail.ledger.proof.note import Algorithm, Note, parse_note
from rlhf_audit_trail.ledger.proof.tree_head import TreeHead
from rlhf_audit_trail.ledger.tlog_policy import (
    Group,
    PolicyLog,
    PolicyWitness,
    TlogPolicy,
    format_policy,
)
from rlhf_audit_trail.ledger.tlog_proof import TlogProof, encode_tlog_proof
from rlhf_audit_trail.ledger.trust import TRUST_SCHEMA
from rlhf_audit_trail.ledger.witness_request import AddCheckpoint, encode_request

__all__ = ["SAMPLES", "edited", "edited_of", "head", "note", "request"]

ORIGIN = "acme.example/rlhf/run42"
KEYS = LogKeys.derive(b"\x01" * 32, ORIGIN)
COSIGNERS = [Cosigner.derive(bytes([n]) * 32, f"witness.example/w{n}") for n in (2, 3)]
OPENING = Opening("reward", bytes(32), b"0.5")
SEALED = commit(OPENING).hex()
ENTRIES = [
    b'{"v":1,"kind":"x","seq":%d,"c":{"reward":"%s"}}' % (n, SEALED.encode()) for n in range(9)
]
LEAVES = [leaf_hash(entry) for entry in ENTRIES]


def _node(level, index):
    return root_hash(LEAVES[index << level : (index + 1) << level])


def head(size):
    return TreeHead(ORIGIN, size, root_hash(LEAVES[:size]))


def note(size, *cosigners):
    """A signed tree head, with cosignatures."""
    lines = [line for cosigner in cosigners for line in cosigner.cosign(head(size), time_s=7)]
    return str(
        Note(head(size).text, (*parse_note(KEYS.sign(head(size), time_s=7)).signatures, *lines))
    )


def request(old, new):
    """What a log sends to a witness."""
    path = consistency_proof(old, new, _node) if old else ()
    return encode_request(AddCheckpoint(old, path, parse_note(note(new))))


def _policy():
    witnesses = tuple(
        PolicyWitness(f"w{n}", key, f"https://witness.example/{n}")
        for n, key in enumerate(key for cosigner in COSIGNERS for key in cosigner.keys)
    )
    logs = tuple(PolicyLog(key, "https://acme.example/") for key in KEYS.verifier_keys)
    groups = (Group("two", 2, ("w0", "w1", "w2")), Group("all", 2, ("two", "w3")))
    return TlogPolicy(logs, witnesses, groups, "all")


def _bundle():
    path = inclusion_proof(5, 9, _node)
    entries = (
        BundledEntry(0, ENTRIES[0], inclusion_proof(0, 9, _node)),
        BundledEntry(5, ENTRIES[5], path, (OPENING,)),
    )
    anchored = (AnchoredHead(note(4), consistency_proof(4, 9, _node)),)
    return Bundle(tuple(map(str, KEYS.verifier_keys)), note(9), entries, anchored)


def _chain_evidence():
    """Storage and receipt of the vectors' made-up chain."""
    sys.path.append(str(Path(__file__).parents[1] / "vectors"))
    from chain_world import World, event

    log_id, root = bytes(range(32)), bytes(range(1, 33))
    world = World({log_id: (9, root)})
    storage = world.evidence(log_id)
    receipt = world.receipt_evidence(log_id, [event(log_id, 9, root)])
    trust = ChainTrust(
        storage.chain_id, world.contract, world.publisher, log_id, world.code_hash,
        address_binds_code=True,
    )  # fmt: skip
    return [bytes(storage), bytes(receipt)], trust


CHAIN_EVIDENCE, CHAIN_TRUST = _chain_evidence()
POLICY = _policy()
NOTES = [note(9).encode(), note(9, *COSIGNERS).encode()]
SAMPLES = {
    "note": NOTES,
    "vkey": [str(key).encode() for key in (*KEYS.verifier_keys, *COSIGNERS[0].keys)],
    "head": [head(9).text.encode(), head(0).text.encode()],
    "cosignatures": [b"".join(x.encode() + b"\n" for x in note(9, *COSIGNERS).split("\n")[-5:-1])],
    "policy": [format_policy(POLICY)],
    "tlog-proof": [
        encode_tlog_proof(TlogProof(5, inclusion_proof(5, 9, _node), note(9, *COSIGNERS), extra))
        for extra in (b"", b"an opening")
    ],
    "request": [request(4, 9)],
    "size": [b"9\n", b"0\n"],
    "receipt": [
        inclusion_receipt(KEYS, head(9), 5, inclusion_proof(5, 9, _node), algorithm=algorithm)
        for algorithm in Algorithm
    ],
    "growth receipt": [consistency_receipt(KEYS, 4, head(9), consistency_proof(4, 9, _node))],
    "bundle": [encode_bundle(_bundle())],
    "chain evidence": CHAIN_EVIDENCE,
    "entry": ENTRIES[:1],
    "trust": [
        json.dumps({"schema": TRUST_SCHEMA, "keys": list(map(str, KEYS.verifier_keys))}).encode()
    ],
}
_PIECES = [
    b"", b"\n", b"\n\n", b"\r\n", b" ", b"\t", b"+", b"=", b"\0", b"\x7f", b"\xff", b"\xed\xa0\x80",
    b"-1", b"0", b"00", b"9223372036854775807", b"9223372036854775808", b"1e999", b"9" * 5000,
    b"old 0\n", b"index 5\n", b"extra AAAA\n", "— ".encode(), "— acme.example/rlhf/run42 ".encode(),
    "— witness.example/w2 AAAAAAA=\n".encode(), b"acme.example/rlhf/run42", b"A" * 43 + b"=\n",
    b"witness w0 ", b"group all all w0 w1\n", b"quorum none\n", b"log ", b"#", "é".encode() * 200,
    b"[" * 70, b"{" * 2000, b'"', b"\\ud800", b'":', b"null", b"true", b"{}", b"[]", b"NaN", b"\\",
    b"\x81" * 40, b"\x9b" + b"\xff" * 8, b"\x5b" + b"\xff" * 8, b"\xbb" + b"\xff" * 8, b"\xa0", b"\xf6",
    b"\x1b" + b"\xff" * 8, b"\xc0" * 40,
]  # fmt: skip


@dataclass(frozen=True)
class Edit:
    """One change: where (as a share of the length, in 2**16), of how much, and what comes there."""

    kind: str
    at: int
    length: int
    piece: bytes

    def apply(self, data):
        begin = self.at * (len(data) + 1) >> 16
        end = begin + self.length
        if self.kind == "replace":
            return data[:begin] + self.piece + data[end:]
        if self.kind == "repeat":
            return data[:begin] + data[begin:end] * (1 + len(self.piece) % 60) + data[end:]
        if self.kind == "cut":
            return data[:begin]
        if self.kind == "swap lines":
            lines = data.split(b"\n")
            one, other = begin % len(lines), self.length % len(lines)
            lines[one], lines[other] = lines[other], lines[one]
            return b"\n".join(lines)
        if begin < len(data):
            return data[:begin] + bytes([data[begin] ^ 1 << self.length % 8]) + data[begin + 1 :]
        return data


_EDITS = st.builds(
    Edit,
    st.sampled_from(["replace", "replace", "repeat", "cut", "swap lines", "bit"]),
    st.integers(0, 2**16 - 1),
    st.integers(0, 60),
    st.sampled_from(_PIECES) | st.binary(max_size=8),
)


def _apply(data, edits):
    for edit in edits:
        data = edit.apply(data)
    return data


def edited_of(*samples):
    """These samples with one to four edits, and now and then any bytes."""
    spoilt = st.builds(_apply, st.sampled_from(samples), st.lists(_EDITS, min_size=1, max_size=4))
    return st.one_of(spoilt, spoilt, spoilt, st.binary(max_size=300))


def edited(*names):
    """The same, of all samples of these kinds."""
    return edited_of(*(sample for name in names for sample in SAMPLES[name]))
