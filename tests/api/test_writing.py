"""What a writer asks beside appending: where its run stands, and a signature."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from rlhf_audit_trail.api import create_app
from rlhf_audit_trail.ledger.bearer import new_token
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.tokens import WriterTokens


@pytest.fixture
def own(tmp_path):
    """A ledger that these tests write to."""
    with Ledger.create(tmp_path / "ledger", organisation="acme.example") as opened:
        yield opened


@pytest.fixture
def tokens(own):
    return WriterTokens(own)


@pytest.fixture
def stranger(tokens):
    """A token for another run."""
    return tokens.grant("stranger", "elsewhere")


@pytest.fixture
def client(own):
    with TestClient(create_app(own), raise_server_exceptions=False) as opened:
        yield opened


def metrics(number):
    return Event("metrics.logged", {"step": number}, {"metrics": {"loss": 0.5}})


def check(answer, status, code):
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_where_a_run_stands_is_told_to_its_writers_only(own, client, tokens, stranger):
    log = own.open_run("standing")
    made = tokens.grant("standing", "standing")
    path = "/api/v1/logs/standing/progress"
    nothing = {"size": 0, "is_closed": False, "policy_step": 0, "batch": 0}
    assert ask(client, made, path).json() == nothing | {"tree_head": f"{log.origin}\n0\n"}
    update = {"policy_step": 3, "updates": 1, "algorithm": "ppo", "delta_norm_kind": "absent"}
    log.record_many(
        [
            Event("policy.update", update | {"rows": 1, "learning_rate": None}),
            Event("annotation.recorded", {"source": "simulated", "batch": 7}, {"reward": 1.0}),
            metrics(1),
        ]
    )[-1].result()
    head = log.publish().head
    log.close()
    found = {"size": 3, "is_closed": True, "policy_step": 3, "batch": 7}
    assert ask(client, made, path).json() == found | {"tree_head": head.text}
    check(ask(client, stranger, path), 403, "not_permitted")
    check(ask(client, new_token(), path), 401, "bad_token")
    check(client.get(path), 401, "bad_token")
    check(ask(client, tokens.grant("any-run"), "/api/v1/logs/none/progress"), 404, "log_missing")
    check(ask(client, made, "/api/v1/logs/registry/progress"), 403, "not_permitted")


def test_a_writer_has_what_is_durable_signed(own, client, tokens, stranger):
    log = own.open_run("signed")
    made = tokens.grant("signed", "signed")
    path = "/api/v1/logs/signed/tree-head"
    log.record(metrics(1)).result()
    check(ask(client, stranger, path, "POST"), 403, "not_permitted")
    check(client.post(path), 401, "bad_token")
    assert log.published() is None
    answers = [ask(client, made, path, "POST").json() for _ in range(2)]
    assert answers[0] == answers[1]
    assert (answers[0]["size"], answers[0]["note"]) == (1, str(log.published().note))
    assert log.published_sizes() == [1]


def ask(client, token, path, method="GET"):
    return client.request(method, path, headers={"Authorization": f"Bearer {token}"})
