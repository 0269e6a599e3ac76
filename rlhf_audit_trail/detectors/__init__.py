"""Detectors of drift and reward hacking: recorded figures become alerts anyone can recompute.

rules = DEFAULT_RULES  # what is watched, by which thresholds
with auditor.track_training(experiment_name="run-1", detectors=rules) as run: ...
checked = check_alerts(run.log)  # from the ledger alone
"""

from __future__ import annotations

from rlhf_audit_trail.detectors.checking import (
    AlertDiffers,
    AlertNotJudged,
    CheckedAlert,
    check_alerts,
    recompute,
)
from rlhf_audit_trail.detectors.rule import InvalidRule, Rule
from rlhf_audit_trail.detectors.rules import DEFAULT_RULES
from rlhf_audit_trail.detectors.watching import Detectors

__all__ = [
    "DEFAULT_RULES",
    "AlertDiffers",
    "AlertNotJudged",
    "CheckedAlert",
    "Detectors",
    "InvalidRule",
    "Rule",
    "check_alerts",
    "recompute",
]
