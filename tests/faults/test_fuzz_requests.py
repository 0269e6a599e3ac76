"""Our own services, asked by somebody who knows HTTP a little, over real sockets."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading

import hostile
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_audit_trail.api import create_app
from rlhf_audit_trail.api.witness_app import create_witness_app
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.witness import Witness, origin_hash


@contextlib.contextmanager
def served(app):
    """Serve an app; returns the port."""
    options = {"host": "127.0.0.1", "port": 0, "log_level": "critical", "lifespan": "off"}
    server = uvicorn.Server(uvicorn.Config(app, **options))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def ports(tmp_path_factory):
    directory = tmp_path_factory.mktemp("requests")
    with contextlib.ExitStack() as stack:
        ledger = stack.enter_context(
            Ledger.create(directory / "ledger", organisation="acme.example")
        )
        log = ledger.open_run("run42")
        log.record_many(Event("metrics.logged", {"step": step}) for step in range(300))
        log.publish()
        witness = Witness(hostile.COSIGNERS[0], hostile.KEYS.verifier_keys, directory / "w.db")
        stack.enter_context(witness)
        yield {
            "api": stack.enter_context(served(create_app(ledger))),
            "witness": stack.enter_context(served(create_witness_app(witness))),
        }


def request(method, path, body=b""):
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def status_of(port, data, *, timeout_s=20.0):
    """Send bytes, and return the status of what comes back; None when nothing does.

    A server waits for the rest of what was cut short, so a spoilt request waits a little only.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        with contextlib.suppress(OSError):  # it may have had enough of us before the end
            connection.sendall(data)
        response = http.client.HTTPResponse(connection)
        try:
            response.begin()
            response.read(10_000_000)
        except (OSError, http.client.HTTPException):
            return None
        return response.status


def is_alive(port, path):
    return status_of(port, request("GET", path)) == 200


WITNESSED = f"/{origin_hash(hostile.ORIGIN)}/checkpoint"
TO_WITNESS = [
    request("POST", "/add-checkpoint", hostile.request(0, 4)),
    request("POST", "/add-checkpoint", hostile.request(4, 9)),
    request("GET", WITNESSED),
]
TO_API = [
    request("GET", f"/rlhf/run42/{path}")
    for path in ("checkpoint", "vkey", "tile/0/000", "tile/0/001.p/44", "tile/entries/001.p/3")
]
TO_API += [
    request("GET", "/api/v1/logs/run42/consistency?old=4&new=300"),
    request("GET", "/api/v1/logs/run42/entries?start=0&limit=5"),
    request("POST", "/api/v1/verify", json.dumps({"bundle": "x", "keys": []}).encode()),
    request("POST", "/api/v1/verify", hostile.SAMPLES["bundle"][0]),
]


def test_the_samples_are_answered(ports):
    assert [status_of(ports["witness"], x) for x in TO_WITNESS] == [200, 200, 200]
    found = [status_of(ports["api"], x) for x in TO_API]
    assert found[:6] == [200] * 6
    assert None not in found


NUMBERS = st.sampled_from(["-1", "0", "00", "+1", "1e3", "9" * 30, "%00", "\u0660", "x", "", " 1"])


@settings(max_examples=80, deadline=None)
@given(hostile.edited_of(*TO_WITNESS))
def test_a_witness_answers_or_hangs_up(ports, data):
    status = status_of(ports["witness"], data, timeout_s=0.2)
    assert status is None or status < 500


@settings(max_examples=120, deadline=None)
@given(hostile.edited_of(*TO_API))
def test_the_service_answers_or_hangs_up(ports, data):
    status = status_of(ports["api"], data, timeout_s=0.2)
    assert status is None or status < 500


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["entries?start={}&limit={}", "consistency?old={}&new={}", "proof?index={}&size={}"]),
    NUMBERS,
    NUMBERS,
)  # fmt: skip
def test_numbers_of_any_spelling_are_the_askers_mistake(ports, path, first, second):
    asked = f"/api/v1/logs/run42/{path.format(first, second)}".encode().replace(b" ", b"%20")
    data = b"GET " + asked + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    status = status_of(ports["api"], data, timeout_s=0.2)
    assert status is None or status < 500


TOO_MUCH = {
    "a body without end": request("POST", "/add-checkpoint")[:-2]
    + b"Transfer-Encoding: chunked\r\n\r\n" + b"ffff\r\n" + (b"x" * 65_535 + b"\r\nffff\r\n") * 300,
    "a long body": request("POST", "/add-checkpoint", b"old 0\n" * 2_000_000),
    "a long path": request("GET", "/" + "x" * 1_000_000),
    "many headers": request("GET", "/x")[:-2] + b"X: y\r\n" * 200_000 + b"\r\n",
    "a body said to be huge": b"POST /add-checkpoint HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"
    + b"x" * 20_000_000,
    "many brackets": request("POST", "/api/v1/verify", b"[]" * 2_000_000),
    "deep brackets": request("POST", "/api/v1/verify", b"[" * 5_000_000),
}  # fmt: skip


@pytest.mark.parametrize("name", TOO_MUCH)
def test_too_much_is_refused_and_others_are_served(ports, name):
    for service, path in (("witness", WITNESSED), ("api", "/rlhf/run42/checkpoint")):
        status = status_of(ports[service], TOO_MUCH[name])
        assert status is None or 400 <= status < 500, service
        assert service == "witness" or is_alive(ports[service], path)


def test_after_all_of_it_both_still_serve(ports):
    assert is_alive(ports["api"], "/rlhf/run42/tile/0/000")
    assert status_of(ports["witness"], request("GET", WITNESSED)) in {200, 404}
    assert status_of(ports["witness"], TO_WITNESS[0]) in {200, 409}
    assert is_alive(ports["witness"], WITNESSED)
