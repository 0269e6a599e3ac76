"""RLHF Audit Trail: prove, years later and to strangers, what happened in a training run."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rlhf_audit_trail.auditor import AuditableRLHF
    from rlhf_audit_trail.ppo.args import PPOArgs
    from rlhf_audit_trail.ppo.trainer import AuditablePPOTrainer
    from rlhf_audit_trail.privacy.config import PrivacyConfig
    from rlhf_audit_trail.trl import (
        AuditableDPOTrainer,
        AuditableGRPOTrainer,
        AuditableKTOTrainer,
        AuditableRewardTrainer,
        AuditableRLOOTrainer,
        AuditableSFTTrainer,
        auditable,
    )

__all__ = [
    "AuditableDPOTrainer",
    "AuditableGRPOTrainer",
    "AuditableKTOTrainer",
    "AuditablePPOTrainer",
    "AuditableRLHF",
    "AuditableRLOOTrainer",
    "AuditableRewardTrainer",
    "AuditableSFTTrainer",
    "PPOArgs",
    "PrivacyConfig",
    "auditable",
]

# Loaded at first use: the auditor's install has neither torch nor a database, and
# `import rlhf_audit_trail` must work there and cost nothing.
_TRL: Final = "rlhf_audit_trail.trl"
_HOMES: Final = {
    "AuditableDPOTrainer": _TRL,
    "AuditableGRPOTrainer": _TRL,
    "AuditableKTOTrainer": _TRL,
    "AuditablePPOTrainer": "rlhf_audit_trail.ppo.trainer",
    "AuditableRLHF": "rlhf_audit_trail.auditor",
    "AuditableRLOOTrainer": _TRL,
    "AuditableRewardTrainer": _TRL,
    "AuditableSFTTrainer": _TRL,
    "PPOArgs": "rlhf_audit_trail.ppo.args",
    "PrivacyConfig": "rlhf_audit_trail.privacy.config",
    "auditable": _TRL,
}


def __getattr__(name: str) -> Any:
    """Load a public name from the module it lives in."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Public names, for completion in a shell."""
    return sorted(__all__)
