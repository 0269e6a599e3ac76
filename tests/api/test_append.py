"""Appending over HTTP: who may, what is refused, and that nothing is stored twice or in part."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from contextlib import ExitStack, closing, contextmanager

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from rlhf_audit_trail.api import create_app
from rlhf_audit_trail.api.append import APPENDS_AT_ONCE_MAX
from rlhf_audit_trail.api.limits import BODY_BYTES_MAX
from rlhf_audit_trail.ledger.append_call import REQUEST_BYTES_MAX
from rlhf_audit_trail.ledger.bearer import new_token, token_digest
from rlhf_audit_trail.ledger.events import KINDS, RUN_KINDS, Event
from rlhf_audit_trail.ledger.fsck import fsck, open_damaged
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.store.models import RemoteWriterRow
from rlhf_audit_trail.ledger.tokens import WriterExists, WriterMissing, WriterTokens

PATH = "/api/v1/logs/run42/entries"
WRITER = "ab" * 16
TIME = "2026-11-20T10:15:00.1Z"
PERSON = "ada@lovelace.example"


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A ledger that these tests append to."""
    directory = tmp_path_factory.mktemp("append") / "ledger"
    with Ledger.create(directory, organisation="acme.example") as opened:
        opened.open_run("other").record(metrics(0)).result()
        yield opened
    with open_damaged(directory) as storage:
        assert [str(finding) for finding in fsck(storage)] == []


def metrics(number):
    return Event("metrics.logged", {"step": number}, {"metrics": {"loss": 0.5}})


@pytest.fixture(scope="module")
def tokens(own):
    return WriterTokens(own)


@pytest.fixture(scope="module")
def token(tokens):
    return tokens.grant("gpu-1", "run42")


@pytest.fixture(scope="module")
def client(own):
    with TestClient(create_app(own), raise_server_exceptions=False) as opened:
        yield opened


@pytest.fixture
def log(own, token):  # noqa: ARG001 - the grant opens the run
    return own.find("run42")


@pytest.fixture
def writer_id(request):
    """Another one for each test."""
    return token_digest(request.node.name).hex()[:32]


def annotation(number):
    sealed = {"prompt": f"prompt {number}", "annotator": PERSON, "reward": 0.5}
    fields = {"source": "human", "batch": number}
    return {"kind": "annotation.recorded", "fields": fields, "sealed": sealed, "subject": PERSON}


def body(writer_id=WRITER, first_seq=0, count=3, **other):
    events = [annotation(first_seq + number) for number in range(count)]
    record = {"writer_id": writer_id, "first_seq": first_seq, "recorded_at": TIME}
    return record | {"events": events} | other


def send(client, token, record, path=PATH):
    return client.post(path, json=record, headers={"Authorization": f"Bearer {token}"})


def check(answer, status, code):
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json()
    assert (answer.status_code, found["status"], found["code"]) == (status, status, code)
    assert PERSON not in answer.text
    return found


# --- what is stored -----------------------------------------------------------------------


def test_what_was_sent_is_durable_and_sealed(client, token, log, writer_id):
    size = log.size
    answer = send(client, token, body(writer_id))
    assert answer.status_code == 200
    assert answer.json() == {"indices": [size, size + 1, size + 2], "size": size + 3}
    entry = log.read(size + 2)
    assert entry.event["writer_id"] == writer_id
    assert (entry.event["seq"], entry.event["recorded_at"]) == (2, TIME)
    assert (entry.event["source"], entry.event["batch"]) == ("human", 2)
    assert sorted(entry.event["c"]) == ["annotator", "prompt", "reward"]
    assert PERSON.encode() not in entry.data
    opened = log.opened(size + 2)
    assert (opened["prompt"], opened["reward"]) == ("prompt 2", 0.5)
    assert opened["annotator"] != PERSON


def test_sent_again_it_has_the_same_indices(client, token, log, writer_id):
    first = send(client, token, body(writer_id)).json()
    size = log.size
    assert send(client, token, body(writer_id)).json() == first
    longer = send(client, token, body(writer_id, count=5)).json()
    assert longer["indices"] == [*first["indices"], size, size + 1]
    assert log.size == size + 2


