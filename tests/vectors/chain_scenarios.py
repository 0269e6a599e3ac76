"""Scenarios for bundles with chain evidence; most of it is spoilt."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import chain_world as chain
from chain_world import World, event, made_up
from sample_log import NOTES, SampleLog, record_of
from spoiling import VERIFIED, Expect, Row, Vector, failed, inconclusive, short, unreadable, vector

from rlhf_audit_trail.ledger.proof.bundle import encode_bundle
from rlhf_audit_trail.ledger.proof.evm.evidence import ChainEvidence
from rlhf_audit_trail.ledger.proof.evm.rlp import Item, encode
from rlhf_audit_trail.ledger.proof.tree_head import log_id as log_id_of

WRONG: Expect = failed(7, "Inconsistent")
UNKNOWN: Expect = inconclusive(7, "NotAnchored")
NO_EVIDENCE: Expect = unreadable(7)


def scenarios(log: SampleLog) -> Iterator[tuple[str, Vector]]:
    """Yield (name, vector); the caller trusts the made-up chain's block unless it says so."""
    for rows in (_good, _recorded, _trust, _spoilt, _re_spelt, _receipts):
        for name, *rest in rows(log):
            yield vector(log, f"chain-{name}", *rest)


class Scene:
    """A log on the made-up chain, its good evidence and the trust that goes with it."""

    def __init__(self, log: SampleLog, size: int = 8) -> None:
        self.log, self.log_id = log, log_id_of(log.ed25519)
        self.world = World({self.log_id: (size, log.head(size).root)})
        self.good = self.world.evidence(self.log_id)
        self.trust = chain.trust(self.log_id, self.good)

    def bundle(self, evidence: ChainEvidence | bytes, **more: Any) -> bytes:
        return encode_bundle(replace(short(self.log, **more), chain=bytes(evidence)))

    def spoilt(self, change: Callable[[Any], Any]) -> bytes:
        """The good evidence's items after `change`, which may return others."""
        items = deepcopy([getattr(self.good, name) for name in PARTS])
        changed = change(items) or items
        return self.bundle(ChainEvidence(*changed))


PARTS = tuple(ChainEvidence.__dataclass_fields__)
HEADER, ACCOUNT, STORAGE = 4, 5, 6


def _good(log: SampleLog) -> Iterator[Row]:
    scene = Scene(log)
    yield "storage", "The contract's storage as of a trusted block.", VERIFIED, \
        scene.bundle(scene.good), scene.trust  # fmt: skip
    newer = Scene(log, 13)
    yield "newer-head", "It holds a newer head, which extends the file's.", VERIFIED, \
        newer.bundle(newer.good, anchored=(13,)), newer.trust  # fmt: skip
    alone = replace(scene.world, neighbours=0)
    only = alone.evidence(scene.log_id)
    yield "few-accounts", "Tries of one and two leaves.", VERIFIED, \
        scene.bundle(only), chain.trust(scene.log_id, only)  # fmt: skip
    later = replace(scene.world, header={}, bloom=made_up("bloom") * 8)
    fields = later.evidence(scene.log_id)
    fields = replace(fields, header=[*fields.header, made_up("new"), b"\7"])
    yield "newer-header", "A later fork's header with two more fields.", VERIFIED, \
        scene.bundle(fields), chain.trust(scene.log_id, fields)  # fmt: skip
    yield "not-asked", "The caller names no chain.", VERIFIED, scene.bundle(scene.good), {}
    found = record_of(replace(short(log), chain=bytes(scene.good)))
    yield "before-digest", "`chain` after `sha256`.", unreadable(1), \
        encode_bundle(short(log)).replace(b"}\n", b',"chain":"' + found["chain"].encode() + b'"}\n'), \
        scene.trust  # fmt: skip
    yield (
        "asked-and-absent",
        "The file has no evidence.",
        UNKNOWN,
        encode_bundle(short(log)),
        scene.trust,
    )
    for name, value in (
        ("empty", ""),
        ("null", None),
        ("loose-base64", found["chain"][:-4] + "A==="),
    ):
        yield name, "`chain` is no evidence.", unreadable(1), found | {"chain": value}, scene.trust


