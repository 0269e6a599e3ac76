"""A bundle in a link: the part behind `#`, which a browser keeps to itself.

It is base64url, without padding, of the bundle's bytes compressed as RFC 1950 has it; `FORMAT.md`,
section 6.1. A code for cameras (QR) holds such a link; it has room for a bundle of one entry and
one Ed25519 signature only.
"""

from __future__ import annotations

import base64
import re
import zlib
from dataclasses import replace
from typing import Final

from rlhf_audit_trail.ledger.proof.bundle import encode_bundle, parse_bundle
from rlhf_audit_trail.ledger.proof.errors import MalformedBundle
from rlhf_audit_trail.ledger.proof.note import Algorithm, Note, VerifierKey, parse_note

__all__ = ["UNPACKED_BYTES_MAX", "bundle_of", "fragment_of", "without_long_parts"]

UNPACKED_BYTES_MAX: Final = 1024 * 1024  # a few bytes could stand for gigabytes
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]+")


def fragment_of(data: bytes) -> str:
    """Return what stands behind `#` in a link that holds a bundle's bytes.

    Raises:
        MalformedBundle: it is larger than any reader of a link unpacks.
    """
    if len(data) > UNPACKED_BYTES_MAX:
        raise MalformedBundle(
            f"a bundle in a link is at most {UNPACKED_BYTES_MAX:,} bytes",
            next_step="hand it on as a file",
        )
    return base64.urlsafe_b64encode(zlib.compress(data, 9)).decode().rstrip("=")


def bundle_of(fragment: str) -> bytes:
    """Return the bytes that a link's fragment (without `#`) holds; nothing is verified yet.

    Raises:
        MalformedBundle: another alphabet, a stream that is damaged, too long or goes on.
    """
    unpacking, data = zlib.decompressobj(), b""
    try:
        if _BASE64URL.fullmatch(fragment):
            packed = base64.urlsafe_b64decode(fragment + "=" * (-len(fragment) % 4))
            data = unpacking.decompress(packed, UNPACKED_BYTES_MAX + 1)
    except (ValueError, zlib.error):
        pass  # then the stream has not come to its end
    if not unpacking.eof or unpacking.unused_data or len(data) > UNPACKED_BYTES_MAX:
        raise MalformedBundle(
            "the link holds no bundle, or a part of it was lost on the way",
            next_step="ask for the bundle as a file",
        )
    return data


def without_long_parts(data: bytes) -> bytes:
    """Return a bundle with its Ed25519 signature only, and without anchors: short enough for QR.

    Whoever pinned an ML-DSA-44 key, or demands an anchor, gets INCONCLUSIVE from it.

    Raises:
        MalformedBundle: this is no bundle, or no Ed25519 key signed it.
    """
    bundle = parse_bundle(data)
    keys = [VerifierKey.parse(text) for text in bundle.log_keys]
    kept = [key for key in keys if key.algorithm is Algorithm.ED25519]
    names = {(key.name, key.key_id) for key in kept}
    note = parse_note(bundle.tree_head)
    lines = tuple(line for line in note.signatures if (line.name, line.key_id) in names)
    if not lines:
        raise MalformedBundle(
            "no Ed25519 key of the log signed this bundle", next_step="hand it on as a file"
        )
    short = replace(
        bundle,
        log_keys=tuple(map(str, kept)),
        tree_head=str(Note(note.text, lines)),
        anchored=(),
        chain=b"",
    )
    return encode_bundle(short)
