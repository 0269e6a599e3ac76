"""A witness or a log that answers with whatever bytes it likes, over real sockets."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import itertools
import socket
import socketserver
import threading
import tracemalloc

import hostile
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.monitor import Monitor
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.public_log import PublicLog, ServedLog
from rlhf_audit_trail.ledger.tlog_policy import Group, PolicyLog, PolicyWitness, TlogPolicy
from rlhf_audit_trail.ledger.web import Unreachable, ask
from rlhf_audit_trail.ledger.witness_client import collect, compare

BYTES_MAX = 100_000
MEMORY_BYTES_MAX = 64 * 1024 * 1024  # http.client copies 100 headers of 64 KiB several times
OK = b"HTTP/1.1 200 OK\r\n"


class Answer(socketserver.BaseRequestHandler):
    """Reads a request, then sends pieces until they end or nobody listens any more."""

    def handle(self):
        self.request.settimeout(10)
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            file = self.request.makefile("rb")
            while (line := file.readline(65_536)) not in {b"\r\n", b""}:
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            if line and "length" in locals():
                file.read(length)
            for piece in self.server.pieces:
                self.request.sendall(piece)


class Hostile(socketserver.ThreadingTCPServer):
    daemon_threads = True
    pieces = ()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture(scope="module")
def server():
    with Hostile(("127.0.0.1", 0), Answer) as opened:
        thread = threading.Thread(target=opened.serve_forever, args=(0.05,))
        thread.start()
        yield opened
        opened.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    directory = tmp_path_factory.mktemp("fuzz") / "ledger"
    with Ledger.create(directory, organisation="acme.example") as ledger:
        log = ledger.open_run("run42")
        log.record_many(Event("metrics.logged", {"step": step}) for step in range(3))
        log.publish()
        yield ledger, log


@contextlib.contextmanager
def little_memory():
    """Fail if much more was allocated at any time than any answer may take."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MEMORY_BYTES_MAX


def policy(log, url):
    listed = (PolicyWitness("w", hostile.COSIGNERS[0].keys[0], url),)
    logs = tuple(PolicyLog(key) for key in log.verifier_keys)
    return TlogPolicy(logs, listed, (Group("all", 1, ("w",)),), "all")


def endless(piece, *begin):
    return itertools.chain(begin, itertools.repeat(piece))


