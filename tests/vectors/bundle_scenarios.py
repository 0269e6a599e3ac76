"""Scenarios for good bundles, and for what the caller's trust makes of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from sample_log import SampleLog, record_of
from spoiling import (
    VERIFIED,
    Expect,
    Row,
    Vector,
    b64,
    failed,
    inconclusive,
    put,
    short,
    spoilt,
    unreadable,
    vector,
)

from rlhf_audit_trail.ledger.proof.bundle import encode_bundle


def scenarios(log: SampleLog) -> Iterator[tuple[str, Vector]]:
    """Yield (name, vector); without `keys` of its own, the log's Ed25519 key is pinned."""
    for rows in (
        _good,
        _trust,
        _chain,
        _signatures,
    ):
        for row in rows(log):
            yield vector(log, *row)


def _good(log: SampleLog) -> Iterator[Row]:
    small, data = short(log), encode_bundle(short(log))
    full = log.bundle((1, 5, 6), 8, opened=("annotator", "reward"), anchored=(4, 13))
    both = {"keys": [str(key) for key in log.keys.verifier_keys]}
    greased = "— example.com/new AAECAwQF\n{}— example.com/newer AAECAwQF\n".format
    note = log.short_note(8)
    lines = str(note).removeprefix(note.text + "\n")
    unknown = put("tree_head", to=note.text + "\n" + greased(lines))
    yield "good", "One entry, one key.", VERIFIED, data, {}
    yield "good-full", "Both keys, opened values, two other heads.", VERIFIED, record_of(full), both
    yield "good-half-pinned", "Both keys signed, one is pinned.", VERIFIED, record_of(full), {}
    yield "white-space-at-end", "Mail adds line ends.", VERIFIED, data + b"\r\n \n", {}
    yield "no-last-newline", "An editor took it away.", VERIFIED, data.rstrip(b"\n"), {}
    yield "unknown-signatures", "Lines by unknown keys.", VERIFIED, spoilt(small, unknown), {}
    alone = short(log, 0, size=1)
    yield "only-entry", "The only entry of a log.", VERIFIED, encode_bundle(alone), {}
    yield "all-entries", "A whole log.", VERIFIED, record_of(short(log, *range(13), size=13)), {}


def _trust(log: SampleLog) -> Iterator[Row]:
    data, stranger = encode_bundle(short(log)), SampleLog(secret=bytes(32))
    other = SampleLog(origin="example.com/rlhf/run43")
    forged = encode_bundle(short(SampleLog(secret=bytes(32), fork_at=5)))
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
    data = encode_bundle(short(log, anchored=(4,)))
    fork = SampleLog(fork_at=2)

    def says(*heads: tuple[SampleLog, int]) -> dict[str, Any]:
        said = [{"tree_size": size, "root": it.head(size).root.hex()} for it, size in heads]
        return {"on_chain": said}

    missing, split = inconclusive(7, "NotAnchored"), failed(7, "Inconsistent")
    yield "on-chain", "The bundle's own head is on chain.", VERIFIED, data, says((log, 8))
    early = encode_bundle(log.bundle((2,), anchored=(4,), post_quantum=False))
    yield "on-chain-older", "An older head that covers the entry.", VERIFIED, early, says((log, 4))
    yield (
        "on-chain-before-entry",
        "Only a head older than the entry.",
        missing,
        data,
        says((log, 4)),
    )
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
    small, bad = short(log), failed(2, "BadSignature")
    stranger = SampleLog(secret=bytes(32))
    note, foreign = log.short_note(8), stranger.short_note(8)
    both = log.bundle()

    def change(name: str, about: str, expect: Expect, where: Any, to: Any) -> Row:
        return name, about, expect, spoilt(small, put(*where, to=to)), {}

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
        lambda text: text.replace(b64(log.head(8).root), b64(SampleLog(fork_at=1).head(8).root)),
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
        ["a+" + hashlib.sha256(b"a\n\2key").hexdigest()[:8] + "+" + b64(b"\2key")],
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
        spoilt(both, put("tree_head", to=str(note))),
        {},
    )
    yield "ml-dsa-bit", "The unpinned key's signature is wrong.", bad, \
        spoilt(both, put("tree_head", to=lambda text: text[:-99] + (
            "A" if text[-99] != "A" else "B") + text[-98:])), {}  # fmt: skip
