"""Errors over HTTP: one table from error class to status, one body for all of them.

Every error is `application/problem+json` (RFC 9457) with a stable `code`, one sentence,
and the next step. The table decides; routes only raise.
"""

from __future__ import annotations

import re
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from rlhf_audit_trail.api.chain_parts import ChainUnavailable
from rlhf_audit_trail.ledger.chain.evidence.making import NoEvidence
from rlhf_audit_trail.ledger.events import EntryTooLarge, InvalidEvent
from rlhf_audit_trail.ledger.guard import PeersUnreachable
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError, MalformedBundle
from rlhf_audit_trail.ledger.reading import (
    EntryMissing,
    Forked,
    NotPublished,
    Pruned,
    RolledBack,
)
from rlhf_audit_trail.ledger.refusals import (
    BadToken,
    ConflictingEntry,
    LogMissing,
    NotPermitted,
    RunClosed,
    SequenceGap,
)
from rlhf_audit_trail.ledger.store.database import StoreError
from rlhf_audit_trail.ledger.trust import InvalidTrust
from rlhf_audit_trail.ledger.writer import AppendFailed, Overloaded, WriterClosed

__all__ = [
    "PROBLEM_TYPE",
    "STATUS",
    "BadRequest",
    "BodyTooLarge",
    "LogMissing",
    "MethodNotAllowed",
    "NoSuchPath",
    "Problem",
    "StoreUnavailable",
    "TileMissing",
    "UnknownParameter",
    "describe",
    "install",
    "problem_response",
]

PROBLEM_TYPE: Final = "application/problem+json"
RETRY_AFTER_S: Final = 5  # heads are signed on demand or by a schedule: ask again soon
_URN: Final = "urn:rlhf-audit:problem:"
_ASK_OPERATOR: Final = "ask the operator for the archive, and check it by its digest"


class BadRequest(AuditTrailError):
    """The request is not what this address takes."""


class UnknownParameter(BadRequest):
    """The request has a query parameter that nothing reads."""


class NoSuchPath(AuditTrailError):
    """There is nothing at this address."""


class MethodNotAllowed(AuditTrailError):
    """This address does not take this method."""


class TileMissing(AuditTrailError):
    """The newest signed tree head has no such tile, or there is no signed tree head yet."""


class BodyTooLarge(AuditTrailError):
    """The request's body is larger than the limit."""


class StoreUnavailable(AuditTrailError):
    """The ledger's database cannot be read now."""


class InternalError(AuditTrailError):
    """The service failed; the request is not at fault."""


STATUS: Final[dict[type[AuditTrailError], int]] = {
    BadRequest: 400,
    UnknownParameter: 400,
    InvalidTrust: 400,
    MalformedBundle: 400,
    BadToken: 401,
    NotPermitted: 403,
    NoSuchPath: 404,
    LogMissing: 404,
    EntryMissing: 404,
    TileMissing: 404,
    MethodNotAllowed: 405,
    NotPublished: 409,
    NoEvidence: 409,
    ConflictingEntry: 409,
    SequenceGap: 409,
    RunClosed: 409,
    Pruned: 410,
    BodyTooLarge: 413,
    InvalidEvent: 422,
    EntryTooLarge: 422,
    RolledBack: 500,
    Forked: 500,
    InternalError: 500,
    StoreError: 503,
    StoreUnavailable: 503,
    PeersUnreachable: 503,
    ChainUnavailable: 503,
    AppendFailed: 503,
    Overloaded: 503,
    WriterClosed: 503,
}
"""The one table; a class that is not in it takes the status of its nearest base, or 500."""


