"""Tree heads: what is signed, who counts as signer, and what a log is called on chain."""

from __future__ import annotations

import hashlib
import struct

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey
from hypothesis import given
from hypothesis import strategies as st
from sample_log import SIGNED_AT_S, SampleLog

from rlhf_audit_trail.ledger.proof.errors import BadSignature, MalformedBundle, PolicyUnmet
from rlhf_audit_trail.ledger.proof.merkle import MAX_TREE_SIZE
from rlhf_audit_trail.ledger.proof.note import Note, SignatureLine
from rlhf_audit_trail.ledger.proof.tree_head import (
    TreeHead,
    log_id,
    mldsa_message,
    open_tree_head,
    parse_tree_head,
)


@given(
    st.text(
        st.characters(codec="ascii", categories=["L", "N", "P"], exclude_characters="+"), min_size=1
    ),
    st.integers(1, MAX_TREE_SIZE),
    st.binary(min_size=32, max_size=32),
)
def test_round_trip(origin: str, size: int, root: bytes) -> None:
    head = TreeHead(origin, size, root)
    assert parse_tree_head(head.text) == head


@given(st.text())
def test_any_text_is_malformed(text: str) -> None:
    with pytest.raises(MalformedBundle):
        parse_tree_head(text)


@pytest.mark.parametrize("origin", ["\ud800", "a\x9bb", "a+b"])
def test_an_origin_must_be_a_name(origin: str, log: SampleLog) -> None:
    with pytest.raises(MalformedBundle):
        parse_tree_head(log.head(8).text.replace(log.origin, origin))


def test_both_keys_of_a_log_sign(log: SampleLog) -> None:
    signed = open_tree_head(str(log.note(8)), log.keys.verifier_keys)
    assert signed.head == log.head(8)
    assert signed.signed_by == log.keys.verifier_keys
    assert str(signed.note) == str(log.note(8))


def test_the_post_quantum_message_is_that_of_c2sp(log: SampleLog) -> None:
    head, name = log.head(8), log.origin.encode()
    time = struct.pack(">Q", SIGNED_AT_S)
    named = bytes([len(name)]) + name
    wanted = b"subtree/v1\n\0" + named + time + named + bytes(15) + b"\x08" + head.root
    assert mldsa_message(log.origin, SIGNED_AT_S, head) == wanted
    assert log.note(8).signatures[1].blob[:8] == time


def test_any_changed_byte_of_a_known_signature_refuses_the_note(log: SampleLog) -> None:
    note = log.note(8)
    for which, line in enumerate(note.signatures):
        for at in range(0, len(line.blob), 1 if which == 0 else 37):
            blob = line.blob[:at] + bytes([line.blob[at] ^ 1]) + line.blob[at + 1 :]
            bent = Note(note.text, (SignatureLine(line.name, line.key_id, blob),))
            with pytest.raises(BadSignature):
                open_tree_head(str(bent), log.keys.verifier_keys)


@pytest.mark.parametrize("length", [0, 1, 8, 63, 65, 2427, 2429])
def test_signatures_of_any_other_length_are_bad(log: SampleLog, length: int) -> None:
    for key in log.keys.verifier_keys:
        note = Note(log.head(8).text, (SignatureLine(key.name, key.key_id, bytes(max(length, 1))),))
        with pytest.raises(BadSignature):
            open_tree_head(str(note), [key])


def test_an_algorithm_missing_here_is_not_a_bad_signature(
    log: SampleLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No build without ML-DSA is at hand, so the library's own refusal is raised in its place."""

    def refuse(_: bytes) -> None:
        raise UnsupportedAlgorithm("ML-DSA-44 is not supported by this backend")

    target = "rlhf_audit_trail.ledger.proof.tree_head.MLDSA44PublicKey"
    monkeypatch.setattr(target, type("Absent", (), {"from_public_bytes": refuse}))
    with pytest.raises(PolicyUnmet, match="cannot check"):
        open_tree_head(str(log.note(8)), log.keys.verifier_keys)
    assert MLDSA44PublicKey.from_public_bytes(log.mldsa.public)


def test_log_id_begins_with_the_key_id(log: SampleLog) -> None:
    found = log_id(log.ed25519)
    assert found[:4] == log.ed25519.key_id
    assert found == hashlib.sha256(log.origin.encode() + b"\n\x01" + log.ed25519.public).digest()
    with pytest.raises(ValueError, match="Ed25519"):
        log_id(log.mldsa)
