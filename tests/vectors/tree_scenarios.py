"""Scenarios for hashing, inclusion, consistency and commitments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sample_log import SampleLog, sample_openings

from rlhf_audit_trail.ledger.proof.commitment import commit
from rlhf_audit_trail.ledger.proof.errors import ProofError
from rlhf_audit_trail.ledger.proof.merkle import root_hash, verify_consistency, verify_inclusion

Vector = dict[str, Any]
MALFORMED, NOT_INCLUDED, INCONSISTENT = "MalformedBundle", "NotIncluded", "Inconsistent"


def flip(data: bytes, at: int = 0) -> bytes:
    """Change one bit."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def scenarios(log: SampleLog) -> Iterator[tuple[str, Vector]]:
    """Yield (name, vector)."""
    yield from _roots(log)
    yield from _good_inclusion(log)
    yield from _bad_inclusion(log)
    yield from _good_consistency(log)
    yield from _bad_consistency(log)
    yield from _commitments()


def _vector(kind: str, about: str, expect: str, **given: Any) -> Vector:
    return {"about": about, "kind": kind, "input": given, "expect": expect}


def _roots(log: SampleLog) -> Iterator[tuple[str, Vector]]:
    for size, about in (
        (0, "The empty tree's root is SHA-256 of nothing."),
        (1, "A single entry's leaf hash is the root."),
        (7, "Seven leaves: an odd last node moves up unchanged."),
        (13, "Thirteen leaves, split as 8 and 5, and 5 as 4 and 1."),
    ):
        leaves = [leaf.hex() for leaf in log.leaves[:size]]
        root = root_hash(log.leaves[:size]).hex()
        yield f"root-of-{size}", _vector("root", about, "ok", leaves=leaves, root=root)


def _inclusion(log: SampleLog, index: int, size: int) -> dict[str, Any]:
    """A true inclusion proof as raw bytes and numbers, to be spoilt."""
    path, root = list(log.path(index, size)), log.head(size).root
    return {"leaf": log.leaves[index], "index": index, "size": size, "path": path, "root": root}


def _hexed(given: dict[str, Any]) -> dict[str, Any]:
    """Write bytes as hex; numbers and texts stay."""
    if isinstance(given, dict):
        return {name: _hexed(value) for name, value in given.items()}
    if isinstance(given, list | tuple):
        return [_hexed(value) for value in given]
    return given.hex() if isinstance(given, bytes) else given


def _good_inclusion(log: SampleLog) -> Iterator[tuple[str, Vector]]:
    for index, size, about in (
        (0, 1, "The only entry of a tree needs no hashes."),
        (5, 8, "Entry 5 of a full tree of 8."),
        (0, 7, "The first entry of 7."),
        (6, 7, "The last entry of 7 stands alone: its first siblings are missing levels."),
        (12, 13, "The last entry of 13: two hashes, both to the left."),
        (8, 13, "The first entry of the right part of 13."),
    ):
        given = _hexed(_inclusion(log, index, size))
        yield f"inclusion-{index}-of-{size}", _vector("inclusion", about, "ok", **given)
    given = _inclusion(log, 5, 8)
    others = [
        (index, size)
        for size in range(1, 200)
        for index in range(size)
        if (index, size) != (5, 8) and _accepts(verify_inclusion, given, index=index, size=size)
    ]
    index, size = others[0]
    about = (
        f"The true path of (5, 8) also verifies for ({index}, {size}) and {len(others) - 1} other "
        "pairs below size 200: a path binds no position, so the size must be the signed one."
    )
    spoilt = given | {"index": index, "size": size}
    yield "inclusion-path-binds-no-position", _vector("inclusion", about, "ok", **_hexed(spoilt))


def _accepts(verify: Callable[..., None], given: dict[str, Any], **changed: int) -> bool:
    renamed = {("proof" if name == "path" else name): value for name, value in given.items()}
    try:
        verify(**(renamed | changed))
    except ProofError:
        return False
    return True


