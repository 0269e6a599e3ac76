"""`verify.html` at `/verify`: the verifier that runs in the reader's own browser."""

from __future__ import annotations

import hashlib
from typing import Annotated, Final

from fastapi import APIRouter, Header
from starlette.responses import HTMLResponse, Response

from rlhf_audit_trail.ledger.page import content_policy, page

__all__ = ["router"]

_NOT_MODIFIED: Final = 304

router = APIRouter(tags=["verifier"])


@router.get(
    "/verify",
    summary="The verifier as a page that works offline",
    response_class=HTMLResponse,
    responses={200: {"description": "`verify.html`; 304 to whoever names its ETag."}},
)
def verify_page(if_none_match: Annotated[str | None, Header()] = None) -> Response:
    """Return the page; a copy from the party under check proves less than one's own."""
    tag = f'"{hashlib.sha256(page()).hexdigest()[:32]}"'
    headers = {
        "Cache-Control": "public, no-cache",  # kept, and asked for again by its tag
        "Content-Security-Policy": content_policy(),
        "Cross-Origin-Opener-Policy": "same-origin",
        "ETag": tag,
        "Referrer-Policy": "no-referrer",
    }
    if if_none_match is not None and tag in if_none_match:
        return Response(status_code=_NOT_MODIFIED, headers=headers)
    return HTMLResponse(page(), headers=headers)