def test_other_content_under_the_same_number_is_a_conflict(client, token, log, writer_id):
    send(client, token, body(writer_id))
    size = log.size
    for other in (
        body(writer_id, recorded_at="2026-11-20T10:15:00.2Z"),
        body(writer_id, events=[annotation(7)]),
        body(writer_id, events=[annotation(0) | {"sealed": {"prompt": "another"}}]),
        body(writer_id, events=[{"kind": "metrics.logged", "fields": {"step": 1}}]),
    ):
        check(send(client, token, other), 409, "conflicting_entry")
    assert log.size == size


def test_a_hole_is_refused_with_the_number_that_comes_next(client, token, log, writer_id):
    assert check(send(client, token, body(writer_id, 1)), 409, "sequence_gap")["expected"] == 0
    send(client, token, body(writer_id))
    size = log.size
    assert check(send(client, token, body(writer_id, 4)), 409, "sequence_gap")["expected"] == 3
    assert log.size == size


@contextmanager
def held_up(own):
    """The store takes nothing meanwhile: somebody else is writing to it."""
    with closing(sqlite3.connect(own.directory / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@contextmanager
def posting(client, token, records):
    """Send all of them at once; gives the list in which the answers arrive."""
    answers = []
    threads = [
        threading.Thread(target=lambda x=x: answers.append(send(client, token, x).json()))
        for x in records
    ]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        for thread in threads:
            thread.join()


def await_appends(client, count):
    for _ in range(1_000):
        if client.app.state.appending.borrowed_tokens == count:
            return
        time.sleep(0.01)
    pytest.fail(f"there are no {count} appends under way")


def test_one_request_sent_several_times_at_once_is_stored_once(own, client, token, log, writer_id):
    send(client, token, body(writer_id))
    size = log.size
    with ExitStack() as stack:
        with held_up(own):
            local = [log.record(metrics(1))]  # under way: what comes now is one group
            again = [body(writer_id, 3)] * 4
            answers = stack.enter_context(posting(client, token, again))
            await_appends(client, 4)
            time.sleep(0.3)  # until they are queued; less would only prove less
            local.append(log.record(metrics(2)))
        assert [receipt.result(timeout_s=60) for receipt in local] == [size, size + 4]
    assert [answer["indices"] for answer in answers] == [[size + 1, size + 2, size + 3]] * 4
    assert log.size == size + 5


def test_readers_are_answered_while_appends_wait_for_the_store(own, client, token, log, writer_id):
    size, count = log.size, APPENDS_AT_ONCE_MAX + 30
    records = [body(f"{number:02x}{writer_id[2:]}", count=1) for number in range(count)]
    with ExitStack() as stack, held_up(own):
        answers = stack.enter_context(posting(client, token, records))
        await_appends(client, APPENDS_AT_ONCE_MAX)
        for _ in range(5):
            assert client.get("/api/v1/health").status_code == 200
            assert client.get("/api/v1/logs/other/entries").status_code == 200
    found = sorted(answer["indices"][0] for answer in answers)
    assert found == list(range(size, size + count))


# --- who may ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer rlhfw_short"},
        {"Authorization": "Bearer rlhfw_" + "A" * 43},
        {"Authorization": "Bearer rlhfw_" + "A" * 100_000},
        {"Authorization": "Basic cmxoZnc6eA=="},
        {"Authorization": b"Bearer \xff\xfe"},
    ],
)
def test_without_a_token_of_this_ledger_nobody_is_let_in(client, log, header):
    size = log.size
    for path in (PATH, "/api/v1/logs/nobody/entries", "/api/v1/logs/registry/entries"):
        answer = client.post(path, json=body(), headers=header)
        check(answer, 401, "bad_token")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "AAAA" not in answer.text
    assert log.size == size


