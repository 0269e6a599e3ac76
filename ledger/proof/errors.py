"""The errors of the project: one root, and one small tree for proofs.

An error is named after the finding. It says what is wrong, and what the reader
can do next. No message ever holds a vault value, a salt or a key.
"""

from __future__ import annotations


class AuditTrailError(Exception):
    """Root of every error this project raises on purpose.

    Attributes:
        message: one sentence, what is wrong.
        next_step: one sentence, what to do about it; may be empty.
    """

    def __init__(self, message: str, *, next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.message}\n  next: {self.next_step}" if self.next_step else self.message


class ProofError(AuditTrailError):
    """A proof does not show what it claims to show.

    Attributes:
        step: number of the verification step in `FORMAT.md`; 0 outside a bundle.
        expected: what the step needed, in words or hex.
        actual: what it found, in words or hex.
    """

    step = 0

    def __init__(
        self, message: str, *, expected: str = "", actual: str = "", next_step: str = ""
    ) -> None:
        super().__init__(message, next_step=next_step)
        self.expected = expected
        self.actual = actual


class MalformedBundle(ProofError):
    """Bytes do not parse, a length is wrong, or the version is unknown."""


class BadSignature(ProofError):
    """A known key's signature is wrong, or no pinned key signed."""


class NotIncluded(ProofError):
    """The path does not lead from the entry to the signed root."""


class Inconsistent(ProofError):
    """Two tree heads, a tree head and the chain, or a value and its commitment contradict."""


class NotAnchored(ProofError):
    """No anchor was shown in the state asked for."""


class PolicyUnmet(ProofError):
    """All consistent, but the trust policy wants a key or signature that is missing."""
