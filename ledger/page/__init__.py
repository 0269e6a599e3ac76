"""`verify.html`: the verifier as one page that works without network, and its sources.

The page is made from `sources/` by `python -m rlhf_audit_trail.ledger.page.assemble`, and is
checked in, so that what a browser runs can be read and compared. Standard library only.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

__all__ = ["PAGE_PATH", "content_policy", "page"]

PAGE_PATH: Final = Path(__file__).parent / "verify.html"
_BEFORE: Final = 'http-equiv="Content-Security-Policy" content="'


@cache
def page() -> bytes:
    """Return the page as it ships."""
    return PAGE_PATH.read_bytes()


@cache
def content_policy() -> str:
    """Return the content security policy that the page gives itself, for a header that repeats it.

    A header can forbid in addition what a page cannot: to be shown inside another.
    """
    policy = page().decode().partition(_BEFORE)[2].partition('"')[0]
    return f"{policy}; frame-ancestors 'none'"
