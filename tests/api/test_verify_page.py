"""`/verify`: the page as it ships, closed, and kept by browsers until it changes."""

from __future__ import annotations

from rlhf_audit_trail.ledger.page import page


def test_the_page_is_served_as_it_ships(client):
    answer = client.get("/verify")
    assert (answer.status_code, answer.content) == (200, page())
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"
    assert answer.headers["cache-control"] == "public, no-cache"


def test_its_header_forbids_what_the_page_forbids_and_framing(client):
    policy = client.get("/verify").headers["content-security-policy"]
    start, end = "default-src 'none'; script-src 'sha256-", "; frame-ancestors 'none'"
    assert policy.startswith(start)
    assert policy.endswith(end)
    assert policy.removesuffix(end).encode() in page()


def test_who_has_the_page_is_not_sent_it_again(client):
    tag = client.get("/verify").headers["etag"]
    again = client.get("/verify", headers={"If-None-Match": f'"other", W/{tag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert client.get("/verify", headers={"If-None-Match": '"other"'}).status_code == 200


def test_it_takes_no_parameter(client):
    assert client.get("/verify?bundle=x").json()["code"] == "unknown_parameter"


def test_openapi_tells_of_it(app):
    described = app.openapi()["paths"]["/verify"]["get"]
    assert "text/html" in described["responses"]["200"]["content"]
