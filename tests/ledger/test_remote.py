"""A remote log against the real service: answers lost, server killed, tokens refused."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
import threading
import time
from collections import defaultdict
from contextlib import closing
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from rlhf_audit_trail.api import create_app
from rlhf_audit_trail.ledger import remote
from rlhf_audit_trail.ledger.append_call import InsecureAddress, Refused
from rlhf_audit_trail.ledger.bearer import TOKEN_VARIABLE, new_token
from rlhf_audit_trail.ledger.events import EntryTooLarge, Event, InvalidEvent
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.refusals import (
    BadToken,
    ConflictingEntry,
    LogMissing,
    NotPermitted,
    RunClosed,
    SequenceGap,
)
from rlhf_audit_trail.ledger.remote import RemoteLog
from rlhf_audit_trail.ledger.remote_parts import first_of, parts_of
from rlhf_audit_trail.ledger.tokens import WriterTokens
from rlhf_audit_trail.ledger.web import BadAddress
from rlhf_audit_trail.ledger.writer import AppendFailed, Overloaded, Ticket, WriterClosed
from tests.ledger.http_service import Network, serving

CHILD = Path(__file__).parent / "append_remotely.py"
NOBODY = "http://127.0.0.1:9"  # the port of the discard service: no one listens


def metrics(number):
    return Event("metrics.logged", {"step": number}, {"metrics": {"loss": number / 10}})


@pytest.fixture
def token(ledger):
    return WriterTokens(ledger).grant("gpu-1", "run42")


@pytest.fixture
def url(ledger, serve):
    return serve(create_app(ledger))


@pytest.fixture
def network(url):
    with closing(Network(int(url.rsplit(":", 1)[1]))) as made:
        yield made


@pytest.fixture
def answering(serve):
    """Serve the given answers, one a request, and the last one for ever."""

    def start(*answers):
        left, asked = list(answers), []

        async def answer(request):
            asked.append(await request.json())
            return left.pop(0) if len(left) > 1 else left[0]

        path = "/api/v1/logs/run42/entries"
        return serve(Starlette(routes=[Route(path, answer, methods=["POST"])])), asked

    return start


# --- what arrives -------------------------------------------------------------------------


def test_it_records_what_a_local_log_would(ledger, url, token, annotation):
    local = ledger.open_run("local")
    with RemoteLog(url, "run42", token) as log:
        receipts = log.record_many(annotation(x) for x in range(2_500))
        one = log.record(metrics(7))
        assert log.record_many([]) == []
        log.flush()
        assert all(receipt.done() for receipt in (*receipts, one))
    assert [receipt.result() for receipt in (*receipts, one)] == list(range(2_501))
    local.record_many([*(annotation(x) for x in range(2_500)), metrics(7)])
    local.flush()
    there = ledger.find("run42")
    for here, remotely in zip(local.entries(), there.entries(), strict=True):
        volatile = {"run_id", "writer_id", "recorded_at", "c"}
        assert {k: v for k, v in here.event.items() if k not in volatile} == {
            k: v for k, v in remotely.event.items() if k not in volatile
        }
        assert sorted(here.event["c"]) == sorted(remotely.event["c"])
        assert remotely.event["writer_id"] == log.writer_id
    assert there.opened(1_234)["prompt"] == local.opened(1_234)["prompt"] == "prompt 1234"


def test_requests_hold_what_the_service_takes_and_of_one_time_only():
    assert list(map(len, parts_of([b"x"] * 2_500, "now"))) == [1_000, 1_000, 500]
    assert list(map(len, parts_of([b"x" * 600_000] * 3, "now"))) == [1, 1, 1]
    assert list(map(len, parts_of([b"x", b"x" * 5_000_000, b"x"], "now"))) == [1, 1, 1]
    assert parts_of([], "now") == []
    calls = [("a", 600), ("a", 400), ("a", 1), ("b", 10), ("b", 10), ("a", 5)]
    queue = [
        Ticket("run42", part) for time_, count in calls for part in parts_of([b"x"] * count, time_)
    ]
    groups = []
    while queue:
        group = first_of(queue)
        groups.append([len(ticket.items) for ticket in group])
        del queue[: len(group)]
    assert groups == [[600, 400], [1], [10, 10], [5]]


def test_a_lost_answer_is_asked_for_again_and_nothing_doubles(ledger, network, token, annotation):
    with RemoteLog(network.url, "run42", token) as log:
        network.lose(3)
        first = log.record_many(annotation(x) for x in range(20))
        assert [receipt.result(timeout_s=60) for receipt in first] == list(range(20))
        network.lose(1)
        assert log.record(annotation(20)).result(timeout_s=60) == 20
    assert network.lost == 4
    assert ledger.find("run42").size == 21


def test_passing_answers_are_passing(answering, caplog, monkeypatch):
    import web3  # noqa: F401 - its import alone raises the recursion limit beyond the stack

    monkeypatch.setattr(remote, "_PAUSE_S_MAX", 0.1)
    good = JSONResponse({"indices": [5], "size": 6})
    url, asked = answering(
        PlainTextResponse("<html>sign in to this network</html>"),
        JSONResponse({"indices": [], "size": 6}),
        JSONResponse({"indices": [-1], "size": 6}),
        JSONResponse({"indices": [True], "size": 6}),
        JSONResponse({"indices": "5", "size": 6}),
        PlainTextResponse("[" * 100_000),
        PlainTextResponse("x" * 2_000_000),
        JSONResponse({"detail": "busy"}, 503),
        PlainTextResponse("slow down", 429),
        good,
    )
    with RemoteLog(url, "run42", new_token()) as log, caplog.at_level(logging.WARNING):
        assert log.record(metrics(0)).result(timeout_s=120) == 5
    assert len(asked) == 10
    assert all(request == asked[0] for request in asked)
    told = [record.message for record in caplog.records if "remote" in record.name]
    assert len(told) == 2  # that it went away, and that it is back


def receipts_of(output):
    lines = [line.split() for line in output.read_text("utf-8").splitlines()]
    found = {int(index): writer_id for writer_id, index in lines}
    assert len(found) == len(lines)
    return found


@pytest.mark.slow
def test_two_machines_append_while_answers_are_lost_and_the_server_dies(
    directory, tmp_path, examine
):
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    with Ledger.create(directory, organisation="acme.example") as ledger:
        made = [WriterTokens(ledger).grant(name, "run42") for name in ("gpu-1", "gpu-2")]
    outputs = [tmp_path / "1.txt", tmp_path / "2.txt"]
    with serving(directory) as service, closing(Network(service.port)) as network:
        children = [
            start(network.url, token, output, group)
            for token, output, group in zip(made, outputs, (1, 20), strict=True)
        ]
        while not all(output.stat().st_size for output in outputs):
            assert [child.poll() for child in children] == [None, None]
            time.sleep(0.05)
        for _ in range(2):
            killed = threading.Event()

            def kill(killed=killed):
                service.process.kill()  # committed, and the answer is in our hands
                killed.set()

            time.sleep(chosen.uniform(0, 0.3))
            network.lose(chosen.randrange(1, 4), kill)
            assert killed.wait(60)
            service.kill()
            service.start()
            network.port = service.port
        for child in children:
            child.communicate("", timeout=120)
        assert [child.returncode for child in children] == [0, 0]
    assert network.lost >= 2
    found = receipts_of(outputs[0]) | receipts_of(outputs[1])
    assert sorted(found) == list(range(len(found)))
    findings, summary = examine(directory)
    assert findings == set()
    assert summary.vault_rows == len(found)
    with Ledger.open(directory) as ledger:
        numbers = defaultdict(list)
        for entry in ledger.find("run42").entries():
            assert found[entry.leaf_index] == entry.event["writer_id"]
            numbers[entry.event["writer_id"]].append(entry.event["seq"])
        assert len(numbers) == len(WriterTokens(ledger).writers()) == 2
        assert all(seqs == list(range(len(seqs))) for seqs in numbers.values())


def start(url, token, output, group):
    """Append until standard input ends."""
    with output.open("w") as file:
        return subprocess.Popen(
            [sys.executable, CHILD, url, "run42", "0", str(group)],
            stdin=subprocess.PIPE, stdout=file, text=True,
            env=os.environ | {TOKEN_VARIABLE: token},
        )  # fmt: skip


def test_what_is_queued_is_sent_when_the_process_ends(ledger, url, token):
    done = subprocess.run(
        [sys.executable, "-W", "error", CHILD, url, "run42", "300", "50", "leave"],
        capture_output=True, text=True, check=False, env=os.environ | {TOKEN_VARIABLE: token},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert ledger.find("run42").size == 300


def test_a_forked_child_is_a_writer_of_its_own(ledger, url, token):
    log = RemoteLog(url, "run42", token)
    log.record(metrics(0)).result(timeout_s=60)
    child = os.fork()
    if not child:
        try:
            log.record(metrics(1)).result(timeout_s=60)
            log.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert log.record(metrics(2)).result(timeout_s=60) == 2
    log.close()
    entries = list(ledger.find("run42").entries())
    assert [entry.event["seq"] for entry in entries] == [0, 0, 1]
    assert entries[0].event["writer_id"] == entries[2].event["writer_id"] == log.writer_id
    assert entries[1].event["writer_id"] != log.writer_id


# --- what is refused ----------------------------------------------------------------------


def refused(log, error):
    """The receipt, each later call, and closing tell why."""
    receipt = log.record(metrics(0))
    with pytest.raises(error):
        receipt.result(timeout_s=60)
    for call in (log.flush, lambda: log.record(metrics(1)), lambda: log.record(metrics(1))):
        with pytest.raises(error):
            call()
    log.close()
    with pytest.raises(WriterClosed):
        log.record(metrics(2))


def test_tokens_that_do_not_fit(ledger, url, token):
    refused(RemoteLog(url, "run42", new_token()), BadToken)
    ledger.open_run("other")
    refused(RemoteLog(url, "other", token), NotPermitted)
    refused(RemoteLog(url, "registry", token), NotPermitted)
    everywhere = WriterTokens(ledger).grant("everywhere")
    refused(RemoteLog(url, "nobody", everywhere), LogMissing)
    refused(RemoteLog(url, "../run42", everywhere), Refused)
    ledger.open_run("other").close()
    refused(RemoteLog(url, "other", everywhere), RunClosed)
    assert ledger.find("run42").size == 0


def test_a_token_revoked_in_the_middle(ledger, url, token):
    log = RemoteLog(url, "run42", token)
    assert log.record(metrics(0)).result(timeout_s=60) == 0
    WriterTokens(ledger).revoke("gpu-1")
    refused(log, BadToken)
    assert ledger.find("run42").size == 1


def test_numbers_that_do_not_fit(ledger, url, token):
    first = RemoteLog(url, "run42", token)
    first.record(metrics(9)).result(timeout_s=60)
    same = RemoteLog(url, "run42", token)
    same.writer_id = first.writer_id
    refused(same, ConflictingEntry)
    ahead = RemoteLog(url, "run42", token)
    ahead._next_seq = 5
    receipt = ahead.record(metrics(0))
    with pytest.raises(SequenceGap) as found:
        receipt.result(timeout_s=60)
    assert found.value.expected == 0
    with pytest.raises(SequenceGap):
        ahead.close()
    first.close()
    assert ledger.find("run42").size == 1


@pytest.mark.parametrize(
    ("event", "error"),
    [
        (Event("no.such", {}), InvalidEvent),
        (Event("metrics.logged", {}), InvalidEvent),
        (Event("metrics.logged", {"step": 1}, {"metrics": float("nan")}), InvalidEvent),
        (Event("metrics.logged", {"step": 1}, {"metrics": "\ud800"}), InvalidEvent),
        (Event("metrics.logged", {"step": 1}, {"metrics": 1}, "\ud800"), InvalidEvent),
        (Event("metrics.logged", {"step": 1}, {"metrics": 1}, "x" * 1_001), InvalidEvent),
        (Event("run.config", {"config": {"a": "x" * 70_000}}), EntryTooLarge),
        (Event("metrics.logged", {"step": 1}, {"metrics": "x" * 9_000_000}), EntryTooLarge),
        (Event("run.opened", {"run": "x", "origin": "y", "log_keys": []}), NotPermitted),
        (
            Event(
                "gap", {"of_writer": "x", "first_seq": 0, "last_seq": 1, "count": 2, "reason": ""}
            ),
            NotPermitted,
        ),
    ],
)
def test_an_event_that_does_not_fit_is_refused_at_the_call(event, error):
    log = RemoteLog(NOBODY, "run42", new_token())
    with pytest.raises(error):
        log.record_many([metrics(0), event])
    log.flush()  # nothing was taken
    log.close()


def test_an_event_that_only_the_service_refuses_takes_no_other_with_it(ledger, network, token):
    deep = 1
    for _ in range(70):
        deep = [deep]
    log = RemoteLog(network.url, "run42", token)
    bad = Event("metrics.logged", {"step": 1}, {"metrics": deep})
    network.lose(1)  # while this one is sent again, the others gather
    first = log.record(metrics(0))
    receipts = [log.record(event) for event in (metrics(1), bad, metrics(2))]
    assert first.result(timeout_s=60) == 0
    assert [receipts[x].result(timeout_s=60) for x in (0, 2)] == [1, 2]
    with pytest.raises(InvalidEvent, match="nested"):
        receipts[1].result(timeout_s=60)
    with pytest.raises(InvalidEvent):
        log.record(metrics(3))  # told once
    assert log.record(metrics(3)).result(timeout_s=60) == 3
    log.close()
    assert [x.event["seq"] for x in ledger.find("run42").entries()] == [0, 1, 2, 3]


def test_the_queue_is_bounded_and_what_was_not_sent_is_told(monkeypatch):
    monkeypatch.setattr(remote, "QUEUE_EVENTS_MAX", 10)
    log = RemoteLog(NOBODY, "run42", new_token(), queue_wait_s=0.2)
    taken = [log.record(metrics(0))]
    while log._queued:  # until it is under way
        time.sleep(0.01)
    taken += log.record_many(metrics(number) for number in range(10))
    with pytest.raises(Overloaded, match="10 events wait for the service"):
        log.record(metrics(11))
    with pytest.raises(TimeoutError):
        taken[0].result(timeout_s=0.01)
    with pytest.raises(TimeoutError):
        log.flush(timeout_s=0.01)
    with pytest.raises(AppendFailed, match="until the remote log was closed"):
        log.close(timeout_s=0.1)
    for receipt in taken:
        with pytest.raises(AppendFailed):
            receipt.result(timeout_s=0)
    log.close()


def test_another_service_at_the_address(answering):
    url, asked = answering(PlainTextResponse("not here", 404))
    refused(RemoteLog(url, "run42", new_token()), Refused)
    moved, _ = answering(PlainTextResponse("", 301, {"Location": url}))
    refused(RemoteLog(moved, "run42", new_token()), Refused)
    assert len(asked) == 1  # a redirect is not followed: the token would go elsewhere


# --- the token ----------------------------------------------------------------------------


def test_the_token_is_never_shown(answering, caplog):
    token = new_token()
    echo = JSONResponse({"code": "not_permitted", "detail": f"no {token}", "next": token}, 403)
    url, _ = answering(JSONResponse({"detail": token, "next": token}, 503), echo)
    log = RemoteLog(url, "run42", token)
    with caplog.at_level(logging.DEBUG):
        with pytest.raises(NotPermitted) as found:
            log.record(metrics(0)).result(timeout_s=60)
        with pytest.raises(NotPermitted):
            log.close()
    secret = token.removeprefix("rlhfw_")
    assert secret not in repr(log) + str(log) + str(found.value) + caplog.text
    with pytest.raises(BadToken) as wrong:
        RemoteLog(url, "run42", token + "x")
    assert secret not in str(wrong.value)


def test_the_token_comes_from_the_environment(ledger, url, token, monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with pytest.raises(BadToken, match="there is no writer token"):
        RemoteLog(url, "run42")
    monkeypatch.setenv(TOKEN_VARIABLE, f"{token}\n")
    with RemoteLog(url, "run42") as log:
        assert log.record(metrics(0)).result(timeout_s=60) == 0
    assert ledger.find("run42").size == 1


def test_it_goes_in_clear_only_where_that_was_said():
    for address in (
        "http://audit.acme.example",
        "http://10.0.0.7:8080",
        "http://127.0.0.1.evil.example",
    ):
        with pytest.raises(InsecureAddress):
            RemoteLog(address, "run42", new_token())
        RemoteLog(address, "run42", new_token(), is_private_network=True).close()
    for address in ("https://audit.acme.example", "http://localhost:1", "http://[::1]:1", NOBODY):
        RemoteLog(address, "run42", new_token()).close()
    for address in ("ftp://x", "audit.acme.example", "https://x/?a=1", "https://x/#a", ""):
        with pytest.raises(BadAddress):
            RemoteLog(address, "run42", new_token())


def test_it_needs_no_database_driver():
    program = (
        "import sys\n"
        "for name in ('sqlalchemy', 'sqlmodel', 'fastapi', 'alembic', 'torch'):\n"
        "    sys.modules[name] = None\n"
        "from rlhf_audit_trail.ledger.remote import RemoteLog\n"
        f"RemoteLog('https://audit.acme.example', 'run42', {new_token()!r}).close()\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
