"""Cosignatures: what a witness signs over a tree head that it saw growing.

A witness is somebody else: it never signs entries, only that a log's tree heads are one
append-only history. Its keys are a class of their own, `CosignerKey`, so that no cosignature
can ever count as a log's own signature. References: c2sp.org/tlog-cosignature (types 0x04
and 0x06), c2sp.org/tlog-checkpoint (extension lines).
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from rlhf_audit_trail.ledger.keys import derive
from rlhf_audit_trail.ledger.proof.errors import BadSignature, MalformedBundle
from rlhf_audit_trail.ledger.proof.merkle import EMPTY_ROOT, HASH_BYTES, MAX_TREE_SIZE
from rlhf_audit_trail.ledger.proof.note import (
    KEY_ID_BYTES,
    Algorithm,
    Note,
    SignatureLine,
    VerifierKey,
    check_name,
    decode_base64,
    encode_base64,
    parse_note,
)
from rlhf_audit_trail.ledger.proof.tree_head import (
    SignedTreeHead,
    TreeHead,
    mldsa_message,
    verify_signature,
)

__all__ = [
    "CosignatureType",
    "CosignedHead",
    "Cosigner",
    "CosignerKey",
    "cosignature_message",
    "find_cosignatures",
    "format_lines",
    "log_signers",
    "open_cosigned_head",
    "parse_cosigned_head",
    "verify_cosignature",
]

MAX_TIME_S: Final = 2**63 - 1
_TIME_BYTES: Final = 8
_TEXT = re.compile(r"([^\n]+)\n(0|[1-9][0-9]{0,18})\n([^\n]+)\n((?:[^\n]+\n)*)")


class CosignatureType(IntEnum):
    """Signature type bytes of cosigners; C2SP's registry."""

    ED25519 = 0x04
    ML_DSA_44 = 0x06


_PUBLIC_KEY_BYTES: Final = {CosignatureType.ED25519: 32, CosignatureType.ML_DSA_44: 1312}


@dataclass(frozen=True)
class CosignerKey:
    """A witness's public key, with the name it signs under.

    Attributes:
        name: 1 to 255 bytes of UTF-8, without space or plus sign.
        kind: how it signs.
        public: raw public key, 32 bytes (Ed25519) or 1,312 bytes (ML-DSA-44).
    """

    name: str
    kind: CosignatureType
    public: bytes

    def __post_init__(self) -> None:
        """Refuse what could not be written as a vkey and read back."""
        check_name(self.name)
        if len(self.public) != _PUBLIC_KEY_BYTES[self.kind]:
            raise MalformedBundle(f"a public key of {self.name} has the wrong length")

    @property
    def key_id(self) -> bytes:
        """Four bytes that, with the name, find a key."""
        material = self.name.encode() + b"\n" + bytes([self.kind]) + self.public
        return hashlib.sha256(material).digest()[:KEY_ID_BYTES]

    def __str__(self) -> str:
        """The vkey, for example `witness.example/w1+7ee284ae+BM0y...`."""
        material = encode_base64(bytes([self.kind]) + self.public)
        return f"{self.name}+{self.key_id.hex()}+{material}"

    @classmethod
    def parse(cls, text: str) -> CosignerKey:
        """Read a witness's vkey.

        Raises:
            MalformedBundle: wrong shape, a type that no cosigner has, or another key's id.
        """
        name, _, rest = text.partition("+")
        key_id, _, encoded = rest.partition("+")
        material = decode_base64(encoded, what="a vkey's key")
        try:
            kind = CosignatureType(material[0])
        except (ValueError, IndexError) as error:
            raise MalformedBundle("a witness's vkey must be of type 0x04 or 0x06") from error
        key = cls(name, kind, material[1:])
        if key.key_id.hex() != key_id:
            raise MalformedBundle("a vkey carries another key's id", expected=key.key_id.hex())
        return key


@dataclass(frozen=True)
class CosignedHead(TreeHead):
    """A tree head that may have extension lines, which other people's logs do write.

    No statement is made about them; but Ed25519 signatures cover them.
    """

    extension: str = ""

    @property
    def text(self) -> str:
        """The whole note text."""
        return super().text + self.extension


def parse_cosigned_head(text: str) -> CosignedHead:
    """Read a note text as a tree head with or without extension lines.

    Size 0 with a root that no empty tree has is returned as it is: a witness must answer it
    otherwise than what does not parse.

    Raises:
        MalformedBundle: fewer than three lines, an empty line, a bad origin, size or root.
    """
    match = _TEXT.fullmatch(text)
    if match is None:
        raise MalformedBundle("a tree head must begin with three lines: origin, size, root")
    origin, size, root, extension = match.groups()
    check_name(origin)
    head = CosignedHead(origin, int(size), decode_base64(root, what="a root hash"), extension)
    if head.size > MAX_TREE_SIZE or len(head.root) != HASH_BYTES:
        raise MalformedBundle("a tree size is out of range, or its root is not 32 bytes long")
    return head


def log_signers(note: Note, head: TreeHead, keys: Iterable[VerifierKey]) -> tuple[VerifierKey, ...]:
    """Return which of a log's keys signed the head.

    Raises:
        BadSignature, PolicyUnmet: a line by one of them does not verify, or cannot be checked.
    """
    found = []
    for key in keys:
        lines = _lines_by(note, key.name, key.key_id)
        for line in lines:
            verify_signature(key, head, line.blob)
        if lines and key.name == head.origin:  # a log's key name is its origin
            found.append(key)
    return tuple(found)


