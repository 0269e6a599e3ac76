"""Scenarios for bundles: good ones, spoilt ones, and what the caller's trust makes of them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from sample_log import SampleLog, compact, record_of, reseal, sample_openings

from rlhf_audit_trail.ledger.proof.bundle import Bundle, encode_bundle

Vector = dict[str, Any]
Record = dict[str, Any]
Expect = dict[str, Any]
Row = tuple[str, str, Expect, bytes | Record, dict[str, Any]]

VERIFIED: Expect = {"verdict": "VERIFIED", "exit_code": 0}


def failed(step: int, error: str) -> Expect:
    return {"verdict": "FAILED", "exit_code": 1, "step": step, "error": error}


def unreadable(step: int) -> Expect:
    return {"verdict": "UNREADABLE", "exit_code": 4, "step": step, "error": "MalformedBundle"}


def inconclusive(step: int, error: str) -> Expect:
    return {"verdict": "INCONCLUSIVE", "exit_code": 3, "step": step, "error": error}


def scenarios(log: SampleLog) -> Iterator[tuple[str, Vector]]:
    """Yield (name, vector); without `keys` of its own, the log's Ed25519 key is pinned."""
    for rows in (_good, _trust, _chain, _signatures, _places, _openings, _anchored):
        for row in rows(log):
            yield _vector(log, *row)
    for name, about, expect, data in _spellings(log):
        yield _vector(log, name, about, expect, data, {})


def _vector(
    log: SampleLog, name: str, about: str, expect: Expect, what: bytes | Record, trust: Vector
) -> tuple[str, Vector]:
    data = what if isinstance(what, bytes) else reseal(what)
    given: dict[str, Any] = {}
    try:
        given["bundle"] = data.decode("utf-8")
    except UnicodeDecodeError:
        given["bundle_base64"] = base64.b64encode(data).decode()
    given |= {"keys": [str(log.ed25519)]} | trust
    return f"bundle-{name}", {"about": about, "kind": "bundle", "input": given, "expect": expect}


def _short(log: SampleLog, *indices: int, size: int = 8, **more: Any) -> Bundle:
    return log.bundle(indices or (5,), size, post_quantum=False, **more)


def _spoilt(bundle: Bundle, change: Callable[[Record], object]) -> Record:
    """A good bundle's record after `change`; its digest is made to fit again."""
    record = record_of(bundle)
    change(record)
    return record


def _set(*path: str | int, to: Any) -> Callable[[Record], object]:
    """Put a value, or what a function makes of the old one, at a place in the record."""

    def change(record: Record) -> None:
        at: Any = record
        for step in path[:-1]:
            at = at[step]
        at[path[-1]] = to(at[path[-1]]) if callable(to) else to

    return change


def _bit(text: str) -> str:
    """Base64 of the same bytes with one bit of the first changed."""
    data = bytearray(base64.b64decode(text))
    data[0] ^= 1
    return base64.b64encode(data).decode()


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _good(log: SampleLog) -> Iterator[Row]:
    small, data = _short(log), encode_bundle(_short(log))
    full = log.bundle((1, 5, 6), 8, opened=("annotator", "reward"), anchored=(4, 13))
    both = {"keys": [str(key) for key in log.keys.verifier_keys]}
    greased = "— example.com/new AAECAwQF\n{}— example.com/newer AAECAwQF\n".format
    note = log.short_note(8)
    lines = str(note).removeprefix(note.text + "\n")
    unknown = _set("tree_head", to=note.text + "\n" + greased(lines))
    yield "good", "One entry, one key.", VERIFIED, data, {}
    yield "good-full", "Both keys, opened values, two other heads.", VERIFIED, record_of(full), both
    yield "good-half-pinned", "Both keys signed, one is pinned.", VERIFIED, record_of(full), {}
    yield "white-space-at-end", "Mail adds line ends.", VERIFIED, data + b"\r\n \n", {}
    yield "no-last-newline", "An editor took it away.", VERIFIED, data.rstrip(b"\n"), {}
    yield "unknown-signatures", "Lines by unknown keys.", VERIFIED, _spoilt(small, unknown), {}
    alone = _short(log, 0, size=1)
    yield "only-entry", "The only entry of a log.", VERIFIED, encode_bundle(alone), {}
    yield "all-entries", "A whole log.", VERIFIED, record_of(_short(log, *range(13), size=13)), {}


