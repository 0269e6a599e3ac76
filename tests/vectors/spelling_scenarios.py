"""Scenarios for files that say what a bundle says in another spelling, or nothing at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator

from sample_log import SampleLog, compact, record_of, reseal
from spoiling import Expect, Record, Vector, b64, put, short, unreadable, vector

from rlhf_audit_trail.ledger.proof.bundle import encode_bundle


def scenarios(log: SampleLog) -> Iterator[tuple[str, Vector]]:
    """Yield (name, vector); the log's Ed25519 key is pinned."""
    for name, about, expect, data in _spellings(log):
        yield vector(log, name, about, expect, data, {})


def _spellings(log: SampleLog) -> Iterator[tuple[str, str, Expect, bytes]]:
    data, record = encode_bundle(short(log)), record_of(short(log))
    first = unreadable(1)

    def swap(old: bytes, new: bytes) -> bytes:
        """Change the text of the file, and make its digest fit again where it is JSON."""
        spoilt = data.replace(old, new)
        assert spoilt != data
        digest = hashlib.sha256(spoilt[: spoilt.rindex(b',"sha256"')] + b"}").hexdigest()
        return spoilt[: spoilt.rindex(b':"') + 2] + digest.encode() + b'"}\n'

    def give(change: Callable[[Record], object]) -> bytes:
        copy = json.loads(json.dumps(record))
        change(copy)
        return reseal(copy)

    entry = ("entries", 0)
    text = record["entries"][0]["entry"]
    opening = {"path": "reward", "salt": b64(bytes(32)), "value": ""}
    for name, about, spoilt in (
        ("empty", "Nothing.", b""),
        ("not-json", "Any text.", b"this is not a bundle\n"),
        ("list", "A list.", b"[]"),
        ("null", "Null.", b"null"),
        ("truncated", "The end is missing.", data[:-20]),
        ("trailing-brace", "More than one value.", data.rstrip() + b"}"),
        ("trailing-value", "A second value.", data + b"{}"),
        ("trailing-nul", "A zero byte is no white space.", data + b"\0"),
        ("leading-space", "White space in front.", b" " + data),
        ("byte-order-mark", "A mark in front.", b"\xef\xbb\xbf" + data),
        ("not-utf-8", "A byte that is no UTF-8.", swap(b"run42", b"run\xff2")),
        ("utf-16", "Another encoding.", data.decode().encode("utf-16")),
        ("indented", "Pretty-printed.", json.dumps(record, indent=1).encode()),
        ("space-inside", "One space.", swap(b'"index":5', b'"index": 5')),
        ("escaped-dash", "An escape where none is due.", swap("—".encode(), b"\\u2014")),
        ("escaped-slash", "An escaped slash.", swap(b"rlhf-audit/bundle", b"rlhf-audit\\/bundle")),
        ("lone-surrogate", "No Unicode.", swap("—".encode(), b"\\ud800")),
        ("surrogate-in-key", "No Unicode.", swap(b'["example', b'["\\udfffexample')),
        ("fields-reordered", "Other order.", give(lambda it: it.update(schema=it.pop("schema")))),
        ("same-key-twice", "Two indices.", swap(b'"index":5', b'"index":5,"index":5')),
        ("same-key-twice-outside", "Two schemas.", swap(b'{"schema"', b'{"schema":0,"schema"')),
        ("schema-unknown", "A later version.", give(put("schema", to="rlhf-audit/bundle/v2"))),
        ("schema-missing", "No version.", give(lambda it: it.pop("schema"))),
        ("field-unknown", "A field more.", give(put("comment", to="hello"))),
        ("field-missing", "A field less.", give(lambda it: it.pop("anchored"))),
        ("entry-field-unknown", "A size in a proof.", give(put(*entry, "size", to=8))),
        ("entry-field-missing", "No openings.", give(lambda it: it["entries"][0].pop("openings"))),
        ("index-nan", "NaN.", swap(b'"index":5', b'"index":NaN')),
        ("index-infinity", "Infinity.", swap(b'"index":5', b'"index":Infinity')),
        ("index-fraction", "5.0 is not 5.", swap(b'"index":5', b'"index":5.0')),
        ("index-exponent", "5e0 is not 5.", swap(b'"index":5', b'"index":5e0')),
        ("index-text", "A text.", give(put(*entry, "index", to="5"))),
        ("index-true", "true is not 1.", give(put(*entry, "index", to=True))),
        ("index-negative", "Below 0.", give(put(*entry, "index", to=-5))),
        ("index-minus-zero", "-0 is not 0.", swap(b'"index":5', b'"index":-0')),
        ("index-leading-zero", "05 is not 5.", swap(b'"index":5', b'"index":05')),
        ("index-2-to-53", "Browsers cannot count so far.", give(put(*entry, "index", to=2**53))),
        ("index-huge", "5,000 digits.", swap(b'"index":5', b'"index":' + b"5" * 5000)),
        ("digest-infinite", "A number too large.", data[:-68] + b"1e999}\n"),
        ("digest-missing", "No digest.", compact({k: record[k] for k in record if k != "sha256"})),
        ("deep", "20,000 lists in each other.", b"[" * 20_000 + b"]" * 20_000),
        ("deep-inside", "Lists in each other.", data[:-68] + b"[" * 900 + b"]" * 900 + b"}"),
        ("entries-none", "No entry.", give(put("entries", to=[]))),
        ("entries-no-list", "An object.", give(put("entries", to={}))),
        (
            "entries-disordered",
            "5 before 4.",
            reseal(record | {"entries": [record_of(short(log, n))["entries"][0] for n in (5, 4)]}),
        ),
        ("entry-twice", "One entry twice.", give(put("entries", to=record["entries"] * 2))),
        ("entry-empty", "No bytes.", give(put(*entry, "entry", to=""))),
        ("entry-too-long", "65,536 bytes.", give(put(*entry, "entry", to=b64(bytes(65_536))))),
        ("entry-base64-url", "Other alphabet.", give(put(*entry, "entry", to="__" + text[2:]))),
        ("entry-base64-cut", "No padding.", give(put(*entry, "entry", to=text.rstrip("=") + "A"))),
        ("entry-base64-loose", "Loose bits.", give(put(*entry, "entry", to="e31="))),
        ("entry-base64-newline", "A line end.", give(put(*entry, "entry", to=text + "\n"))),
        ("path-too-long", "65 hashes.", give(put(*entry, "path", to=[b64(bytes(32))] * 65))),
        ("openings-too-many", "65.", give(put(*entry, "openings", to=[opening] * 65))),
        ("keys-too-many", "17 keys.", give(put("log_keys", to=record["log_keys"] * 17))),
        ("head-null", "No text.", give(put("tree_head", to=None))),
    ):
        yield name, about, first, spoilt
    stale = unreadable(8)
    yield "digest-wrong", "The file's digest.", stale, data[:-4] + b"z" + data[-3:]
    yield "digest-upper-case", "Hex is lower case.", stale, data[:-67] + data[-67:].upper()