def _bad_inclusion(log: SampleLog) -> Iterator[tuple[str, Vector]]:
    good = _inclusion(log, 5, 8)
    path, left, right = good["path"], log.leaves[4], log.leaves[5]
    cases: list[tuple[str, str, str, dict[str, Any]]] = [
        ("wrong-index", "The neighbour's index.", NOT_INCLUDED, {"index": 4}),
        ("mirrored-index", "Index 2 mirrors index 5.", NOT_INCLUDED, {"index": 2}),
        ("index-is-size", "Indices end one below the size.", MALFORMED, {"index": 8}),
        ("index-negative", "A negative index.", MALFORMED, {"index": -1}),
        ("size-zero", "Nothing is in an empty tree.", MALFORMED, {"index": 0, "size": 0}),
        ("size-too-small", "The size is below the index.", MALFORMED, {"size": 5}),
        ("size-doubled", "Size 16 demands four hashes.", MALFORMED, {"size": 16}),
        ("size-six", "Size 6 demands another length.", MALFORMED, {"size": 6}),
        ("path-empty", "No hashes at all.", MALFORMED, {"path": []}),
        ("path-short", "The last hash is missing.", MALFORMED, {"path": path[:-1]}),
        ("path-long", "One hash too many.", MALFORMED, {"path": [*path, path[-1]]}),
        ("path-reversed", "Root to leaf.", NOT_INCLUDED, {"path": path[::-1]}),
        ("path-bit", "One bit differs.", NOT_INCLUDED, {"path": [flip(path[0]), *path[1:]]}),
        ("leaf-bit", "The entry was changed.", NOT_INCLUDED, {"leaf": flip(good["leaf"], 31)}),
        ("leaf-other", "Another entry's leaf.", NOT_INCLUDED, {"leaf": left}),
        ("root-bit", "The root was changed.", NOT_INCLUDED, {"root": flip(good["root"])}),
        ("root-other", "The root of size 7.", NOT_INCLUDED, {"root": log.head(7).root}),
        ("leaf-31-bytes", "A short leaf hash.", MALFORMED, {"leaf": good["leaf"][:31]}),
        ("root-33-bytes", "A long root.", MALFORMED, {"root": good["root"] + b"\0"}),
        ("node-31-bytes", "A short node.", MALFORMED, {"path": [path[0][:31], *path[1:]]}),
        ("node-empty", "An empty node.", MALFORMED, {"path": [b"", *path[1:]]}),
        ("nodes-joined", "Two in one.", MALFORMED, {"path": [path[0] + path[1], path[2], b""]}),
        ("leaf-joined", "Two leaves as one.", MALFORMED, {"leaf": left + right}),
    ]
    for name, about, expect, change in cases:
        given = _hexed(good | change)
        yield f"inclusion-{name}", _vector("inclusion", about, expect, **given)
    alone = _inclusion(log, 0, 1) | {"path": [log.leaves[1]]}
    about = "A tree of one entry has no siblings."
    yield "inclusion-alone-with-path", _vector("inclusion", about, MALFORMED, **_hexed(alone))
    beyond = _inclusion(log, 1, 2) | {"size": 1}
    about = "Index 1 in a tree of 1: the walk itself would reach the root."
    yield "inclusion-beyond-by-one", _vector("inclusion", about, MALFORMED, **_hexed(beyond))


def _consistency(log: SampleLog, old: int, new: int, fork: SampleLog | None = None) -> Vector:
    return {
        "old_size": old,
        "old_root": log.head(old).root,
        "new_size": new,
        "new_root": (fork or log).head(new).root,
        "path": list((fork or log).consistency(old, new)) if old else [],
    }


def _good_consistency(log: SampleLog) -> Iterator[tuple[str, Vector]]:
    for old, new, about in (
        (1, 1, "Equal sizes: no hashes, equal roots."),
        (13, 13, "Equal sizes, not a power of two."),
        (1, 2, "From one to two entries."),
        (4, 8, "A power of two: the old root is left out and begins the walk."),
        (3, 7, "Neither is a power of two."),
        (6, 8, "The old tree's last subtree is a pair."),
        (7, 8, "The old tree's last subtree is one leaf."),
        (5, 13, "From 5 to 13."),
        (8, 13, "A power of two inside a larger tree."),
    ):
        given = _hexed(_consistency(log, old, new))
        yield f"consistency-{old}-to-{new}", _vector("consistency", about, "ok", **given)
    given = _consistency(log, 5, 13)
    others = [
        (old, new)
        for new in range(1, 100)
        for old in range(1, new)
        if (old, new) != (5, 13) and _accepts(verify_consistency, given, old_size=old, new_size=new)
    ]
    about = (
        f"The true proof from 5 to 13 also verifies for {len(others)} other pairs below 100, here "
        f"{others[0]}: each size must come from a signed tree head."
    )
    spoilt = given | {"old_size": others[0][0], "new_size": others[0][1]}
    yield "consistency-path-binds-no-size", _vector("consistency", about, "ok", **_hexed(spoilt))


