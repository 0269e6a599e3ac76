"""The service behind a real server and a real socket."""

from __future__ import annotations

import threading

import httpx
import pytest
import uvicorn

from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.proof.tree_head import open_tree_head
from rlhf_audit_trail.ledger.proof.verify import TrustPolicy, verify_bundle


@pytest.fixture(scope="module")
def server(app):
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="off")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        assert thread.is_alive()
    port = running.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield client
    running.should_exit = True
    thread.join()


def test_a_log_is_read_and_verified_over_the_wire(server):
    keys = tuple(VerifierKey.parse(text) for text in server.get("/rlhf/run42/vkey").text.split())
    note = server.get("/rlhf/run42/checkpoint")
    assert open_tree_head(note.text, keys).head.size == 600
    assert len(server.get("/rlhf/run42/tile/0/001").content) == 8192
    bundle = server.get("/api/v1/logs/run42/entries/7/bundle").content
    assert list(verify_bundle(bundle, TrustPolicy(keys=keys)).entries) == [7]
    asked = {"bundle": bundle.decode(), "trust_policy": {"keys": [str(key) for key in keys]}}
    assert server.post("/api/v1/verify", json=asked).json()["verdict"] == "verified"


def test_errors_over_the_wire_are_problems_too(server):
    for path, status in (("/x", 404), ("/api/v1/logs?x=1", 400), ("/rlhf/run42/tile/0/003", 404)):
        answer = server.get(path)
        assert (answer.status_code, answer.json()["status"]) == (status, status)
        assert answer.headers["content-type"] == "application/problem+json"


def test_a_body_without_declared_length_is_cut_off(server):
    sent = []

    def endless():
        for number in range(4_000):
            sent.append(number)
            yield b"x" * 65_536

    try:
        answer = server.post("/api/v1/verify", content=endless())
    except (httpx.WriteError, httpx.RemoteProtocolError):
        pass  # the server hung up while we were still sending
    else:
        assert answer.status_code == 413
    assert len(sent) < 4_000
    assert server.get("/api/v1/health").status_code == 200


def test_readers_at_the_same_time_all_get_the_same(server):
    answers = []

    def read():
        with httpx.Client(base_url=server.base_url, timeout=60) as client:
            answers.extend(client.get("/rlhf/run42/tile/0/000").content for _ in range(10))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 80
    assert len(set(answers)) == 1