def _trust(log: SampleLog) -> Iterator[Row]:
    data, stranger = encode_bundle(_short(log)), SampleLog(secret=bytes(32))
    other = SampleLog(origin="example.com/rlhf/run43")
    forged = encode_bundle(_short(SampleLog(secret=bytes(32), fork_at=5)))
    unmet, bad = inconclusive(3, "PolicyUnmet"), failed(3, "BadSignature")
    nobody: dict[str, Any] = {"keys": []}
    yield "no-key", "Nobody is pinned.", unmet, data, nobody
    yield (
        "no-key-accepted",
        "The caller asks only whether it is unchanged.",
        VERIFIED,
        data,
        nobody | {"accept_unpinned": True},
    )
    yield (
        "half-signed",
        "Both keys are pinned, one signed.",
        unmet,
        data,
        {"keys": [str(key) for key in log.keys.verifier_keys]},
    )
    yield (
        "stranger-pinned-too",
        "One of two pinned keys did not sign.",
        unmet,
        data,
        {"keys": [str(log.ed25519), str(stranger.ed25519)]},
    )
    yield (
        "other-log-pinned",
        "The pinned key is another log's.",
        bad,
        data,
        {"keys": [str(other.ed25519)]},
    )
    yield "rewritten-and-re-signed", "A whole history by another key.", bad, forged, {}
    yield "rewritten-not-pinned", "Without a pinned key nobody can tell.", unmet, forged, nobody
    yield "accepting-does-not-forgive", "Acceptance forgives no contradiction.", bad, forged, \
        {"accept_unpinned": True, "accept_unanchored": True}  # fmt: skip


def _chain(log: SampleLog) -> Iterator[Row]:
    data = encode_bundle(_short(log, anchored=(4,)))
    fork = SampleLog(fork_at=2)

    def says(*heads: tuple[SampleLog, int]) -> dict[str, Any]:
        said = [{"tree_size": size, "root": it.head(size).root.hex()} for it, size in heads]
        return {"on_chain": said}

    missing, split = inconclusive(7, "NotAnchored"), failed(7, "Inconsistent")
    yield "on-chain", "The bundle's own head is on chain.", VERIFIED, data, says((log, 8))
    yield "on-chain-older", "The older head is on chain.", VERIFIED, data, says((log, 4))
    yield "on-chain-other-size", "Only a size that the file lacks.", missing, data, says((log, 6))
    yield "on-chain-nothing", "The chain was asked and has none.", missing, data, says()
    yield "on-chain-fork", "The chain has another root.", split, data, says((fork, 8))
    yield "on-chain-fork-older", "The older head is not the chain's.", split, data, says((fork, 4))
    yield (
        "on-chain-two-answers",
        "One of two answers contradicts.",
        split,
        data,
        says((fork, 8), (log, 8)),
    )
    yield (
        "anchor-needed",
        "An anchor is demanded, no chain was asked.",
        missing,
        data,
        {"need_anchor": True},
    )
    yield (
        "anchor-forgiven",
        "The demand is given up.",
        VERIFIED,
        data,
        {"need_anchor": True, "accept_unanchored": True},
    )
    yield "anchor-fork-not-forgiven", "A fork is not a missing anchor.", split, data, \
        says((fork, 8)) | {"accept_unanchored": True}  # fmt: skip


def _signatures(log: SampleLog) -> Iterator[Row]:
    small, bad = _short(log), failed(2, "BadSignature")
    stranger = SampleLog(secret=bytes(32))
    note, foreign = log.short_note(8), stranger.short_note(8)
    both = log.bundle()

    def change(name: str, about: str, expect: Expect, where: Any, to: Any) -> Row:
        return name, about, expect, _spoilt(small, _set(*where, to=to)), {}

    head, keys = ("tree_head",), ("log_keys",)
    yield change(
        "size-relabelled",
        "The size was raised after signing.",
        bad,
        head,
        lambda text: text.replace("\n8\n", "\n9\n"),
    )
    yield change(
        "root-replaced",
        "The root of another history.",
        bad,
        head,
        lambda text: text.replace(_b64(log.head(8).root), _b64(SampleLog(fork_at=1).head(8).root)),
    )
    yield change(
        "origin-replaced",
        "Another log's name.",
        bad,
        head,
        lambda text: text.replace("run42\n", "run43\n"),
    )
    yield change(
        "signature-bit",
        "One bit of the signature.",
        bad,
        head,
        lambda text: text[:-9] + ("A" if text[-9] != "A" else "B") + text[-8:],
    )
    yield change(
        "signature-missing", "A head without lines.", unreadable(2), head, note.text + "\n"
    )
    yield change("signature-foreign", "A stranger signed; the key stayed.", bad, head, str(foreign))
    yield change(
        "key-swapped", "A stranger's key; the signature stayed.", bad, keys, [str(stranger.ed25519)]
    )
    yield change(
        "key-added",
        "A key that did not sign came along.",
        bad,
        keys,
        lambda texts: [*texts, str(log.mldsa)],
    )
    yield change(
        "key-id-wrong",
        "A key under another id.",
        unreadable(2),
        (*keys, 0),
        lambda text: text.replace(log.ed25519.key_id.hex(), "00000000"),
    )
    yield change(
        "key-algorithm-unknown",
        "A key of type 0x02.",
        unreadable(2),
        keys,
        ["a+" + hashlib.sha256(b"a\n\2key").hexdigest()[:8] + "+" + _b64(b"\2key")],
    )
    yield change("key-missing", "No key came along.", unreadable(1), keys, [])
    yield change("head-not-a-note", "The tree head is any text.", unreadable(2), head, "any text")
    yield change(
        "head-leading-zero",
        "08 is not 8.",
        unreadable(2),
        head,
        lambda text: text.replace("\n8\n", "\n08\n"),
    )
    yield (
        "ml-dsa-stripped",
        "The post-quantum line was taken out, its key stayed.",
        bad,
        _spoilt(both, _set("tree_head", to=str(note))),
        {},
    )
    yield "ml-dsa-bit", "The unpinned key's signature is wrong.", bad, \
        _spoilt(both, _set("tree_head", to=lambda text: text[:-99] + (
            "A" if text[-99] != "A" else "B") + text[-98:])), {}  # fmt: skip


