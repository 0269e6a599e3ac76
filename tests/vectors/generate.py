"""Write the vectors, one file per scenario: `python tests/vectors/generate.py [--check]`.

Every expectation is declared beside its scenario, never computed by the code under test.
ML-DSA signatures are randomised: those once made are kept in `inputs/` and used again, so
that running this twice gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import bundle_scenarios
import chain_scenarios
import note_scenarios
import spelling_scenarios
import tamper_scenarios
import tree_scenarios
from sample_log import NOTES, SampleLog, read_notes

FOLDER = Path(__file__).parent
ACCUMULATED_SIZE = 130
ROOMS = (
    tree_scenarios,
    note_scenarios,
    bundle_scenarios,
    tamper_scenarios,
    spelling_scenarios,
    chain_scenarios,
)


def vectors() -> dict[str, dict[str, Any]]:
    """Every vector by its name; new ML-DSA signatures are kept on the way."""
    log = SampleLog(notes=read_notes())
    found: dict[str, dict[str, Any]] = {}
    for room in ROOMS:
        for name, vector in room.scenarios(log):
            if name in found:
                raise ValueError(f"two vectors are called {name}")
            found[name] = vector
    found["accumulated"] = {
        "about": (
            f"All proofs of all sizes up to {ACCUMULATED_SIZE} in one hash: for each size, the "
            "root, the inclusion proof of each index, then the consistency proof from each "
            "smaller size and itself. Leaf i is the hash of the one byte i. From 32 zero "
            "bytes, h becomes SHA-256(h || u32 length || item), a proof's hashes joined."
        ),
        "kind": "accumulated",
        "input": {"largest_size": ACCUMULATED_SIZE},
        "expect": "ok",
        "sha256": slow_accumulation(ACCUMULATED_SIZE).hex(),
    }
    kept = dict(sorted(log.notes.items()))
    if kept != read_notes():
        NOTES.parent.mkdir(exist_ok=True)
        NOTES.write_text(as_text(kept), "utf-8")
    return found


# --- the slow reference: RFC 6962 section 2.1, transcribed word by word -----------------


@cache
def tree(begin: int, end: int) -> bytes:
    """MTH over leaves [begin, end)."""
    if begin == end:
        return hashlib.sha256(b"").digest()
    if end - begin == 1:
        return hashlib.sha256(b"\x00" + bytes([begin])).digest()
    k = begin + split(end - begin)
    return hashlib.sha256(b"\x01" + tree(begin, k) + tree(k, end)).digest()


def split(n: int) -> int:
    k = 1
    while 2 * k < n:
        k *= 2
    return k


def path(m: int, begin: int, end: int) -> list[bytes]:
    """PATH(m, D[begin:end])."""
    if end - begin == 1:
        return []
    k = split(end - begin)
    if m < k:
        return [*path(m, begin, begin + k), tree(begin + k, end)]
    return [*path(m - k, begin + k, end), tree(begin, begin + k)]


def subproof(m: int, begin: int, end: int, *, whole: bool = True) -> list[bytes]:
    """SUBPROOF(m, D[begin:end], b)."""
    if m == end - begin:
        return [] if whole else [tree(begin, end)]
    k = split(end - begin)
    if m <= k:
        return [*subproof(m, begin, begin + k, whole=whole), tree(begin + k, end)]
    return [*subproof(m - k, begin + k, end, whole=False), tree(begin, begin + k)]


def slow_accumulation(largest: int) -> bytes:
    return accumulate(slow_items(largest))


def slow_items(largest: int) -> Iterator[bytes]:
    for size in range(1, largest + 1):
        yield tree(0, size)
        yield from (b"".join(path(index, 0, size)) for index in range(size))
        yield from (b"".join(subproof(old, 0, size)) for old in range(1, size + 1))


def accumulate(items: Iterator[bytes]) -> bytes:
    h = bytes(32)
    for item in items:
        h = hashlib.sha256(h + len(item).to_bytes(4, "big") + item).digest()
    return h


# --- files ------------------------------------------------------------------------------


def as_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, indent=1) + "\n"


def main(arguments: list[str]) -> int:
    wanted = {f"{name}.json": as_text(vector) for name, vector in vectors().items()}
    present = {file.name: file.read_text("utf-8") for file in FOLDER.glob("*.json")}
    if arguments == ["--check"]:
        wrong = sorted(n for n in wanted.keys() | present.keys() if wanted.get(n) != present.get(n))
        print("\n".join(f"differs: {name}" for name in wrong) or f"{len(wanted)} vectors as stored")
        return 1 if wrong else 0
    for name in present.keys() - wanted.keys():
        (FOLDER / name).unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text, "utf-8")
    print(f"{len(wanted)} vectors written")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
