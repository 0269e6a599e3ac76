"""Logs, entries, proofs, bundles and anchors through `/api/v1`."""

from __future__ import annotations

import base64
import json

import pytest

from rlhf_audit_trail.ledger.proof.merkle import (
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.proof.tree_head import open_tree_head
from rlhf_audit_trail.ledger.proof.verify import TrustPolicy, verify_bundle

LOG = "/api/v1/logs/run42"
HEADS = (1, 255, 256, 257, 600)


def get(client, path, **more):
    answer = client.get(path, **more)
    assert answer.status_code == 200, answer.text
    return answer.json()


def head_of(note, keys):
    parsed = [VerifierKey.parse(key) for key in keys]
    signed = open_tree_head(note, parsed)
    assert list(signed.signed_by) == parsed
    return signed.head


def test_logs_say_where_they_stand(client, keys):
    logs = {item["run"]: item for item in get(client, "/api/v1/logs")["logs"]}
    assert list(logs) == ["registry", "run42", "unsigned"]
    item = logs["run42"]
    assert item == get(client, LOG)
    assert item["origin"] == "acme.example" + item["path"]
    assert item["vkeys"] == keys
    assert (item["size"], item["tree_head"]["size"]) == (605, 600)
    assert (item["anchored_size"], item["anchor_lag"]) == (257, 348)
    assert item["log_id"][:8] == keys[0].split("+")[1]
    assert head_of(item["tree_head"]["note"], keys).root.hex() == item["tree_head"]["root"]
    assert logs["unsigned"]["tree_head"] is None
    assert get(client, "/api/v1/health")["runs"] == 2


@pytest.mark.parametrize("limit", [1, 7, 50, 500])
def test_pages_of_entries_join_without_hole_or_repetition(client, limit):
    after, seen = "", []
    while True:
        page = get(client, f"{LOG}/entries?limit={limit}{after}")
        assert page["tree_size"] == 600
        assert 1 <= len(page["entries"]) <= limit
        seen += page["entries"]
        if page["next_after"] is None or len(seen) > 40 > limit:
            break
        after = f"&after={page['next_after']}"
    assert [item["index"] for item in seen] == list(range(len(seen)))
    assert limit < 40 or len(seen) == 600  # the unsigned tail stays out


def test_a_page_past_the_end_is_empty(client):
    for after in (599, 604, 2**53 - 1):
        page = get(client, f"{LOG}/entries?after={after}")
        assert (page["entries"], page["next_after"]) == ([], None)
    assert get(client, "/api/v1/logs/unsigned/entries")["entries"] == []


def test_an_entry_is_its_exact_bytes(client, ledger):
    item = get(client, f"{LOG}/entries/3")
    data = base64.b64decode(item["entry"])
    assert data == ledger.find("run42").read(3).data
    assert item["leaf_hash"] == leaf_hash(data).hex()
    assert item["event"] == json.loads(data)
    assert set(item["event"]["c"]) == {"prompt", "response", "annotator", "reward"}


@pytest.mark.parametrize("index", [0, 1, 254, 255, 256, 511, 512, 599])
def test_inclusion_proofs_verify(client, keys, index):
    proof = get(client, f"{LOG}/entries/{index}/proof")
    head = head_of(proof["tree_head"]["note"], keys)
    entry = base64.b64decode(get(client, f"{LOG}/entries/{index}")["entry"])
    path = [bytes.fromhex(node) for node in proof["path"]]
    verify_inclusion(leaf_hash(entry), index, head.size, path, head.root)
    assert proof["index"] == index
    assert proof["leaf_hash"] == leaf_hash(entry).hex()


@pytest.mark.parametrize("ask", ["suffix", "accept"])
def test_a_tlog_proof_verifies(client, keys, ask):
    if ask == "suffix":
        answer = client.get(f"{LOG}/entries/300/proof.tlog-proof")
    else:
        answer = client.get(f"{LOG}/entries/300/proof", headers={"Accept": "text/plain"})
        assert answer.headers["vary"] == "Accept"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    top, note = answer.text.split("\n\n", 1)
    first, index, *path = top.split("\n")
    assert (first, index) == ("c2sp.org/tlog-proof@v1", "index 300")
    head = head_of(note, keys)
    entry = base64.b64decode(get(client, f"{LOG}/entries/300")["entry"])
    nodes = [base64.b64decode(node, validate=True) for node in path]
    verify_inclusion(leaf_hash(entry), 300, head.size, nodes, head.root)


def test_consistency_proofs_verify_between_all_signed_heads(client, keys):
    for old in HEADS:
        for new in HEADS:
            if old > new:
                continue
            found = get(client, f"{LOG}/consistency?old={old}&new={new}")
            first, second = (head_of(found[x], keys) for x in ("old_note", "new_note"))
            assert (first.size, second.size) == (old, new)
            assert (found["old_root"], found["new_root"]) == (first.root.hex(), second.root.hex())
            path = [bytes.fromhex(node) for node in found["path"]]
            verify_consistency(old, first.root, new, second.root, path)


def test_sizes_that_were_not_signed_have_no_note(client):
    found = get(client, f"{LOG}/consistency?old=100&new=101")
    assert (found["old_note"], found["new_note"]) == (None, None)
    path = [bytes.fromhex(node) for node in found["path"]]
    roots = [bytes.fromhex(found[name]) for name in ("old_root", "new_root")]
    verify_consistency(100, roots[0], 101, roots[1], path)


@pytest.mark.parametrize(
    ("index", "sizes"), [(0, {255, 257}), (254, {255, 257}), (256, {257}), (400, set())]
)
def test_a_bundle_verifies_and_carries_the_first_and_the_newest_anchored_head(
    client, ledger, keys, index, sizes
):
    answer = client.get(f"{LOG}/entries/{index}/bundle")
    assert answer.headers["content-type"] == "application/vnd.rlhf-audit.bundle+json"
    assert f'filename="run42-{index}.bundle"' in answer.headers["content-disposition"]
    trust = TrustPolicy(keys=tuple(VerifierKey.parse(key) for key in keys))
    proven = verify_bundle(answer.content, trust)
    assert proven.entries == {index: ledger.find("run42").read(index).data}
    assert {signed.head.size for signed in proven.heads} == sizes
    assert proven.opened == {}


def test_many_entries_in_one_bundle(client, keys):
    wanted = [599, 0, 256, 255, 256]
    answer = client.post("/api/v1/bundles", json={"run": "run42", "indices": wanted})
    assert answer.status_code == 200
    trust = TrustPolicy(keys=tuple(VerifierKey.parse(key) for key in keys))
    assert sorted(verify_bundle(answer.content, trust).entries) == [0, 255, 256, 599]


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 50])
def test_pages_of_anchors_join_without_hole_or_repetition(client, limit):
    after, seen = "", []
    while True:
        page = get(client, f"{LOG}/anchors?limit={limit}{after}")
        seen += page["anchors"]
        if page["next_after"] is None:
            break
        after = f"&after={page['next_after']}"
    assert [item["tree_size"] for item in seen] == [255, 256, 257, 257, 600]
    assert [item["state"] for item in seen][-1] == "pending"
    assert seen[-1]["block_hash"] is None
    assert seen[0]["block_hash"] == "bb" * 32


SECRETS = ("a sealed prompt", "a sealed response", "ada@lovelace.example", "0.918273645")


def test_no_sealed_value_is_in_any_response(client, app):
    addresses = [
        path.format(run=run, index=3, path=tile)
        for path, methods in app.openapi()["paths"].items()
        if "get" in methods
        for run in ("run42", "registry", "unsigned")
        for tile in ("0/000", "entries/000", "entries/001", "entries/002.p/88", "entries/000.p/1")
    ]
    query = {"/consistency": "?old=1&new=600", "/entries": "?limit=500", "/anchors": "?limit=500"}
    answers = []
    for address in dict.fromkeys(addresses):
        more = next((text for end, text in query.items() if address.endswith(end)), "")
        answers.append(client.get(address + more))
    answers.append(
        client.post("/api/v1/bundles", json={"run": "run42", "indices": list(range(500))})
    )
    assert sum(answer.status_code == 200 for answer in answers) > 25
    for answer in answers:
        data = answer.content
        for secret in SECRETS:
            assert secret.encode() not in data
            for shift in range(3):  # base64 has three alignments
                text = base64.b64encode(b" " * shift + secret.encode())
                assert text[4:-4] not in data