def _places(log: SampleLog) -> Iterator[Row]:
    pair, no = _short(log, 4, 5), failed(4, "NotIncluded")
    first, second = log.entry(4), log.entry(5)

    def change(name: str, about: str, expect: Expect, *changes: Any) -> Row:
        record = record_of(pair)
        for where, to in changes:
            _set(*where, to=to)(record)
        return name, about, expect, record, {}

    def entry(n: int, name: str) -> tuple[str | int, ...]:
        return "entries", n, name

    yield change(
        "entry-changed",
        "A word of an entry.",
        no,
        (entry(1, "entry"), _b64(second.replace(b"human", b"model"))),
    )
    yield change(
        "entry-re-spelt",
        "The same JSON with a space.",
        no,
        (entry(1, "entry"), _b64(second.replace(b",", b", ", 1))),
    )
    yield change(
        "entries-exchanged",
        "Two entries in each other's place.",
        no,
        (entry(0, "entry"), _b64(second)),
        (entry(1, "entry"), _b64(first)),
    )
    yield change(
        "entry-is-a-node",
        "Two leaf hashes, posing as an entry.",
        unreadable(4),
        (entry(0, "entry"), _b64(log.leaves[4] + log.leaves[5])),
        (entry(0, "path"), lambda path: path[1:]),
        (entry(0, "index"), 2),
    )
    yield change("index-changed", "An entry under a lower index.", no, (entry(0, "index"), 3))
    yield change("index-raised", "An entry under a higher index.", no, (entry(1, "index"), 6))
    yield change(
        "index-beyond", "An index that the tree lacks.", unreadable(4), (entry(1, "index"), 8)
    )
    yield change("path-bit", "One bit of the path.", no, ((*entry(0, "path"), 0), _bit))
    yield change(
        "path-short",
        "A hash is missing.",
        unreadable(4),
        (entry(0, "path"), lambda path: path[:-1]),
    )
    yield change(
        "path-long",
        "A hash too many.",
        unreadable(4),
        (entry(0, "path"), lambda path: [*path, path[0]]),
    )
    yield change("path-empty", "No path.", unreadable(4), (entry(0, "path"), []))
    yield change(
        "path-of-other",
        "The neighbour's path.",
        no,
        (entry(0, "path"), [_b64(node) for node in log.path(5, 8)]),
    )
    yield change(
        "path-node-short",
        "A node of 31 bytes.",
        unreadable(4),
        ((*entry(0, "path"), 0), _b64(bytes(31))),
    )
    yield (
        "entry-of-fork",
        "An entry and path of another history.",
        no,
        _spoilt(
            _short(log), _set("entries", to=record_of(_short(SampleLog(fork_at=5)))["entries"])
        ),
        {},
    )
    raw = record_of(pair)
    _set("entries", 1, "entry", to=_b64(second.replace(b"human", b"model")))(raw)
    yield "entry-changed-digest-stale", "A contradiction outranks a stale digest.", no, \
        compact(raw), {}  # fmt: skip


