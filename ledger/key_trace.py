"""Finding a log's present keys from old ones, by what the log itself says about them.

For who pinned keys that have been retired since. Nothing is believed before it is shown: a
rotation's entry must stand under a tree head that the old keys have signed, and that head in
the tree that the log shows now. Runs on the auditor's install. `FORMAT.md`, section 11.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from rlhf_audit_trail.ledger.proof.bundle import parse_json
from rlhf_audit_trail.ledger.proof.errors import BadSignature, Inconsistent, PolicyUnmet
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.proof.tree_head import TreeHead, open_tree_head
from rlhf_audit_trail.ledger.succession import (
    KEY_KINDS,
    OPENED,
    ROTATED,
    KeyHistory,
    Link,
    Succession,
    parse_keys,
)
from rlhf_audit_trail.ledger.tiles import TILE_WIDTH
from rlhf_audit_trail.ledger.verified_log import TiledLog, VerifiedLog, open_pinned

__all__ = ["TracedKeys", "trace_keys"]

_KINDS: Final = (OPENED, *KEY_KINDS)

Keys = tuple[VerifierKey, ...]


@dataclass(frozen=True)
class TracedKeys:
    """What a log was shown to say about keys.

    Attributes:
        head: the newest tree head, signed by all keys that have to.
        run: id of the log.
        histories: run id to keys; the registry log speaks of all runs, another of itself.
        rotations: how many lead from the keys that were given to the newest ones.
    """

    head: TreeHead
    run: str
    histories: dict[str, KeyHistory]
    rotations: int


def trace_keys(log: TiledLog, pinned: Iterable[VerifierKey]) -> TracedKeys:
    """Follow a log's rotations from pinned keys to those that sign now; reads all entries.

    Args:
        log: the registry log, or a run's own; nothing it says is believed.
        pinned: keys of any one generation of this log. Together with the registry log's,
            those of runs may be given: they are compared with what it says.

    Raises:
        BadSignature: a pinned key is none of the log's, or the old keys did not sign a
            tree head that holds the entry which names the new ones.
        PolicyUnmet: no key of this log was pinned, or some of its keys did not sign.
        Inconsistent: what the log says about keys contradicts itself, or its tree.
        MalformedBundle, NotServed, Unreachable: the log cannot be read.
    """
    note, keys = log.tree_head(), tuple(pinned)
    head = open_tree_head(note, ()).head
    own = tuple(key for key in keys if key.name == head.origin)
    if not own:
        raise PolicyUnmet(
            f"none of the keys is one of {head.origin}",
            next_step="give a key of this log that you trust, however old",
        )
    verified = VerifiedLog(log, head)
    found = _follow(verified, own)
    start = _start(found, own)
    believed = tuple(key for key in own if key in _generations(found)[start])
    for link in found.links[start:]:
        _require_covered(verified, link, believed, link.tree_head or note)
        believed = link.new_keys
    open_pinned(note, (*found.histories[found.run].at(head.size), *believed))
    for key in keys:
        _require_known(found, key)
    return TracedKeys(head, found.run, found.histories, len(found.links) - start)


def _follow(verified: VerifiedLog, own: Keys) -> Succession:
    """Read what the log says about keys; that it is so is shown later."""
    head, events = verified.head, list(_events(verified))
    run = head.origin.rpartition("/")[2]
    for _, record in events:
        if record["kind"] == ROTATED and record.get("run") == run:
            first = parse_keys(record.get("old_keys"), head.origin)
            generation = record.get("generation")
            if type(generation) is not int:
                raise Inconsistent(f"{head.origin} does not count its keys' generations")
            found = Succession.begin(head.origin, first, run=run, generation=generation - 1)
            break
    else:
        found = Succession.begin(head.origin, own, run=run)
    for index, record in events:
        found.see(index, record)
    return found


def _events(verified: VerifiedLog) -> Iterable[tuple[int, dict[str, Any]]]:
    size = verified.head.size
    for tile_index in range(-(-size // TILE_WIDTH)):
        first = tile_index * TILE_WIDTH
        for index, data in enumerate(verified.entries(tile_index, min(TILE_WIDTH, size - first))):
            record = parse_json(data)
            if isinstance(record, dict) and record.get("kind") in _KINDS:
                yield first + index, record


def _generations(found: Succession) -> list[Keys]:
    """Return the keys of each generation of the log that was followed, oldest first."""
    return [found.histories[found.run].first, *(link.new_keys for link in found.links)]


def _start(found: Succession, own: Keys) -> int:
    """Return which generation the oldest pinned key is of, counted from the log's first."""
    for number, keys in enumerate(_generations(found)):
        if set(keys) & set(own):
            return number
    raise BadSignature(
        f"{found.origin} does not say that a key you pinned ever was its own",
        expected=", ".join(f"{key.name}+{key.key_id.hex()}" for key in own),
        next_step="treat this copy of the log as forged, unless the key is of another log",
    )


def _require_covered(verified: VerifiedLog, link: Link, believed: Keys, note: str) -> None:
    """Show that believed keys signed a tree head of this very tree that holds a rotation."""
    head, signed = verified.head, open_pinned(note, believed).head
    if signed.origin != head.origin or not link.index < signed.size <= head.size:
        raise BadSignature(
            f"the old keys signed no tree head that holds entry {link.index:,}, "
            "which names the new ones",
            next_step="treat this copy of the log as forged",
        )
    root = head.root if signed.size == head.size else verified.root_at(signed.size)
    if root != signed.root:
        raise Inconsistent(
            f"the tree of {signed.size:,} entries that the old keys signed is not in this log",
            expected=signed.root.hex(),
            actual=root.hex(),
        )


def _require_known(found: Succession, key: VerifierKey) -> None:
    """Show that a pinned key is one that its log has, or had."""
    for history in found.histories.values():
        if any(key in era.keys for era in history.eras):
            return
    raise BadSignature(
        f"{found.origin} does not know the key {key.name}+{key.key_id.hex()}",
        next_step="give keys of logs of this ledger only; else treat one of the two as forged",
    )
