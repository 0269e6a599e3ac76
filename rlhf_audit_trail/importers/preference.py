"""A preference as any tool exports it, and what an importer left out, with the reason."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = [
    "AI_FEEDBACK",
    "BAD",
    "BEFORE",
    "CANCELLED",
    "DISCARDED",
    "DRAFT",
    "IGNORED",
    "UNNAMED_MODEL",
    "BadRow",
    "LeftOut",
    "Preference",
    "as_text",
    "finite",
    "one_by_one",
    "text_in",
]

AI_FEEDBACK: Final = "ai_feedback"
# Why something of a file is not recorded.
BAD: Final = "bad"
CANCELLED: Final = "cancelled"
DISCARDED: Final = "discarded"
DRAFT: Final = "draft"
IGNORED: Final = "ignored"
UNNAMED_MODEL: Final = "unnamed_model"  # a model's opinion, and nobody says which model's
BEFORE: Final = "before_since"


class BadRow(AuditTrailError):
    """A row has not the shape that its format promises; the message holds no value of it."""


@dataclass(frozen=True)
class LeftOut:
    """Something of a file that is counted, and not recorded.

    Attributes:
        row: line, or number of the row or item, from 1.
        kind: bad, cancelled, discarded, draft, ignored, unnamed_model or before_since.
        reason: a sentence without any value of the row.
    """

    row: int
    kind: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Preference:
    """One opinion of one annotator on one answer, or on two.

    Attributes:
        row: line, or number of the row or item, from 1.
        prompt: what was asked.
        response: the answer; of two, the one preferred.
        rejected: of two answers the other one.
        reward: a number that the annotator gave; never made from a choice.
        annotator: id in the tool; empty when the file does not say.
        judge_model: of a model's opinion, its name; empty for a person's.
        details: whatever else is known: item, question, label, rank, status, times.
    """

    row: int
    prompt: str
    response: str
    rejected: str | None = None
    reward: float | None = None
    annotator: str = ""
    judge_model: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


def one_by_one(row: int, found: Iterator[Preference | LeftOut]) -> Iterator[Preference | LeftOut]:
    """Yield what one annotation says, or that it is bad: the others of its row stay."""
    try:
        yield from list(found)
    except BadRow as error:
        yield LeftOut(row, BAD, error.message)


def finite(value: Any) -> float | None:
    """Return a finite number, or None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        return float(value) if is_number and math.isfinite(value) else None
    except OverflowError:
        return None


def text_in(row: Mapping[str, Any], *names: str, what: str) -> str:
    """Return the text of the first of these columns that the row has.

    Raises:
        BadRow: it has none of them, or it holds neither text nor messages.
    """
    for name in names:
        if row.get(name) is not None:
            return as_text(row[name], what)
    raise BadRow(f"no {what}: none of the columns {', '.join(names)}")


def as_text(value: Any, what: str) -> str:
    """Return text, or a list of messages as the last one's content.

    Raises:
        BadRow: it is neither, or has characters that UTF-8 has not.
    """
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):
        value = value[-1].get("content", value[-1].get("value"))
    if not isinstance(value, str):
        raise BadRow(f"the {what} is no text, but {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow(f"the {what} has characters that UTF-8 has not") from None
    return value