def _openings(log: SampleLog) -> Iterator[Row]:
    bundle, no = _short(log, 5, 6, opened=("reward",)), failed(5, "Inconsistent")
    opening = {"path": "reward", "salt": _b64(sample_openings(5)[1].salt), "value": _b64(b"1")}

    def change(name: str, about: str, expect: Expect, where: Any, to: Any) -> Row:
        return f"opened-{name}", about, expect, _spoilt(bundle, _set(*where, to=to)), {}

    reward = ("entries", 0, "openings", 0)
    yield change("good", "A reward is disclosed.", VERIFIED, (*reward, "path"), "reward")
    yield change("value", "Another reward.", no, (*reward, "value"), _b64(b"4"))
    yield change("salt", "Another salt.", no, (*reward, "salt"), _bit)
    yield change(
        "salt-31-bytes", "A short salt.", unreadable(5), (*reward, "salt"), _b64(bytes(31))
    )
    yield change(
        "other-field", "Shown as another sealed field.", no, (*reward, "path"), "annotator"
    )
    yield change("not-sealed", "No such sealed field.", no, (*reward, "path"), "kind")
    yield change(
        "without-commitments",
        "The entry sealed nothing.",
        no,
        ("entries", 1, "openings"),
        [opening],
    )
    for name, about, entry, expect in (
        ("entry-no-json", "An entry of other bytes cannot be opened.", b"\x00\xff", unreadable(5)),
        ("entry-list", "An entry that is a list sealed nothing.", b"[]", no),
        (
            "entry-same-key-twice",
            "Which one is meant?",
            b'{"c":{},"c":{"reward":""}}',
            unreadable(5),
        ),
        ("entry-nan", "NaN is not JSON.", b'{"c":{},"x":NaN}', unreadable(5)),
        ("entry-commitment-no-hex", "No hex.", b'{"c":{"reward":"xy"}}', unreadable(5)),
        ("entry-commitment-number", "A number.", b'{"c":{"reward":7}}', unreadable(5)),
        ("entry-commitments-list", "A list.", b'{"c":["reward"]}', unreadable(5)),
        ("entry-deep", "Too deep to read.", b"[" * 5000 + b"]" * 5000, unreadable(5)),
    ):
        odd = SampleLog(replaced=((5, entry),))
        opened = _set("entries", 0, "openings", to=[opening])
        yield f"opened-{name}", about, expect, _spoilt(_short(odd), opened), {}  # fmt: skip


def _anchored(log: SampleLog) -> Iterator[Row]:
    good, no = record_of(_short(log, anchored=(4, 6))), failed(6, "Inconsistent")
    fork, late = SampleLog(fork_at=2), SampleLog(fork_at=9)
    stranger = SampleLog(secret=bytes(32))

    def with_heads(*heads: tuple[SampleLog, int, tuple[bytes, ...]]) -> Record:
        return good | {
            "anchored": [
                {"tree_head": str(it.short_note(size)), "path": [_b64(node) for node in path]}
                for it, size, path in heads
            ]
        }

    def row(name: str, about: str, expect: Expect, *heads: Any) -> Row:
        return f"anchored-{name}", about, expect, with_heads(*heads), {}

    older = (log, 4, log.consistency(4, 8))
    newer = (log, 10, log.consistency(8, 10))
    yield row("older-and-newer", "On both sides of the bundle's own head.", VERIFIED, older, newer)
    yield row("own", "The bundle's own head.", VERIFIED, (log, 8, ()))
    yield row(
        "two-newer",
        "The second extends the first.",
        VERIFIED,
        newer,
        (log, 13, log.consistency(10, 13)),
    )
    yield row(
        "two-newer-from-own",
        "The second must be tied to the first.",
        unreadable(6),
        newer,
        (log, 13, log.consistency(8, 13)),
    )
    yield row(
        "two-newer-forked",
        "Both extend the bundle's head, not each other.",
        no,
        newer,
        (late, 13, late.consistency(10, 13)),
    )
    yield row(
        "forked", "The operator signed another history.", no, (fork, 4, fork.consistency(4, 8))
    )
    yield row("forked-same-size", "Two roots at one size.", no, (fork, 8, ()))
    yield row(
        "forked-newer", "A newer head of another history.", no, (fork, 10, fork.consistency(8, 10))
    )
    yield row(
        "by-stranger",
        "Another key signed it.",
        failed(6, "BadSignature"),
        (stranger, 4, log.consistency(4, 8)),
    )
    yield row(
        "of-other-log",
        "Another log's head.",
        failed(6, "BadSignature"),
        (SampleLog(origin="example.com/rlhf/run43"), 4, log.consistency(4, 8)),
    )
    yield row(
        "path-of-other", "The path of another size.", unreadable(6), (log, 4, log.consistency(6, 8))
    )
    yield row("path-missing", "No path.", unreadable(6), (log, 4, ()))
    yield row("twice", "One head twice.", unreadable(6), older, older)
    yield row("shrinking", "From larger to smaller.", unreadable(6), newer, older)
    yield row("empty-tree", "An empty tree is no anchor.", unreadable(6), (log, 0, ()))
    half = record_of(log.bundle((5,), 8, anchored=(4,)))
    half["anchored"][0]["tree_head"] = str(log.short_note(4))
    yield "anchored-half-signed", "One of the log's two keys did not sign it.", \
        failed(6, "BadSignature"), half, {}  # fmt: skip


