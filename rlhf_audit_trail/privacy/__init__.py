"""Privacy of annotators: what is spent, what is drawn, and what may be said about it.

`config` holds the settings, `choosing` the mechanisms and budgets that follow from them;
`mechanisms` and `aggregates` say what leaves, `draw` and `bits` how noise is made, `account`
and `curves` what it costs, `stream` the same for many annotators at once, `empirical` what a
stranger can see. Models: `dp_sgd` and `clipped_sums` train privately, and alone import torch;
`sampling_accounts` and `sampling_loss` say what that spends.
"""

from rlhf_audit_trail.privacy.config import PrivacyConfig
from rlhf_audit_trail.privacy.errors import (
    BudgetExhausted,
    ConflictingParameters,
    InvalidDelta,
    InvalidEpsilon,
    InvalidParameter,
    MissingSensitivity,
    NoiseProtocolError,
    NonFiniteValue,
    PrivacyError,
    PrivacyWarning,
    RestrictedField,
    UnsafeAccounting,
)

__all__ = [
    "BudgetExhausted",
    "ConflictingParameters",
    "InvalidDelta",
    "InvalidEpsilon",
    "InvalidParameter",
    "MissingSensitivity",
    "NoiseProtocolError",
    "NonFiniteValue",
    "PrivacyConfig",
    "PrivacyError",
    "PrivacyWarning",
    "RestrictedField",
    "UnsafeAccounting",
]