class Problem(BaseModel):
    """An error, RFC 9457 with two members of our own, `code` and `next`."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="URN of the kind of problem.", examples=[f"{_URN}not_published"])
    title: str = Field(
        description="The kind of problem, one sentence.",
        examples=["No signed tree head covers these entries yet."],
    )
    status: int = Field(description="The HTTP status, repeated.", examples=[409])
    detail: str = Field(
        description="What is wrong with this request, one sentence.",
        examples=["entry 700 is not under a signed tree head yet"],
    )
    code: str = Field(description="Stable name of the kind.", examples=["not_published"])
    next: str = Field(
        description="What to do about it; may be empty.", examples=["ask again in 5 seconds"]
    )


def describe(*statuses: int | type[AuditTrailError]) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of error responses; `default` covers the unexpected.

    A status stands for all errors that have it; where a route raises some of them, name those.
    """
    content = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    codes: dict[int, list[str]] = {}
    for error, status in STATUS.items():
        if status in statuses or error in statuses:
            codes.setdefault(status, []).append(code_of(error))
    described: dict[int | str, dict[str, Any]] = {}
    for status, names in sorted(codes.items()):
        described[status] = {"description": "code: " + ", ".join(names), "content": content}
    described["default"] = {"description": "Any other error.", "content": content}
    return described


def code_of(error: type[AuditTrailError]) -> str:
    """Return an error class's stable name, for example `entry_missing`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", error.__name__).lower()


def problem_response(error: AuditTrailError, **more: Any) -> JSONResponse:
    """Return the response for an error; `more` are further members of the body."""
    kind = next((base for base in type(error).__mro__ if base in STATUS), InternalError)
    status, code = STATUS[kind], code_of(kind)
    body = {
        "type": _URN + code,
        "title": (kind.__doc__ or code).split("\n", 1)[0],
        "status": status,
        "detail": error.message,
        "code": code,
        # where an archive is on our machine is nobody's business out there
        "next": _ASK_OPERATOR if kind is Pruned else error.next_step,
    }
    headers = {"Cache-Control": "no-store"}
    if kind in (NotPublished, ChainUnavailable) or issubclass(kind, AppendFailed):
        headers["Retry-After"] = str(RETRY_AFTER_S)
    if kind is BadToken:
        headers["WWW-Authenticate"] = "Bearer"  # which HTTP demands beside a 401
    return JSONResponse(more | body, status, headers, media_type=PROBLEM_TYPE)


def install(app: FastAPI) -> None:
    """Have every error of the app answered by a problem."""

    def ours(_: Request, error: Exception) -> JSONResponse:
        if isinstance(error, AuditTrailError):
            return problem_response(error)
        return problem_response(InternalError("the service failed"))

    def store(_: Request, __: Exception) -> JSONResponse:
        # the driver's words may quote a statement: they belong in the service's own log
        return problem_response(
            StoreUnavailable("the ledger's database cannot be read", next_step="try again later")
        )

    def invalid(_: Request, error: Exception) -> JSONResponse:
        return problem_response(_invalid(error))

    def http(_: Request, error: Exception) -> JSONResponse:
        return _http(error)

    app.add_exception_handler(AuditTrailError, ours)
    app.add_exception_handler(Exception, ours)
    app.add_exception_handler(SQLAlchemyError, store)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def _invalid(error: Exception) -> BadRequest:
    """Name the first parameter or field at fault; its value is never repeated."""
    found = error.errors() if isinstance(error, RequestValidationError) else []
    first = found[0] if found else {"loc": (), "msg": "not valid"}
    where = ".".join(str(part) for part in first["loc"])
    return BadRequest(
        f"{where:.200}: {first['msg']}", next_step="see /api/v1/openapi.json for what is taken"
    )


def _http(error: Exception) -> JSONResponse:
    """Answer what the framework itself refused: no route, wrong method, unreadable body."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = (error.headers if isinstance(error, HTTPException) else None) or {}
    if status == 404:  # noqa: PLR2004 - HTTP
        answer = problem_response(
            NoSuchPath("there is nothing at this address", next_step="see /api/v1/openapi.json")
        )
    elif status == 405:  # noqa: PLR2004 - HTTP
        allowed = headers.get("Allow", "another method")
        answer = problem_response(MethodNotAllowed(f"use {allowed} here"))
    elif status < 500:  # noqa: PLR2004 - HTTP
        answer = problem_response(BadRequest("the request cannot be read"))
    else:
        answer = problem_response(InternalError("the service failed"))
    answer.headers.update(headers)
    return answer
