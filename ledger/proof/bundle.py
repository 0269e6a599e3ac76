"""The bundle: one self-contained proof file for one or more entries.

A bundle is JSON in exactly one spelling: parsed, re-encoded and compared, so that no byte of
it can change unseen. Fields and limits: `FORMAT.md`, section 6; judgement: `verify.py`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

from rlhf_audit_trail.ledger.proof.commitment import Opening
from rlhf_audit_trail.ledger.proof.errors import MalformedBundle
from rlhf_audit_trail.ledger.proof.note import decode_base64, encode_base64

BUNDLE_SCHEMA: Final = "rlhf-audit/bundle/v1"
MAX_BUNDLE_BYTES: Final = 32 * 1024 * 1024  # a whole run has its own form, the evidence pack
MAX_ENTRIES: Final = 10_000
MAX_ENTRY_BYTES: Final = 65_535  # entry tiles carry a uint16 length (c2sp.org/tlog-tiles)
MAX_OPENINGS: Final = 64  # of one entry
MAX_KEYS: Final = 16
MAX_ANCHORS: Final = 1_000
MAX_PATH: Final = 64  # no proof in a tree below 2**63 has more hashes
MAX_DEPTH: Final = 64
MAX_TOKENS: Final = 4_000_000  # texts and brackets: {} costs a file 3 bytes, its reader 75
# A string, to its end or the file's, so that no byte is looked at twice; or a bracket.
_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[{\]}]', re.DOTALL)
MAX_INDEX: Final = 2**53 - 1  # JSON numbers are doubles in browsers


@dataclass(frozen=True)
class BundledEntry:
    """An entry with its place in the tree.

    Attributes:
        index: leaf index, from 0.
        entry: exact bytes of the entry, 1 to 65,535.
        path: inclusion proof, leaf to root, 32 bytes each.
        openings: values of sealed fields, disclosed to the holder of this bundle.
    """

    index: int
    entry: bytes
    path: tuple[bytes, ...]
    openings: tuple[Opening, ...] = ()


@dataclass(frozen=True)
class AnchoredHead:
    """A signed tree head said to be on chain, and the proof that ties it to the bundle's own:
    the consistency proof with the bundle's head or, if larger, the anchored head before it.
    """

    tree_head: str
    path: tuple[bytes, ...]


@dataclass(frozen=True)
class Bundle:
    """Everything in a bundle file, parsed but not believed.

    Attributes:
        log_keys: one or more vkeys that travelled with the bundle; they never answer "by whom".
        tree_head: signed note; the size and root of every proof come from here.
        entries: in strictly growing index order.
        anchored: in strictly growing order of tree size, which step 6 checks.
        chain: chain evidence (`evm/evidence.py`), which step 7 reads; empty if there is none.
        digest_matches: whether the file's own SHA-256, its last field, fits the rest.
    """

    log_keys: tuple[str, ...]
    tree_head: str
    entries: tuple[BundledEntry, ...]
    anchored: tuple[AnchoredHead, ...] = ()
    chain: bytes = b""
    digest_matches: bool = True


def encode_bundle(bundle: Bundle) -> bytes:
    """Write a bundle as the bytes of its file, newline at the end."""
    body = _to_json(bundle)
    return _dump(body | {"sha256": hashlib.sha256(_dump(body)).hexdigest()}) + b"\n"


def parse_bundle(data: bytes) -> Bundle:
    """Read a bundle file.

    White space at the end is allowed, since mail and editors add it.

    Raises MalformedBundle: too large, not JSON, unknown schema or field, a wrong type, or
    bytes other than the one spelling of what they say.
    """
    if len(data) > MAX_BUNDLE_BYTES:
        raise MalformedBundle(f"a bundle is at most {MAX_BUNDLE_BYTES:,} bytes")
    data = data.rstrip(b"\r\n\t ")
    record = parse_json(data)
    if not isinstance(record, dict) or record.get("schema") != BUNDLE_SCHEMA:
        raise MalformedBundle(
            "this is not a bundle of a version this verifier knows",
            expected=BUNDLE_SCHEMA,
            next_step="install a newer rlhf-audit-trail, or ask for a bundle of this version",
        )
    body = _to_json(bundle := _from_json(record))
    if _dump(body | {"sha256": record["sha256"]}) != data:
        raise MalformedBundle("the bundle is not in its one canonical spelling")
    matches = hashlib.sha256(_dump(body)).hexdigest() == record["sha256"]
    return replace(bundle, digest_matches=matches)


def parse_json(data: bytes) -> Any:
    """Parse JSON without duplicate keys, NaN, bad UTF-8 or deep nesting, else MalformedBundle."""
    check_depth(data)
    try:
        value, end = _DECODER.raw_decode(text := data.decode().strip(" \t\n\r"))
    except (ValueError, RecursionError) as error:
        raise MalformedBundle("not JSON as RFC 8259 has it") from error
    if end != len(text):
        raise MalformedBundle("JSON with something after it")
    return value


def check_depth(data: bytes) -> None:
    """Refuse JSON nested so deep that parsing it could end the process, or in too many pieces."""
    if len(data) <= MAX_ENTRY_BYTES and data.count(b"{") + data.count(b"[") <= MAX_DEPTH:
        return  # an entry, by the million: what has so few brackets cannot be nested deeper
    depth = 0  # where a program has raised Python's recursion limit, parsing overruns the stack
    for number, token in enumerate(_TOKEN.finditer(data)):
        first = data[token.start()]
        depth += (first in b"[{") - (first in b"]}")
        if not 0 <= depth <= MAX_DEPTH or number >= MAX_TOKENS:
            raise MalformedBundle(f"JSON nested deeper than {MAX_DEPTH} levels, or too long")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(record := dict(pairs)) != len(pairs):
        raise MalformedBundle("a JSON object has the same key twice")
    return record


def _no_constant(name: str) -> float:
    raise MalformedBundle(f"{name} is not JSON")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _dump(record: Mapping[str, Any]) -> bytes:
    try:
        return _ENCODER.encode(record).encode()
    except UnicodeEncodeError as error:  # lone surrogates have no UTF-8
        raise MalformedBundle("a text is not valid Unicode") from error


def _to_json(bundle: Bundle) -> dict[str, Any]:
    return {
        "schema": BUNDLE_SCHEMA,
        "log_keys": list(bundle.log_keys),
        "tree_head": bundle.tree_head,
        "entries": [
            {
                "index": item.index,
                "entry": encode_base64(item.entry),
                "path": [encode_base64(node) for node in item.path],
                "openings": [
                    {"path": x.path, "salt": encode_base64(x.salt), "value": encode_base64(x.value)}
                    for x in item.openings
                ],
            }
            for item in bundle.entries
        ],
        "anchored": [
            {"tree_head": item.tree_head, "path": [encode_base64(node) for node in item.path]}
            for item in bundle.anchored
        ],
    } | ({"chain": encode_base64(bundle.chain)} if bundle.chain else {})


def _from_json(record: dict[str, Any]) -> Bundle:
    record = {"chain": ""} | record  # left out where there is none: an empty one is re-spelt
    _fields(record, "schema", "log_keys", "tree_head", "entries", "anchored", "chain", "sha256")
    _text(record["sha256"])
    bundle = Bundle(
        tuple(_text(item) for item in _list(record["log_keys"], MAX_KEYS)),
        _text(record["tree_head"]),
        tuple(_entry(item) for item in _list(record["entries"], MAX_ENTRIES)),
        tuple(_anchored(item) for item in _list(record["anchored"], MAX_ANCHORS)),
        _bytes(record["chain"]),
    )
    if not bundle.log_keys or not bundle.entries:
        raise MalformedBundle("a bundle needs at least one log key and one entry")
    if any(left.index >= right.index for left, right in pairwise(bundle.entries)):
        raise MalformedBundle("a bundle's entries must stand in growing index order")
    return bundle


def _entry(item: Any) -> BundledEntry:
    _fields(item, "index", "entry", "path", "openings")
    index, entry = item["index"], _bytes(item["entry"])
    if type(index) is not int or not 0 <= index <= MAX_INDEX:
        raise MalformedBundle("a leaf index must be a whole number from 0 to 2**53 - 1")
    if not 1 <= len(entry) <= MAX_ENTRY_BYTES:
        raise MalformedBundle(f"an entry must be 1 to {MAX_ENTRY_BYTES:,} bytes")
    openings = _list(item["openings"], MAX_OPENINGS)
    return BundledEntry(index, entry, _hashes(item["path"]), tuple(map(_opening, openings)))


def _opening(item: Any) -> Opening:
    _fields(item, "path", "salt", "value")
    return Opening(_text(item["path"]), _bytes(item["salt"]), _bytes(item["value"]))


def _anchored(item: Any) -> AnchoredHead:
    _fields(item, "tree_head", "path")
    return AnchoredHead(_text(item["tree_head"]), _hashes(item["path"]))


def _hashes(items: Any) -> tuple[bytes, ...]:
    return tuple(_bytes(node) for node in _list(items, MAX_PATH))


def _bytes(item: Any) -> bytes:
    return decode_base64(_text(item), what="a bundle's binary field")


def _fields(item: Any, *names: str) -> None:
    if not isinstance(item, dict) or sorted(item) != sorted(names):
        raise MalformedBundle(f"a bundle's object has other fields than {', '.join(names)}")


def _list(items: Any, most: int) -> list[Any]:
    if not isinstance(items, list) or len(items) > most:
        raise MalformedBundle(f"a bundle's list is no list, or longer than {most:,}")
    return items


def _text(item: Any) -> str:
    if not isinstance(item, str):
        raise MalformedBundle("a bundle's text field is not text")
    return item
