"""What the scenarios of bundles share: expectations, and ways to spoil a good bundle."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from sample_log import SampleLog, record_of, reseal

from rlhf_audit_trail.ledger.proof.bundle import Bundle

Vector = dict[str, Any]
Record = dict[str, Any]
Expect = dict[str, Any]
Row = tuple[str, str, Expect, bytes | Record, dict[str, Any]]
"""Name, about, expectation, the bytes or a record to be sealed, the caller's trust."""

VERIFIED: Expect = {"verdict": "VERIFIED", "exit_code": 0}


def failed(step: int, error: str) -> Expect:
    return {"verdict": "FAILED", "exit_code": 1, "step": step, "error": error}


def unreadable(step: int) -> Expect:
    return {"verdict": "UNREADABLE", "exit_code": 4, "step": step, "error": "MalformedBundle"}


def inconclusive(step: int, error: str) -> Expect:
    return {"verdict": "INCONCLUSIVE", "exit_code": 3, "step": step, "error": error}


def vector(
    log: SampleLog, name: str, about: str, expect: Expect, what: bytes | Record, trust: Vector
) -> tuple[str, Vector]:
    data = what if isinstance(what, bytes) else reseal(what)
    given: dict[str, Any] = {}
    try:
        given["bundle"] = data.decode("utf-8")
    except UnicodeDecodeError:
        given["bundle_base64"] = base64.b64encode(data).decode()
    given |= {"keys": [str(log.ed25519)]} | trust
    return f"bundle-{name}", {"about": about, "kind": "bundle", "input": given, "expect": expect}


def short(log: SampleLog, *indices: int, size: int = 8, **more: Any) -> Bundle:
    return log.bundle(indices or (5,), size, post_quantum=False, **more)


def spoilt(bundle: Bundle, change: Callable[[Record], object]) -> Record:
    """A good bundle's record after `change`; its digest is made to fit again."""
    record = record_of(bundle)
    change(record)
    return record


def put(*path: str | int, to: Any) -> Callable[[Record], object]:
    """Put a value, or what a function makes of the old one, at a place in the record."""

    def change(record: Record) -> None:
        at: Any = record
        for step in path[:-1]:
            at = at[step]
        at[path[-1]] = to(at[path[-1]]) if callable(to) else to

    return change


def bit(text: str) -> str:
    """Base64 of the same bytes with one bit of the first changed."""
    data = bytearray(base64.b64decode(text))
    data[0] ^= 1
    return base64.b64encode(data).decode()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
