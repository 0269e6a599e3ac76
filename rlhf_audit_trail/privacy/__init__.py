"""Privacy of annotators: what is spent, what is drawn, and what may be said about it.

`config` holds the settings, `choosing` the mechanisms and budgets that follow from them;
`mechanisms` and `aggregates` say what leaves, `draw` and `bits` how noise is made, `account`
and `curves` what it costs, `stream` the same for many annotators at once, `empirical` what a
stranger can see. Provenance of noise: `slots` are committed to before a public coin is known,
`stated` and `redraw` check what was drawn from them, `audit_sample` says how much to check,
and `zk` proves a count without opening anything (extra `[zk]`). Models: `dp_sgd` and
`clipped_sums` train privately, and alone import torch; `sampling_accounts` and `sampling_loss`
say what that spends.

In a ledger: `charging` puts costs to the budgets that it keeps, `rounds` and `coins` are the
protocol of noise, `releases` is what a run calls, `labels` privatises single values as they are
logged, `replay` checks all of it from entries alone, and `report` says what may be said.
"""

from rlhf_audit_trail.privacy.config import PrivacyConfig
from rlhf_audit_trail.privacy.errors import (
    BudgetExhausted,
    ConflictingParameters,
    EarlyCoin,
    InvalidDelta,
    InvalidEpsilon,
    InvalidParameter,
    LabelsLost,
    MissingSensitivity,
    NoiseProtocolError,
    NonFiniteValue,
    NotChargedHere,
    PrivacyError,
    PrivacyWarning,
    RawValueRefused,
    ReleaseDiffers,
    ReleaseWithoutSpend,
    RestrictedField,
    SlotReused,
    SlotSkipped,
    SpendDiffers,
    TamperedParameters,
    UnattributedLabel,
    UnsafeAccounting,
    WrongProof,
    WrongSlotOpening,
)

__all__ = [
    "BudgetExhausted",
    "ConflictingParameters",
    "EarlyCoin",
    "InvalidDelta",
    "InvalidEpsilon",
    "InvalidParameter",
    "LabelsLost",
    "MissingSensitivity",
    "NoiseProtocolError",
    "NonFiniteValue",
    "NotChargedHere",
    "PrivacyConfig",
    "PrivacyError",
    "PrivacyWarning",
    "RawValueRefused",
    "ReleaseDiffers",
    "ReleaseWithoutSpend",
    "RestrictedField",
    "SlotReused",
    "SlotSkipped",
    "SpendDiffers",
    "TamperedParameters",
    "UnattributedLabel",
    "UnsafeAccounting",
    "WrongProof",
    "WrongSlotOpening",
]
