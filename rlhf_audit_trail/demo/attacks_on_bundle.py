"""Attacks on a bundle that an auditor holds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

from rlhf_audit_trail.demo.scene import ATTACKER_TIME_S, Scene, examined
from rlhf_audit_trail.ledger.chain.evidence.making import storage_evidence
from rlhf_audit_trail.ledger.chain.evidence.own_evidence import own_reader
from rlhf_audit_trail.ledger.keys import LogKeys
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.proof.bundle import Bundle, encode_bundle, parse_bundle
from rlhf_audit_trail.ledger.proof.evm.evidence import ChainEvidence
from rlhf_audit_trail.ledger.proof.tree_head import TreeHead, open_tree_head, parse_tree_head

__all__ = [
    "evidence_swapped",
    "index_changed",
    "key_swapped",
    "opening_changed",
    "size_relabelled",
]


_NUMBER = 8  # where a block's header has its number


def _parsed(scene: Scene) -> Bundle:
    return parse_bundle(scene.bundle)


def key_swapped(scene: Scene) -> str:
    """The same tree head, signed by a stranger whose key travels with it."""
    bundle = _parsed(scene)
    head = open_tree_head(bundle.tree_head, ()).head
    keys = LogKeys.derive(hashlib.sha256(b"the attacker's own secret").digest(), head.origin)
    forged = replace(
        bundle,
        log_keys=tuple(str(key) for key in keys.verifier_keys),
        tree_head=keys.sign(head, time_s=ATTACKER_TIME_S),
        anchored=(),
    )
    return examined(scene, encode_bundle(forged))


def size_relabelled(scene: Scene) -> str:
    """The signed tree head says one entry more than was signed."""
    bundle = _parsed(scene)
    text, rest = bundle.tree_head.split("\n\n", 1)
    head = parse_tree_head(text + "\n")
    relabelled = TreeHead(head.origin, head.size + 1, head.root)
    return examined(scene, encode_bundle(replace(bundle, tree_head=relabelled.text + "\n" + rest)))


def index_changed(scene: Scene) -> str:
    """An entry is passed off as its neighbour."""
    bundle = _parsed(scene)
    moved = replace(bundle.entries[0], index=bundle.entries[0].index ^ 1)
    return examined(scene, encode_bundle(replace(bundle, entries=(moved, *bundle.entries[1:]))))


def opening_changed(scene: Scene) -> str:
    """Another reward than the one committed to."""
    bundle = _parsed(scene)
    first = bundle.entries[0]
    openings = tuple(
        replace(opening, value=b"1.0") if opening.path == "reward" else opening
        for opening in first.openings
    )
    forged = replace(bundle, entries=(replace(first, openings=openings), *bundle.entries[1:]))
    return examined(scene, encode_bundle(forged))


def evidence_swapped(scene: Scene) -> str:
    """Three ways, each of which must fail; the last one's reason is told."""
    bundle, found = _parsed(scene), ""
    for evidence in _other_evidence(scene, ChainEvidence.parse(bundle.chain)):
        found = examined(scene, encode_bundle(replace(bundle, chain=bytes(evidence))))
        if not found:
            return ""
    return found


def _other_evidence(scene: Scene, honest: ChainEvidence) -> Iterator[ChainEvidence]:
    """Yield real evidence of another log, the same under this log's name, and of another block."""
    with Ledger.open(scene.directory) as ledger, own_reader(ledger) as reader:
        publisher, log = ledger.chain.publisher, ledger.find(scene.run)
        other, _ = storage_evidence(reader, publisher, ledger.registry.log_id)
        earlier = hex(min(item.block_number for item in log.anchors() if item.block_number))
        old, _ = storage_evidence(reader, publisher, log.log_id, block=earlier)
    yield other
    yield replace(other, log_id=honest.log_id)
    header = [*old.header]
    header[_NUMBER] = honest.header[_NUMBER]  # passed off as the block that the auditor trusts
    yield replace(old, header=header)
