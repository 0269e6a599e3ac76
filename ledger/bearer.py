"""Writer tokens: their form, and what they allow: to append to a run, and nothing else.

A token is `rlhfw_` and 32 random bytes in base64url without padding. It is shown once, when it
is made; the ledger keeps its SHA-256 only, which tells nothing about what is random. The
prefix lets secret scanners find a token that went where none should be.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import Final

from rlhf_audit_trail.ledger.events import KINDS, RUN_KINDS, Event
from rlhf_audit_trail.ledger.refusals import BadToken, NotPermitted

__all__ = [
    "TOKEN_PREFIX",
    "TOKEN_VARIABLE",
    "new_token",
    "require_permitted",
    "require_token",
    "token_digest",
]

TOKEN_PREFIX: Final = "rlhfw_"  # noqa: S105 - no secret: what every token begins with
TOKEN_VARIABLE: Final = "RLHF_AUDIT_WRITER_TOKEN"  # noqa: S105 - the name, not the value
_RANDOM_BYTES: Final = 32
_FORM: Final = re.compile(TOKEN_PREFIX + r"[A-Za-z0-9_-]{43}")


def new_token() -> str:
    """Make a token, for example `rlhfw_lzXcHs6mN0rVZQxJ2vYb8wQ3tKf7uD5aEoGp1iRkLsM`."""
    return TOKEN_PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def require_token(text: str) -> str:
    """Return a token without the white space around it.

    Raises:
        BadToken: it has not a token's form; the text is not repeated.
    """
    token = text.strip()
    if _FORM.fullmatch(token) is None:
        raise BadToken(
            "this is no writer token" if token else "there is no writer token",
            next_step=f"pass what `rlhf-audit writer add` has shown, or set {TOKEN_VARIABLE}",
        )
    return token


def token_digest(token: str) -> bytes:
    """Return the SHA-256 under which the ledger knows a token, 32 bytes."""
    return hashlib.sha256(token.encode()).digest()


def require_permitted(event: Event, writer_id: str) -> None:
    """Refuse what only the ledger itself may say, and a gap told in another writer's name.

    Raises:
        NotPermitted: no writer token allows this event.
    """
    if event.kind in KINDS and event.kind not in RUN_KINDS:
        raise NotPermitted(
            f"events of kind {event.kind} are the ledger's own",
            next_step="record them on the machine that has the ledger",
        )
    if event.kind == "gap" and event.fields.get("of_writer") != writer_id:
        raise NotPermitted("a writer tells of its own gaps only", next_step="leave it to the other")
