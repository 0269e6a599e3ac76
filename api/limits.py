"""ASGI wrapper: bounds a request's body in size and depth, and marks every response."""

from __future__ import annotations

from typing import Final

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rlhf_audit_trail.api.problems import BadRequest, BodyTooLarge, problem_response
from rlhf_audit_trail.ledger.proof.bundle import check_depth
from rlhf_audit_trail.ledger.proof.errors import MalformedBundle

__all__ = ["BODY_BYTES_MAX", "Limits"]

BODY_BYTES_MAX: Final = 8 * 1024 * 1024


class Limits:
    """Reads a body up to the limit before the app sees it, whatever length was declared."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap `app`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 413 or 400, or pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                # what was logged is anybody's text: no browser shall take it for a page
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        body = await _read(scope, receive)
        if body is None:
            error = BodyTooLarge(
                f"a body is at most {BODY_BYTES_MAX:,} bytes",
                next_step="send less at once, or verify on your machine: rlhf-audit verify FILE",
            )
            answer = problem_response(error)
            answer.headers["Connection"] = "close"  # else the rest would still be read, for nothing
            await answer(scope, receive, marked)
            return
        try:
            # the framework's own parser recurses as deep as the process allows, and importing
            # web3 alone raises that to 100,000: more than the stack holds
            if body:
                await run_in_threadpool(check_depth, body)  # others are answered meanwhile
        except MalformedBundle as error:
            await problem_response(BadRequest(error.message))(scope, receive, marked)
            return
        await self._app(scope, _replay(body, receive), marked)


async def _read(scope: Scope, receive: Receive) -> bytes | None:
    """Return the whole body, or None when it is, or says to be, larger than the limit."""
    declared = Headers(scope=scope).get("content-length", "0")
    if declared.isdecimal() and int(declared) > BODY_BYTES_MAX:
        return None
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > BODY_BYTES_MAX:
            return None
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
