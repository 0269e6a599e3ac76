"""`rlhf-audit serve` and `witness serve` listen where they are told, and say so."""

from __future__ import annotations

import re
import socket
import subprocess
import sys

import pytest

from rlhf_audit_trail.cli.listening import AddressTaken, listening
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.web import ask


def _has_ipv6():
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no address ::1")


@needs_ipv6
def test_the_service_is_reached_by_ipv6(tmp_path):
    Ledger.create(tmp_path / "ledger", organisation="acme.example").close()
    command = [sys.executable, "-m", "rlhf_audit_trail.cli", "serve", "--host", "::1"]
    command += ["--port", "0", "--ledger", str(tmp_path / "ledger")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as service:
        try:
            line = service.stderr.readline()
            found = re.search(r"http://\[::1\]:\d+", line)
            assert found, line
            answer = ask(f"{found[0]}/api/v1/health", answer_bytes_max=10_000)
            assert (answer.status, b"acme.example" in answer.body) == (200, True)
        finally:
            service.kill()


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "http://127.0.0.1:"),
        pytest.param("::1", "http://[::1]:", marks=needs_ipv6),
        ("localhost", "http://localhost:"),
    ],
)
def test_the_address_that_is_printed_can_be_connected_to(host, shown):
    with listening(host, 0) as (listener, where):
        assert where.startswith(shown)
        port = int(where.rpartition(":")[2])
        socket.create_connection((host, port), timeout=5).close()
        with pytest.raises(AddressTaken, match="cannot listen on"), listening(host, port):
            pytest.fail("listening twice")
        assert listener.getsockname()[1] == port


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_what_is_no_address_of_this_machine_is_a_typed_error(host):
    with pytest.raises(AddressTaken, match="cannot listen on"), listening(host, 0):
        pytest.fail("listening there")