def test_a_revoked_token_is_refused_at_once_and_its_entries_stay(
    own, client, tokens, log, writer_id
):
    made = tokens.grant("leaked", "run42")
    indices = send(client, made, body(writer_id)).json()["indices"]
    revoked = tokens.revoke("leaked")
    assert check(send(client, made, body(writer_id, 3)), 401, "bad_token")
    assert log.read(indices[0]).event["writer_id"] == writer_id
    assert tokens.revoke("leaked") == revoked
    digest = token_digest(made).hex()
    told = [
        entry.event for entry in own.registry.entries()
        if entry.event.get("token_digest") == digest
    ]  # fmt: skip
    assert [event["kind"] for event in told] == ["writer.granted", "writer.revoked"]
    assert {(event["writer"], event["run"]) for event in told} == {("leaked", "run42")}
    (process,) = [x for x in tokens.writers() if x.writer == "leaked"]
    assert (process.run_id, process.writer_id) == ("run42", writer_id)


def test_a_token_is_for_its_run_only(client, tokens, token):
    check(send(client, token, body(), "/api/v1/logs/other/entries"), 403, "not_permitted")
    check(send(client, token, body(), "/api/v1/logs/nobody/entries"), 403, "not_permitted")
    check(send(client, token, body(), "/api/v1/logs/registry/entries"), 403, "not_permitted")
    everywhere = tokens.grant("everywhere")
    assert send(client, everywhere, body("cd" * 16)).status_code == 200
    for run, status, code in (
        ("registry", 403, "not_permitted"),
        ("nobody", 404, "log_missing"),
    ):
        answer = send(client, everywhere, body("cd" * 16), f"/api/v1/logs/{run}/entries")
        check(answer, status, code)


def test_nobody_goes_on_in_the_name_of_another(client, tokens, token, log, writer_id):
    index = log.record(metrics(1)).result()
    local = log.read(index).event
    asked = body(local["writer_id"], local["seq"] + 1)
    check(send(client, token, asked), 403, "not_permitted")
    send(client, token, body(writer_id))
    second = tokens.grant("second", "run42")
    check(send(client, second, body(writer_id, 3)), 403, "not_permitted")
    check(send(client, second, body(writer_id)), 403, "not_permitted")
    assert log.record(metrics(2)).result() == index + 4


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - RUN_KINDS.keys()))
def test_what_only_the_ledger_says_is_refused(client, token, log, kind):
    size = log.size
    record = body(events=[annotation(0), {"kind": kind, "fields": {}}])
    check(send(client, token, record), 403, "not_permitted")
    assert log.size == size


def test_a_gap_is_told_of_oneself_only(client, token, log, writer_id):
    fields = {"of_writer": "ef" * 16, "first_seq": 0, "last_seq": 9, "count": 10, "reason": "x"}
    record = body(writer_id, events=[{"kind": "gap", "fields": fields}])
    check(send(client, token, record), 403, "not_permitted")
    fields["of_writer"] = writer_id
    assert send(client, token, record).json()["indices"] == [log.size - 1]


def test_a_closed_run_takes_nothing_more(own, client, tokens):
    made = tokens.grant("late", "ended")
    path = "/api/v1/logs/ended/entries"
    first = send(client, made, body(), path).json()
    own.open_run("ended").close()
    check(send(client, made, body(first_seq=3), path), 409, "run_closed")
    assert own.find("ended").size == 3
    assert first["indices"] == [0, 1, 2]


def test_a_name_is_used_once(tokens):
    tokens.grant("once", "run42")
    for run in ("run42", ""):
        with pytest.raises(WriterExists):
            tokens.grant("once", run)
    tokens.revoke("once")
    with pytest.raises(WriterExists):
        tokens.grant("once")
    with pytest.raises(WriterMissing):
        tokens.revoke("never")


