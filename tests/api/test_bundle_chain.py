"""Bundles over HTTP with chain evidence: a real server, a real Anvil, a node that goes away."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
import uvicorn

from rlhf_audit_trail.api import create_app
from rlhf_audit_trail.api.chain_parts import KEPT_S, RPC_TIMEOUT_S, ChainParts
from rlhf_audit_trail.ledger.chain.anchoring.publishing import Publisher
from rlhf_audit_trail.ledger.chain.evidence.trusting import chain_trust, parse_block
from rlhf_audit_trail.ledger.chain.node.anvil import Anvil
from rlhf_audit_trail.ledger.chain.signing.signer import KeySigner
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.proof.bundle import parse_bundle
from rlhf_audit_trail.ledger.proof.verify import TrustPolicy, verify_bundle
from rlhf_audit_trail.ledger.trust import AnchorTrust
from tests.chain_fixtures import FREE_PORT

pytestmark = pytest.mark.chain

CHAIN_ID = 31337
BUNDLE = "/api/v1/logs/run42/entries/7/bundle"
FIRST_QUESTIONS = {"eth_chainId": 1, "eth_getBlockByNumber": 2, "eth_getProof": 1}
HEADER = "RLHF-Audit-Chain"


class Gate(ThreadingHTTPServer):
    """Passes calls on to the node and counts them; shut, it holds every call for ever."""

    daemon_threads = True

    def __init__(self, url: str) -> None:
        super().__init__(("127.0.0.1", 0), Passing)
        self.node, self.calls = url, Counter()
        self.refused = ""  # a method that the node does not offer
        self.open = threading.Event()
        self.open.set()
        self.ended = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def end(self) -> None:
        self.ended.set()
        self.shutdown()
        self.server_close()


class Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked = json.loads(body)
        for call in asked if isinstance(asked, list) else [asked]:
            self.server.calls[call["method"]] += 1
        if not self.server.open.is_set():
            self.server.ended.wait(60)
            self.close_connection = True
            return
        if self.server.refused and self.server.refused in body.decode():
            error = {"code": -32601, "message": "the method does not exist"}
            self.say(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "error": error}))
            return
        passed = urllib.request.Request(  # noqa: S310 - a loopback address of this test
            self.server.node, body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(passed, timeout=60) as answer:  # noqa: S310
            self.say(answer.read().decode())

    def say(self, said: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said.encode())

    def log_message(self, *_: object) -> None:
        pass


def alert(step):
    return Event("alert.raised", {"name": "x", "severity": "low", "step": step, "detail": ""})


class World:
    """A served ledger, its chain behind a gate, and a clock that the test turns."""

    def __init__(self, ledger: Ledger, chain: Anvil, gate: Gate, client: httpx.Client) -> None:
        self.ledger, self.chain, self.gate, self.client = ledger, chain, gate, client
        self.now_s = 0.0

    def trust(self, block: str) -> TrustPolicy:
        log, publisher = self.ledger.find("run42"), self.chain.accounts[4].address
        contract = self.ledger.chain.contract
        place = AnchorTrust(CHAIN_ID, contract, publisher)
        trusted = chain_trust(place, log.log_id, (parse_block(block, by="a test"),))
        return TrustPolicy(log.verifier_keys, chain=trusted, need_anchor=True)

    def anchor(self) -> None:
        """Anchor the run's log and wait until its block is final."""
        with Publisher(self.ledger, KeySigner(self.chain.accounts[4].key)) as publisher:
            publisher.anchor(self.ledger.find("run42"))
        self.chain.mine(3)


@pytest.fixture
def world(tmp_path):
    with (
        Anvil(FREE_PORT) as chain,
        Ledger.create(tmp_path / "audit", organisation="acme.example") as ledger,
    ):
        log = ledger.open_run("run42")
        log.record_many(alert(step) for step in range(40))[-1].result()
        log.publish()
        ledger.chain = replace(ledger.chain, rpc_url=chain.url, chain_id=CHAIN_ID)
        signer = KeySigner(chain.accounts[4].key)
        with Publisher(ledger, signer) as publisher:
            contract = publisher.deploy()
        gate = Gate(chain.url)
        settings = replace(ledger.chain, rpc_url=gate.url, contract=contract)
        ledger.chain = replace(settings, publisher=signer.address)
        app = create_app(ledger)
        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            assert thread.is_alive()
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                made = World(ledger, chain, gate, client)
                app.state.chain_parts = ChainParts(ledger, clock=lambda: made.now_s)
                yield made
        finally:
            server.should_exit = True
            thread.join()
            gate.end()


def test_a_bundle_is_verified_against_the_chain_by_a_hash_alone(world):
    world.anchor()
    answer = world.client.get(BUNDLE)
    block = answer.headers[HEADER]
    number = block.split(":")[1]
    with httpx.Client() as node:
        asked = {"jsonrpc": "2.0", "id": 1, "method": "eth_getBlockByNumber"}
        said = node.post(world.chain.url, json=asked | {"params": [hex(int(number)), False]})
    assert block == f"{CHAIN_ID}:{number}:{said.json()['result']['hash']}"
    assert list(verify_bundle(answer.content, world.trust(block)).entries) == [7]
    many = world.client.post(
        "/api/v1/bundles?chain=storage", json={"run": "run42", "indices": [3, 39]}
    )
    assert many.headers[HEADER] == block
    assert list(verify_bundle(many.content, world.trust(block)).entries) == [3, 39]
    plain = world.client.get(BUNDLE, params={"chain": "none"})
    assert plain.headers[HEADER] == "none; reason=not_asked"
    assert parse_bundle(plain.content).chain == b""


