"""C2SP signed notes and verifier keys: text, an empty line, signature lines.

Parsing is strict: whatever a second reader might read differently is refused.
References: c2sp.org/signed-note, c2sp.org/tlog-cosignature (key types 0x04, 0x06).
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from rlhf_audit_trail.ledger.proof.errors import MalformedBundle

MAX_NOTE_BYTES: Final = 512 * 1024  # 100 post-quantum lines are about 330 kB
MAX_SIGNATURES: Final = 100
MAX_NAME_BYTES: Final = 255  # the ML-DSA message gives a name one length byte
KEY_ID_BYTES: Final = 4
_LINE = re.compile(r"— ([^ +\n]+) ([A-Za-z0-9+/=]+)")
_NOT_IN_NOTE = re.compile(r"[\x00-\x09\x0b-\x1f\ud800-\udfff]")  # surrogates have no UTF-8
_UNSEEN = r"\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff"  # or turns others round
_NOT_IN_NAME = re.compile(rf"[\s+\x00-\x1f\x7f-\x9f{_UNSEEN}\ud800-\udfff]")  # or moves a cursor


class Algorithm(IntEnum):
    """Signature type bytes; C2SP's registry."""

    ED25519 = 0x01
    ML_DSA_44 = 0x06


PUBLIC_KEY_BYTES: Final = {Algorithm.ED25519: 32, Algorithm.ML_DSA_44: 1312}


def encode_base64(data: bytes) -> str:
    """Encode as padded standard base64."""
    return base64.b64encode(data).decode("ascii")


def decode_base64(text: str, *, what: str) -> bytes:
    """Decode padded standard base64 in its one canonical spelling.

    Raises MalformedBundle for another alphabet, missing padding, or unused bits not zero.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise MalformedBundle(f"{what} is not base64") from error
    if encode_base64(data) != text:
        raise MalformedBundle(f"{what} is not base64 in its canonical spelling")
    return data


@dataclass(frozen=True)
class VerifierKey:
    """A public key with the name it signs under; for a log's key, the log's origin.

    Attributes:
        name: 1 to 255 bytes of UTF-8, without space or plus sign.
        algorithm: how it signs.
        public: raw public key, 32 bytes (Ed25519) or 1,312 bytes (ML-DSA-44).
    """

    name: str
    algorithm: Algorithm
    public: bytes

    def __post_init__(self) -> None:
        """Refuse what could not be written as a vkey and read back."""
        check_name(self.name)
        if len(self.public) != PUBLIC_KEY_BYTES[self.algorithm]:
            raise MalformedBundle(f"a public key of {self.name} has the wrong length")

    @property
    def key_id(self) -> bytes:
        """Four bytes that, with the name, find a key; no protection against forgery."""
        material = self.name.encode() + b"\n" + bytes([self.algorithm]) + self.public
        return hashlib.sha256(material).digest()[:KEY_ID_BYTES]

    def __str__(self) -> str:
        """The vkey, for example `example.com/log+1a2b3c4d+AdG7...`."""
        material = encode_base64(bytes([self.algorithm]) + self.public)
        return f"{self.name}+{self.key_id.hex()}+{material}"

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """Read a vkey; only the first two plus signs separate, base64 has its own.

        Raises:
            MalformedBundle: wrong shape, unknown algorithm, or an id that is not this key's.
        """
        name, _, rest = text.partition("+")
        key_id, _, encoded = rest.partition("+")
        material = decode_base64(encoded, what="a vkey's key")
        try:
            algorithm = Algorithm(material[0])
        except (ValueError, IndexError) as error:
            raise MalformedBundle("a vkey must read name+id+key, of a known algorithm") from error
        key = cls(name, algorithm, material[1:])
        if key.key_id.hex() != key_id:
            raise MalformedBundle("a vkey carries another key's id", expected=key.key_id.hex())
        return key


@dataclass(frozen=True)
class SignatureLine:
    """One signature: who says to have signed, and an opaque blob."""

    name: str
    key_id: bytes
    blob: bytes


@dataclass(frozen=True)
class Note:
    """A signed text; signatures by unknown keys are carried along and ignored.

    Attributes:
        text: ends with a newline; signatures are made over these bytes in UTF-8.
        signatures: in the order of the file.
    """

    text: str
    signatures: tuple[SignatureLine, ...]

    def __str__(self) -> str:
        """The note as it is stored and served."""
        lines = (f"— {x.name} {encode_base64(x.key_id + x.blob)}\n" for x in self.signatures)
        return self.text + "\n" + "".join(lines)


def parse_note(data: str) -> Note:
    """Read a signed note.

    Raises MalformedBundle: too long, control characters, no empty line, a bad signature line.
    """
    if len(data.encode("utf-8", "surrogatepass")) > MAX_NOTE_BYTES:
        raise MalformedBundle(f"a signed note is longer than {MAX_NOTE_BYTES:,} bytes")
    if _NOT_IN_NOTE.search(data):
        raise MalformedBundle("a signed note holds a control character")
    head, separator, tail = data.rpartition("\n\n")  # the last empty line separates
    if not separator or not tail.endswith("\n"):
        raise MalformedBundle("a signed note must be text, an empty line, and signature lines")
    lines = tail[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise MalformedBundle(f"a signed note has more than {MAX_SIGNATURES} signatures")
    return Note(head + "\n", tuple(_parse_line(line) for line in lines))


def _parse_line(line: str) -> SignatureLine:
    match = _LINE.fullmatch(line)
    if match is None:
        raise MalformedBundle("a signature line must read: dash, name, base64")
    name, encoded = match.groups()
    blob = decode_base64(encoded, what="a signature")
    if len(blob) <= KEY_ID_BYTES:
        raise MalformedBundle("a signature line holds no signature")
    check_name(name)
    return SignatureLine(name, blob[:KEY_ID_BYTES], blob[KEY_ID_BYTES:])


def check_name(name: str) -> None:
    """Refuse what is no name of a key or log, in which one must see all; raises MalformedBundle."""
    if not name or _NOT_IN_NAME.search(name) or len(name.encode()) > MAX_NAME_BYTES:
        raise MalformedBundle("a name must be 1 to 255 bytes without space, plus or control sign")
