"""The verifier over HTTP gives the command line's verdict."""

from __future__ import annotations

import json

import pytest

from rlhf_audit_trail.ledger import verdict
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.proof.verify import TrustPolicy, examine_bundle

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
