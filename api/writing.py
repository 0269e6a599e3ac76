"""What a writer with a token asks beside appending: where its run stands, and a signature."""

# ruff: noqa: FAST003 - the dependency `_permitted` reads `run`; ruff does not see that

from __future__ import annotations

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Depends, Path, Request
from fastapi.security import HTTPAuthorizationCredentials

from rlhf_audit_trail.api.append import bearer
from rlhf_audit_trail.api.asking import LedgerOfApp, find_log
from rlhf_audit_trail.api.logs import tree_head
from rlhf_audit_trail.api.models import RunProgress, TreeHead
from rlhf_audit_trail.api.problems import BodyTooLarge, describe
from rlhf_audit_trail.ledger.guard import PeersUnreachable
from rlhf_audit_trail.ledger.log import Log
from rlhf_audit_trail.ledger.progress import progress_of
from rlhf_audit_trail.ledger.refusals import BadToken, LogMissing, NotPermitted

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/logs", tags=["writers"])


def _permitted(
    run: Annotated[str, Path(description="Run id.", examples=["run42"])],
    request: Request,
    ledger: LedgerOfApp,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> Log:
    token = request.app.state.tokens.authenticate(credentials.credentials if credentials else "")
    token.require_run(run)
    return find_log(ledger, run)


_OwnLog = Annotated[Log, Depends(_permitted)]


@router.get(
    "/{run}/progress",
    summary="Where a run stands",
    responses=describe(BadToken, NotPermitted, LogMissing),
)
def show_progress(log: _OwnLog) -> RunProgress:
    """Return size and counters, unsigned entries included, for a training that goes on."""
    found = progress_of(log)
    return RunProgress(
        size=found.size,
        is_closed=found.is_closed,
        policy_step=found.policy_step,
        batch=found.batch,
        tree_head=found.tree_head,
    )


@router.post(
    "/{run}/tree-head",
    summary="Sign a tree head",
    responses=describe(BadToken, NotPermitted, LogMissing, BodyTooLarge, PeersUnreachable),
)
async def sign(log: _OwnLog, request: Request) -> TreeHead:
    """Sign what is durable, if its peers do not object; a size is signed once."""
    limiter = request.app.state.appending  # its peers may be slow, and readers shall not wait
    return tree_head(await to_thread.run_sync(log.publish, limiter=limiter))
