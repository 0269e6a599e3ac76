"""`.tlog-proof`: one entry's proof as text, in the format that other people's tools read.

    c2sp.org/tlog-proof@v1
    extra <base64>                      optional, and signed by nobody
    index 7
    <base64 of each hash, leaf to root>

    <the signed tree head, verbatim>

Unlike a bundle it holds neither entry nor keys. c2sp.org/tlog-proof.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from rlhf_audit_trail.ledger.proof.errors import MalformedBundle
from rlhf_audit_trail.ledger.proof.merkle import (
    HASH_BYTES,
    MAX_TREE_SIZE,
    leaf_hash,
    verify_inclusion,
)
from rlhf_audit_trail.ledger.proof.note import (
    MAX_NOTE_BYTES,
    VerifierKey,
    decode_base64,
    encode_base64,
)
from rlhf_audit_trail.ledger.tlog_policy import TlogPolicy, WitnessedHead, check_policy

__all__ = ["TlogProof", "encode_tlog_proof", "parse_tlog_proof", "verify_tlog_proof"]

MAGIC: Final = "c2sp.org/tlog-proof@v1"
MAX_PROOF_BYTES: Final = 2 * MAX_NOTE_BYTES  # the signed head, and as much extra data
_MAX_PATH: Final = 64  # no proof in a tree below 2**63 has more hashes
_INDEX = re.compile(r"index (0|[1-9][0-9]{0,18})")


@dataclass(frozen=True)
class TlogProof:
    """What a proof file says, parsed but not believed.

    Attributes:
        index: leaf index, from 0.
        path: inclusion proof, leaf to root, 32 bytes each.
        tree_head: the signed note, as the log made it.
        extra: data for the application, not authenticated; empty for none.
    """

    index: int
    path: tuple[bytes, ...]
    tree_head: str
    extra: bytes = b""


def encode_tlog_proof(proof: TlogProof) -> bytes:
    """Write a proof as the bytes of its file."""
    lines = [MAGIC]
    if proof.extra:
        lines.append(f"extra {encode_base64(proof.extra)}")
    lines += [f"index {proof.index}", *map(encode_base64, proof.path), "", proof.tree_head]
    return "\n".join(lines).encode()


def parse_tlog_proof(data: bytes) -> TlogProof:
    """Read a proof file; written again, it gives the same bytes.

    Raises:
        MalformedBundle: too large, not UTF-8, another version, or a line out of place.
    """
    if len(data) > MAX_PROOF_BYTES:
        raise MalformedBundle(f"a tlog-proof is at most {MAX_PROOF_BYTES:,} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise MalformedBundle("a tlog-proof is not UTF-8") from error
    head, separator, note = text.partition("\n\n")  # the first empty line: none comes before it
    magic, *lines = head.split("\n")
    if not separator or magic != MAGIC:
        raise MalformedBundle("this is not a tlog-proof of a known version", expected=MAGIC)
    extra = b""
    if lines and lines[0].startswith("extra "):
        extra = decode_base64(lines.pop(0).removeprefix("extra "), what="a proof's extra data")
        if not extra:
            raise MalformedBundle("a proof without extra data has no extra line")
    match = _INDEX.fullmatch(lines[0]) if lines else None
    if match is None or int(match[1]) >= MAX_TREE_SIZE or len(lines) > 1 + _MAX_PATH:
        raise MalformedBundle(f"a tlog-proof has an index line, then up to {_MAX_PATH} hashes")
    path = tuple(decode_base64(line, what="a proof's hash") for line in lines[1:])
    if any(len(node) != HASH_BYTES for node in path):
        raise MalformedBundle(f"a proof's hash is not {HASH_BYTES} bytes long")
    return TlogProof(int(match[1]), path, note, extra)


def verify_tlog_proof(
    data: bytes, entry: bytes, policy: TlogPolicy, *, pinned: Iterable[VerifierKey] = ()
) -> tuple[int, WitnessedHead]:
    """Show that `entry` stands in a log that the policy trusts; return its index and the head.

    Raises:
        MalformedBundle: the file does not parse, or its path has not the length that the
            index and the signed size demand.
        BadSignature, PolicyUnmet: the policy does not accept the tree head.
        NotIncluded: the path does not lead from this entry to the signed root.
    """
    proof = parse_tlog_proof(data)
    found = check_policy(policy, proof.tree_head, pinned=pinned)
    head = found.signed.head
    verify_inclusion(leaf_hash(entry), proof.index, head.size, proof.path, head.root)
    return proof.index, found
