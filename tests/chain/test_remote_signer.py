"""A key service as clouds have them, emulated on loopback: DER, either s, no v; and its faults."""

from __future__ import annotations

import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    Prehashed,
    decode_dss_signature,
    encode_dss_signature,
)
from eth_account import Account

from rlhf_audit_trail.ledger.chain.anchoring.anchorer import Anchorer
from rlhf_audit_trail.ledger.chain.errors import SignerError
from rlhf_audit_trail.ledger.chain.signing.remote_signer import (
    SIGNER_TOKEN_VARIABLE,
    HttpKey,
    RemoteSigner,
)
from rlhf_audit_trail.ledger.chain.signing.signer import PUBLISHER_KEY_VARIABLE
from rlhf_audit_trail.ledger.chain.signing.signers import KEYSTORE_PASSWORD_VARIABLE, make_signer
from rlhf_audit_trail.ledger.settings import AnchorSettings, SettingsError
from tests.chain_fixtures import FileJournal, fund

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
TOKEN = "token of the test"


class Kms:
    """Signs digests with one key; random nonces, so that both parities and both s occur."""

    def __init__(self, key):
        self.key = key
        self.public = key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.high_s = False
        self.answer = None  # instead of a signature
        self.status = 200

    def sign(self, digest):
        if self.answer is not None:
            return self.answer
        r, s = decode_dss_signature(self.key.sign(digest, ec.ECDSA(Prehashed(hashes.SHA256()))))
        s = max(s, ORDER - s) if self.high_s else min(s, ORDER - s)
        return encode_dss_signature(r, s)


@pytest.fixture
def kms():
    return Kms(ec.generate_private_key(ec.SECP256K1()))


@pytest.fixture
def service(kms):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            self.reply(kms.public if self.path == "/v1/public-key" else b"")

        def do_POST(self):
            digest = self.rfile.read(int(self.headers["Content-Length"]))
            self.reply(kms.sign(digest) if self.path == "/v1/sign" else b"")

        def reply(self, data):
            is_known = self.headers["Authorization"] == f"Bearer {TOKEN}"
            self.send_response(kms.status if is_known else 403)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def signer(service):
    return RemoteSigner(HttpKey(service, environment={SIGNER_TOKEN_VARIABLE: TOKEN}))


def test_the_account_is_that_of_the_key(kms, signer):
    number = kms.key.private_numbers().private_value
    assert signer.address == Account.from_key(number.to_bytes(32)).address


@pytest.mark.parametrize("high_s", [False, True])
def test_signatures_become_those_of_ethereum(kms, signer, high_s):
    kms.high_s = high_s
    rng, parities = random.Random(2), set()
    for _ in range(12):
        digest = rng.randbytes(32)
        signature = signer.sign_digest(digest)
        assert signature.s <= ORDER // 2
        vrs = (signature.y_parity + 27, signature.r, signature.s)
        assert Account._recover_hash(digest, vrs=vrs) == signer.address
        parities.add(signature.y_parity)
    assert parities == {0, 1}


@pytest.mark.chain
def test_heads_are_anchored_with_it(kms, signer, rpc, reader, log, tmp_path):
    fund(rpc, signer.address)
    anchorer = Anchorer(reader, signer, FileJournal(tmp_path / "journal"))
    for kms.high_s in (False, True, True):
        done = anchorer.step([log.grow(3)])
        assert done.anchored[log.log_id].tree_size == log.size


def test_a_signature_by_another_key_is_refused(kms, signer):
    other = Kms(ec.generate_private_key(ec.SECP256K1()))
    kms.answer = other.sign(bytes(range(32)))
    with pytest.raises(SignerError, match="by another key"):
        signer.sign_digest(bytes(range(32)))


def test_a_signature_over_the_digests_digest_is_refused(kms, signer):
    """What a service does that hashes once more, which is its default in many."""
    kms.answer = kms.key.sign(bytes(range(32)), ec.ECDSA(hashes.SHA256()))
    with pytest.raises(SignerError, match="over something else"):
        signer.sign_digest(bytes(range(32)))


@pytest.mark.parametrize(
    "answer",
    [b"", b"\x30\x00", b"x" * 70, encode_dss_signature(0, 1), encode_dss_signature(1, ORDER),
     encode_dss_signature(ORDER + 1, 5), encode_dss_signature(5, 5) + b"\0", b"y" * 5000],
)  # fmt: skip
def test_what_is_no_signature_is_refused(kms, signer, answer):
    kms.answer = answer
    with pytest.raises(SignerError):
        signer.sign_digest(bytes(32))


@pytest.mark.parametrize(
    "key",
    [ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)],
    ids=["P-256", "RSA"],
)
def test_a_key_of_another_kind_is_refused(kms, service, key):
    kms.public = Kms(key).public
    with pytest.raises(SignerError, match="not of the curve secp256k1"):
        RemoteSigner(HttpKey(service, environment={SIGNER_TOKEN_VARIABLE: TOKEN}))
    kms.public = b"nothing"
    with pytest.raises(SignerError, match="no SubjectPublicKeyInfo"):
        RemoteSigner(HttpKey(service, environment={SIGNER_TOKEN_VARIABLE: TOKEN}))


def test_refusals_and_silence_are_named_and_the_token_is_not_shown(kms, service, signer):
    with pytest.raises(SignerError, match="status 403") as caught:
        RemoteSigner(HttpKey(service, environment={SIGNER_TOKEN_VARIABLE: "wrong token"}))
    assert "wrong token" not in str(caught.value)
    kms.status = 500
    with pytest.raises(SignerError, match="status 500"):
        signer.sign_digest(bytes(32))
    with pytest.raises(SignerError, match="does not answer"):
        HttpKey("http://127.0.0.1:9", timeout_s=2).public_key()
    for address in ("", "ftp://host", "http://"):
        with pytest.raises(SettingsError):
            HttpKey(address)


# --- which one --------------------------------------------------------------------------------


def test_the_settings_choose_the_signer(kms, service, tmp_path):
    import json

    number = kms.key.private_numbers().private_value
    address = Account.from_key(number.to_bytes(32)).address
    stored = Account.encrypt(number.to_bytes(32), "secret", kdf="pbkdf2", iterations=1000)
    (tmp_path / "key.json").write_text(json.dumps(stored))
    environment = {
        PUBLISHER_KEY_VARIABLE: f"{number:064x}",
        KEYSTORE_PASSWORD_VARIABLE: "secret",
        SIGNER_TOKEN_VARIABLE: TOKEN,
    }
    for settings in (
        AnchorSettings(),
        AnchorSettings(signer="keystore", keystore="key.json"),
        AnchorSettings(signer="remote", remote_signer=service),
    ):
        assert make_signer(settings, tmp_path, environment=environment).address == address
    asked = AnchorSettings(signer="keystore", keystore="key.json")
    assert make_signer(asked, tmp_path, environment={}, ask_password=lambda: "secret")
    with pytest.raises(SignerError, match=KEYSTORE_PASSWORD_VARIABLE):
        make_signer(asked, tmp_path, environment={})


@pytest.mark.parametrize(
    "values", [{"signer": "guess"}, {"signer": "remote"}, {"signer": "keystore"},
               {"every_s": -1.0}, {"align_to": 0}, {"fee_gwei_max": float("nan")}],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(values):
    with pytest.raises(SettingsError):
        AnchorSettings(**values)
