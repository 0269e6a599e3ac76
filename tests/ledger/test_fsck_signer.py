"""Who signed a transaction, and what it anchors, without any chain library."""

from __future__ import annotations

import hashlib
import random

import pytest
from eth_account import Account

from rlhf_audit_trail.ledger.chain.contract.abi import HeadUpdate, encode_anchor, encode_anchor_many
from rlhf_audit_trail.ledger.chain.signing.signer import KeySigner
from rlhf_audit_trail.ledger.chain.signing.transaction import Fees, sign
from rlhf_audit_trail.ledger.fsck.secp256k1 import is_spelled, signer_of
from rlhf_audit_trail.ledger.fsck.transactions import AnchoredMember, read_transaction
from rlhf_audit_trail.ledger.proof.errors import MalformedBundle

_N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
CONTRACT = "0x" + "c0" * 20
UPDATES = [
    HeadUpdate(bytes([n]) * 32, 10**n, bytes([n + 9]) * 32, (b"p" * 32,) * n) for n in (1, 2)
]
SIGNER = KeySigner(b"\x11" * 32)


def test_the_signer_is_found_as_another_implementation_finds_him():
    for number in range(30):
        account = Account.from_key(hashlib.sha256(b"%d" % number).digest())
        digest = hashlib.sha256(b"digest %d" % number).digest()
        signed = account.unsafe_sign_hash(digest)
        found = signer_of(digest, signed.v - 27, signed.r, signed.s)
        assert found.hex() == account.address[2:].lower()
        assert signer_of(digest, 28 - signed.v, signed.r, signed.s) != found
        assert is_spelled(account.address)
        assert is_spelled(account.address.lower())
        assert not is_spelled(account.address.swapcase())


@pytest.mark.parametrize(
    ("parity", "r", "s"), [(2, 5, 5), (0, 0, 5), (0, _N, 5), (0, 5, 0), (0, 5, _N - 1), (0, 5, 5)]
)
def test_numbers_that_are_no_signature_are_refused(parity, r, s):
    with pytest.raises(MalformedBundle):
        signer_of(bytes(32), parity, r, s)


def test_texts_that_are_no_address():
    for text in ("", "0x", "c0" * 20, "0x" + "c0" * 19, "0x" + "c0" * 21, "0x" + "g0" * 20):
        assert not is_spelled(text)


def signed(data):
    fees = Fees(max_fee_wei=9, tip_wei=2)
    return sign(SIGNER, chain_id=31337, nonce=7, fees=fees, gas=90_000, to=CONTRACT, data=data).raw


def test_what_was_signed_is_what_is_read():
    one = UPDATES[0]
    call = read_transaction(signed(encode_anchor(one.log_id, one.tree_size, one.root, one.proof)))
    assert call.members == (AnchoredMember(one.log_id, one.tree_size, one.root),)
    assert (call.chain_id, call.nonce, call.tip_wei, call.max_fee_wei) == (31337, 7, 2, 9)
    assert call.contract.hex() == CONTRACT[2:]
    assert call.publisher.hex() == SIGNER.address[2:].lower()
    several = read_transaction(signed(encode_anchor_many(UPDATES)))
    assert [(x.log_id, x.tree_size, x.root) for x in several.members] == [
        (x.log_id, x.tree_size, x.root) for x in UPDATES
    ]


def test_whatever_is_broken_is_a_typed_error_or_another_transaction():
    raw = signed(encode_anchor_many(UPDATES))
    chosen = random.Random(5)
    sound = read_transaction(raw)
    for length in range(len(raw)):
        with pytest.raises(MalformedBundle):
            read_transaction(raw[:length])
    for _ in range(200):
        changed = bytearray(raw)
        changed[chosen.randrange(len(raw))] ^= 1 << chosen.randrange(8)
        try:
            assert read_transaction(bytes(changed)) != sound
        except MalformedBundle:
            continue
    for data in (b"", b"\xff" * 4, encode_anchor_many(UPDATES)[:100], b"\0" * 10_000):
        with pytest.raises(MalformedBundle):
            read_transaction(signed(data))