def _spellings(log: SampleLog) -> Iterator[tuple[str, str, Expect, bytes]]:
    data, record = encode_bundle(_short(log)), record_of(_short(log))
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
    opening = {"path": "reward", "salt": _b64(bytes(32)), "value": ""}
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
        ("schema-unknown", "A later version.", give(_set("schema", to="rlhf-audit/bundle/v2"))),
        ("schema-missing", "No version.", give(lambda it: it.pop("schema"))),
        ("field-unknown", "A field more.", give(_set("comment", to="hello"))),
        ("field-missing", "A field less.", give(lambda it: it.pop("anchored"))),
        ("entry-field-unknown", "A size in a proof.", give(_set(*entry, "size", to=8))),
        ("entry-field-missing", "No openings.", give(lambda it: it["entries"][0].pop("openings"))),
        ("index-nan", "NaN.", swap(b'"index":5', b'"index":NaN')),
        ("index-infinity", "Infinity.", swap(b'"index":5', b'"index":Infinity')),
        ("index-fraction", "5.0 is not 5.", swap(b'"index":5', b'"index":5.0')),
        ("index-exponent", "5e0 is not 5.", swap(b'"index":5', b'"index":5e0')),
        ("index-text", "A text.", give(_set(*entry, "index", to="5"))),
        ("index-true", "true is not 1.", give(_set(*entry, "index", to=True))),
        ("index-negative", "Below 0.", give(_set(*entry, "index", to=-5))),
        ("index-minus-zero", "-0 is not 0.", swap(b'"index":5', b'"index":-0')),
        ("index-leading-zero", "05 is not 5.", swap(b'"index":5', b'"index":05')),
        ("index-2-to-53", "Browsers cannot count so far.", give(_set(*entry, "index", to=2**53))),
        ("index-huge", "5,000 digits.", swap(b'"index":5', b'"index":' + b"5" * 5000)),
        ("digest-infinite", "A number too large.", data[:-68] + b"1e999}\n"),
        ("digest-missing", "No digest.", compact({k: record[k] for k in record if k != "sha256"})),
        ("deep", "20,000 lists in each other.", b"[" * 20_000 + b"]" * 20_000),
        ("deep-inside", "Lists in each other.", data[:-68] + b"[" * 900 + b"]" * 900 + b"}"),
        ("entries-none", "No entry.", give(_set("entries", to=[]))),
        ("entries-no-list", "An object.", give(_set("entries", to={}))),
        (
            "entries-disordered",
            "5 before 4.",
            reseal(record | {"entries": [record_of(_short(log, n))["entries"][0] for n in (5, 4)]}),
        ),
        ("entry-twice", "One entry twice.", give(_set("entries", to=record["entries"] * 2))),
        ("entry-empty", "No bytes.", give(_set(*entry, "entry", to=""))),
        ("entry-too-long", "65,536 bytes.", give(_set(*entry, "entry", to=_b64(bytes(65_536))))),
        ("entry-base64-url", "Other alphabet.", give(_set(*entry, "entry", to="__" + text[2:]))),
        ("entry-base64-cut", "No padding.", give(_set(*entry, "entry", to=text.rstrip("=") + "A"))),
        ("entry-base64-loose", "Loose bits.", give(_set(*entry, "entry", to="e31="))),
        ("entry-base64-newline", "A line end.", give(_set(*entry, "entry", to=text + "\n"))),
        ("path-too-long", "65 hashes.", give(_set(*entry, "path", to=[_b64(bytes(32))] * 65))),
        ("openings-too-many", "65.", give(_set(*entry, "openings", to=[opening] * 65))),
        ("keys-too-many", "17 keys.", give(_set("log_keys", to=record["log_keys"] * 17))),
        ("head-null", "No text.", give(_set("tree_head", to=None))),
    ):
        yield name, about, first, spoilt
    stale = unreadable(8)
    yield "digest-wrong", "The file's digest.", stale, data[:-4] + b"z" + data[-3:]
    yield "digest-upper-case", "Hex is lower case.", stale, data[:-67] + data[-67:].upper()
