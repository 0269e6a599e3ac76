"""Tree heads: (origin, size, root), and the signatures that make them binding.

C2SP calls a signed tree head a checkpoint; here that word means model weights.
References: c2sp.org/tlog-checkpoint; c2sp.org/tlog-cosignature for ML-DSA-44.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

from rlhf_audit_trail.ledger.proof.errors import BadSignature, MalformedBundle, PolicyUnmet
from rlhf_audit_trail.ledger.proof.merkle import EMPTY_ROOT, HASH_BYTES, MAX_TREE_SIZE
from rlhf_audit_trail.ledger.proof.note import (
    Algorithm,
    Note,
    VerifierKey,
    check_name,
    decode_base64,
    encode_base64,
    parse_note,
)

_TEXT = re.compile(r"([^\n]+)\n(0|[1-9][0-9]{0,18})\n([^\n]+)\n")
_TIME_BYTES: Final = 8


@dataclass(frozen=True)
class TreeHead:
    """The state of a log: the first `size` entries have this `root`.

    Attributes:
        origin: the log's name, for example `acme.example/rlhf/run42`.
        size: number of entries, 0 to 2**63 - 1.
        root: RFC 6962 root hash, 32 bytes.
    """

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """The note text that is signed: origin, size, base64 root, a line each."""
        return f"{self.origin}\n{self.size}\n{encode_base64(self.root)}\n"


@dataclass(frozen=True)
class SignedTreeHead:
    """A tree head together with the keys found to have signed it.

    Attributes:
        head: parsed from the signed text.
        note: the note as it was read; its signatures are never made again.
        signed_by: those of the keys asked for whose signature verified.
    """

    head: TreeHead
    note: Note
    signed_by: tuple[VerifierKey, ...]


def parse_tree_head(text: str) -> TreeHead:
    """Read a note text as a tree head; re-printed, it must give the same text.

    Raises:
        MalformedBundle: not three lines (ML-DSA would not sign further ones), an origin that
            is no name, a size with leading zeros or out of range, a root not of 32 bytes.
    """
    match = _TEXT.fullmatch(text)
    if match is None:
        raise MalformedBundle("a tree head must be three lines: origin, decimal size, root")
    origin, size, root = match.groups()
    check_name(origin)  # a log's keys bear its origin as their name
    head = TreeHead(origin, int(size), decode_base64(root, what="a root hash"))
    fits = len(head.root) == HASH_BYTES and (head.size > 0 or head.root == EMPTY_ROOT)
    if head.size > MAX_TREE_SIZE or not fits:
        raise MalformedBundle("a tree size is out of range, or its root hash does not fit it")
    return head


def log_id(key: VerifierKey) -> bytes:
    """Return the 32 bytes that name a log on chain, from its first Ed25519 key.

    SHA-256(origin || 0x0A || 0x01 || public key); the first four bytes are the key id.
    Raises ValueError for a key of another algorithm.
    """
    if key.algorithm is not Algorithm.ED25519:
        raise ValueError("a log is named on chain by its Ed25519 key")
    return hashlib.sha256(key.name.encode() + b"\n\x01" + key.public).digest()


def mldsa_message(key_name: str, time_s: int, head: TreeHead) -> bytes:
    """Return the bytes an ML-DSA-44 key signs: the whole tree as one subtree.

    c2sp.org/tlog-cosignature: label, length-prefixed signer name, u64 time, length-prefixed
    origin, u64 start 0, u64 size, root; integers big-endian; pure ML-DSA, empty context.
    """
    name, origin = key_name.encode(), head.origin.encode()
    signer = struct.pack(f">B{len(name)}sQ", len(name), name, time_s)
    tree = struct.pack(f">B{len(origin)}sQQ", len(origin), origin, 0, head.size)
    return b"subtree/v1\n\x00" + signer + tree + head.root


def verify_signature(key: VerifierKey, head: TreeHead, blob: bytes) -> None:
    """Show that `key` signed `head`.

    `blob` is what follows the key id: 64 bytes for Ed25519, u64 time and 2,420 bytes for
    ML-DSA-44.

    Raises:
        BadSignature: it did not.
        PolicyUnmet: the `cryptography` installed here has no such algorithm, so nobody knows.
    """
    try:
        if key.algorithm is Algorithm.ED25519:
            Ed25519PublicKey.from_public_bytes(key.public).verify(blob, head.text.encode())
        else:
            time_s = int.from_bytes(blob[:_TIME_BYTES], "big")
            message = mldsa_message(key.name, time_s, head)
            MLDSA44PublicKey.from_public_bytes(key.public).verify(blob[_TIME_BYTES:], message)
    except (InvalidSignature, ValueError) as error:
        raise BadSignature(
            f"the {key.algorithm.name} signature of {key.name} does not fit this tree head",
            expected=f"signature by key {key.key_id.hex()}",
            actual="a signature over other bytes, or by another key",
        ) from error
    except UnsupportedAlgorithm as error:  # built against an OpenSSL without ML-DSA
        raise PolicyUnmet(
            f"this installation cannot check {key.algorithm.name} signatures",
            next_step="install a wheel of cryptography 50 or later, which brings its own OpenSSL",
        ) from error


def open_tree_head(note: str, keys: Iterable[VerifierKey]) -> SignedTreeHead:
    """Read a signed tree head and check every signature by one of `keys`.

    Lines by unknown keys are ignored. No signature is demanded here: the caller compares
    `signed_by` with what it needs.

    Raises:
        MalformedBundle: the note or the tree head does not parse.
        BadSignature, PolicyUnmet: a known key's line does not verify, or cannot be checked.
    """
    parsed = parse_note(note)
    head = parse_tree_head(parsed.text)
    signed_by = []
    for key in keys:
        wanted = (key.name, key.key_id)
        lines = [line for line in parsed.signatures if (line.name, line.key_id) == wanted]
        for line in lines:
            verify_signature(key, head, line.blob)
        if lines and key.name == head.origin:  # a log's key name is its origin
            signed_by.append(key)
    return SignedTreeHead(head, parsed, tuple(signed_by))