def _recorded(log: SampleLog) -> Iterator[Row]:
    """Evidence that was recorded from a real Anvil 1.7.1 by `record_anvil.py`."""
    record = json.loads(NOTES.with_name("anvil_evidence.json").read_text("utf-8"))
    scene, trust = Scene(log), {"chain": record["chain"]}
    for name in ("storage", "receipt"):
        data = bytes.fromhex(record[name])
        yield f"anvil-{name}", f"The {name} of a real Anvil.", VERIFIED, scene.bundle(data), trust
        swapped = replace(ChainEvidence.parse(data), header=scene.good.header)
        yield (
            f"anvil-{name}-other-block",
            "Another block's header.",
            WRONG,
            scene.bundle(swapped),
            trust,
        )


def _trust(log: SampleLog) -> Iterator[Row]:
    scene = Scene(log)
    data, given = scene.bundle(scene.good), scene.trust["chain"]
    block = given["blocks"][0]

    def trusting(**changed: Any) -> dict[str, Any]:
        return {"chain": given | changed}

    yield "block-unknown", "Nobody confirmed the block.", UNKNOWN, data, trusting(blocks=[])
    yield "block-forgiven", "The caller does without an anchor.", VERIFIED, data, \
        trusting(blocks=[]) | {"accept_unanchored": True}  # fmt: skip
    yield "block-other-number", "Another block is trusted.", UNKNOWN, data, \
        trusting(blocks=[block | {"number": block["number"] + 1}])  # fmt: skip
    yield "block-of-other-chain", "The number is one of another chain.", UNKNOWN, data, \
        trusting(blocks=[block | {"chain_id": 1}])  # fmt: skip
    other = block | {"hash": made_up("another block").hex()}
    for name, blocks in (("other-hash", [other]), ("two-hashes", [block, other])):
        yield f"block-{name}", "The block has another hash.", WRONG, data, \
            trusting(blocks=blocks) | {"accept_unanchored": True}  # fmt: skip
    for name, value in (
        ("chain_id", 1), ("contract", made_up("other", 20).hex()),
        ("publisher", made_up("other", 20).hex()), ("log_id", made_up("other").hex()),
        ("code_hash", made_up("other").hex()),
    ):  # fmt: skip
        yield f"other-{name.replace('_', '-')}", f"Another {name} is trusted.", WRONG, data, \
            trusting(**{name: value})  # fmt: skip
    old = Scene(log, 4)
    yield "before-entry", "It holds a head older than the entry.", UNKNOWN, \
        old.bundle(old.good, anchored=(4,)), old.trust  # fmt: skip
    absent = Scene(log, 11)
    yield "head-not-in-file", "It holds a head that the file lacks.", UNKNOWN, \
        absent.bundle(absent.good), absent.trust  # fmt: skip
    fork = Scene(SampleLog(fork_at=2))
    yield "fork", "It holds another root at this size.", WRONG, scene.bundle(fork.good), fork.trust


