"""The formats that are read, and how one is told from its first row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from rlhf_audit_trail.importers.argilla import argilla
from rlhf_audit_trail.importers.label_studio import label_studio
from rlhf_audit_trail.importers.pairs import TURN, hh_rlhf, pairs, ultrafeedback
from rlhf_audit_trail.importers.preference import LeftOut, Preference
from rlhf_audit_trail.importers.prodigy import prodigy
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = ["AUTO", "COLUMNS_FORMAT", "FORMATS", "PREFIXES", "UnknownFormat", "detect"]

AUTO: Final = "auto"
COLUMNS_FORMAT: Final = "columns"
FORMATS: Final[Mapping[str, Callable[[int, Mapping[str, Any]], Iterator[Preference | LeftOut]]]] = {
    "pairs": pairs,
    "hh-rlhf": hh_rlhf,
    "ultrafeedback": ultrafeedback,
    "argilla": argilla,
    "label-studio": label_studio,
    "prodigy": prodigy,
}
# Ids that only count within one tool: `7` of Label Studio is not the `7` of another file.
PREFIXES: Final = {"label-studio": "label-studio:", "argilla": "argilla:"}


class UnknownFormat(AuditTrailError):
    """Nothing tells how the rows are to be read."""


def detect(row: Mapping[str, Any]) -> str:
    """Return the format that a file's first row has.

    Raises:
        UnknownFormat: none that is known.
    """
    keys = row.keys()
    if {"_task_hash", "_input_hash"} & keys:
        return "prodigy"
    if "data" in keys and {"annotations", "predictions", "completions"} & keys:
        return "label-studio"
    has_responses = "fields" in keys and {"responses", "suggestions"} & keys
    if has_responses or any(str(key).endswith(".responses") for key in keys):
        return "argilla"
    if isinstance(row.get("completions"), list):
        return "ultrafeedback"
    if {"chosen", "rejected"} <= keys:
        chosen = row["chosen"]
        is_transcript = isinstance(chosen, str) and TURN in chosen and "prompt" not in keys
        return "hh-rlhf" if is_transcript else "pairs"
    raise UnknownFormat(
        "the first row has the columns of no format that is known",
        next_step="name the columns: --column prompt=... --column response=... --column reward=...",
    )
