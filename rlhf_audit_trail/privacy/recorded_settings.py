"""What a run recorded of its privacy: the settings, and whether raw values lie in it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Final

from rlhf_audit_trail.ledger.reading import StoredLog
from rlhf_audit_trail.privacy.config import PrivacyConfig
from rlhf_audit_trail.privacy.errors import (
    InvalidParameter,
    PrivacyError,
    PrivacyWarning,
    RawValueRefused,
)

__all__ = ["RAW_FIELDS", "raw_entries", "recorded_config", "refuse_raw_values"]

# sealed fields of annotations that hold what a person said of a response
RAW_FIELDS: Final = frozenset({"reward", "rejected", "details"})
_ANNOTATIONS: Final = ("annotation.recorded", "annotation.corrected")


def recorded_config(log: StoredLog) -> PrivacyConfig | None:
    """Return the newest settings that a run recorded; None if it recorded none.

    Raises:
        InvalidParameter: they are none that are known.
    """
    said = [x.event["config"].get("privacy") for x in log.entries(kind="run.config")]
    known = [item for item in said if isinstance(item, dict)]
    if not known:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrivacyWarning)  # they were told when the run began
        try:
            return PrivacyConfig(**known[-1])
        except (TypeError, PrivacyError) as error:
            raise InvalidParameter("the run recorded no privacy settings that are known") from error


def raw_entries(log: StoredLog) -> Iterator[int]:
    """Yield the indices of annotations that seal a raw value."""
    for kind in _ANNOTATIONS:
        for entry in log.entries(kind=kind):
            if entry.event.get("c", {}).keys() & RAW_FIELDS:
                yield entry.leaf_index


def refuse_raw_values(log: StoredLog) -> None:
    """Refuse to store raw values in a run of the mode strong.

    Raises:
        RawValueRefused: the run is one; nothing was recorded.
    """
    config = recorded_config(log)
    if config is not None and config.annotator_privacy_mode == "strong":
        raise RawValueRefused(
            "this run keeps raw values off the disk: its mode is strong",
            next_step="log the values with log_annotations, which privatises them, or import "
            "into another run",
        )