BOMB = gzip.compress(bytes(64 * 1024 * 1024))
NONSENSE = {
    "nothing": list,
    "garbage": lambda: [b"\xff" * 1000],
    "a TLS alert": lambda: [b"\x15\x03\x01\x00\x02\x02\x46"],
    "no HTTP": lambda: [b"220 mail.example ESMTP\r\n"],
    "HTTP/0.9": lambda: [b"well done\n"],
    "a status past all": lambda: [b"HTTP/1.1 99999999 OK\r\n\r\n"],
    "a negative status": lambda: [b"HTTP/1.1 -200 OK\r\n\r\n"],
    "an endless status line": lambda: endless(b"x" * 8192, b"HTTP/1.1 200 "),
    "endless 100 Continue": lambda: endless(b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "endless headers": lambda: endless(b"X: y\r\n" * 1000, OK),
    "an endless header": lambda: endless(b"x" * 8192, OK, b"X: "),
    "a hundred long headers": lambda: [OK, *[b"X: " + b"y" * 65_000 + b"\r\n"] * 99, b"\r\n"],
    "folded headers": lambda: endless(b" folded\r\n" * 1000, OK, b"X: y\r\n"),
    "an endless body": lambda: endless(b"x" * 65_536, OK, b"\r\n"),
    "a body longer than said": lambda: [OK, b"Content-Length: 1\r\n\r\n", b"x" * 10_000],
    "a body shorter than said": lambda: [OK, b"Content-Length: 1000\r\n\r\nx"],
    "a body said to be huge": lambda: endless(b"x" * 65_536, OK, b"Content-Length: 9" + b"9" * 30 + b"\r\n\r\n"),
    "a length below nothing": lambda: endless(b"x" * 65_536, OK, b"Content-Length: -1\r\n\r\n"),
    "two lengths": lambda: [OK, b"Content-Length: 1\r\nContent-Length: 5\r\n\r\nxxxxx"],
    "a length of 10,000 digits": lambda: [OK, b"Content-Length: " + b"9" * 10_000 + b"\r\n\r\n"],
    "chunks without end": lambda: endless(b"1\r\nx\r\n" * 1000, OK, b"Transfer-Encoding: chunked\r\n\r\n"),
    "a huge chunk": lambda: endless(b"x" * 65_536, OK, b"Transfer-Encoding: chunked\r\n\r\n", b"f" * 15 + b"\r\n"),
    "a chunk of -1": lambda: endless(b"x" * 65_536, OK, b"Transfer-Encoding: chunked\r\n\r\n-1\r\n"),
    "a chunk of -5": lambda: endless(b"x" * 65_536, OK, b"Transfer-Encoding: chunked\r\n\r\n-5\r\n"),
    "a chunk of x": lambda: [OK, b"Transfer-Encoding: chunked\r\n\r\nx\r\n"],
    "an endless chunk size": lambda: endless(b"0" * 8192, OK, b"Transfer-Encoding: chunked\r\n\r\n"),
    "endless trailers": lambda: endless(b"X: y\r\n" * 1000, OK, b"Transfer-Encoding: chunked\r\n\r\n0\r\n"),
    "a gzip bomb": lambda: [OK, b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB), BOMB],
    "a redirect to itself": lambda: [b"HTTP/1.1 301 Moved\r\nLocation: /\r\nContent-Length: 0\r\n\r\n"],
    "a redirect to a file": lambda: [b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n"],
    "a wish for a password": lambda: [b"HTTP/1.1 401 No\r\nWWW-Authenticate: Basic\r\n\r\n"],
    "another protocol": lambda: [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"],
    "no content": lambda: [b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nxxxxx"],
    "a charset that is none": lambda: [OK, b"Content-Type: text/plain; charset=rot13\r\n\r\nx"],
    "bytes in headers": lambda: [OK, b"\xff\xfe: \x00\x80\r\nContent-Type: \xff\r\n\r\nx"],
}  # fmt: skip


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_an_answer_within_the_limit_or_nobody_there(server, name):
    server.pieces = NONSENSE[name]()
    with little_memory():
        try:
            answer = ask(server.url, timeout_s=1, answer_bytes_max=BYTES_MAX)
        except Unreachable:
            return
    assert len(answer.body) <= BYTES_MAX


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_from_a_witness_makes_no_cosignature_and_no_alarm(server, log, name):
    ledger, run = log
    said = policy(run, server.url)
    server.pieces = NONSENSE[name]()
    with little_memory():
        found = collect(ledger.engine, run, said, timeout_s=1)
    (outcome,) = found.outcomes
    assert (outcome.state, found.is_quorum) == ("pending", False)
    assert isinstance(outcome.finding, AuditTrailError)
    server.pieces = NONSENSE[name]()
    (outcome,) = compare(run, said, timeout_s=1)
    assert outcome.state == "pending"


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_from_a_log_is_shown_to_nobody(server, name):
    server.pieces = NONSENSE[name]()
    log = PublicLog(ServedLog(server.url, timeout_s=1))
    with little_memory(), pytest.raises(AuditTrailError):
        Monitor(log, hostile.KEYS.verifier_keys).look()


def spoken(body, status=b"200 OK"):
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


BODIES = [x for name in ("cosignatures", "note", "size") for x in hostile.SAMPLES[name]]
ANSWERS = hostile.edited_of(
    *(spoken(body, status) for body in BODIES for status in (b"200 OK", b"409 C", b"422 U"))
)


@settings(max_examples=120, deadline=None)
@given(st.one_of(ANSWERS, st.builds(spoken, hostile.edited_of(*BODIES))))
def test_an_answer_with_a_few_edits_makes_no_cosignature_and_no_alarm(server, log, answer):
    ledger, run = log
    server.pieces = [answer]
    found = collect(ledger.engine, run, policy(run, server.url), timeout_s=1)
    assert (found.outcomes[0].state, found.is_quorum) == ("pending", False)


def test_nobody_has_cosigned_the_empty_tree_before_he_did(server, log):
    """A size of 0 that is held, and none that is held, are two things."""
    ledger, _ = log
    empty = ledger.open_run("empty")
    empty.publish()
    server.pieces = []
    found = collect(ledger.engine, empty, policy(empty, server.url), timeout_s=1)
    assert (found.outcomes[0].state, found.is_quorum) == ("pending", False)


def test_a_connection_that_is_reset_is_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        reset = threading.Thread(target=_reset, args=(listener,))
        reset.start()
        with pytest.raises(Unreachable):
            ask(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=5, answer_bytes_max=9)
        reset.join()


def _reset(listener):
    connection, _ = listener.accept()
    connection.recv(10)
    at_once = b"\1\0\0\0\0\0\0\0"  # linger of no seconds: what is not read yet is thrown away
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
    connection.close()
