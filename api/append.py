"""Appending over HTTP: other machines write to a run with a writer token.

Values travel in clear inside the request and are sealed here, so the way to this service must be
TLS or a private network. An answer is sent only when the entries are durable; who got none sends
the same again, and learns the same indices.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Final

from anyio import to_thread
from fastapi import APIRouter, Depends, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import ValidationError
from starlette.responses import Response

from rlhf_audit_trail.api.asking import LedgerOfApp, find_log
from rlhf_audit_trail.api.models import AppendRequest, AppendResult
from rlhf_audit_trail.api.problems import (
    BadRequest,
    BodyTooLarge,
    describe,
    problem_response,
)
from rlhf_audit_trail.ledger.bearer import TOKEN_PREFIX, require_permitted
from rlhf_audit_trail.ledger.events import EntryTooLarge, Event, InvalidEvent
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.proof.bundle import parse_json
from rlhf_audit_trail.ledger.proof.errors import MalformedBundle
from rlhf_audit_trail.ledger.refusals import (
    BadToken,
    ConflictingEntry,
    LogMissing,
    NotPermitted,
    RunClosed,
    SequenceGap,
)
from rlhf_audit_trail.ledger.tokens import WriterTokens
from rlhf_audit_trail.ledger.writer import AppendFailed, Overloaded, WriterClosed

__all__ = ["APPENDS_AT_ONCE_MAX", "bearer", "router"]

APPENDS_AT_ONCE_MAX: Final = 16
"""Each holds a thread until its entries are durable; the readers' threads are others."""

router = APIRouter(prefix="/api/v1/logs", tags=["writers"])

bearer = HTTPBearer(
    auto_error=False,
    scheme_name="writer token",
    bearerFormat=f"{TOKEN_PREFIX}...",
    description="Made by `rlhf-audit writer add NAME --run RUN`.",
)
_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/AppendRequest"}}},
    }
}


@router.post(
    "/{run}/entries",
    summary="Append entries",
    response_model=AppendResult,
    openapi_extra=_BODY,
    responses=describe(
        BadToken, NotPermitted, LogMissing, ConflictingEntry, SequenceGap, RunClosed, BodyTooLarge,
        InvalidEvent, EntryTooLarge, AppendFailed, Overloaded, WriterClosed,
    ),
)  # fmt: skip
async def append(
    run: Annotated[str, Path(description="Run id.", examples=["run42"])],
    request: Request,
    ledger: LedgerOfApp,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> Any:
    """Make a writer's events durable, in order, all or none; answer with their leaf indices.

    A writer counts its events from 0 and says the first one's number. What is stored under the
    same writer and number keeps its index, if it is the same; other content is 409
    `conflicting_entry`, and a number past the next one 409 `sequence_gap`, with `expected`.
    """
    token = credentials.credentials if credentials else ""
    state = request.app.state
    work = partial(_append, ledger, state.tokens, run, token, await request.body())
    return await to_thread.run_sync(work, limiter=state.appending)


def _append(
    ledger: Ledger, tokens: WriterTokens, run: str, token: str, body: bytes
) -> AppendResult | Response:
    """Do it, in a thread that may wait; who may not append is not read any further."""
    writer = tokens.authenticate(token)
    writer.require_run(run)
    log = find_log(ledger, run)
    asked = _parse(body)
    events = [Event(x.kind, x.fields, x.sealed, x.subject) for x in asked.events]
    for event in events:
        require_permitted(event, asked.writer_id)
    tokens.admit(writer, log, asked.writer_id)
    try:
        indices = log.append_as(asked.writer_id, asked.first_seq, events, asked.recorded_at)
    except SequenceGap as error:
        return problem_response(error, expected=error.expected)
    return AppendResult(indices=indices, size=log.size)


def _parse(body: bytes) -> AppendRequest:
    """Read a body strictly: the same key twice, or NaN, is refused and not interpreted.

    Raises:
        BadRequest: it is no JSON.
        RequestValidationError: it is not of this form; named without its values.
    """
    try:
        return AppendRequest.model_validate(parse_json(body))
    except MalformedBundle as error:
        raise BadRequest(error.message) from error
    except ValidationError as error:
        raise RequestValidationError(
            error.errors(include_url=False, include_context=False, include_input=False)
        ) from error
