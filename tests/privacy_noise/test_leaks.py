"""The search for leaks finds what is planted, and nothing in what is safe."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_audit_trail.ledger.proof.commitment import Opening, commit

sys.path.insert(0, str(Path(__file__).parent))
from leaks import Secrets, leaks

PERSON, REWARD, NOISE = 'anna "berg"@example.org', 0.8371, -48213
K, SALT = bytes(range(100, 132)), os.urandom(32)
SECRETS = Secrets(ids=[PERSON, "rater-17"], numbers=[REWARD, 0.85, NOISE, 3], keys=[K])


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def entry(**fields: object) -> str:
    safe = {"origin": "example.org/log", "index": 3, "commitment": os.urandom(32).hex()}
    return json.dumps(safe | fields, separators=(",", ":"))


PLANTED: dict[str, tuple[object, str, str]] = {
    "an id": ("by rater-17 today", "plain", "ids[1]"),
    "an id, escaped": (PERSON, "plain", "ids[0]"),
    "an id in a URL": ("q=anna%20%22berg%22%40example.org", "plain", "ids[0]"),
    "an id in hex": (b"rater-17".hex(), "plain", "ids[1]"),
    "an id within base64": (base64.b64encode(b"x rater-17 y").decode(), "plain", "ids[1]"),
    "a reward": (REWARD, "plain", "numbers[0]"),
    "a reward as text": ("reward 0.83710 seen", "plain", "numbers[0]"),
    "a reward's eight bytes": (struct.pack("<d", REWARD).hex(), "plain", "numbers[0]"),
    "noise": (NOISE, "plain", "numbers[2]"),
    "a key in hex": (K.hex().upper(), "plain", "keys[0]"),
    "a key in base64": (base64.b64encode(K).decode(), "plain", "keys[0]"),
    "a key as URL base64": (base64.urlsafe_b64encode(b"ab" + K).decode(), "plain", "keys[0]"),
    "a key as a number": (str(int.from_bytes(K)), "plain", "keys[0]"),
    "a hash of an id": (sha(b"rater-17").hex(), "hash", "ids[1]"),
    "a hash of an id, short": (sha(b"rater-17").hex()[:32], "hash", "ids[1]"),
    "a hash of a reward": (sha(b"0.85").hex(), "hash", "numbers[1]"),
    "a hash of JSON": (sha(b'{"reward":0.85}').hex(), "hash", "numbers[1]"),
    "a hash in base64": (base64.b64encode(sha(b"0.85")).decode(), "hash", "numbers[1]"),
    "a hash of another reward": (sha(b"0.31").hex(), "hash", "dictionary"),
    "SHA-512 of an id": (hashlib.sha512(b"rater-17").hexdigest(), "hash", "ids[1]"),
    "a hash of the key": (sha(K).hex(), "hash", "keys[0]"),
    "HMAC with a public key": (hmac.digest(b"example.org/log", b"rater-17", "sha256").hex(), "keyed", "ids[1]"),
    "a published salt": ([SALT.hex(), sha(SALT + b"0.85").hex()], "keyed", "numbers[1]"),
    "an opened commitment": ([SALT.hex(), commit(Opening("reward", SALT, b"0.85")).hex()], "keyed", "numbers[1]"),
}  # fmt: skip


@pytest.fixture(scope="module")
def found() -> dict[str, set[tuple[str, str]]]:
    """Findings by document, each of which has one planted leak, but for one that is safe."""
    documents = {name: entry(field=planted) for name, (planted, _, _) in PLANTED.items()}
    by_name: dict[str, set[tuple[str, str]]] = {}
    for leak in leaks({"safe": entry(), **documents}, SECRETS):
        by_name.setdefault(leak.document, set()).add((leak.way, leak.what))
    return by_name


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_found(name: str, found: dict[str, set[tuple[str, str]]]) -> None:
    _, way, what = PLANTED[name]
    assert (way, what) in found[name]


def test_nothing_is_found_where_nothing_is(found: dict[str, set[tuple[str, str]]]) -> None:
    assert found.keys() == PLANTED.keys()


def test_what_is_safe_stays_unremarked() -> None:
    """Salted commitments, small counts, public thresholds and roots are no leaks."""
    salted = commit(Opening("reward", os.urandom(32), b"0.85")).hex()
    text = entry(reward=salted, participants=1000, cells=3, threshold="13835058055282163712")
    assert leaks({"log": text, "root": sha(text.encode()).hex()}, SECRETS) == []


@pytest.mark.parametrize("make", [lambda: K, lambda: b"rater-17", lambda: sha(b"rater-17")])
def test_files_of_bytes_are_searched_too(make: Callable[[], bytes]) -> None:
    data = os.urandom(5000) + make() + os.urandom(5000)
    assert {leak.document for leak in leaks({"file": data}, SECRETS)} == {"file"}
    assert leaks({"file": os.urandom(10_000)}, SECRETS) == []


def test_a_finding_does_not_repeat_the_secret() -> None:
    found = leaks({"log": entry(a=PERSON, b=REWARD, c=K.hex())}, SECRETS)
    assert found
    assert not any(secret in str(found) for secret in (PERSON, str(REWARD), K.hex()))
