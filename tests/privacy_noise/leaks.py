"""Look for secrets in what everybody may read: as they are, encoded, or behind guessable hashes.

    from leaks import Secrets, leaks
    assert leaks({"log": text, "card": card}, Secrets(ids=..., numbers=..., keys=...)) == []

A finding never holds the secret itself, only which one it is. Three ways are tried:

- `plain`: the text or number itself, or its bytes, in hex or base64 (at any offset), escaped for
  JSON or a URL. Numbers of fewer than four digits are anybody's, and not looked for so.
- `hash`: each field of 16 bytes or more, in hex or base64, is compared with hashes of every guess:
  the secrets, and a dictionary (rewards of two decimals, small whole numbers), in many spellings.
- `keyed`: the same with HMAC, or a salt in front or behind, for every public text and field as
  key or salt: a salt that is published with its commitment is none.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

REWARDS: tuple[float, ...] = tuple(step / 100 for step in range(-100, 101))
WHOLE: tuple[int, ...] = tuple(range(-20, 21))
FIELD_NAMES = ("reward", "value", "annotator", "annotator_id", "id", "label", "seed", "noise")

_HASHES = ("sha256", "sha512", "sha1", "md5", "sha3_256", "blake2b", "blake2s")
_TOKEN_BYTES_MIN = 16
_SHORT = {"text", "JSON", "two decimals"}  # forms that are tried with keys and salts
_KEYS_MAX = 400
_HEX = re.compile(r"(?<![0-9a-fA-F])(?:0x)?((?:[0-9a-fA-F]{2}){16,})(?![0-9a-fA-F])")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{22,}={0,2}")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?![\w.])")
_STRING = re.compile(r'"((?:[^"\\]|\\.){1,128})"')


@dataclass(frozen=True)
class Secrets:
    """What must not be found.

    Attributes:
        ids: names of people, and other texts.
        numbers: raw values, noise, differences of both.
        keys: seeds, salts, K: bytes.
    """

    ids: Sequence[str] = ()
    numbers: Sequence[float] = ()
    keys: Sequence[bytes] = ()


@dataclass(frozen=True)
class Leak:
    """One finding: where, by which way, which secret or guess, and in what form."""

    document: str
    way: str
    what: str
    form: str


def leaks(
    documents: Mapping[str, str | bytes],
    secrets: Secrets,
    *,
    dictionary: Iterable[float | str] = (*REWARDS, *WHOLE),
) -> list[Leak]:
    """Return everything found; an empty list is what a test hopes for.

    Args:
        documents: name to public text (JSON, log lines, exceptions), or bytes of a file.
        secrets: what must not be found.
        dictionary: further guesses for `hash` and `keyed`.
    """
    texts = {
        name: data if isinstance(data, str) else data.decode("latin-1")
        for name, data in documents.items()
    }
    found = [leak for name, text in texts.items() for leak in _plain(name, text, secrets)]
    guesses = list(_guesses(secrets, dictionary))
    fields = {name: _fields(text) for name, text in texts.items()}
    binary = {name: data for name, data in documents.items() if isinstance(data, bytes)}
    found += _hashed(fields, binary, guesses)
    return found + _keyed(fields, texts, guesses)


# --- as it is -------------------------------------------------------------------------


def _plain(document: str, text: str, secrets: Secrets) -> Iterator[Leak]:
    for number, name in enumerate(secrets.ids):
        for form, shown in _shown(name.encode()):
            if shown in text:
                yield Leak(document, "plain", f"ids[{number}]", form)
        for form, shown in (("JSON", json.dumps(name)[1:-1]), ("URL", quote(name, safe=""))):
            if shown != name and shown in text:
                yield Leak(document, "plain", f"ids[{number}]", form)
    for number, key in enumerate(secrets.keys):
        for form, shown in (*_shown(key), ("decimal", str(int.from_bytes(key)))):
            if shown in text:
                yield Leak(document, "plain", f"keys[{number}]", form)
    yield from _plain_numbers(document, text, secrets.numbers)


def _plain_numbers(document: str, text: str, values: Sequence[float]) -> Iterator[Leak]:
    shown = [float(token) for token in _NUMBER.findall(text) if len(token) < 40]
    for number, value in enumerate(values):
        if len(_digits(value)) < 4:
            continue
        if any(abs(x - value) <= 1e-9 * abs(value) for x in shown):
            yield Leak(document, "plain", f"numbers[{number}]", "number")
        forms = [(form, data) for form, data in _packed(value) if len(data) == 8]
        for form, data in forms:
            for how, text_of in _shown(data):
                if text_of in text:
                    yield Leak(document, "plain", f"numbers[{number}]", f"{form}, {how}")


def _digits(value: float) -> str:
    return re.sub(r"[eE].*|\D", "", repr(value)).strip("0")


def _shown(data: bytes) -> list[tuple[str, str]]:
    """Return bytes as they may stand in a text."""
    found = [("bytes", data.decode("latin-1")), ("hex", data.hex()), ("HEX", data.hex().upper())]
    with contextlib.suppress(UnicodeDecodeError):
        found.append(("text", data.decode()))
    for offset in range(3):  # within other base64, each offset has its own spelling
        coded = base64.b64encode(bytes(offset) + data).decode().rstrip("=")
        first = (offset * 8 + 5) // 6  # digits that hold bits of what stands before
        last = len(coded) if (offset + len(data)) % 3 == 0 else len(coded) - 1
        inner = coded[first:last]
        if len(inner) >= 6:
            found.append(("base64", inner))
            found.append(("base64url", inner.replace("+", "-").replace("/", "_")))
    return found


# --- behind a hash --------------------------------------------------------------------


def _guesses(
    secrets: Secrets, dictionary: Iterable[float | str]
) -> Iterator[tuple[str, str, bytes]]:
    """Every guess as (what, form, bytes)."""
    named: list[tuple[str, float | str | bytes]] = [
        *((f"ids[{i}]", x) for i, x in enumerate(secrets.ids)),
        *((f"numbers[{i}]", x) for i, x in enumerate(secrets.numbers)),
        *((f"keys[{i}]", x) for i, x in enumerate(secrets.keys)),
        *(("dictionary", x) for x in dictionary),
    ]
    for what, value in named:
        seen = set()
        for form, data in _spelt(value):
            if data not in seen:
                seen.add(data)
                yield what, form, data


def _spelt(value: float | str | bytes) -> Iterator[tuple[str, bytes]]:
    if isinstance(value, bytes):
        yield "bytes", value
        yield "hex", value.hex().encode()
        return
    yield "text", str(value).encode()
    yield "JSON", json.dumps(value).encode()
    for name in FIELD_NAMES:
        yield f"JSON of {name}", json.dumps({name: value}).encode()
        yield f"compact JSON of {name}", json.dumps({name: value}, separators=(",", ":")).encode()
    if isinstance(value, str):
        yield "lower case", value.lower().encode()
        yield "stripped", value.strip().encode()
        return
    yield "two decimals", f"{value:.2f}".encode()
    yield from _packed(value)


def _packed(value: float) -> Iterator[tuple[str, bytes]]:
    codes = [("float", "d", value), ("float", "f", value)]
    if value == int(value):
        codes += [("integer", "q", int(value)), ("integer", "i", int(value))]
    for kind, code, number in codes:
        with contextlib.suppress(struct.error, OverflowError):  # too large for this one
            yield f"{kind} <{code}", struct.pack(f"<{code}", number)
            yield f"{kind} >{code}", struct.pack(f">{code}", number)


def _fields(text: str) -> set[bytes]:
    """Every field of at least 16 bytes, in hex or base64."""
    found = {bytes.fromhex(token) for token in _HEX.findall(text)}
    for token in _BASE64.findall(text):
        plain = token.rstrip("=").replace("-", "+").replace("_", "/")
        try:
            found.add(base64.b64decode(plain + "=" * (-len(plain) % 4)))
        except ValueError:
            continue
    return {field for field in found if len(field) >= _TOKEN_BYTES_MIN}


def _hashed(
    fields: Mapping[str, set[bytes]],
    binary: Mapping[str, bytes],
    guesses: Sequence[tuple[str, str, bytes]],
) -> list[Leak]:
    where = _by_beginning(fields)
    found = []
    for what, form, data in guesses:
        for how, digest in _digests(data):
            found += [
                Leak(name, "hash", what, f"{how} of {form}") for name in _holders(where, digest)
            ]
            found += [
                Leak(name, "hash", what, f"{how} of {form}, bytes")
                for name, whole in binary.items()
                if digest[:_TOKEN_BYTES_MIN] in whole
            ]
    return found


def _digests(data: bytes) -> Iterator[tuple[str, bytes]]:
    for name in _HASHES:
        yield name, hashlib.new(name, data).digest()
    yield "sha256 twice", hashlib.sha256(hashlib.sha256(data).digest()).digest()
    yield "leaf", hashlib.sha256(b"\x00" + data).digest()
    yield "HMAC without key", hmac.digest(b"", data, "sha256")


def _by_beginning(fields: Mapping[str, set[bytes]]) -> dict[bytes, list[tuple[str, bytes]]]:
    found: dict[bytes, list[tuple[str, bytes]]] = {}
    for name, values in fields.items():
        for field in values:
            found.setdefault(field[:_TOKEN_BYTES_MIN], []).append((name, field))
    return found


def _holders(where: Mapping[bytes, list[tuple[str, bytes]]], digest: bytes) -> set[str]:
    """Documents that hold the digest, or its first 16 bytes and more."""
    near = where.get(digest[:_TOKEN_BYTES_MIN], ())
    return {name for name, field in near if digest.startswith(field) or field.startswith(digest)}


def _keyed(
    fields: Mapping[str, set[bytes]],
    texts: Mapping[str, str],
    guesses: Sequence[tuple[str, str, bytes]],
) -> list[Leak]:
    where = _by_beginning(fields)
    keys = {field for values in fields.values() for field in values if len(field) <= 64}
    public = {text.encode() for whole in texts.values() for text in _STRING.findall(whole)}
    chosen = [*sorted(keys)[:_KEYS_MAX], *sorted(public)[:_KEYS_MAX]]
    found = []
    for what, form, data in guesses:
        if what == "dictionary" and form not in _SHORT:
            continue
        for key in chosen:
            for how, digest in (
                ("HMAC", hmac.digest(key, data, "sha256")),
                ("salt in front", hashlib.sha256(key + data).digest()),
                ("salt behind", hashlib.sha256(data + key).digest()),
            ):
                found += [
                    Leak(name, "keyed", what, f"{how}, {form}") for name in _holders(where, digest)
                ]
    return found + _committed(where, keys, guesses)


def _committed(
    where: Mapping[bytes, list[tuple[str, bytes]]],
    salts: Iterable[bytes],
    guesses: Sequence[tuple[str, str, bytes]],
) -> list[Leak]:
    """The project's own commitments (`FORMAT.md`, 3.2), for a salt that stands in public."""
    domain = b"rlhf-audit/commitment/v1\x00"
    found = []
    for salt in [salt for salt in sorted(salts) if len(salt) == 32][:_KEYS_MAX]:
        for path in FIELD_NAMES:
            begin = domain + len(path).to_bytes(2) + path.encode()
            for what, form, data in guesses:
                if form in _SHORT:
                    digest = hmac.digest(salt, begin + data, "sha256")
                    found += [
                        Leak(name, "keyed", what, f"commitment, {path}")
                        for name in _holders(where, digest)
                    ]
    return found
