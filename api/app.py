"""The service: one ledger's public side over HTTP, and a verifier for anybody's bundle."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

from anyio import CapacityLimiter
from fastapi import APIRouter, Depends, FastAPI
from sqlalchemy import text

from rlhf_audit_trail.api import append, c2sp, logs, proofs, verify, verify_page, writing
from rlhf_audit_trail.api.asking import LedgerOfApp, refuse_unknown
from rlhf_audit_trail.api.chain_parts import ChainParts
from rlhf_audit_trail.api.limits import Limits
from rlhf_audit_trail.api.models import AppendRequest, Health
from rlhf_audit_trail.api.problems import Problem, StoreUnavailable, describe, install
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.store.errors import StoreError
from rlhf_audit_trail.ledger.tokens import WriterTokens

__all__ = ["create_app"]

_DESCRIPTION = """\
The public side of an RLHF audit ledger: signed tree heads, tiles, entries, proofs and
bundles, and a verifier; whoever has a writer token also
appends here. Everything here is checked best on your own machine, with keys
that you got elsewhere: `rlhf-audit verify FILE --key KEY`. No sealed value leaves here.
"""

router = APIRouter(tags=["service"])


@router.get("/api/v1/health", summary="Whether the service can read its ledger")
def health(ledger: LedgerOfApp) -> Health:
    """Answer 200 when the database answers."""
    with ledger.engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    return Health(
        status="ok",
        version=version("rlhf-audit-trail"),
        organisation=ledger.settings.organisation,
        runs=len(ledger.runs()),
    )


def create_app(ledger: Ledger) -> FastAPI:
    """Make the service for an open ledger, which the caller closes after the service ended."""
    app = FastAPI(
        title="RLHF Audit Trail",
        description=_DESCRIPTION,
        version=version("rlhf-audit-trail"),
        openapi_url="/api/v1/openapi.json",
        docs_url=None,  # the framework's pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # one address for one thing
        dependencies=[Depends(refuse_unknown)],
        responses=describe(400, 405, 500, StoreError, StoreUnavailable),
    )
    app.state.ledger = ledger
    app.state.chain_parts = ChainParts(ledger)
    app.state.tokens = WriterTokens(ledger)
    app.state.appending = CapacityLimiter(append.APPENDS_AT_ONCE_MAX)
    for part in (
        router,
        c2sp.router,
        logs.router,
        append.router,
        writing.router,
        proofs.router,
        verify.router,
        verify_page.router,
    ):
        app.include_router(part)
    app.add_middleware(Limits)
    install(app)
    app.openapi = partial(_openapi, app, app.openapi)  # type: ignore[method-assign]  # FastAPI's documented way
    return app


def _openapi(app: FastAPI, generate: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Add the schemas of errors and of what is appended, which routes read and write themselves."""
    if app.openapi_schema is None:
        schema = generate()
        schemas = schema["components"]["schemas"]
        schemas["Problem"] = Problem.model_json_schema()
        asked = AppendRequest.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= asked.pop("$defs") | {"AppendRequest": asked}
    return generate()
