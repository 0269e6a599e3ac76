"""Scenarios for signed notes, verifier keys, tree heads and their signatures."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from typing import Any

from sample_log import ORIGIN, SampleLog

from rlhf_audit_trail.ledger.proof.merkle import EMPTY_ROOT
from rlhf_audit_trail.ledger.proof.note import Note, SignatureLine, VerifierKey

Vector = dict[str, Any]
MALFORMED, BAD = "MalformedBundle", "BadSignature"


def scenarios(log: SampleLog) -> Iterator[tuple[str, Vector]]:
    """Yield (name, vector)."""
    for name, about, expect, text in _notes():
        yield f"note-{name}", _vector("note", about, expect, note=text)
    for name, about, expect, text in _vkeys(log):
        yield f"vkey-{name}", _vector("vkey", about, expect, vkey=text)
    for name, about, expect, text in _tree_heads(log):
        yield f"tree-head-{name}", _vector("tree_head", about, expect, text=text)
    yield from _signed(log)


def _vector(kind: str, about: str, expect: str, **given: Any) -> Vector:
    return {"about": about, "kind": kind, "input": given, "expect": expect}


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _notes() -> list[tuple[str, str, str, str]]:
    line = "— example.com/a " + _b64(b"\1\2\3\4signature") + "\n"
    text = "a text\n"
    good = text + "\n" + line
    return [
        ("good", "Text, empty line, one signature line.", "ok", good),
        ("two-lines", "Two signature lines.", "ok", good + line),
        ("hundred-lines", "The most signature lines.", "ok", good + line * 99),
        ("empty-lines-in-text", "The last empty line separates.", "ok", "a\n\n" + good),
        ("other-alphabets", "A name may be in any script.", "ok", good.replace("a", "å", 2)),
        ("empty", "Nothing.", MALFORMED, ""),
        ("text-only", "No signature.", MALFORMED, text),
        ("no-lines", "An empty line, and nothing after it.", MALFORMED, text + "\n"),
        ("no-empty-line", "Text and line are not separated.", MALFORMED, text + line),
        ("no-last-newline", "The last line does not end.", MALFORMED, good[:-1]),
        ("trailing-text", "Text after the signatures.", MALFORMED, good + "more\n"),
        ("too-many-lines", "101 signature lines.", MALFORMED, good + line * 100),
        ("carriage-return", "Windows line ends.", MALFORMED, good.replace("\n", "\r\n")),
        ("tab", "A control character in the text.", MALFORMED, "a\ttext\n\n" + line),
        ("nul", "A zero byte in the text.", MALFORMED, "a\0text\n\n" + line),
        ("hyphen", "A hyphen for the dash.", MALFORMED, good.replace("—", "-")),
        ("two-spaces", "Two spaces after the dash.", MALFORMED, good.replace("— ", "—  ")),
        ("space-at-end", "A space ends the line.", MALFORMED, good[:-1] + " \n"),
        ("name-empty", "No name.", MALFORMED, good.replace("example.com/a", "")),
        ("name-plus", "A plus sign in a name.", MALFORMED, good.replace("/a ", "/a+b ")),
        ("name-nbsp", "A no-break space is a space.", MALFORMED, good.replace("/a ", "/a\xa0b ")),
        ("name-escape", "A C1 control moves a cursor.", MALFORMED, good.replace("/a ", "/a\x9b ")),
        ("name-too-long", "256 bytes of name.", MALFORMED, good.replace("/a ", "/" + "a" * 245 + " ")),
        ("signature-empty", "A key id alone.", MALFORMED, text + "\n— a " + _b64(b"\1\2\3\4") + "\n"),
        ("base64-unpadded", "Padding is missing.", MALFORMED, text + "\n— a AQIDBHM\n"),
        ("base64-loose-bits", "Unused bits are set.", MALFORMED, text + "\n— a AQIDBHN=\n"),
        ("base64-url", "The URL alphabet.", MALFORMED, text + "\n— a AQIDBP-_\n"),
    ]  # fmt: skip


def _vkeys(log: SampleLog) -> list[tuple[str, str, str, str]]:
    good, mldsa = str(log.ed25519), str(log.mldsa)
    key_id, public = log.ed25519.key_id.hex(), log.ed25519.public
    plus = _key_with_plus(log.origin)
    return [
        ("ed25519", "An Ed25519 key.", "ok", good),
        ("ml-dsa-44", "An ML-DSA-44 key.", "ok", mldsa),
        ("plus-in-base64", "Only the first two plus signs separate.", "ok", plus),
        ("id-of-another", "The id belongs to another key.", MALFORMED,
         good.replace(key_id, log.mldsa.key_id.hex())),
        ("id-upper-case", "Hex is lower case.", MALFORMED, _upper_case_id(plus)),
        ("id-missing", "Two parts.", MALFORMED, f"{ORIGIN}+{_b64(bytes([1]) + public)}"),
        ("renamed", "The name goes into the id.", MALFORMED, good.replace("run42", "run43")),
        ("name-empty", "No name.", MALFORMED, _spelt("", b"\1" + public)),
        ("name-space", "A space in the name.", MALFORMED, _spelt("a b", b"\1" + public)),
        ("name-newline", "A newline in the name.", MALFORMED, _spelt("a\nb", b"\1" + public)),
        ("unknown-algorithm", "0x04 is no key of a log.", MALFORMED, _spelt(ORIGIN, b"\4" + public)),
        ("other-algorithm", "32 bytes are no ML-DSA-44 key.", MALFORMED,
         _spelt(ORIGIN, b"\6" + public)),
        ("key-31-bytes", "A short key.", MALFORMED, _spelt(ORIGIN, b"\1" + public[:31])),
        ("key-33-bytes", "A long key.", MALFORMED, _spelt(ORIGIN, b"\1" + public + b"\0")),
        ("key-empty", "No key.", MALFORMED, f"{ORIGIN}+{key_id}+"),
        ("trailing-newline", "Bytes after the key.", MALFORMED, good + "\n"),
        ("base64-unpadded", "Padding is missing.", MALFORMED, mldsa.rstrip("=")),
        ("empty", "Nothing.", MALFORMED, ""),
    ]  # fmt: skip


def _spelt(name: str, material: bytes) -> str:
    """A vkey whose id fits whatever it names."""
    key_id = hashlib.sha256(name.encode() + b"\n" + material).hexdigest()[:8]
    return f"{name}+{key_id}+{_b64(material)}"


def _upper_case_id(vkey: str) -> str:
    name, key_id, material = vkey.split("+", 2)
    assert key_id != key_id.upper()
    return f"{name}+{key_id.upper()}+{material}"


def _key_with_plus(name: str) -> str:
    """The first key of all 32-byte hashes of numbers whose base64 holds a plus sign."""
    keys = (_spelt(name, b"\1" + hashlib.sha256(bytes([n])).digest()) for n in range(256))
    return next(key for key in keys if key.count("+") > 2)


def _tree_heads(log: SampleLog) -> list[tuple[str, str, str, str]]:
    head = log.head(8)
    root = _b64(head.root)
    sized = "{}\n{}\n{}\n".format
    return [
        ("good", "Origin, size, root.", "ok", head.text),
        ("empty-tree", "Size 0 has the root of nothing.", "ok", sized(ORIGIN, 0, _b64(EMPTY_ROOT))),
        ("largest", "The largest size.", "ok", sized(ORIGIN, 2**63 - 1, root)),
        ("too-large", "2**63.", MALFORMED, sized(ORIGIN, 2**63, root)),
        ("digits-without-end", "Thousands of digits.", MALFORMED, sized(ORIGIN, "9" * 5000, root)),
        ("empty-tree-root", "Size 0 with another root.", MALFORMED, sized(ORIGIN, 0, root)),
        ("leading-zero", "007 is not 7.", MALFORMED, sized(ORIGIN, "008", root)),
        ("plus", "A sign.", MALFORMED, sized(ORIGIN, "+8", root)),
        ("negative", "A negative size.", MALFORMED, sized(ORIGIN, "-8", root)),
        ("fraction", "A fraction.", MALFORMED, sized(ORIGIN, "8.0", root)),
        ("underscore", "Digits apart.", MALFORMED, sized(ORIGIN, "1_0", root)),
        ("other-digits", "Arabic-Indic eight.", MALFORMED, sized(ORIGIN, "٨", root)),
        ("space", "A space before the size.", MALFORMED, sized(ORIGIN, " 8", root)),
        ("origin-empty", "No origin.", MALFORMED, sized("", 8, root)),
        ("origin-long", "256 bytes of origin.", MALFORMED, sized("a" * 256, 8, root)),
        ("origin-space", "No key could bear this name.", MALFORMED, sized("a b", 8, root)),
        ("origin-bidi", "A name shown backwards.", MALFORMED, sized("a/\u202enur", 8, root)),
        ("origin-unseen", "Two names that look alike.", MALFORMED, sized("a/r\u200bun", 8, root)),
        ("root-31-bytes", "A short root.", MALFORMED, sized(ORIGIN, 8, _b64(head.root[:31]))),
        ("root-hex", "Hex is no base64.", MALFORMED, sized(ORIGIN, 8, head.root.hex())),
        ("root-unpadded", "Padding is missing.", MALFORMED, sized(ORIGIN, 8, root.rstrip("="))),
        ("extension", "A fourth line, which ML-DSA would not sign.", MALFORMED, head.text + "x\n"),
        ("no-last-newline", "The last line does not end.", MALFORMED, head.text[:-1]),
        ("two-lines", "No root.", MALFORMED, sized(ORIGIN, 8, "")),
        ("carriage-return", "Windows line ends.", MALFORMED, head.text.replace("\n", "\r\n")),
    ]  # fmt: skip


def _signed(log: SampleLog) -> Iterator[tuple[str, Vector]]:
    both, note = log.keys.verifier_keys, log.note(8)
    ed25519, mldsa = note.signatures
    stranger = SampleLog(secret=bytes(32))
    foreign = stranger.short_note(8).signatures[0]
    witness = SampleLog(origin="example.com/witness")
    greased = (_line("example.com/new", b"???"), mldsa, _line(log.origin, b"???"), ed25519)
    cases: list[tuple[str, str, str, Note, tuple[VerifierKey, ...], tuple[VerifierKey, ...]]] = [
        ("good", "Both of the log's keys signed.", "ok", note, both, both),
        ("one-asked", "Only the Ed25519 key is asked for.", "ok", note, both[:1], both[:1]),
        ("nobody-asked", "No key is asked for: nothing is shown.", "ok", note, (), ()),
        ("greased", "Unknown lines, and another order.", "ok", _note(note, *greased), both, both),
        ("line-twice", "A good line twice.", "ok", _note(note, ed25519, ed25519), both, both[:1]),
        ("line-missing", "The ML-DSA line is missing.", "ok", log.short_note(8), both, both[:1]),
        ("other-name", "Another name's key signed this text: not the log.", "ok",
         _note(note, _other_name(witness, note)), (witness.ed25519,), ()),
        ("ed25519-bit", "One bit of the signature.", BAD,
         _note(note, _bent(ed25519, 40), mldsa), both, ()),
        ("ml-dsa-bit", "One bit of the signature.", BAD,
         _note(note, ed25519, _bent(mldsa, 2000)), both, ()),
        ("ml-dsa-time", "The time is covered by the signature.", BAD,
         _note(note, ed25519, _bent(mldsa, 7)), both, ()),
        ("ml-dsa-short", "The signature is cut.", BAD,
         _note(note, _line(log.origin, mldsa.blob[:-1], mldsa.key_id)), both, ()),
        ("ed25519-time-only", "Eight bytes are no signature.", BAD,
         _note(note, _line(log.origin, bytes(8), mldsa.key_id)), both, ()),
        ("size-changed", "The size was changed after signing.", BAD,
         Note(note.text.replace("\n8\n", "\n9\n"), note.signatures), both, ()),
        ("origin-changed", "The signatures belong to another log's head.", BAD,
         Note(note.text.replace("run42", "run43"), note.signatures), both, ()),
        ("id-borrowed", "A stranger signs under the known key's id.", BAD,
         _note(note, _line(log.origin, foreign.blob, ed25519.key_id)), both, ()),
        ("second-line-bad", "A bad line after a good one by the same key.", BAD,
         _note(note, ed25519, _bent(ed25519, 3)), both, ()),
    ]  # fmt: skip
    for name, about, expect, signed, keys, signed_by in cases:
        given = {"note": str(signed), "keys": [str(key) for key in keys]}
        vector = _vector("signed_tree_head", about, expect, **given)
        if expect == "ok":
            vector["signed_by"] = [key.key_id.hex() for key in signed_by]
        yield f"signed-{name}", vector


def _note(note: Note, *lines: SignatureLine) -> Note:
    return Note(note.text, lines)


def _line(name: str, blob: bytes, key_id: bytes = b"\0\0\0\0") -> SignatureLine:
    return SignatureLine(name, key_id, blob)


def _bent(line: SignatureLine, at: int) -> SignatureLine:
    blob = bytearray(line.blob)
    blob[at] ^= 1
    return SignatureLine(line.name, line.key_id, bytes(blob))


def _other_name(witness: SampleLog, note: Note) -> SignatureLine:
    signature = witness.keys._ed25519.sign(note.text.encode())
    return SignatureLine(witness.origin, witness.ed25519.key_id, signature)
