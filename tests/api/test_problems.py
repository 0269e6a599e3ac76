"""Every error has one shape, one code, and is described."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import create_engine

from rlhf_audit_trail.api import create_app
from rlhf_audit_trail.api.problems import STATUS, code_of
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.store.transactions import equip

LOG = "/api/v1/logs/run42"
BIG = b"x" * (8 * 1024 * 1024 + 1)


def check(answer, status, code):
    """Return the body of a problem after judging its form."""
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    body = answer.json()
    assert {"type", "title", "status", "detail", "code", "next"} <= set(body)
    assert (answer.status_code, body["status"], body["code"]) == (status, status, code)
    assert body["type"] == f"urn:rlhf-audit:problem:{code}"
    assert body["title"].endswith(".")
    assert body["detail"]
    return body


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "no_such_path"),
        ("GET", "/rlhf/run42/checkpoint%0a", 404, "no_such_path"),
        ("GET", "/docs", 404, "no_such_path"),
        ("GET", "/api/v1/logs/", 404, "no_such_path"),
        ("GET", "/api/v1/logs/nobody", 404, "log_missing"),
        ("GET", "/api/v1/logs/nobody/entries", 404, "log_missing"),
        ("GET", f"{LOG}/entries/605", 404, "entry_missing"),
        ("GET", f"{LOG}/entries/605/proof", 404, "entry_missing"),
        ("GET", f"{LOG}/entries/9007199254740991/bundle", 404, "entry_missing"),
        ("GET", f"{LOG}/entries/9007199254740992", 400, "bad_request"),
        ("GET", f"{LOG}/entries/-1", 400, "bad_request"),
        ("GET", f"{LOG}/entries/three", 400, "bad_request"),
        ("GET", f"{LOG}/entries?limit=0", 400, "bad_request"),
        ("GET", f"{LOG}/entries?limit=501", 400, "bad_request"),
        ("GET", f"{LOG}/entries?after=-1", 400, "bad_request"),
        ("GET", f"{LOG}/entries?limit=5&limit=6", 400, "bad_request"),
        ("GET", f"{LOG}/entries?offset=5", 400, "unknown_parameter"),
        ("GET", f"{LOG}?x", 400, "unknown_parameter"),
        ("GET", "/rlhf/run42/checkpoint?cache=no", 400, "unknown_parameter"),
        ("GET", "/rlhf/run42/tile/0/000?x=1", 400, "unknown_parameter"),
        ("GET", "/api/v1/health?verbose=1", 400, "unknown_parameter"),
        ("GET", f"{LOG}/consistency", 400, "bad_request"),
        ("GET", f"{LOG}/consistency?old=0&new=5", 400, "bad_request"),
        ("GET", f"{LOG}/consistency?old=6&new=5", 400, "bad_request"),
        ("GET", f"{LOG}/consistency?old=1&new=605", 409, "not_published"),
        ("GET", f"{LOG}/consistency?old=1&new=606", 404, "entry_missing"),
        ("PUT", f"{LOG}", 405, "method_not_allowed"),
        ("GET", "/api/v1/verify", 405, "method_not_allowed"),
        ("POST", "/rlhf/run42/checkpoint", 405, "method_not_allowed"),
    ],
)
def test_each_mistake_has_its_code(client, method, path, status, code):
    check(client.request(method, path), status, code)


def test_an_unknown_parameter_is_named_beside_the_known_ones(client):
    body = check(client.get(f"{LOG}/entries?ofset=5"), 400, "unknown_parameter")
    assert "'ofset'" in body["detail"]
    assert body["next"] == "known here: after, limit"


@pytest.mark.parametrize("what", ["", "/proof", "/proof.tlog-proof", "/bundle"])
def test_not_signed_yet_says_when_to_ask_again(client, what):
    for path in (f"{LOG}/entries/600{what}", f"/api/v1/logs/unsigned/entries/0{what}"):
        answer = client.get(path)
        check(answer, 409, "not_published")
        assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"run": "run42", "indices": []}, 400, "bad_request"),
        ({"run": "run42", "indices": [-1]}, 400, "bad_request"),
        ({"run": "run42", "indices": [True]}, 400, "bad_request"),
        ({"run": "run42", "indices": ["1"]}, 400, "bad_request"),
        ({"run": "run42", "indices": list(range(1001))}, 400, "bad_request"),
        ({"run": "run42", "indices": [1], "opened": ["prompt"]}, 400, "bad_request"),
        ({"run": "nobody", "indices": [1]}, 404, "log_missing"),
        ({"run": "run42", "indices": [1, 605]}, 404, "entry_missing"),
        ({"run": "run42", "indices": [1, 604]}, 409, "not_published"),
    ],
)
def test_bundles_that_cannot_be_made(client, body, status, code):
    check(client.post("/api/v1/bundles", json=body), status, code)


@pytest.mark.parametrize("path", ["/api/v1/verify", "/api/v1/bundles", f"{LOG}/entries"])
def test_a_body_over_the_limit_is_refused_declared_or_not(client, path):
    kind = {"Content-Type": "application/json"}
    check(client.post(path, content=BIG, headers=kind), 413, "body_too_large")
    check(
        client.post(path, content=iter([BIG[: len(BIG) // 2]] * 3), headers=kind),
        413,
        "body_too_large",
    )


def test_a_body_at_the_limit_is_read(client):
    text = '{"bundle":"' + "x" * (8 * 1024 * 1024 - 13) + '"}'
    answer = client.post(
        "/api/v1/verify", content=text, headers={"Content-Type": "application/json"}
    )
    assert len(text) == 8 * 1024 * 1024
    check(answer, 400, "malformed_bundle")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"null", b"[" * 100_000])
def test_bodies_that_are_no_json(client, content):
    kind = {"Content-Type": "application/json"}
    check(client.post("/api/v1/verify", content=content, headers=kind), 400, "bad_request")


def test_deep_bodies_are_refused_although_web3_raised_the_recursion_limit(client):
    import web3  # noqa: F401 - its import alone raises the limit to more than the stack holds

    kind = {"Content-Type": "application/json"}
    for content in (b"[" * 100_000, b'{"bundle":' + b'{"a":' * 100_000):
        check(client.post("/api/v1/verify", content=content, headers=kind), 400, "bad_request")


def test_no_refused_value_is_repeated(client):
    answer = client.post("/api/v1/verify", json={"bundle": ["a private thing"]})
    assert "private" not in answer.text


def test_every_route_describes_its_errors_and_nothing_else(app):
    described = app.openapi()
    assert set(described["components"]["schemas"]["Problem"]["required"]) == {
        "type", "title", "status", "detail", "code", "next",
    }  # fmt: skip
    assert "HTTPValidationError" not in described["components"]["schemas"]
    known = {str(status) for status in STATUS.values()} | {"default"}
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            errors = {k: v for k, v in operation["responses"].items() if not k.startswith("2")}
            needed = {"400", "405", "500", "503", "default"}
            needed |= {"404"} if "{run}" in path or path.endswith("/bundles") else set()
            needed |= {"409"} if "{index}" in path or "consistency" in path else set()
            needed |= {"413"} if method == "post" else set()
            assert needed <= set(errors) <= known, path
            for response in errors.values():
                assert list(response["content"]) == ["application/problem+json"]
                assert response["content"]["application/problem+json"]["schema"] == {
                    "$ref": "#/components/schemas/Problem"
                }
            assert operation["summary"]
            assert operation["tags"]
            assert any(k.startswith("2") for k in operation["responses"])


def test_every_code_of_the_table_is_described(app):
    text = str(app.openapi()["paths"])
    for error in STATUS:
        assert code_of(error) in text


def test_the_description_is_the_same_each_time(client, app):
    assert client.get("/api/v1/openapi.json").json() == client.get("/api/v1/openapi.json").json()
    assert app.openapi() == app.openapi()


@pytest.fixture
def broken(tmp_path, ledger):
    """A service over a copy of the ledger, which the test then damages."""
    source = tmp_path / "copy"
    shutil.copytree(ledger.directory, source)
    with Ledger.open(source) as opened:
        opened.find("run42")
        with TestClient(create_app(opened), raise_server_exceptions=False) as client:
            yield source, opened, client


def test_damage_met_while_serving_is_a_500_that_names_it(broken):
    directory, _, client = broken
    with closing(sqlite3.connect(directory / "ledger.db")) as connection, connection:
        connection.execute("DELETE FROM entry WHERE log_number = 2 AND leaf_index = 590")
    check(client.get(f"{LOG}/entries/599/proof"), 500, "forked")
    check(client.get("/rlhf/run42/tile/0/002.p/88"), 500, "forked")


def test_a_database_that_cannot_be_read_is_a_503_without_the_drivers_words(broken, monkeypatch):
    directory, opened, client = broken
    lost = create_engine(f"sqlite:///{directory}/no/such.db")
    equip(lost)
    monkeypatch.setattr(opened, "engine", lost)
    body = check(client.get("/api/v1/health"), 503, "store_unavailable")
    assert "such.db" not in str(body)


def test_an_unexpected_error_is_a_500_without_its_words(broken, monkeypatch):
    _, opened, client = broken

    def fail():
        raise RuntimeError("a private thing")

    monkeypatch.setattr(opened, "runs", fail)
    body = check_internal(client.get("/api/v1/logs"))
    assert "private" not in str(body)


def check_internal(answer):
    """As `check`; what fails outside all wrappers has no further headers."""
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert (answer.status_code, body["code"]) == (500, "internal_error")
    return body


def test_the_service_imports_neither_torch_nor_web3():
    program = (
        "import sys; import rlhf_audit_trail.api; "
        "bad = {'torch', 'web3', 'eth_account', 'transformers', 'numpy'} & set(sys.modules); "
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