def test_a_storm_makes_a_handful_of_calls(world):
    world.anchor()
    world.gate.calls.clear()

    def ask(_: int) -> tuple[int, str]:
        answer = world.client.get(BUNDLE, params={"chain": "storage"})
        return answer.status_code, answer.headers[HEADER]

    with ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(ask, range(80)))
    assert len(answers) == 1
    assert answers.pop()[0] == 200
    assert world.gate.calls == FIRST_QUESTIONS
    world.now_s += KEPT_S  # now the same block again: no proof is asked for
    assert ask(0)[0] == 200
    assert world.gate.calls == Counter(FIRST_QUESTIONS) + Counter(
        {"eth_chainId": 1, "eth_getBlockByNumber": 1}
    )


def test_a_newer_anchor_is_shown_once_it_is_final(world):
    world.anchor()
    first = world.client.get(BUNDLE)
    log = world.ledger.find("run42")
    log.record_many(alert(step) for step in range(40, 50))[-1].result()
    log.publish()
    newest = "/api/v1/logs/run42/entries/45/bundle"
    answer = world.client.get(newest)
    assert answer.headers[HEADER] == "none; reason=no_evidence"
    refused = world.client.get(newest, params={"chain": "storage"})
    assert (refused.status_code, refused.json()["code"]) == (409, "no_evidence")
    older = world.client.get(BUNDLE)
    assert older.headers[HEADER] == first.headers[HEADER]
    shown = verify_bundle(older.content, world.trust(older.headers[HEADER]))
    assert (shown.tree_head.head.size, [x.tree_size for x in shown.on_chain]) == (50, [40])
    world.anchor()
    assert world.client.get(newest).headers[HEADER] == "none; reason=no_evidence", "kept a while"
    world.now_s += KEPT_S
    answer = world.client.get(newest)
    shown = verify_bundle(answer.content, world.trust(answer.headers[HEADER]))
    assert [x.tree_size for x in shown.on_chain] == [50]


def test_without_the_node_it_says_so_and_leaves_it_alone_for_a_while(world):
    world.anchor()
    port = world.gate.server_port
    world.gate.open.clear()
    world.gate.calls.clear()
    answer = world.client.get(BUNDLE)
    assert (answer.status_code, answer.headers[HEADER]) == (200, "none; reason=chain_unavailable")
    assert parse_bundle(answer.content).chain == b""
    refused = world.client.get(BUNDLE, params={"chain": "storage"})
    assert refused.status_code == 503
    assert refused.headers["content-type"] == "application/problem+json"
    assert (refused.json()["code"], refused.headers["Retry-After"]) == ("chain_unavailable", "5")
    assert str(port) not in refused.text, "where our node is, is nobody's business"
    assert world.gate.calls.total() == 1, "one question waited, nobody else did"
    world.gate.open.set()
    world.now_s += KEPT_S
    good = world.client.get(BUNDLE)
    block = good.headers[HEADER]
    world.gate.open.clear()
    world.now_s += KEPT_S
    again = world.client.get(BUNDLE, params={"chain": "storage"})
    assert again.headers[HEADER] == block, "what is final stays right while the node is away"
    verify_bundle(again.content, world.trust(block))


def test_a_node_without_proofs_of_storage_has_the_receipt_of_the_newest_anchor(world):
    world.anchor()
    world.gate.refused = "eth_getProof"
    for _ in range(2):  # and once from what was kept
        answer = world.client.get(BUNDLE)
        shown = verify_bundle(answer.content, world.trust(answer.headers[HEADER]))
        assert [x.tree_size for x in shown.on_chain] == [40]
    assert world.gate.calls["eth_getBlockReceipts"] == 1
    refused = world.client.get(BUNDLE, params={"chain": "storage"})
    assert (refused.status_code, refused.json()["code"]) == (409, "no_evidence")


def test_no_anchor_and_another_chain_are_no_reason_to_fail(world):
    assert world.client.get(BUNDLE).headers[HEADER] == "none; reason=not_anchored"
    refused = world.client.get(BUNDLE, params={"chain": "storage"})
    assert (refused.status_code, refused.json()["code"]) == (409, "no_evidence")
    world.anchor()
    world.now_s += KEPT_S
    world.ledger.chain = replace(world.ledger.chain, chain_id=1)
    answer = world.client.get(BUNDLE)
    assert (answer.status_code, answer.headers[HEADER]) == (200, "none; reason=chain_unavailable")


def test_what_is_asked_for_is_one_of_three(client):
    refused = client.get("/api/v1/logs/run42/entries/300/bundle?chain=receipt")
    assert (refused.status_code, refused.json()["code"]) == (400, "bad_request")
    answer = client.get("/api/v1/logs/run42/entries/300/bundle")
    assert answer.headers[HEADER] == "none; reason=not_anchored", "no chain is configured"
    refused = client.get("/api/v1/logs/run42/entries/300/bundle?chain=storage")
    assert (refused.status_code, refused.json()["code"]) == (409, "no_evidence")


def test_openapi_tells_of_it(client):
    paths = client.get("/api/v1/openapi.json").json()["paths"]
    for path, method in (
        ("/api/v1/logs/{run}/entries/{index}/bundle", "get"),
        ("/api/v1/bundles", "post"),
    ):
        told = paths[path][method]
        (chain,) = (item for item in told["parameters"] if item["name"] == "chain")
        assert chain["schema"]["enum"] == ["auto", "storage", "none"]
        assert HEADER in told["responses"]["200"]["headers"]
        assert "no_evidence" in told["responses"]["409"]["description"]
        assert "chain_unavailable" in told["responses"]["503"]["description"]
    assert RPC_TIMEOUT_S <= 3, "somebody waits for the answer"
