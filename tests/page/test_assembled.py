"""The page that ships: made from its sources, small, closed; and the bundle in a link."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
import zlib

import pytest

from rlhf_audit_trail.ledger.chain.contract.compiled import load_artifact
from rlhf_audit_trail.ledger.page import PAGE_PATH, content_policy, page
from rlhf_audit_trail.ledger.page.assemble import SOURCES, assemble
from rlhf_audit_trail.ledger.page.link import bundle_of, fragment_of, without_long_parts
from rlhf_audit_trail.ledger.proof.errors import MalformedBundle

PAGE_BYTES_MAX = 80_000
# Ways in which text becomes markup or code, or leaves the page.
DANGEROUS = re.compile(
    r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Function\(|fetch\(|XMLHttp|"
    r"WebSocket|EventSource|sendBeacon|import\(|https?://|srcdoc|createContextualFragment"
)


def test_the_page_is_what_its_sources_make():
    command = [sys.executable, "-m", "rlhf_audit_trail.ledger.page.assemble", "--check"]
    assert subprocess.run(command, check=False).returncode == 0
    assert assemble() == page()


def test_a_page_that_was_edited_by_hand_is_noticed(monkeypatch, tmp_path):
    import rlhf_audit_trail.ledger.page.assemble as assembling

    edited = tmp_path / "verify.html"
    edited.write_bytes(page().replace(b"FAILED", b"PASSED", 1))
    monkeypatch.setattr(assembling, "PAGE_PATH", edited)
    monkeypatch.setattr(sys, "argv", ["assemble", "--check"])
    assert assembling.main() == 1
    monkeypatch.setattr(sys, "argv", ["assemble"])
    assert assembling.main() == 0
    assert edited.read_bytes() == page()


def test_the_page_is_small():
    assert PAGE_PATH.stat().st_size <= PAGE_BYTES_MAX


def test_nothing_in_it_makes_markup_of_text_or_asks_the_network():
    assert DANGEROUS.findall(page().decode()) == []
    for source in SOURCES.iterdir():
        assert DANGEROUS.findall(source.read_text("utf-8")) == []


def test_its_policy_names_its_only_script_and_style_by_hash():
    text, policy = page().decode(), content_policy()
    for tag, start in (("script", '<script type="module">'), ("style", "<style>")):
        assert text.count(f"<{tag}") == 1
        inner = text.split(start)[1].split(f"</{tag}>")[0]
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert not re.search(r" (on\w+|style)=", text.split("<script")[0])


def test_it_knows_the_published_contract():
    artifact = load_artifact()
    assert f'"{artifact.address}"'.encode() in page()
    assert f'"0x{artifact.code_hash.hex()}"'.encode() in page()


@pytest.fixture
def full(vectors):
    return vectors["bundle-good-full"]["input"]["bundle"].encode()


def test_a_link_gives_back_the_bundle_in_both_languages(ask, vectors, full):
    bundles = [full, vectors["bundle-good"]["input"]["bundle"].encode(), b"no bundle at all"]
    fragments = list(map(fragment_of, bundles))
    assert list(map(bundle_of, fragments)) == bundles
    answers = ask([("fragment", {"text": text}) for text in fragments])
    assert [base64.b64decode(x["data"]) for x in answers] == bundles


def test_a_damaged_endless_or_foreign_link_is_refused_in_both_languages(ask, full):
    whole = fragment_of(full)
    bomb = base64.urlsafe_b64encode(zlib.compress(bytes(64 * 1024 * 1024), 9)).decode().rstrip("=")
    longer = base64.urlsafe_b64encode(zlib.compress(b"a") + b"b").decode().rstrip("=")
    raw = base64.urlsafe_b64encode(b'{"schema":1}').decode().rstrip("=")
    bad = ["", "=", "e", whole[:-9], whole[9:], whole + "=", whole + " ", "é", bomb, longer, raw]
    bad.append(whole[:50] + ("A" if whole[50] != "A" else "B") + whole[51:])
    for text in bad:
        with pytest.raises(MalformedBundle, match="the link holds no bundle"):
            bundle_of(text)
    bad.remove(longer)  # Node 20 overlooks what follows; browsers do not, see test_page.py
    answers = ask([("fragment", {"text": text}) for text in bad])
    assert {(x["expect"], x.get("message", "")[:24]) for x in answers} == {
        ("MalformedBundle", "the link holds no bundle")
    }
    with pytest.raises(MalformedBundle, match="in a link is at most"):
        fragment_of(bytes(1024 * 1024 + 1))


def test_the_short_form_is_verified_and_fits_a_code(judge, vectors, full):
    short = without_long_parts(full)
    given = vectors["bundle-good-full"]["input"]
    assert len(fragment_of(short)) < 2_900  # what a QR code of the largest size holds
    ed25519 = [key for key in given["keys"] if len(key) < 200]
    alone, both = judge([(short, {"keys": ed25519}), (short, {"keys": given["keys"]})])
    assert alone["report"]["verdict"] == "verified"
    assert (both["report"]["verdict"], both["report"]["signer"]) == (
        "inconclusive",
        "partly_pinned",
    )
    with pytest.raises(MalformedBundle, match="no Ed25519 key"):
        without_long_parts(only_post_quantum(full))


def only_post_quantum(data):
    from rlhf_audit_trail.ledger.proof.bundle import encode_bundle, parse_bundle

    record = json.loads(data)
    keys = tuple(key for key in record["log_keys"] if len(key) > 200)
    return encode_bundle(
        type(parse_bundle(data))(keys, record["tree_head"], parse_bundle(data).entries)
    )