def test_a_grant_that_was_interrupted_leaves_nothing_in_force(own, client, tokens, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    made = []
    monkeypatch.setattr("rlhf_audit_trail.ledger.tokens.new_token", lambda: made[-1])
    for step in ("WriterTokens._announce", "_grant"):
        made.append(new_token())
        with monkeypatch.context() as patch:
            patch.setattr(f"rlhf_audit_trail.ledger.tokens.{step}", interrupt)
            with pytest.raises(KeyboardInterrupt):
                tokens.grant("halfway", "run42")
        assert "halfway" not in [x.writer for x in tokens.tokens()]
        check(send(client, made[-1], body()), 401, "bad_token")
        with pytest.raises(WriterMissing):
            tokens.revoke("halfway")
    made.append(new_token())
    assert tokens.grant("halfway", "run42") == made[-1]
    with monkeypatch.context() as patch:
        patch.setattr(tokens, "_announce", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tokens.revoke("halfway")
    check(send(client, made[-1], body()), 401, "bad_token")
    tokens.revoke("halfway")
    told = [x.event["kind"] for x in own.registry.entries() if x.event.get("writer") == "halfway"]
    assert told == ["writer.granted", "writer.granted", "writer.revoked"]


def test_no_token_is_stored(own, client, token):
    send(client, token, body())
    for file in own.directory.rglob("*"):
        if file.is_file():
            assert token.encode() not in file.read_bytes(), file


# --- what is refused ----------------------------------------------------------------------

DEEP = '{"a":' * 200 + "1" + "}" * 200
SEALED = '{"kind":"metrics.logged","fields":{"step":1},"sealed":{"metrics":%s}}'


def raw(events='{"kind":"metrics.logged","fields":{"step":1}}', **other):
    record = {"writer_id": f'"{WRITER}"', "first_seq": "0", "recorded_at": f'"{TIME}"'}
    record |= {"events": f"[{events}]"} | other
    return "{" + ",".join(f'"{name}":{value}' for name, value in record.items()) + "}"


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        ("", 400, "bad_request"),
        ("{", 400, "bad_request"),
        ("null", 400, "bad_request"),
        ("[]", 400, "bad_request"),
        (b"\xff\xfe{}", 400, "bad_request"),
        ("[" * 100_000, 400, "bad_request"),
        (raw(SEALED % DEEP), 400, "bad_request"),
        (raw(SEALED % "NaN"), 400, "bad_request"),
        (raw(SEALED % "-Infinity"), 400, "bad_request"),
        (raw(SEALED % ("9" * 5_000)), 400, "bad_request"),
        (raw(SEALED % '{"a":1,"a":2}'), 400, "bad_request"),
        (raw() + "x", 400, "bad_request"),
        (raw(first_seq="-1"), 400, "bad_request"),
        (raw(first_seq="0.0"), 400, "bad_request"),
        (raw(first_seq="true"), 400, "bad_request"),
        (raw(first_seq='"0"'), 400, "bad_request"),
        (raw(first_seq=str(2**53)), 400, "bad_request"),
        (raw(writer_id='"AB"'), 400, "bad_request"),
        (raw(writer_id=f'"{"AB" * 16}"'), 400, "bad_request"),
        (raw(writer_id=f'"{WRITER}\\n"'), 400, "bad_request"),
        (raw(writer_id="7"), 400, "bad_request"),
        (raw(recorded_at='"yesterday"'), 400, "bad_request"),
        (raw(recorded_at='"2026-13-20T10:15:00Z"'), 400, "bad_request"),
        (raw(recorded_at='"2026-11-20T10:15:00Z\\n"'), 400, "bad_request"),
        (raw(recorded_at='"\u0662026-11-20T10:15:00Z"'), 400, "bad_request"),
        (raw(recorded_at="null"), 400, "bad_request"),
        (raw(events=""), 400, "bad_request"),
        (raw(events="7"), 400, "bad_request"),
        (raw(events=",".join(['{"kind":"x","fields":{}}'] * 1_001)), 400, "bad_request"),
        (raw('{"kind":"metrics.logged"}'), 400, "bad_request"),
        (raw('{"kind":["a"],"fields":{}}'), 400, "bad_request"),
        (raw('{"kind":"\\ud800","fields":{}}'), 400, "bad_request"),
        (raw('{"kind":"metrics.logged","fields":{"\\ud800":1}}'), 400, "bad_request"),
        (raw('{"kind":"metrics.logged","fields":[]}'), 400, "bad_request"),
        (raw('{"kind":"metrics.logged","fields":{},"surplus":1}'), 400, "bad_request"),
        (raw(SEALED % '1,"x":2' + "}"), 400, "bad_request"),
        (raw(SEALED[:-1] % 1 + ',"subject":"\\ud800"}'), 400, "bad_request"),
        (raw(SEALED[:-1] % 1 + ',"subject":7}'), 400, "bad_request"),
        (raw(SEALED[:-1] % 1 + f',"subject":"{"x" * 1_001}"}}'), 400, "bad_request"),
        (raw(surplus="1"), 400, "bad_request"),
        (raw(**{"x" * 100_000: "1"}), 400, "bad_request"),
        (raw('{"kind":"no.such","fields":{}}'), 422, "invalid_event"),
        (raw('{"kind":"metrics.logged","fields":{}}'), 422, "invalid_event"),
        (raw('{"kind":"metrics.logged","fields":{"step":true}}'), 422, "invalid_event"),
        (raw('{"kind":"metrics.logged","fields":{"step":1,"more":2}}'), 422, "invalid_event"),
        (raw(SEALED % "1e999"), 422, "invalid_event"),
        (raw(SEALED % '"\\ud800"'), 422, "invalid_event"),
        (raw(SEALED % '{"\\ud800":1}'), 422, "invalid_event"),
        (raw('{"kind":"run.config","fields":{"config":{"a":1e999}}}'), 422, "invalid_event"),
        (
            raw('{"kind":"run.config","fields":{"config":{"a":"' + "x" * 70_000 + '"}}}'),
            422,
            "entry_too_large",
        ),
        ("x" * (BODY_BYTES_MAX + 1), 413, "body_too_large"),
    ],
)
def test_hostile_bodies_get_a_typed_answer_and_store_nothing(
    own, client, token, log, content, status, code
):
    def stored():
        with own.engine.connect() as connection:
            processes = connection.scalar(
                select(func.count())
                .select_from(RemoteWriterRow)
                .where(RemoteWriterRow.__table__.c.writer_id != WRITER)
            )
        return log.size, processes

    before = stored()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    answer = client.post(PATH, content=content, headers=headers)
    check(answer, status, code)
    assert len(answer.content) < 2_000
    assert stored() == before


