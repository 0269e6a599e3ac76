"""COSE receipts: RFC 9942 byte for byte, verified strictly; and the CBOR below them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_audit_trail.ledger.cbor import Tag, decode, encode
from rlhf_audit_trail.ledger.cose import (
    consistency_receipt,
    inclusion_receipt,
    verify_consistency_receipt,
    verify_inclusion_receipt,
)
from rlhf_audit_trail.ledger.keys import LogKeys
from rlhf_audit_trail.ledger.proof.errors import (
    BadSignature,
    Inconsistent,
    MalformedBundle,
    PolicyUnmet,
    ProofError,
)
from rlhf_audit_trail.ledger.proof.merkle import (
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    root_hash,
)
from rlhf_audit_trail.ledger.proof.note import Algorithm
from rlhf_audit_trail.ledger.proof.tree_head import TreeHead

# RFC 8949, Appendix A: those examples that the subset has.
EXAMPLES = {
    0: "00", 1: "01", 10: "0a", 23: "17", 24: "1818", 25: "1819", 100: "1864", 1000: "1903e8",
    1_000_000: "1a000f4240", 1_000_000_000_000: "1b000000e8d4a51000", 2**64 - 1: "1b" + "f" * 16,
    -(2**64): "3b" + "f" * 16, -1: "20", -10: "29", -100: "3863", -1000: "3903e7", None: "f6",
    b"": "40", b"\1\2\3\4": "4401020304", "": "60", "a": "6161", "IETF": "6449455446",
    '"\\': "62225c", "ü": "62c3bc", "水": "63e6b0b4", "\U00010151": "64f0908591", (): "80",
    (1, 2, 3): "83010203", (1, (2, 3), (4, 5)): "8301820203820405",
    tuple(range(1, 26)): "98190102030405060708090a0b0c0d0e0f101112131415161718181819",
    Tag(1, 1363896240): "c11a514b67b0", Tag(23, b"\1\2\3\4"): "d74401020304",
    Tag(32, "http://www.example.com"): "d82076687474703a2f2f7777772e6578616d706c652e636f6d",
}  # fmt: skip


def lists(value):
    return [lists(item) for item in value] if isinstance(value, tuple) else value


@pytest.mark.parametrize(("value", "hexed"), EXAMPLES.items())
def test_cbor_has_the_bytes_of_the_rfc(value, hexed):
    assert encode(value).hex() == hexed
    assert decode(bytes.fromhex(hexed)) == lists(value)


def test_maps_are_in_the_order_of_their_keys_bytes():
    assert encode({}).hex() == "a0"
    assert encode({"a": 1, "b": [2, 3]}).hex() == "a26161016162820203"
    keys = {10: 0, 100: 0, -1: 0, "z": 0, "aa": 0}  # the example of RFC 8949, section 4.2.1
    assert encode(dict(reversed(keys.items()))).hex() == "a50a00186400200061" + "7a0062616100"
    assert decode(encode(keys)) == keys


@pytest.mark.parametrize(
    "hexed",
    ["", "1817", "190017", "1900ff", "1a0000ffff", "1b00000000ffffffff", "5f", "9f01ff", "bfff",
     "1c", "fc", "f4", "f5", "f7", "f93c00", "fb3ff0000000000000", "6180", "62c328", "41", "8101ff",
     "a2010102", "a201010102", "a202010101", "a1800101", "a1f601", "0000", "9b" + "f" * 16,
     "bb" + "f" * 16, "5b" + "f" * 16, "81" * 40 + "00", "c1" * 40 + "00", "a1a00000"],
)  # fmt: skip
def test_any_other_cbor_is_refused(hexed):
    with pytest.raises(MalformedBundle):
        decode(bytes.fromhex(hexed))


@given(st.binary(max_size=300))
def test_what_decodes_has_one_spelling_only(data):
    try:
        value = decode(data)
    except MalformedBundle:
        return
    assert encode(value) == data


ORIGIN = "acme.example/rlhf/run42"
KEYS = LogKeys.derive(b"\x01" * 32, ORIGIN)
ED25519, ML_DSA = KEYS.verifier_keys
ENTRIES = [b"%d" % number for number in range(13)]
LEAVES = [leaf_hash(entry) for entry in ENTRIES]


def node(level, index):
    return root_hash(LEAVES[index << level : (index + 1) << level])


def head(size):
    return TreeHead(ORIGIN, size, root_hash(LEAVES[:size]))


def receipt(index, size, **options):
    return inclusion_receipt(KEYS, head(size), index, inclusion_proof(index, size, node), **options)


def test_a_receipt_of_inclusion_has_the_form_of_the_rfc():
    tagged = decode(receipt(5, 7))
    assert (type(tagged), tagged.number) == (Tag, 18)
    protected, unprotected, payload, signature = tagged.value
    headers = decode(protected)
    assert headers == {1: -8, 4: ED25519.key_id, 15: {1: ORIGIN}, 395: 1, "rlhf-audit/tree-size": 7}
    assert payload is None
    assert unprotected == {396: {-1: [encode([7, 5, list(inclusion_proof(5, 7, node))])]}}
    said = encode(["Signature1", protected, b"", root_hash(LEAVES[:7])])
    assert KEYS._ed25519.sign(said) == signature


@pytest.mark.parametrize("key", KEYS.verifier_keys, ids=["ed25519", "ml-dsa"])
def test_every_entry_of_every_size_is_shown_and_no_other(key):
    for size in range(2, 14) if key is ED25519 else (2, 13):
        for index in range(size):
            data = receipt(index, size, algorithm=key.algorithm)
            assert verify_inclusion_receipt(data, ENTRIES[index], key) == (index, head(size))
            with pytest.raises(BadSignature):
                verify_inclusion_receipt(data, b"another entry", key)


def test_every_pair_of_sizes_is_shown_to_be_one_history():
    for old in range(1, 13):
        for new in range(old + 1, 14):
            path = consistency_proof(old, new, node)
            data = consistency_receipt(KEYS, old, head(new), path)
            assert verify_consistency_receipt(data, head(old), head(new), ED25519) == head(new)
    with pytest.raises(Inconsistent):
        verify_consistency_receipt(data, TreeHead(ORIGIN, 12, bytes(32)), head(13), ED25519)
    with pytest.raises(MalformedBundle):
        verify_consistency_receipt(data, head(11), head(13), ED25519)


def test_what_has_no_form_in_the_rfc_is_refused():
    with pytest.raises(ValueError, match="without hashes"):
        receipt(0, 1)
    with pytest.raises(ValueError, match="without hashes"):
        consistency_receipt(KEYS, 7, head(7), ())


def changed(index=5, size=7, *, protected=None, unprotected=None, payload=None, number=18):
    """Make a receipt that says something else, signed anew over what it says."""
    path = list(inclusion_proof(5, 7, node))
    headers = {1: -8, 15: {1: ORIGIN}, 395: 1, "rlhf-audit/tree-size": 7}
    headers = encode({**headers, **protected} if protected else headers)
    said = encode(["Signature1", headers, b"", root_hash(LEAVES[:7])])
    signature = KEYS.sign_receipt(said, Algorithm.ED25519)
    shown = {396: {-1: [encode([size, index, path])]}} if unprotected is None else unprotected
    return encode(Tag(number, [headers, shown, payload, signature]))


PROOF = encode([7, 5, list(inclusion_proof(5, 7, node))])


@pytest.mark.parametrize(
    ("data", "finding"),
    [
        (changed(protected={1: -7}), BadSignature),
        (changed(protected={1: -48}), BadSignature),
        (changed(protected={1: [1]}), BadSignature),
        (changed(protected={395: 2}), MalformedBundle),
        (changed(protected={15: {1: "acme.example/rlhf/other"}}), BadSignature),
        (changed(protected={15: {}}), PolicyUnmet),
        (changed(protected={15: 1}), PolicyUnmet),
        (changed(protected={"rlhf-audit/tree-size": 8}), BadSignature),
        (changed(5, 8), BadSignature),  # the same path fits size 8: only the signed size tells
        (changed(7, 7), MalformedBundle),
        (changed(-1, 7), MalformedBundle),
        (changed(6, 7), MalformedBundle),
        (changed(4, 7), BadSignature),
        (changed(unprotected={}), MalformedBundle),
        (changed(unprotected={396: {-2: [PROOF]}}), MalformedBundle),
        (changed(unprotected={396: {-1: PROOF}}), MalformedBundle),
        (changed(unprotected={396: {-1: []}}), MalformedBundle),
        (changed(unprotected={396: {-1: [PROOF, PROOF]}}), MalformedBundle),
        (changed(unprotected={396: {-1: [encode([7, 5, []])]}}), MalformedBundle),
        (changed(unprotected={396: {-1: [encode([7, 5, [b"short"]])]}}), MalformedBundle),
        (changed(unprotected={396: {-1: [encode([7, 5, [bytes(32)] * 65])]}}), MalformedBundle),
        (changed(payload=root_hash(LEAVES[:7])), MalformedBundle),
        (changed(number=17), MalformedBundle),
        (receipt(5, 7)[:-1], MalformedBundle),
        (receipt(5, 7) + b"\0", MalformedBundle),
        (receipt(5, 7)[:-1] + bytes([receipt(5, 7)[-1] ^ 1]), BadSignature),
        (b"x" * 70_000, MalformedBundle),
    ],
)
def test_what_says_otherwise_is_refused_for_its_reason(data, finding):
    with pytest.raises(finding):
        verify_inclusion_receipt(data, ENTRIES[5], ED25519)


def test_other_tools_receipts_prove_no_position_and_the_other_name_of_ed25519_is_known():
    assert verify_inclusion_receipt(changed(protected={1: -19}), ENTRIES[5], ED25519)[0] == 5
    headers = encode({1: -8, 395: 1})
    said = encode(["Signature1", headers, b"", root_hash(LEAVES[:7])])
    parts = [headers, {396: {-1: [PROOF]}}, None, KEYS.sign_receipt(said, Algorithm.ED25519)]
    with pytest.raises(PolicyUnmet, match="position"):
        verify_inclusion_receipt(encode(Tag(18, parts)), ENTRIES[5], ED25519)


@given(st.binary(max_size=300), st.integers(0, 400))
def test_any_bytes_are_refused_with_a_typed_error(data, at):
    good = receipt(5, 7)
    for bad in (data, good[:at] + data + good[at + len(data) :]):
        if bad != good:
            with pytest.raises(ProofError):
                verify_inclusion_receipt(bad, ENTRIES[5], ML_DSA)
            with pytest.raises(ProofError):
                verify_consistency_receipt(bad, head(5), head(7), ED25519)
