"""The static paths, read by a stranger who has the kernel and nothing else."""

from __future__ import annotations

import pytest

from rlhf_audit_trail.ledger.proof.merkle import leaf_hash, root_hash
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.proof.tree_head import open_tree_head

HEADS = (1, 255, 256, 257, 600)
ROOT = "/rlhf/run42"


def head_of(note, keys):
    parsed = [VerifierKey.parse(key) for key in keys]
    signed = open_tree_head(note, parsed)
    assert list(signed.signed_by) == parsed
    return signed.head


def note_of(client, size):
    """The signed head of an older size comes with a consistency proof."""
    found = client.get(f"/api/v1/logs/run42/consistency?old={size}&new=600").json()
    return found["old_note"]


def paths(level, count):
    """Every tile of a tree with `count` hashes at this level (tlog-tiles)."""
    full, partial = divmod(count, 256)
    found = [(f"{level}/{index:03d}", 256) for index in range(full)]
    return found + ([(f"{level}/{full:03d}.p/{partial}", partial)] if partial else [])


def fetch(client, path):
    answer = client.get(f"{ROOT}/tile/{path}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    return answer.content


def split_hashes(data, width):
    assert len(data) == 32 * width
    return [data[at : at + 32] for at in range(0, len(data), 32)]


def split_entries(data, width):
    entries = []
    while data:
        length = int.from_bytes(data[:2], "big")
        entries.append(data[2 : 2 + length])
        assert len(entries[-1]) == length > 0
        data = data[2 + length :]
    assert len(entries) == width
    return entries


@pytest.mark.parametrize("size", HEADS)
def test_a_stranger_rebuilds_every_signed_root_from_tiles_and_from_entries(client, keys, size):
    head = head_of(note_of(client, size), keys)
    assert (head.origin, head.size) == ("acme.example/rlhf/run42", size)
    hashes = [h for path, w in paths(0, size) for h in split_hashes(fetch(client, path), w)]
    assert root_hash(hashes) == head.root
    entries = [
        e for path, w in paths("entries", size) for e in split_entries(fetch(client, path), w)
    ]
    assert [leaf_hash(entry) for entry in entries] == hashes
    if size >= 256:
        ((path, width),) = paths(1, size // 256)
        above = split_hashes(fetch(client, path), width)
        assert above == [root_hash(hashes[i * 256 : i * 256 + 256]) for i in range(width)]
    else:
        assert client.get(f"{ROOT}/tile/1/000.p/1").status_code in {200, 404}


def test_the_checkpoint_is_the_newest_signed_note(client, keys):
    answer = client.get(f"{ROOT}/checkpoint")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["cache-control"] == "public, max-age=5"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert head_of(answer.text, keys).size == 600
    assert answer.text == note_of(client, 600)


def test_the_registry_log_is_served_alike(client):
    keys = client.get("/rlhf/registry/vkey").text.split()
    head = head_of(client.get("/rlhf/registry/checkpoint").text, keys)
    data = client.get(f"/rlhf/registry/tile/entries/000.p/{head.size}").content
    assert root_hash([leaf_hash(x) for x in split_entries(data, head.size)]) == head.root


PAST = ["0/002", "0/002.p/89", "0/002.p/93", "0/003.p/1", "1/000", "1/000.p/3", "2/000.p/1",
        "7/000.p/1", "63/000.p/1", "entries/002", "entries/002.p/89", "0/x001/000", "0/x999/x999/999"]  # fmt: skip


@pytest.mark.parametrize("path", PAST)
def test_past_the_newest_signed_head_there_is_nothing(client, path):
    answer = client.get(f"{ROOT}/tile/{path}")
    assert (answer.status_code, answer.json()["code"]) == (404, "tile_missing")
    assert "newest signed tree head" in answer.json()["detail"]
    assert answer.headers["cache-control"] == "no-store"


MALFORMED = ["0/0", "0/00", "0/0000", "00/000", "64/000", "+0/000", "-1/000", "0/x000/000",
             "0/x001/x000", "0/001/000", "0/x01/000", "0/X001/000", "0/000.p/0", "0/000.p/00",
             "0/000.p/01", "0/000.p/256", "0/000.p/257", "0/000.p/", "0/000.p", "0/000/", "/0/000",
             "0//000", "0/000.P/1", "0/\u0660\u0660\u0660", "entries/0", "Entries/000", "data/000", "", "0", "0/",
             "0/000%00", "0/000%0a", "0/" + "x001/" * 7 + "000", "0/000.p/1/", "0/ 000"]  # fmt: skip


@pytest.mark.parametrize("path", MALFORMED)
def test_only_the_one_spelling_of_a_path_is_taken(client, path):
    answer = client.get(f"{ROOT}/tile/{path}")
    assert answer.status_code == 404
    assert answer.json()["code"] in {"tile_missing", "no_such_path"}
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_log_without_a_signed_head_has_keys_and_nothing_else(client):
    assert len(client.get("/rlhf/unsigned/vkey").text.split()) == 2
    for path in ("checkpoint", "tile/0/000.p/1", "tile/entries/000.p/1"):
        answer = client.get(f"/rlhf/unsigned/{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "tile_missing")


@pytest.mark.parametrize("run", ["nobody", "RUN42", "run42%20", "..%2fregistry", "%F0%9F%92%A9"])
def test_a_log_that_is_not_there(client, run):
    answer = client.get(f"/rlhf/{run}/checkpoint")
    assert answer.status_code == 404
    assert answer.json()["code"] in {"log_missing", "no_such_path"}
