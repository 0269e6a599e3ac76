"""The verdict that CLI and API print: one word, one exit code, one JSON schema."""

from __future__ import annotations

from typing import Any, Final

from rlhf_audit_trail.ledger.proof.verify import Check, Examination

__all__ = ["EXIT_CODES", "LIMITS", "STEPS", "exit_code", "integrity", "to_json", "verdict"]

STEPS: Final = (
    "bundle", "tree_head", "signer", "inclusion", "openings", "consistency", "anchor", "file",
)  # fmt: skip
"""Names of the numbered steps of `FORMAT.md`, from 1."""

LIMITS: Final = ("truth_of_values", "completeness_of_logging")
EXIT_CODES: Final = {"VERIFIED": 0, "FAILED": 1, "INCONCLUSIVE": 3, "UNREADABLE": 4}
_VERDICTS: Final = {"failed": "FAILED", "unreadable": "UNREADABLE", "not_shown": "INCONCLUSIVE"}
_SIGNER_STEP: Final = 3


def verdict(found: Examination) -> str:
    """Return VERIFIED, FAILED, INCONCLUSIVE or UNREADABLE."""
    return _VERDICTS[found.decisive.state] if found.decisive else "VERIFIED"


def exit_code(found: Examination) -> int:
    """Return 0 VERIFIED, 1 FAILED, 3 INCONCLUSIVE or 4 UNREADABLE."""
    return EXIT_CODES[verdict(found)]


def integrity(found: Examination) -> str:
    """Return whether the content is unchanged, whoever signed it: passed, failed, unreadable."""
    states = {check.state for check in found.checks if check.step != _SIGNER_STEP}
    return next((state for state in ("failed", "unreadable") if state in states), "passed")


def to_json(found: Examination) -> dict[str, Any]:
    """Return `rlhf-audit/verify-result/v1`; the schema changes by addition only."""
    head = found.proven and found.proven.tree_head.head
    finding = found.decisive.finding if found.decisive else None
    return {
        "schema": "rlhf-audit/verify-result/v1",
        "verdict": verdict(found).lower(),
        "exit_code": exit_code(found),
        "integrity": integrity(found),
        "signer": found.signer,
        "checks": [_check_json(check) for check in found.checks],
        "tree_head": head and {"origin": head.origin, "size": head.size, "root": head.root.hex()},
        "entries": sorted(found.proven.entries) if found.proven else [],
        "limits": list(LIMITS),
        "next": finding.next_step if finding else "",
    }


def _check_json(check: Check) -> dict[str, Any]:
    record = {"step": check.step, "id": STEPS[check.step - 1]}
    record |= {"state": check.state, "text": check.text}
    if check.finding:
        record |= {"reason": type(check.finding).__name__}
        record |= {"expected": check.finding.expected, "actual": check.finding.actual}
    return record
