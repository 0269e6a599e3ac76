"""Publisher keys and transactions; judged by eth_account, which did not make them."""

from __future__ import annotations

import json
import random

import pytest
from eth_account import Account
from eth_account.typed_transactions import TypedTransaction
from hexbytes import HexBytes

from rlhf_audit_trail.ledger.chain.errors import SignerError
from rlhf_audit_trail.ledger.chain.signing.signer import (
    PUBLISHER_KEY_VARIABLE,
    KeySigner,
    signer_from_environment,
    signer_from_keystore,
)
from rlhf_audit_trail.ledger.chain.signing.transaction import Fees, keccak256, rlp_encode, sign

KEY = bytes(range(1, 33))
HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0


def test_transactions_read_back_as_they_were_written():
    rng = random.Random(1559)
    signer = KeySigner(KEY)
    for length in (0, 1, 31, 55, 56, 200, 70_000):
        fees = Fees(max_fee_wei=rng.getrandbits(40), tip_wei=rng.getrandbits(30))
        to, data = f"0x{rng.randbytes(20).hex()}", rng.randbytes(length)
        signed = sign(
            signer, chain_id=rng.choice((1, 31337, 2**40)), nonce=rng.choice((0, 127, 128, 70_000)),
            fees=fees, gas=rng.randint(21_000, 2**24), to=to, data=data,
        )  # fmt: skip
        read = TypedTransaction.from_bytes(HexBytes(signed.raw)).as_dict()
        assert Account.recover_transaction(signed.raw) == signer.address
        assert signed.tx_hash == keccak256(signed.raw)
        assert read["nonce"] == signed.nonce
        assert (read["maxFeePerGas"], read["maxPriorityFeePerGas"]) == (
            fees.max_fee_wei,
            fees.tip_wei,
        )
        assert bytes(read["data"]) == data
        assert bytes(read["to"]).hex() == to[2:]
        assert (read["value"], read["accessList"]) == (0, ())


def test_rlp_examples_of_the_yellow_paper():
    assert rlp_encode(b"") == b"\x80"
    assert rlp_encode(0) == b"\x80"
    assert rlp_encode(15) == b"\x0f"
    assert rlp_encode(1024) == b"\x82\x04\x00"
    assert rlp_encode(b"dog") == b"\x83dog"
    assert rlp_encode([]) == b"\xc0"
    assert rlp_encode([b"cat", b"dog"]) == b"\xc8\x83cat\x83dog"
    assert rlp_encode([[], [[]], [[], [[]]]]) == bytes.fromhex("c7c0c1c0c3c0c1c0")
    assert rlp_encode(bytes(56)) == b"\xb8\x38" + bytes(56)


def test_signatures_have_low_s():
    signer = KeySigner(KEY)
    for number in range(50):
        signature = signer.sign_digest(keccak256(bytes([number])))
        assert signature.y_parity in (0, 1)
        assert 0 < signature.s <= HALF_ORDER


def test_signatures_are_those_of_eth_account():
    rng = random.Random(6979)
    for _ in range(40):
        key, digest = rng.randbytes(32), rng.randbytes(32)
        signer, account = KeySigner(key), Account.from_key(key)
        for each in (digest, bytes(32), b"\xff" * 32):  # the last one is above the group's order
            found, expected = signer.sign_digest(each), account.unsafe_sign_hash(each)
            assert (found.y_parity + 27, found.r, found.s) == (expected.v, expected.r, expected.s)


def test_a_key_from_the_environment():
    expected = Account.from_key(KEY).address
    for text in (KEY.hex(), f"0x{KEY.hex()}", f" {KEY.hex().upper()}\n"):
        assert signer_from_environment({PUBLISHER_KEY_VARIABLE: text}).address == expected


@pytest.mark.parametrize("text", ["", "0x", "zz" * 32, "ab" * 31, "ab" * 33, "00" * 32, "ff" * 32])
def test_bad_keys_are_refused_and_not_shown(text):
    with pytest.raises(SignerError) as caught:
        signer_from_environment({PUBLISHER_KEY_VARIABLE: text})
    shown = f"{caught.value}{caught.value.__cause__}"
    assert not text or text not in shown
    assert caught.value.__cause__ is None


def test_a_missing_variable_is_named(monkeypatch):
    monkeypatch.delenv(PUBLISHER_KEY_VARIABLE, raising=False)
    with pytest.raises(SignerError, match=f"{PUBLISHER_KEY_VARIABLE} is not set"):
        signer_from_environment()


def test_a_signer_does_not_show_its_key():
    signer = KeySigner(KEY)
    assert repr(signer) == f"KeySigner({signer.address})"
    assert KEY.hex() not in f"{signer!r} {signer}"


def test_a_keystore_file(tmp_path):
    path = tmp_path / "keystore.json"
    path.write_text(json.dumps(Account.encrypt(KEY, "correct", kdf="pbkdf2", iterations=1000)))
    assert signer_from_keystore(path, "correct").address == Account.from_key(KEY).address
    with pytest.raises(SignerError, match="does not open"):
        signer_from_keystore(path, "wrong")
    for text in ("", "{}", "[]", "{"):
        path.write_text(text)
        with pytest.raises(SignerError):
            signer_from_keystore(path, "correct")
    with pytest.raises(SignerError, match="not a readable keystore"):
        signer_from_keystore(tmp_path / "none", "correct")
