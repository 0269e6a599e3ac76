"""Cosignatures: byte for byte those of C2SP, and never a log's own signature."""

from __future__ import annotations

import hashlib
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey
from hypothesis import given
from hypothesis import strategies as st

from rlhf_audit_trail.ledger.cosignature import (
    CosignatureType,
    CosignedHead,
    Cosigner,
    CosignerKey,
    cosignature_message,
    find_cosignatures,
    format_lines,
    open_cosigned_head,
    parse_cosigned_head,
    verify_cosignature,
)
from rlhf_audit_trail.ledger.keys import LogKeys
from rlhf_audit_trail.ledger.proof.errors import BadSignature, MalformedBundle, ProofError
from rlhf_audit_trail.ledger.proof.merkle import EMPTY_ROOT
from rlhf_audit_trail.ledger.proof.note import (
    Algorithm,
    Note,
    SignatureLine,
    VerifierKey,
    encode_base64,
    parse_note,
)
from rlhf_audit_trail.ledger.proof.tree_head import TreeHead, open_tree_head

NAME = "witness.example/w1"
HEAD = TreeHead("acme.example/rlhf/run42", 7, bytes(range(32)))
COSIGNER = Cosigner.derive(b"\x07" * 32, NAME)
ED25519, ML_DSA = COSIGNER.keys
LINES = COSIGNER.cosign(HEAD, time_s=1_800_000_000)


def test_an_ed25519_cosignature_is_the_one_of_the_specification():
    """Made here from the page's words alone: label, time, note text; id with type 4."""
    line = LINES[0]
    material = NAME.encode() + b"\n\x04" + ED25519.public
    assert line.key_id == hashlib.sha256(material).digest()[:4]
    time, signature = line.blob[:8], line.blob[8:]
    assert time == struct.pack(">Q", 1_800_000_000)
    said = b"cosignature/v1\ntime 1800000000\n" + HEAD.text.encode()
    assert COSIGNER._ed25519.sign(said) == signature
    assert cosignature_message(ED25519, 1_800_000_000, HEAD) == said


def test_an_ml_dsa_cosignature_is_the_one_of_the_specification():
    line = LINES[1]
    assert line.key_id == hashlib.sha256(NAME.encode() + b"\n\x06" + ML_DSA.public).digest()[:4]
    assert len(line.blob) == 8 + 2420
    said = b"subtree/v1\n\x00" + bytes([len(NAME)]) + NAME.encode() + line.blob[:8]
    said += bytes([len(HEAD.origin)]) + HEAD.origin.encode() + bytes(8) + struct.pack(">Q", 7)
    said += HEAD.root
    MLDSA44PublicKey.from_public_bytes(ML_DSA.public).verify(line.blob[8:], said)


def test_both_lines_are_found_in_a_note_among_strangers():
    stranger = SignatureLine(NAME, b"\x00" * 4, b"x" * 72)
    note = parse_note(str(Note(HEAD.text, (stranger, *reversed(LINES)))))
    found = find_cosignatures(note, HEAD, COSIGNER.keys)
    assert found == dict.fromkeys(COSIGNER.keys, 1_800_000_000)
    later = COSIGNER.cosign(HEAD, time_s=1_900_000_000)
    note = Note(HEAD.text, (*later, *LINES))
    assert set(find_cosignatures(note, HEAD, COSIGNER.keys).values()) == {1_900_000_000}
    assert parse_note("x\n\n" + format_lines(LINES)).signatures == LINES


@pytest.mark.parametrize("key", COSIGNER.keys, ids=["ed25519", "ml-dsa"])
def test_any_changed_bit_is_a_bad_signature(key):
    blob = LINES[COSIGNER.keys.index(key)].blob
    for at in (0, 7, 8, 20, len(blob) - 1):
        changed = bytearray(blob)
        changed[at] ^= 1
        with pytest.raises(BadSignature):
            verify_cosignature(key, HEAD, bytes(changed))
    for other in (
        TreeHead(HEAD.origin, 8, HEAD.root),
        TreeHead(HEAD.origin, 7, HEAD.root[::-1]),
        TreeHead(HEAD.origin + "x", 7, HEAD.root),
    ):
        with pytest.raises(BadSignature):
            verify_cosignature(key, other, blob)
    for length in (0, 7, 8, 9, len(blob) - 1):
        with pytest.raises(BadSignature):
            verify_cosignature(key, HEAD, blob[:length])
    with pytest.raises(BadSignature):
        verify_cosignature(key, HEAD, blob + b"\x00")


@pytest.mark.parametrize("time_s", [0, 2**63, 2**64 - 1])
def test_a_time_that_no_witness_can_mean_is_refused(time_s):
    line = COSIGNER.cosign(HEAD, time_s=time_s)[0]
    with pytest.raises(BadSignature):
        verify_cosignature(ED25519, HEAD, line.blob)