def _spoilt(log: SampleLog) -> Iterator[Row]:
    scene = Scene(log)
    trust = scene.trust

    def row(name: str, about: str, expect: Expect, change: Callable[[Any], Any]) -> Row:
        return name, about, expect, scene.spoilt(change), trust

    def put(part: int, place: int, value: Item) -> Callable[[Any], None]:
        def change(items: Any) -> None:
            items[part][place] = value

        return change

    def claim(part: int, value: Any) -> Callable[[Any], None]:
        def change(items: Any) -> None:
            items[part] = value

        return change

    for name, place in (("time", 11), ("state-root", 3), ("extra-data", 12)):
        yield row(f"header-{name}", "The header was changed.", WRONG, put(HEADER, place, made_up("x")[:8 if place == 11 else 32]))  # fmt: skip
    yield row(
        "header-short", "Fourteen fields.", NO_EVIDENCE, lambda x: [*x[:4], x[4][:14], *x[5:]]
    )
    yield row("header-zero-bloom", "Zeros written out.", NO_EVIDENCE, put(HEADER, 6, bytes(256)))
    yield row(
        "header-number", "A number with a zero in front.", NO_EVIDENCE, put(HEADER, 8, b"\0\1")
    )
    yield row("header-bytes", "The header is no list.", NO_EVIDENCE, claim(HEADER, b"header"))
    for name, part, value in (
        ("chain-id", 0, 1), ("contract", 1, made_up("y", 20)), ("publisher", 2, made_up("y", 20)),
        ("log-id", 3, made_up("y")),
    ):  # fmt: skip
        yield row(f"claims-other-{name}", f"It claims another {name}.", WRONG, claim(part, value))
    for name, part in (("account", ACCOUNT), ("storage", STORAGE)):
        yield row(
            f"{name}-value", "A leaf's value was changed.", WRONG, _at_leaf(part, 1, b"\1" * 40)
        )
        yield row(f"{name}-path", "A leaf's part of the key was changed.", WRONG, _at_leaf(part, 0, b"\x20" + bytes(31)))  # fmt: skip
        yield row(
            f"{name}-flags", "A leaf's flags are none.", NO_EVIDENCE, _at_leaf(part, 0, b"\x40")
        )
        yield row(f"{name}-truncated", "The last node is missing.", NO_EVIDENCE, _cut_leaf(part))
        yield row(f"{name}-reordered", "A branch's children changed places.", WRONG, _reverse(part))
        yield row(f"{name}-surplus", "A node that no key needs.", NO_EVIDENCE, _surplus(part))
        yield row(f"{name}-three-items", "A node of three items.", NO_EVIDENCE, _grow_leaf(part))
    yield row("header-list-bloom", "A list for no bloom.", WRONG, put(HEADER, 6, []))
    yield row("storage-list", "A list for no storage.", NO_EVIDENCE, claim(STORAGE, []))
    yield row("storage-empty", "No storage at all.", WRONG, claim(STORAGE, b""))
    yield row("accounts-empty", "Read as the index of a receipt.", inconclusive(7, "PolicyUnmet"), claim(ACCOUNT, b""))  # fmt: skip
    stranger = made_up("log 3")
    other = replace(scene.world.evidence(scene.log_id, about=stranger), log_id=scene.log_id)
    yield "slots-of-other-log", "Another log's slots.", NO_EVIDENCE, scene.bundle(other), trust
    world = replace(scene.world, heads={}, neighbours=2)
    none = world.evidence(scene.log_id)
    yield "exclusion", "A proof that there is no such head.", WRONG, scene.bundle(none), \
        chain.trust(scene.log_id, none)  # fmt: skip
    code = replace(scene.world, code_hash=made_up("other code")).evidence(scene.log_id)
    yield "other-code", "Other code stands there.", WRONG, scene.bundle(code), \
        chain.trust(scene.log_id, code)  # fmt: skip
    lonely = replace(scene.world, contract=made_up("no contract", 20)).evidence(scene.log_id)
    yield "other-account", "Another account's storage.", NO_EVIDENCE, \
        scene.bundle(replace(lonely, contract=chain.CONTRACT)), \
        chain.trust(scene.log_id, lonely)  # fmt: skip


def _re_spelt(log: SampleLog) -> Iterator[Row]:
    scene = Scene(log)
    good = bytes(scene.good)
    chain_id = encode(b"\x7a\x69")
    spelt = {
        "trailing-byte": (good + b"\0", "A byte after the end."),
        "cut": (good[:-1], "Without its last byte."),
        "long-length": (
            good.replace(chain_id, b"\xb8\x02\x7a\x69", 1),
            "A length in the long form.",
        ),
        "eighth-item": (encode([*_items(scene), b""]), "One item more."),
        "sixth-item": (encode(_items(scene)[:-1]), "One item less."),
        "text": (b"chain", "No RLP of a list."),
        "length-zeros": (b"\xf9\x00\x40" + bytes(64), "A length with a zero in front."),
        "one-byte-long": (b"\xc2\x81\x05", "A small byte with a length."),
        "deep": (_nested(100), "Nested too deep."),
        "huge-length": (b"\xff" + b"\xff" * 8, "A length beyond all memory."),
        "huge": (b"\xbb\x7f\xff\xff\xff" + bytes(131_080), "More than 131,072 bytes."),
    }
    for name, (data, about) in spelt.items():
        if name != "huge":
            yield f"rlp-{name}", about, NO_EVIDENCE, scene.bundle(data), scene.trust
    yield "rlp-asked-by-nobody", "Read even if no chain is named.", NO_EVIDENCE, \
        scene.bundle(good[:-1]), {}  # fmt: skip


