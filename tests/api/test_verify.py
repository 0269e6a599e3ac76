"""The verifier over HTTP gives the command line's verdict."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_audit_trail.ledger import verdict
from rlhf_audit_trail.ledger.chain.contract.compiled import load_artifact
from rlhf_audit_trail.ledger.proof.bundle import encode_bundle, parse_bundle
from rlhf_audit_trail.ledger.proof.evm.evidence import read_block
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.proof.verify import TrustPolicy, examine_bundle

sys.path.append(str(Path(__file__).parents[1] / "vectors"))
from chain_world import CHAIN_ID, PUBLISHER, World

BUNDLE = "/api/v1/logs/run42/entries/300/bundle"


@pytest.fixture
def bundle(client):
    return client.get(BUNDLE).text


def verify(client, bundle, **trust):
    return client.post("/api/v1/verify", json={"bundle": bundle, "trust_policy": trust})


def test_a_good_bundle_is_verified_and_the_json_is_that_of_the_command_line(client, bundle, keys):
    answer = verify(client, bundle, keys=keys)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    trust = TrustPolicy(keys=tuple(VerifierKey.parse(key) for key in keys))
    assert answer.json() == verdict.to_json(examine_bundle(bundle.encode(), trust))
    assert (answer.json()["verdict"], answer.json()["exit_code"]) == ("verified", 0)
    assert answer.json()["entries"] == [300]


def test_without_a_pinned_key_nothing_says_by_whom(client, bundle):
    for answer in (
        verify(client, bundle),
        client.post("/api/v1/verify", json={"bundle": bundle}),
    ):
        found = answer.json()
        assert (answer.status_code, found["verdict"]) == (200, "inconclusive")
        assert (found["exit_code"], found["signer"]) == (3, "not_pinned")
    found = verify(client, bundle, accept_unpinned=True).json()
    assert (found["verdict"], found["signer"]) == ("verified", "not_pinned")


def test_an_anchor_that_is_demanded_cannot_be_shown_here(client, bundle, keys):
    found = verify(client, bundle, keys=keys, need_anchor=True).json()
    assert (found["verdict"], found["exit_code"]) == ("inconclusive", 3)


@pytest.fixture
def evidence(ledger, bundle):
    """The bundle with evidence of its head on a made-up chain, its anchor, and the block."""
    artifact, log = load_artifact(), ledger.find("run42")
    head = log.published(600).head
    world = World(
        {log.log_id: (head.size, head.root)},
        contract=bytes.fromhex(artifact.address[2:]),
        code_hash=artifact.code_hash,
    )
    found = world.evidence(log.log_id)
    block = read_block(found.header)
    data = encode_bundle(replace(parse_bundle(bundle.encode()), chain=bytes(found)))
    anchor = {"chain_id": CHAIN_ID, "publisher": f"0x{PUBLISHER.hex()}"}
    return data.decode(), anchor, f"{CHAIN_ID}:{block.number}:0x{block.hash.hex()}"


def test_chain_evidence_is_judged_as_on_the_command_line(
    client, ledger, evidence, keys, monkeypatch
):
    text, anchor, block = evidence
    asked = {"keys": keys, "need_anchor": True, "anchor": anchor}
    assert verify(client, text, **asked).json()["exit_code"] == 3, "nobody confirmed the block"
    found = verify(client, text, **asked, trusted_blocks=[block]).json()
    states = {check["id"]: check["state"] for check in found["checks"]}
    assert (found["exit_code"], states["anchor"]) == (0, "passed")
    assert found["on_trust"][0].endswith("the caller gave its hash")
    wrong = block[:-1] + ("0" if block[-1] != "0" else "1")
    found = verify(client, text, **asked, trusted_blocks=[wrong]).json()
    assert (found["exit_code"], found["integrity"]) == (1, "failed")
    other = asked | {"anchor": anchor | {"publisher": "0x" + "11" * 20}}
    assert verify(client, text, **other, trusted_blocks=[block]).json()["exit_code"] == 1
    (ledger.directory / "blocks.txt").write_text(f"# told by the operator\n{block}\n")
    monkeypatch.setattr(ledger, "chain", replace(ledger.chain, trusted_headers="blocks.txt"))
    found = verify(client, text, **asked).json()
    assert (found["exit_code"], "this service was told its hash" in found["on_trust"][0]) == (
        0,
        True,
    )


@pytest.mark.parametrize(
    ("trust", "words"),
    [
        ({"trusted_blocks": ["1:2:0x" + "00" * 32]}, "without trust_policy.anchor"),
        ({"anchor": {"chain_id": 1, "publisher": "0x" + "11" * 20}}, "Ed25519 key"),
        ({"anchor": {"chain_id": 1, "publisher": "0x11", "log_id": "22" * 32}}, "is no address"),
        (
            {
                "anchor": {"chain_id": 1, "publisher": "0x" + "11" * 20, "log_id": "22" * 32},
                "trusted_blocks": ["1:2"],
            },
            "names no block",
        ),
    ],
)
def test_a_chain_that_cannot_be_trusted_is_the_callers_mistake(client, bundle, trust, words):
    answer = verify(client, bundle, **trust)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_trust")
    assert words in answer.json()["detail"]


def test_another_logs_key_contradicts(client, bundle):
    keys = client.get("/rlhf/registry/vkey").text.split()
    answer = verify(client, bundle, keys=keys)
    found = answer.json()
    assert (answer.status_code, found["verdict"], found["exit_code"]) == (200, "failed", 1)
    assert found["signer"] == "contradicted"


def tampered(bundle):
    record = json.loads(bundle)
    entry, other = record["entries"][0], "A" if record["entries"][0]["entry"][30] != "A" else "B"
    changes = {
        "entry": {"entry": entry["entry"][:30] + other + entry["entry"][31:]},
        "index": {"index": entry["index"] + 1},
        "path": {"path": entry["path"][1:] + entry["path"][:1]},
    }
    for name, change in changes.items():
        record["entries"][0] = entry | change
        yield name, json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    record["entries"][0] = entry
    record["tree_head"] = record["tree_head"].replace("\n600\n", "\n601\n")
    yield "size", json.dumps(record, ensure_ascii=False, separators=(",", ":"))


def test_what_was_tampered_with_fails_and_says_where(client, bundle, keys):
    decisive = {
        "entry": "inclusion",
        "index": "inclusion",
        "path": "inclusion",
        "size": "tree_head",
    }
    for name, text in tampered(bundle):
        answer = verify(client, text, keys=keys)
        found = answer.json()
        assert (answer.status_code, found["verdict"], found["exit_code"]) == (200, "failed", 1), (
            name
        )
        failed = [check["id"] for check in found["checks"] if check["state"] == "failed"]
        assert failed == [decisive[name]]
        assert found["integrity"] == "failed"


@pytest.mark.parametrize(
    "text", ["", "x", "{}", "[]", "\ud800", "\x00", '{"schema":"rlhf-audit/bundle/v2"}', "[" * 9999]
)
def test_what_cannot_be_read_is_a_problem_that_carries_the_verdict(client, keys, text):
    body = json.dumps({"bundle": text, "trust_policy": {"keys": keys}})
    answer = client.post(
        "/api/v1/verify", content=body, headers={"Content-Type": "application/json"}
    )
    found = answer.json()
    assert answer.status_code == 400
    if text == "\ud800" and found["code"] == "bad_request":
        return  # the body's own JSON was refused already
    assert answer.headers["content-type"] == "application/problem+json"
    assert (found["code"], found["status"]) == ("malformed_bundle", 400)
    assert (found["verdict"], found["exit_code"]) == ("unreadable", 4)
    assert found["detail"]


def test_every_cut_of_a_bundle_is_unreadable(client, bundle, keys):
    for at in range(1, len(bundle.rstrip()), 977):
        assert verify(client, bundle[:at], keys=keys).json()["verdict"] == "unreadable"


@pytest.mark.parametrize("key", ["", "x", "a+b+c", "acme.example/rlhf/run42+00000000+AA=="])
def test_a_bad_key_is_the_callers_mistake(client, bundle, key):
    answer = verify(client, bundle, keys=[key])
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_trust")


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({}, "body.bundle"),
        ({"bundle": {}}, "body.bundle"),
        ({"bundle": "", "trust": {}}, "body.trust"),
        ({"bundle": "", "trust_policy": {"key": []}}, "body.trust_policy.key"),
        ({"bundle": "", "trust_policy": {"need_anchor": "yes"}}, "body.trust_policy.need_anchor"),
        ({"bundle": "", "trust_policy": {"keys": ["x"] * 17}}, "body.trust_policy.keys"),
        ([], "body"),
    ],
)
def test_a_body_of_another_shape_is_refused_by_name(client, body, where):
    answer = client.post("/api/v1/verify", json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert answer.json()["detail"].startswith(where + ":")
