"""What can go wrong between the ledger and a chain; named after the finding."""

from __future__ import annotations

from typing import Any

from rlhf_audit_trail.ledger.contradictions import Forked, RolledBack
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = [
    "AnchorRefused",
    "AnchorVanished",
    "AnvilError",
    "AnvilFailed",
    "AnvilNotFound",
    "AnvilVersion",
    "BatchTooLarge",
    "BuildFailed",
    "ChainError",
    "ChainUnreachable",
    "EndpointsDisagree",
    "FactoryMissing",
    "Forked",
    "InsufficientFunds",
    "NoContractCode",
    "NotConfirmed",
    "PortTaken",
    "PublisherBusy",
    "RolledBack",
    "RpcError",
    "SignerError",
    "SpendingCapReached",
    "TransactionFailed",
    "WrongChain",
    "WrongContractCode",
]


class ChainError(AuditTrailError):
    """Root of everything a chain, or the way to it, can do wrong."""


class ChainUnreachable(ChainError):
    """No usable answer: refused, timed out, closed half-way, or not JSON-RPC."""


class EndpointsDisagree(ChainUnreachable):
    """Too few nodes give the same answer; none of them is believed."""


class RpcError(ChainError):
    """The node answered with an error of its own.

    Attributes:
        code: the JSON-RPC error code.
        data: what the node added; for a revert the contract's error, in hex.
    """

    def __init__(self, message: str, *, code: int, data: Any = None, next_step: str = "") -> None:
        """See the class."""
        super().__init__(message, next_step=next_step)
        self.code = code
        self.data = data


class WrongChain(ChainError):
    """The node serves another chain than the pinned one."""


class NoContractCode(ChainError):
    """There is no code at the contract's address; a call there would succeed and do nothing."""


class FactoryMissing(NoContractCode):
    """The chain lacks the factory that gives the contract its address."""


class WrongContractCode(ChainError):
    """The code at the contract's address is not the compiled `TreeHeadAnchor`."""


class AnchorRefused(ChainError):
    """The contract refuses this tree head.

    Attributes:
        reason: name of the contract's error, such as `StaleTreeSize`.
    """

    def __init__(self, message: str, *, reason: str, next_step: str = "") -> None:
        """See the class."""
        super().__init__(message, next_step=next_step)
        self.reason = reason


class AnchorVanished(ChainError):
    """The chain lost an anchor that was final: it was reset, or went back further than it may."""


class InsufficientFunds(ChainError):
    """The account cannot pay for the transaction; nothing was sent."""


class SpendingCapReached(ChainError):
    """The next transaction might cost more than the settings allow for a day; nothing was sent."""


class PublisherBusy(ChainError):
    """Another process is anchoring with this publisher key; nothing was sent."""


class BatchTooLarge(ChainError):
    """So many tree heads need more gas than one transaction may use; nothing was sent."""


class TransactionFailed(ChainError):
    """A transaction was mined and failed, or left no event of the contract."""


class NotConfirmed(ChainError):
    """A transaction is not mined yet; it stays in the journal and is looked at again."""


class SignerError(ChainError):
    """There is no usable publisher key; the message never shows one."""


class BuildFailed(ChainError):
    """The contract cannot be compiled here, or the committed artifact differs."""


class AnvilError(ChainError):
    """Root of what goes wrong with the local development chain."""


class AnvilNotFound(AnvilError):
    """There is no Anvil binary in any of the places searched."""


class AnvilVersion(AnvilError):
    """The Anvil binary is of a version that this release was not made for."""


class PortTaken(AnvilError):
    """Another process listens on the port Anvil was told to use."""


class AnvilFailed(AnvilError):
    """Anvil ended, or did not become ready in time."""
