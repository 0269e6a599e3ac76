"""A witness over HTTP: `add-checkpoint` for logs, and what it holds for monitors.

The decisions are made in `ledger/witness.py`; here each becomes a status, by one table.
Reference: c2sp.org/tlog-witness.
"""

from __future__ import annotations

from typing import Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError, MalformedBundle
from rlhf_audit_trail.ledger.witness import (
    Stale,
    UnknownLog,
    Untrusted,
    Unverifiable,
    Witness,
    WitnessStoreError,
)
from rlhf_audit_trail.ledger.witness_request import MAX_REQUEST_BYTES, SIZE_TYPE

__all__ = ["STATUS", "create_witness_app"]

STATUS: Final[dict[type[AuditTrailError], int]] = {
    MalformedBundle: 400,
    Untrusted: 403,
    UnknownLog: 404,
    Stale: 409,
    Unverifiable: 422,
    WitnessStoreError: 503,
}
_TOO_LARGE: Final = 413


def create_witness_app(witness: Witness) -> Starlette:
    """Make the service; submission prefix and monitoring prefix are both its root."""

    async def add_checkpoint(request: Request) -> Response:
        body = await _body(request)
        if body is None:
            headers = {"Connection": "close"}  # else the rest would still be read, for nothing
            return PlainTextResponse("request too large\n", _TOO_LARGE, headers)
        try:
            lines = await run_in_threadpool(witness.add_checkpoint, body)
        except Stale as error:
            # a Response adds no charset to a type that it is given whole
            return Response(f"{error.size}\n", STATUS[Stale], {"Content-Type": SIZE_TYPE})
        except AuditTrailError as error:
            return _refusal(error)
        return PlainTextResponse(lines)

    async def checkpoint(request: Request) -> Response:
        try:
            note = await run_in_threadpool(witness.latest, request.path_params["origin_hash"])
        except WitnessStoreError as error:
            return _refusal(error)
        if note is None:
            return PlainTextResponse("no tree head of this log was cosigned here\n", 404)
        return PlainTextResponse(note, headers={"Cache-Control": "no-store"})

    app = Starlette(
        routes=[
            Route("/add-checkpoint", add_checkpoint, methods=["POST"]),
            Route("/{origin_hash}/checkpoint", checkpoint, methods=["GET"]),
        ],
    )
    app.router.redirect_slashes = False  # one address for one thing
    return app


def _refusal(error: AuditTrailError) -> Response:
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    return PlainTextResponse(f"{error.message}\n", status)


async def _body(request: Request) -> bytes | None:
    """Return the whole body, or None when it is larger than the limit, whatever it says."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_REQUEST_BYTES:
            return None
    return bytes(body)
