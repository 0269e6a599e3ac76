"""Scenarios for bundles whose entries, openings or anchored heads were spoilt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sample_log import SampleLog, compact, record_of, sample_openings
from spoiling import (
    VERIFIED,
    Expect,
    Record,
    Row,
    Vector,
    b64,
    bit,
    failed,
    put,
    short,
    spoilt,
    unreadable,
    vector,
)


def scenarios(log: SampleLog) -> Iterator[tuple[str, Vector]]:
    """Yield (name, vector); the log's Ed25519 key is pinned."""
    for rows in (
        _places,
        _openings,
        _anchored,
    ):
        for row in rows(log):
            yield vector(log, *row)


def _places(log: SampleLog) -> Iterator[Row]:
    pair, no = short(log, 4, 5), failed(4, "NotIncluded")
    first, second = log.entry(4), log.entry(5)

    def change(name: str, about: str, expect: Expect, *changes: Any) -> Row:
        record = record_of(pair)
        for where, to in changes:
            put(*where, to=to)(record)
        return name, about, expect, record, {}

    def entry(n: int, name: str) -> tuple[str | int, ...]:
        return "entries", n, name

    yield change(
        "entry-changed",
        "A word of an entry.",
        no,
        (entry(1, "entry"), b64(second.replace(b"human", b"model"))),
    )
    yield change(
        "entry-re-spelt",
        "The same JSON with a space.",
        no,
        (entry(1, "entry"), b64(second.replace(b",", b", ", 1))),
    )
    yield change(
        "entries-exchanged",
        "Two entries in each other's place.",
        no,
        (entry(0, "entry"), b64(second)),
        (entry(1, "entry"), b64(first)),
    )
    yield change(
        "entry-is-a-node",
        "Two leaf hashes, posing as an entry.",
        unreadable(4),
        (entry(0, "entry"), b64(log.leaves[4] + log.leaves[5])),
        (entry(0, "path"), lambda path: path[1:]),
        (entry(0, "index"), 2),
    )
    yield change("index-changed", "An entry under a lower index.", no, (entry(0, "index"), 3))
    yield change("index-raised", "An entry under a higher index.", no, (entry(1, "index"), 6))
    yield change(
        "index-beyond", "An index that the tree lacks.", unreadable(4), (entry(1, "index"), 8)
    )
    yield change("path-bit", "One bit of the path.", no, ((*entry(0, "path"), 0), bit))
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
        (entry(0, "path"), [b64(node) for node in log.path(5, 8)]),
    )
    yield change(
        "path-node-short",
        "A node of 31 bytes.",
        unreadable(4),
        ((*entry(0, "path"), 0), b64(bytes(31))),
    )
    yield (
        "entry-of-fork",
        "An entry and path of another history.",
        no,
        spoilt(short(log), put("entries", to=record_of(short(SampleLog(fork_at=5)))["entries"])),
        {},
    )
    raw = record_of(pair)
    put("entries", 1, "entry", to=b64(second.replace(b"human", b"model")))(raw)
    yield "entry-changed-digest-stale", "A contradiction outranks a stale digest.", no, \
        compact(raw), {}  # fmt: skip


def _openings(log: SampleLog) -> Iterator[Row]:
    bundle, no = short(log, 5, 6, opened=("reward",)), failed(5, "Inconsistent")
    opening = {"path": "reward", "salt": b64(sample_openings(5)[1].salt), "value": b64(b"1")}

    def change(name: str, about: str, expect: Expect, where: Any, to: Any) -> Row:
        return f"opened-{name}", about, expect, spoilt(bundle, put(*where, to=to)), {}

    reward = ("entries", 0, "openings", 0)
    yield change("good", "A reward is disclosed.", VERIFIED, (*reward, "path"), "reward")
    yield change("value", "Another reward.", no, (*reward, "value"), b64(b"4"))
    yield change("salt", "Another salt.", no, (*reward, "salt"), bit)
    yield change("salt-31-bytes", "A short salt.", unreadable(5), (*reward, "salt"), b64(bytes(31)))
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
        opened = put("entries", 0, "openings", to=[opening])
        yield f"opened-{name}", about, expect, spoilt(short(odd), opened), {}  # fmt: skip


def _anchored(log: SampleLog) -> Iterator[Row]:
    good, no = record_of(short(log, anchored=(4, 6))), failed(6, "Inconsistent")
    fork, late = SampleLog(fork_at=2), SampleLog(fork_at=9)
    stranger = SampleLog(secret=bytes(32))

    def with_heads(*heads: tuple[SampleLog, int, tuple[bytes, ...]]) -> Record:
        return good | {
            "anchored": [
                {"tree_head": str(it.short_note(size)), "path": [b64(node) for node in path]}
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