def _bad_consistency(log: SampleLog) -> Iterator[tuple[str, Vector]]:
    good, whole, same = (_consistency(log, *pair) for pair in ((5, 13), (4, 8), (7, 7)))
    path, fork = good["path"], SampleLog(fork_at=2)
    swapped = {"old_root": good["new_root"], "new_root": good["old_root"]}
    from_nothing = _consistency(log, 0, 8)
    cases: list[tuple[str, str, str, dict[str, Any]]] = [
        ("old-zero", "Everything extends nothing: no proof.", MALFORMED, from_nothing),
        ("both-zero", "Two empty trees.", MALFORMED, from_nothing | {"new_size": 0}),
        ("shrinking", "The old tree is larger.", MALFORMED, good | {"old_size": 14}),
        ("old-negative", "A negative size.", MALFORMED, good | {"old_size": -5}),
        ("same-other-root", "Equal sizes, two roots: a fork.", INCONSISTENT,
         same | {"new_root": fork.head(7).root}),
        ("same-with-path", "Equal sizes need no hashes.", MALFORMED, same | {"path": path[:1]}),
        ("whole-with-old-root", "The old root stands in front.", MALFORMED,
         whole | {"path": [whole["old_root"], *whole["path"]]}),
        ("part-without-first", "The first node is left out.", MALFORMED, good | {"path": path[1:]}),
        ("path-empty", "No hashes.", MALFORMED, good | {"path": []}),
        ("path-long", "One hash too many.", MALFORMED, good | {"path": [*path, path[0]]}),
        ("path-reversed", "Root to leaf.", INCONSISTENT, good | {"path": path[::-1]}),
        ("first-bit", "One bit of the first node.", INCONSISTENT,
         good | {"path": [flip(path[0]), *path[1:]]}),
        ("last-bit", "One bit of the last node.", INCONSISTENT,
         good | {"path": [*path[:-1], flip(path[-1])]}),
        ("old-root-bit", "Another old root.", INCONSISTENT,
         good | {"old_root": flip(good["old_root"])}),
        ("new-root-bit", "Another new root.", INCONSISTENT,
         good | {"new_root": flip(good["new_root"])}),
        ("roots-swapped", "Old for new.", INCONSISTENT, good | swapped),
        ("old-relabelled", "The old size is one more.", MALFORMED, good | {"old_size": 6}),
        ("new-relabelled", "Another length is due.", MALFORMED, good | {"new_size": 8}),
        ("forked", "Entry 2 was rewritten; the forger proves his own tree.", INCONSISTENT,
         _consistency(log, 5, 13, fork)),
        ("forked-from-whole", "The same, from a power of two.", INCONSISTENT,
         _consistency(log, 4, 8, fork)),
        ("node-31-bytes", "A short node.", MALFORMED, good | {"path": [path[0][:31], *path[1:]]}),
        ("root-31-bytes", "A short root.", MALFORMED, good | {"old_root": good["old_root"][:31]}),
        ("same-root-0-bytes", "Two empty roots are equal, but no roots.", MALFORMED,
         same | {"old_root": b"", "new_root": b""}),
    ]  # fmt: skip
    for name, about, expect, given in cases:
        vector = _vector("consistency", about, expect, **_hexed(given))
        yield f"consistency-{name}", vector


def _commitments() -> Iterator[tuple[str, Vector]]:
    opening = sample_openings(5)[1]
    good = {
        "path": opening.path,
        "salt": opening.salt,
        "value": opening.value,
        "commitment": commit(opening),
    }
    salt, value = opening.salt, opening.value
    moved = {"path": opening.path + value[:1].decode(), "value": value[1:]}
    cases: list[tuple[str, str, str, dict[str, Any]]] = [
        ("good", "A reward, opened.", "ok", {}),
        ("value", "Another reward.", INCONSISTENT, {"value": b"1.5"}),
        ("value-spelling", "The same number, spelt otherwise.", INCONSISTENT, {"value": b"1.250"}),
        ("path", "Another field's name.", INCONSISTENT, {"path": "annotator"}),
        ("boundary", "A byte moves from value to name.", INCONSISTENT, moved),
        ("salt", "Another salt.", INCONSISTENT, {"salt": flip(salt)}),
        ("salt-31-bytes", "HMAC would pad it with zeros.", MALFORMED, {"salt": salt[:31]}),
        ("salt-33-bytes", "A long salt.", MALFORMED, {"salt": salt + b"\0"}),
        ("salt-empty", "No salt: guessable values could be tried out.", MALFORMED, {"salt": b""}),
        ("short", "The commitment lacks a byte.", INCONSISTENT,
         {"commitment": good["commitment"][:31]}),
    ]  # fmt: skip
    for name, about, expect, change in cases:
        given = _hexed(good | change)
        yield f"commitment-{name}", _vector("commitment", about, expect, **given)
