"""Correcting: a later entry names an annotation and replaces some of its values.

Both stay, and both stay provable; whoever reads values takes the newest. The replacement is
sealed under the same person, so that an erasure takes both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from rlhf_audit_trail.ledger.drafts import ANNOTATOR
from rlhf_audit_trail.ledger.events import KINDS, Event
from rlhf_audit_trail.ledger.log import Log, Receipt
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.reading import StoredLog

__all__ = ["CORRECTED_KIND", "NotCorrectable", "correct", "newest_values", "superseding"]

CORRECTED_KIND: Final = "annotation.corrected"
_CORRECTABLE: Final = "annotation.recorded"


class NotCorrectable(AuditTrailError):
    """The entry is no annotation of this person, or the values are none of its fields."""


def correct(
    log: Log,
    leaf_index: int,
    values: Mapping[str, Any],
    *,
    subject: str = "",
    source: str,
    reason: str = "",
) -> Receipt:
    """Record values that replace those of an annotation.

    Args:
        log: of the run.
        leaf_index: of the annotation; not of an earlier correction of it.
        values: sealed field to its new value; what is not named stays as it was.
        subject: stable id of the person whose annotation it is; empty where nobody knew.
        source: who says so, as of the annotation: public.
        reason: why, in words: public, and about nobody.

    Raises:
        NotCorrectable: see there; nothing was recorded.
        EntryMissing, Erased, VaultDamaged: the annotation cannot be read.
        InvalidEvent, EntryTooLarge, RunClosed: as `Log.record`.
    """
    entry = log.read(leaf_index)
    known = {x.path: x.value for x in log.openings(leaf_index)}
    allowed = set(KINDS[CORRECTED_KIND].sealed) - {ANNOTATOR}
    if entry.event["kind"] != _CORRECTABLE or not values or not values.keys() <= allowed:
        raise NotCorrectable(
            f"entry {leaf_index:,} is no annotation, or these are not its fields",
            next_step=f"name an annotation, and of {', '.join(sorted(allowed))} what changes",
        )
    name = log.pseudonym_of(subject) if subject else ""
    if name != (json.loads(known[ANNOTATOR]) if ANNOTATOR in known else ""):
        raise NotCorrectable(
            f"entry {leaf_index:,} is not this person's annotation",
            next_step="give the id of the person who made it; none where it has none",
        )
    fields: dict[str, Any] = {"supersedes": leaf_index, "source": source}
    if reason:
        fields["reason"] = reason
    whom = {ANNOTATOR: subject} if subject else {}
    return log.record(Event(CORRECTED_KIND, fields, {**whom, **values}, subject))


def superseding(log: StoredLog) -> dict[int, list[int]]:
    """Return the corrections of a log: annotation's index to those of its corrections, growing."""
    found: dict[int, list[int]] = {}
    for entry in log.entries(kind=CORRECTED_KIND):
        found.setdefault(int(entry.event["supersedes"]), []).append(entry.leaf_index)
    return found


def newest_values(log: StoredLog, leaf_index: int) -> dict[str, Any]:
    """Return an annotation's values with all its corrections, the newest last.

    Raises:
        EntryMissing, Erased, VaultDamaged: one of them cannot be read.
    """
    values = log.opened(leaf_index)
    for index in superseding(log).get(leaf_index, ()):
        values |= log.opened(index)
    return values
