"""Privacy of annotators: settings now; accounting, drawing and reports build on them."""

from rlhf_audit_trail.privacy.config import (
    ConflictingParameters,
    InvalidDelta,
    InvalidEpsilon,
    InvalidParameter,
    MissingSensitivity,
    PrivacyConfig,
    PrivacyError,
)

__all__ = [
    "ConflictingParameters",
    "InvalidDelta",
    "InvalidEpsilon",
    "InvalidParameter",
    "MissingSensitivity",
    "PrivacyConfig",
    "PrivacyError",
]
