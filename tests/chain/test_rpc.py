"""The JSON-RPC client against servers that misbehave."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from rlhf_audit_trail.ledger.chain.errors import ChainUnreachable, RpcError
from rlhf_audit_trail.ledger.chain.node.rpc import RpcClient, parse_data, parse_quantity
from rlhf_audit_trail.ledger.settings import SettingsError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def serve():
    """Start real HTTP servers that answer with what a function makes of the request."""
    servers = []

    def start(answer):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                reply = answer(self, body)
                if reply is not None:
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(reply)))
                    self.end_headers()
                    self.wfile.write(reply)

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def result(body, value):
    return json.dumps({"jsonrpc": "2.0", "id": body["id"], "result": value}).encode()


@pytest.mark.chain
def test_a_real_node(rpc):
    assert rpc.call("eth_chainId") == "0x7a69"
    with pytest.raises(RpcError, match="eth_nothing"):
        rpc.call("eth_nothing")
    assert rpc.call("eth_chainId") == "0x7a69"


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with (
        RpcClient(f"http://127.0.0.1:{port}/secret-path?key=secret") as rpc,
        pytest.raises(ChainUnreachable) as caught,
    ):
        rpc.call("eth_chainId")
    assert f"http://127.0.0.1:{port}: " in caught.value.message
    assert "secret" not in str(caught.value)


def test_a_hung_node_costs_the_timeout_and_no_more():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        RpcClient(f"http://127.0.0.1:{server.getsockname()[1]}", timeout_s=0.2) as rpc,
        pytest.raises(ChainUnreachable, match="timed out"),
    ):
        rpc.call("eth_chainId")


@pytest.mark.parametrize(
    "reply", [b"", b"<html>", b"[]", b"7", b'{"id": 99, "result": 1}', b'{"id": 1}']
)
def test_answers_that_are_none(serve, reply):
    with RpcClient(serve(lambda *_: reply)) as rpc, pytest.raises(ChainUnreachable):
        rpc.call("eth_chainId")


def test_the_nodes_own_error_keeps_code_and_data(serve):
    error = {"code": 3, "message": "execution reverted", "data": "0x1234"}
    url = serve(lambda _, body: json.dumps({"id": body["id"], "error": error}).encode())
    with RpcClient(url) as rpc, pytest.raises(RpcError, match="execution reverted") as caught:
        rpc.call("eth_call")
    assert (caught.value.code, caught.value.data) == (3, "0x1234")


def test_a_connection_closed_while_idle_is_opened_again(serve):
    seen = []

    def answer(handler, body):
        seen.append(handler.client_address)
        handler.close_connection = True  # without saying so in a header
        return result(body, len(seen))

    with RpcClient(serve(answer)) as rpc:
        assert [rpc.call("x") for _ in range(3)] == [1, 2, 3]
    assert len(set(seen)) == 3


def test_one_connection_serves_many_calls(serve):
    seen = set()

    def answer(handler, body):
        seen.add(handler.client_address)
        return result(body, 1)

    with RpcClient(serve(answer)) as rpc:
        for _ in range(5):
            rpc.call("x")
    assert len(seen) == 1


def test_a_server_that_always_closes_is_not_asked_for_ever(serve):
    asked = []

    def answer(handler, _):
        asked.append(1)
        handler.close_connection = True

    with RpcClient(serve(answer)) as rpc, pytest.raises(ChainUnreachable):
        rpc.call("x")
    assert len(asked) == 1


@pytest.mark.parametrize("url", ["", "localhost:8545", "ftp://x", "http://", "http://x:y"])
def test_addresses_that_are_none(url):
    with pytest.raises(SettingsError, match="must look like"):
        RpcClient(url)


@pytest.mark.parametrize("value", [None, 7, "", "0x", "7", "0x07", "0xG", "0X7", "0x7 "])
def test_quantities_are_strict(value):
    with pytest.raises(ChainUnreachable):
        parse_quantity(value)


@pytest.mark.parametrize("value", [None, "", "0x1", "00", "0xzz", "0x00 "])
def test_bytes_are_strict(value):
    with pytest.raises(ChainUnreachable):
        parse_data(value)


def test_sizes_of_bytes_are_exact():
    assert parse_quantity("0x0") == 0
    assert parse_data("0x00ff", size_bytes=2) == b"\x00\xff"
    with pytest.raises(ChainUnreachable, match="2 bytes for 3"):
        parse_data("0x00ff", size_bytes=3)


def test_reading_a_chain_needs_the_standard_library_only():
    """An auditor's installation has neither web3 nor eth_account, and must not miss them."""
    code = (
        "import sys\n"
        "for name in ('web3', 'eth_account', 'eth_utils', 'eth_abi', 'sqlmodel', 'torch'):\n"
        "    sys.modules[name] = None\n"
        "import rlhf_audit_trail.ledger.chain.contract.reader, rlhf_audit_trail.ledger.chain.node.anvil\n"
        "import rlhf_audit_trail.ledger.chain.contract.writer, rlhf_audit_trail.ledger.chain.anchoring.anchorer\n"
        "from rlhf_audit_trail.ledger.chain.contract.abi import encode_head_call\n"
        "encode_head_call('0x' + 20 * 'ab', bytes(32))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
