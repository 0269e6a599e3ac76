"""Reserving: what a private training will spend is taken off every annotator's budget beforehand.

So the releases of a run and its model stay within one cap together. The share is an entry like
any setting, made before the first charge: later, the filter would have been another one.
"""

from __future__ import annotations

from typing import Any, Final

from rlhf_audit_trail.ledger.budget_entries import CHARGING_KINDS
from rlhf_audit_trail.ledger.reading import StoredLog
from rlhf_audit_trail.privacy.account import Budget
from rlhf_audit_trail.privacy.choosing import budget_for
from rlhf_audit_trail.privacy.config import PrivacyConfig
from rlhf_audit_trail.privacy.errors import InvalidParameter
from rlhf_audit_trail.privacy.guarantee import Guarantee

__all__ = ["RESERVED", "budget_left", "has_charged", "reserved_by", "reserved_fields"]

RESERVED: Final = "privacy_reserved"  # in the settings of a `run.config`


def reserved_fields(share: Guarantee) -> dict[str, Any]:
    """Return the settings that say so."""
    units = {"epsilon_units": str(share.epsilon_units), "delta_units": str(share.delta_units)}
    return {"config": {RESERVED: units}}


def has_charged(log: StoredLog) -> bool:
    """Tell whether a run charged anybody."""
    return any(log.newest(kind) is not None for kind in CHARGING_KINDS)


def reserved_by(log: StoredLog) -> Guarantee | None:
    """Return what a run has set aside for its model; None for nothing.

    Raises:
        InvalidParameter: its entry does not say how much.
    """
    said = [x.event["config"].get(RESERVED) for x in log.entries(kind="run.config")]
    known = [item for item in said if item is not None]
    if not known:
        return None
    try:
        return Guarantee(int(known[-1]["epsilon_units"]), int(known[-1]["delta_units"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidParameter("the run's entry does not say what it reserved") from error


def budget_left(config: PrivacyConfig, log: StoredLog) -> Budget | None:
    """Return every annotator's budget, less what the run reserved; None in the mode minimal.

    Raises:
        InvalidEpsilon, InvalidDelta: nothing would be left.
    """
    return budget_for(config, reserved=reserved_by(log))