def open_cosigned_head(note: str, keys: Iterable[VerifierKey]) -> SignedTreeHead:
    """Read a signed tree head, extension lines allowed, and find which of the keys signed it.

    Raises:
        MalformedBundle: the note or head does not parse, or no empty tree has that root.
        BadSignature, PolicyUnmet: a known key's line does not verify, or cannot be checked.
    """
    parsed = parse_note(note)
    head = parse_cosigned_head(parsed.text)
    if head.size == 0 and head.root != EMPTY_ROOT:
        raise MalformedBundle("a tree of size 0 has another root than the empty tree's")
    return SignedTreeHead(head, parsed, log_signers(parsed, head, keys))


def cosignature_message(key: CosignerKey, time_s: int, head: TreeHead) -> bytes:
    """Return the bytes that a cosigner signs; c2sp.org/tlog-cosignature."""
    if key.kind is CosignatureType.ED25519:
        return f"cosignature/v1\ntime {time_s}\n{head.text}".encode()
    return mldsa_message(key.name, time_s, head)


def verify_cosignature(key: CosignerKey, head: TreeHead, blob: bytes) -> int:
    """Show that `key` cosigned `head`; return when it says it did, in POSIX seconds.

    `blob` is what follows the key id: u64 time and 64 bytes (Ed25519) or 2,420 (ML-DSA-44).
    Time 0, by ML-DSA-44 only, says that a larger head may have been seen before.

    Raises:
        BadSignature: it did not, or the time is out of range.
        PolicyUnmet: the `cryptography` installed here has no such algorithm.
    """
    time_s = int.from_bytes(blob[:_TIME_BYTES], "big")
    if key.kind is CosignatureType.ML_DSA_44:
        verify_signature(VerifierKey(key.name, Algorithm.ML_DSA_44, key.public), head, blob)
    else:
        message = cosignature_message(key, time_s, head)
        try:
            Ed25519PublicKey.from_public_bytes(key.public).verify(blob[_TIME_BYTES:], message)
        except (InvalidSignature, ValueError) as error:
            raise _bad(key, "a signature over other bytes, or by another key") from error
    if time_s > MAX_TIME_S or (time_s == 0 and key.kind is CosignatureType.ED25519):
        raise _bad(key, f"time {time_s}")
    return time_s


def _bad(key: CosignerKey, actual: str) -> BadSignature:
    return BadSignature(
        f"the {key.kind.name} cosignature of {key.name} does not fit this tree head",
        expected=f"cosignature by key {key.key_id.hex()}",
        actual=actual,
    )


def find_cosignatures(
    note: Note, head: TreeHead, keys: Iterable[CosignerKey]
) -> dict[CosignerKey, int]:
    """Return who of `keys` cosigned the head, and when last, in POSIX seconds.

    Lines by unknown keys are ignored.

    Raises:
        BadSignature, PolicyUnmet: a known key's line does not verify, or cannot be checked.
    """
    found: dict[CosignerKey, int] = {}
    for key in keys:
        for line in _lines_by(note, key.name, key.key_id):
            found[key] = max(found.get(key, 0), verify_cosignature(key, head, line.blob))
    return found


def _lines_by(note: Note, name: str, key_id: bytes) -> list[SignatureLine]:
    return [line for line in note.signatures if (line.name, line.key_id) == (name, key_id)]


def format_lines(lines: Iterable[SignatureLine]) -> str:
    """Return signature lines as they stand in a note."""
    return "".join(f"— {x.name} {encode_base64(x.key_id + x.blob)}\n" for x in lines)


@dataclass(frozen=True)
class Cosigner:
    """A witness's private keys; both sign every head.

    The Ed25519 message does not name the signer, so each witness has its own key.
    """

    name: str
    _ed25519: Ed25519PrivateKey = field(repr=False)
    _mldsa: MLDSA44PrivateKey = field(repr=False)

    @classmethod
    def derive(cls, secret: bytes, name: str) -> Cosigner:
        """Derive the keys of the witness `name` from its operator's 32-byte secret."""
        check_name(name)
        return cls(
            name,
            Ed25519PrivateKey.from_private_bytes(derive(secret, b"witness-ed25519", name)),
            MLDSA44PrivateKey.from_seed_bytes(derive(secret, b"witness-ml-dsa-44", name)),
        )

    @property
    def keys(self) -> tuple[CosignerKey, CosignerKey]:
        """The public keys, Ed25519 first."""
        ed25519, mldsa = self._ed25519.public_key(), self._mldsa.public_key()
        return (
            CosignerKey(self.name, CosignatureType.ED25519, ed25519.public_bytes_raw()),
            CosignerKey(self.name, CosignatureType.ML_DSA_44, mldsa.public_bytes_raw()),
        )

    def cosign(self, head: TreeHead, *, time_s: int) -> tuple[SignatureLine, ...]:
        """Sign a head whose growth was checked; `time_s` is POSIX seconds, above 0."""
        ed25519, mldsa = self.keys
        signatures = (
            (ed25519, self._ed25519.sign(cosignature_message(ed25519, time_s, head))),
            (mldsa, self._mldsa.sign(cosignature_message(mldsa, time_s, head))),
        )
        time = struct.pack(">Q", time_s)
        return tuple(SignatureLine(x.name, x.key_id, time + blob) for x, blob in signatures)