def test_a_bad_event_takes_its_whole_request_with_it(client, token, log, writer_id):
    size = log.size
    record = body(writer_id)
    record["events"].append({"kind": "no.such", "fields": {}})
    check(send(client, token, record), 422, "invalid_event")
    assert log.size == size
    assert send(client, token, body(writer_id)).json()["indices"] == [size, size + 1, size + 2]


def test_large_sealed_values_pass_up_to_the_limit(client, token, log, writer_id):
    record = body(writer_id, events=[annotation(0) | {"sealed": {"prompt": "x" * 7_000_000}}])
    index = send(client, token, record).json()["indices"][0]
    assert len(log.opened(index)["prompt"]) == 7_000_000
    assert len(log.read(index).data) < 1_000


def test_the_description_is_whole(client):
    described = client.get("/api/v1/openapi.json").json()
    operation = described["paths"]["/api/v1/logs/{run}/entries"]["post"]
    assert operation["security"] == [{"writer token": []}]
    assert described["components"]["securitySchemes"]["writer token"]["scheme"] == "bearer"
    assert {"401", "403", "404", "409", "413", "422"} <= set(operation["responses"])
    schemas = described["components"]["schemas"]
    text = json.dumps(described)
    for reference in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert reference in schemas
    assert "$defs" not in text
    readers = described["paths"]["/api/v1/logs/{run}/entries"]["get"]
    assert "security" not in readers


def test_client_and_service_agree_on_the_limit():
    assert REQUEST_BYTES_MAX == BODY_BYTES_MAX