def test_a_witness_key_is_no_log_key_and_a_cosignature_no_signature_of_the_log():
    """The same Ed25519 key and the log's own name: still no signature of the log."""
    private = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
    public = private.public_key().public_bytes_raw()
    witness = CosignerKey(HEAD.origin, CosignatureType.ED25519, public)
    log = VerifierKey(HEAD.origin, Algorithm.ED25519, public)
    message = cosignature_message(witness, 5, HEAD)
    blob = struct.pack(">Q", 5) + private.sign(message)
    line = SignatureLine(HEAD.origin, witness.key_id, blob)
    note = str(Note(HEAD.text, (line,)))
    assert open_tree_head(note, [log]).signed_by == ()
    assert open_cosigned_head(note, [log]).signed_by == ()
    forged = SignatureLine(HEAD.origin, log.key_id, blob)
    with pytest.raises(BadSignature):
        open_cosigned_head(str(Note(HEAD.text, (forged,))), [log])
    with pytest.raises(MalformedBundle):
        VerifierKey.parse(str(witness))
    with pytest.raises(MalformedBundle):
        CosignerKey.parse(str(log))


def test_vkeys_are_read_back_and_all_others_refused():
    for key in COSIGNER.keys:
        assert CosignerKey.parse(str(key)) == key
        for bad in (str(key)[:-1], str(key) + "\n", str(key).replace("w1", "w2"), "", "a+b"):
            with pytest.raises(MalformedBundle):
                CosignerKey.parse(bad)
    wrong = f"{NAME}+{ED25519.key_id.hex()}+{encode_base64(bytes([4]) + ED25519.public[:-1])}"
    with pytest.raises(MalformedBundle):
        CosignerKey.parse(wrong)


def test_a_key_of_another_log_signs_nothing_here():
    """Its line verifies, but a log's key name is its origin."""
    other = LogKeys.derive(b"\x02" * 32, "acme.example/rlhf/other")
    head = TreeHead(HEAD.origin, 7, HEAD.root)
    assert open_cosigned_head(other.sign(head, time_s=1), other.verifier_keys).signed_by == ()


def test_extension_lines_are_covered_by_ed25519_and_by_nothing_else():
    keys = LogKeys.derive(b"\x02" * 32, HEAD.origin)
    head = parse_cosigned_head(HEAD.text + "one\n— two\n")
    assert (head.extension, head.size, head.text) == ("one\n— two\n", 7, HEAD.text + head.extension)
    note = keys.sign(head, time_s=1)
    assert open_cosigned_head(note, keys.verifier_keys).signed_by == keys.verifier_keys
    with pytest.raises(BadSignature):
        open_cosigned_head(note.replace("one", "six"), keys.verifier_keys)
    ed25519, ml_dsa = COSIGNER.cosign(head, time_s=1)
    with pytest.raises(BadSignature):
        verify_cosignature(ED25519, HEAD, ed25519.blob)
    assert verify_cosignature(ML_DSA, HEAD, ml_dsa.blob) == 1


@pytest.mark.parametrize(
    "text",
    ["", "a\n", "a\n1\n", HEAD.text + "\n", HEAD.text + "x", HEAD.text.replace("7", "07"),
     HEAD.text.replace("7", "9223372036854775808"), HEAD.text[:-3] + "\n", "a b\n" + HEAD.text],
)  # fmt: skip
def test_what_is_no_tree_head_is_refused(text):
    with pytest.raises(MalformedBundle):
        parse_cosigned_head(text)


def test_an_empty_tree_has_one_root_only():
    keys = LogKeys.derive(b"\x02" * 32, HEAD.origin)
    right = keys.sign(TreeHead(HEAD.origin, 0, EMPTY_ROOT), time_s=1)
    assert open_cosigned_head(right, keys.verifier_keys).head.size == 0
    wrong = keys.sign(TreeHead(HEAD.origin, 0, bytes(32)), time_s=1)
    with pytest.raises(MalformedBundle):
        open_cosigned_head(wrong, keys.verifier_keys)


@given(st.binary(max_size=2600))
def test_any_blob_is_refused_with_a_typed_error(blob):
    for key in COSIGNER.keys:
        with pytest.raises(ProofError):
            verify_cosignature(key, CosignedHead(HEAD.origin, 7, HEAD.root), blob)


@given(st.text(max_size=300))
def test_any_text_as_vkey_or_head_is_refused_with_a_typed_error(text):
    for read in (CosignerKey.parse, parse_cosigned_head):
        with pytest.raises(MalformedBundle):
            read(text)
