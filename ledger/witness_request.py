"""`add-checkpoint`: what a log sends to a witness, and the lines that come back.

    old 20852014
    <base64 of each hash of the consistency proof>

    <the signed tree head>

Reference: c2sp.org/tlog-witness.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from rlhf_audit_trail.ledger.proof.errors import MalformedBundle
from rlhf_audit_trail.ledger.proof.merkle import HASH_BYTES, MAX_TREE_SIZE
from rlhf_audit_trail.ledger.proof.note import (
    Note,
    SignatureLine,
    decode_base64,
    encode_base64,
    parse_note,
)

__all__ = [
    "MAX_REPLY_BYTES",
    "MAX_REQUEST_BYTES",
    "SIZE_TYPE",
    "AddCheckpoint",
    "encode_request",
    "parse_reply",
    "parse_request",
    "parse_size",
]

MAX_REQUEST_BYTES: Final = 128 * 1024  # sixteen ML-DSA-44 lines are 52 kB
MAX_REPLY_BYTES: Final = 128 * 1024
MAX_PROOF_LINES: Final = 63
SIZE_TYPE: Final = "text/x.tlog.size"
_OLD = re.compile(r"old (0|[1-9][0-9]{0,18})")
_SIZE = re.compile(rb"(0|[1-9][0-9]{0,18})\n")


@dataclass(frozen=True)
class AddCheckpoint:
    """A request, parsed but not believed.

    Attributes:
        old_size: the size that the witness is thought to have seen last.
        proof: consistency proof from there, 32 bytes each.
        note: the signed tree head.
    """

    old_size: int
    proof: tuple[bytes, ...]
    note: Note


def encode_request(request: AddCheckpoint) -> bytes:
    """Write a request's body."""
    lines = [f"old {request.old_size}", *map(encode_base64, request.proof), "", str(request.note)]
    return "\n".join(lines).encode()


def parse_request(body: bytes) -> AddCheckpoint:
    """Read a request's body.

    Raises:
        MalformedBundle: too long, not UTF-8, a line out of place, or too many of them.
    """
    if len(body) > MAX_REQUEST_BYTES:
        raise MalformedBundle(f"an add-checkpoint request is at most {MAX_REQUEST_BYTES:,} bytes")
    head, separator, note = _decode(body).partition("\n\n")
    old, *lines = head.split("\n")
    match = _OLD.fullmatch(old)
    if not separator or match is None or int(match[1]) > MAX_TREE_SIZE:
        raise MalformedBundle("the request must begin with: old, a size, and a proof")
    if len(lines) > MAX_PROOF_LINES:
        raise MalformedBundle(f"a proof has at most {MAX_PROOF_LINES} lines")
    proof = tuple(decode_base64(line, what="a proof line") for line in lines)
    if any(len(node) != HASH_BYTES for node in proof):
        raise MalformedBundle(f"a proof line is not {HASH_BYTES} bytes")
    return AddCheckpoint(int(match[1]), proof, parse_note(note))


def parse_reply(body: bytes) -> tuple[SignatureLine, ...]:
    """Read the signature lines of a witness's reply; whose they are is still to be checked.

    Raises:
        MalformedBundle: anything but one or more signature lines.
    """
    if len(body) > MAX_REPLY_BYTES:
        raise MalformedBundle(f"a witness's reply is at most {MAX_REPLY_BYTES:,} bytes")
    text = _decode(body)
    if text.startswith("\n") or "\n\n" in text:  # they would end the note that it is read in
        raise MalformedBundle("a witness's reply holds an empty line")
    return parse_note("reply\n\n" + text).signatures


def parse_size(body: bytes) -> int:
    """Read the size that a witness holds, from its answer 409.

    Raises:
        MalformedBundle: anything but a decimal number and a newline.
    """
    match = _SIZE.fullmatch(body)
    if match is None or int(match[1]) > MAX_TREE_SIZE:
        raise MalformedBundle("a witness's conflict does not name the size it holds")
    return int(match[1])


def _decode(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise MalformedBundle("this is not UTF-8") from error
