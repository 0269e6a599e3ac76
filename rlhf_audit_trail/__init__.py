"""RLHF Audit Trail: prove, years later and to strangers, what happened in a training run."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rlhf_audit_trail.auditor import AuditableRLHF
    from rlhf_audit_trail.ppo import AuditablePPOTrainer
    from rlhf_audit_trail.ppo_args import PPOArgs
    from rlhf_audit_trail.privacy.config import PrivacyConfig

__all__ = ["AuditablePPOTrainer", "AuditableRLHF", "PPOArgs", "PrivacyConfig"]

# Loaded at first use: the auditor's install has neither torch nor a database, and
# `import rlhf_audit_trail` must work there and cost nothing.
_HOMES: Final = {
    "AuditablePPOTrainer": "rlhf_audit_trail.ppo",
    "AuditableRLHF": "rlhf_audit_trail.auditor",
    "PPOArgs": "rlhf_audit_trail.ppo_args",
    "PrivacyConfig": "rlhf_audit_trail.privacy.config",
}


def __getattr__(name: str) -> Any:
    """Load a public name from the module it lives in."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Public names, for completion in a shell."""
    return sorted(__all__)