def _receipts(log: SampleLog) -> Iterator[Row]:
    scene = Scene(log)
    world, log_id = scene.world, scene.log_id
    head = log.head(8)
    good = event(log_id, 8, head.root)
    other: Item = [chain.CONTRACT, [made_up("topic")], b""]

    def row(name: str, about: str, expect: Expect, events: list[Item], **more: Any) -> Row:
        proof = world.receipt_evidence(log_id, events, **more)
        trust = chain.trust(log_id, proof, address_binds_code=True)
        return f"receipt-{name}", about, expect, scene.bundle(proof), trust

    yield row("good", "The anchor's event, among others.", VERIFIED, [other, good, other])
    yield row("index-0", "The first transaction.", VERIFIED, [good], index=0)
    yield row("index-130", "Many transactions.", VERIFIED, [good], index=130, count=200)
    yield row("alone", "The only transaction.", VERIFIED, [good], index=0, count=1)
    early = event(log_id, 4, log.head(4).root)
    yield row("two", "Two anchors of one log: the last counts.", VERIFIED, [early, good])
    yield row("none", "A receipt without events.", WRONG, [])
    for name in ("contract", "publisher", "kind"):
        value = made_up("other", 32 if name == "kind" else 20)
        yield row(f"other-{name}", f"An event of another {name}.", WRONG, [event(log_id, 8, head.root, **{name: value})])  # fmt: skip
    yield row("other-log", "An event of another log.", WRONG, [event(made_up("log"), 8, head.root)])
    yield row("other-root", "An event with another root.", WRONG, [event(log_id, 8, made_up("r"))])
    yield row("short-data", "An event with too little data.", NO_EVIDENCE, [[*good[:2], b"\1"]])
    yield row("no-event", "An event of two items.", NO_EVIDENCE, [good[:2]])
    proof = world.receipt_evidence(log_id, [good])
    yield "receipt-code-unknown", "Any code could stand there.", inconclusive(7, "PolicyUnmet"), \
        scene.bundle(proof), chain.trust(log_id, proof)  # fmt: skip
    for name, index, expect in (("zero", b"\0", NO_EVIDENCE), ("other", b"\6", NO_EVIDENCE)):
        yield f"receipt-index-{name}", "Another index.", expect, \
            scene.bundle(replace(proof, account=index)), \
            chain.trust(log_id, proof, address_binds_code=True)  # fmt: skip


# --- ways to spoil a trie -----------------------------------------------------------------


def _leaf(node: Any) -> Any:
    """The first leaf written out, with the node above it and the place there; depth first."""
    for place, child in enumerate(node):
        if isinstance(child, list):
            below = _leaf(child)
            return below or (node, place, child)
    return None


def _at_leaf(part: int, place: int, value: Item) -> Callable[[Any], None]:
    def change(items: Any) -> None:
        _leaf(items[part])[2][place] = value

    return change


def _cut_leaf(part: int) -> Callable[[Any], None]:
    def change(items: Any) -> None:
        above, place, _ = _leaf(items[part])
        above[place] = made_up("a node")

    return change


def _grow_leaf(part: int) -> Callable[[Any], None]:
    def change(items: Any) -> None:
        _leaf(items[part])[2].append(b"")

    return change


def _reverse(part: int) -> Callable[[Any], None]:
    """Exchange two hashes of nodes that are not written out."""

    def change(items: Any) -> None:
        node = items[part]
        places = [n for n, child in enumerate(node[:16]) if isinstance(child, bytes) and child]
        node[places[0]], node[places[-1]] = node[places[-1]], node[places[0]]

    return change


def _surplus(part: int) -> Callable[[Any], None]:
    """Write out a leaf beside the way; where it would have stood as a hash."""

    def change(items: Any) -> None:
        node = items[part]
        place = next(n for n, x in enumerate(node[:16]) if isinstance(x, bytes) and x)
        node[place] = [b"\x20" + bytes(31), bytes(33)]

    return change


def _items(scene: Scene) -> list[Any]:
    place = [b"\x7a\x69", *(getattr(scene.good, name) for name in PARTS[1:])]
    return [*place]


def _nested(depth: int) -> bytes:
    item: Item = []
    for _ in range(depth):
        item = [item]
    return encode(item)
