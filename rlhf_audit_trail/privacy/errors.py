"""What the privacy part refuses, one class per finding.

Whoever raises one of these has written nothing and charged nothing. A message names the
setting or the rule, never a value that was recorded, a seed, or a person.
"""

from __future__ import annotations

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

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


class PrivacyError(AuditTrailError):
    """Privacy settings or charges do not hold together; nothing was written or charged."""


class InvalidEpsilon(PrivacyError):
    """An epsilon is not a finite number above zero, or too extreme to be kept exactly."""


class InvalidDelta(PrivacyError):
    """A delta is no probability that makes sense for this mechanism and crowd."""


class InvalidParameter(PrivacyError):
    """Another privacy setting is outside its range."""


class ConflictingParameters(PrivacyError):
    """Two settings contradict each other."""


class MissingSensitivity(PrivacyError):
    """Noise cannot be scaled: the range of a reward is not declared."""


class NonFiniteValue(PrivacyError):
    """A reward is NaN, infinite or no number."""


class UnsafeAccounting(PrivacyError):
    """Adding these guarantees up would state less than was spent."""


class NoiseProtocolError(PrivacyError):
    """A noise slot, its seed or the coin is not what the protocol prescribes."""


class TamperedParameters(NoiseProtocolError):
    """A recorded mechanism states a number that does not follow from its parameters."""


class WrongSlotOpening(NoiseProtocolError):
    """An opened noise slot is not the one that was committed to."""


class SlotReused(NoiseProtocolError):
    """One noise slot drew for two releases; their difference shows raw values."""


class SlotSkipped(NoiseProtocolError):
    """A noise slot was passed over without an entry: noise could have been chosen."""


class EarlyCoin(NoiseProtocolError):
    """A coin was known before the slots and values it is for were anchored."""


class ReleaseDiffers(NoiseProtocolError):
    """A published value is not what the opened value and slot give."""


class ReleaseWithoutSpend(NoiseProtocolError):
    """A statistic was released that nobody was charged for."""


class SpendDiffers(PrivacyError):
    """A charge is not what its mechanism costs, or exceeds the budget that it names."""


class NotChargedHere(PrivacyError):
    """The budgets are on another machine, or another process records this run."""


class RawValueRefused(PrivacyError):
    """A raw value would be stored, and the mode strong keeps them off the disk."""


class UnattributedLabel(PrivacyError):
    """Nobody is known whose budget a label could be charged to."""


class LabelsLost(PrivacyError):
    """Labels were charged, and what was drawn for them could not be kept; the charge stays."""


class WrongProof(NoiseProtocolError):
    """A count proven in zero knowledge does not verify."""


class RestrictedField(PrivacyError):
    """A public or scoped reader asked for something from which a raw value follows."""


class BudgetExhausted(PrivacyError):
    """An annotator's budget does not admit this charge.

    Attributes:
        annotator: the name the caller charged under; kept out of the message.
        needed: the charge, in the units of the budget's rule.
        left: what remained before it, in the same units.
    """

    def __init__(self, annotator: str, *, needed: object, left: object) -> None:
        super().__init__(
            "this charge would exceed an annotator's privacy budget",
            next_step="use this annotator's values no further, or spend less per charge",
        )
        self.annotator, self.needed, self.left = annotator, needed, left


class PrivacyWarning(UserWarning):
    """A setting is allowed, but weaker than is usual."""
