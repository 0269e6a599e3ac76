"""What an anchor may cost: the offer, the raise that replaces a stuck one, and the caps.

All sums are integers of wei. Time comes from the chain's blocks, which a wrong clock of this
machine does not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rlhf_audit_trail.ledger.chain.errors import SpendingCapReached
from rlhf_audit_trail.ledger.chain.signing.transaction import Fees

__all__ = ["DAY_S", "WEI_PER_ETHER", "WEI_PER_GWEI", "FeeLimits", "fees_at", "raised"]

DAY_S: Final = 86_400
WEI_PER_GWEI: Final = 10**9
WEI_PER_ETHER: Final = 10**18

# Nodes take a replacement that offers an eighth more (geth: a tenth) for both the cap and the tip.
_RAISE_BY: Final = 8


@dataclass(frozen=True)
class FeeLimits:
    """What the publisher is willing to pay.

    Attributes:
        fee_wei_max: per unit of gas, base fee and tip together.
        day_wei_max: for all transactions of 24 hours of chain time; 0 for no limit.
        replace_after_s: how long an offer stands before a higher one replaces it.
    """

    fee_wei_max: int = 100 * WEI_PER_GWEI
    day_wei_max: int = WEI_PER_ETHER // 10
    replace_after_s: float = 48.0

    def require_budget(self, *, spent_wei: int, next_wei: int) -> None:
        """Refuse to sign what might exceed the day's limit.

        Args:
            spent_wei: by transactions mined in the last 24 hours.
            next_wei: the most the next one can cost.

        Raises:
            SpendingCapReached: they exceed it together.
        """
        if self.day_wei_max and spent_wei + next_wei > self.day_wei_max:
            raise SpendingCapReached(
                f"anchors cost {spent_wei / WEI_PER_ETHER:.6f} ether in the last 24 hours, and the "
                f"next may cost {next_wei / WEI_PER_ETHER:.6f}: above the limit of "
                f"{self.day_wei_max / WEI_PER_ETHER:g}",
                next_step="wait, or raise ether_per_day_max below [anchor] in rlhf-audit.toml; "
                "tree heads are signed and kept meanwhile",
            )


def fees_at(base_fee_wei: int, tip_wei: int, limits: FeeLimits) -> Fees:
    """Offer twice the base fee and the tip, room for six full blocks of rise, up to the cap."""
    max_fee_wei = min(2 * base_fee_wei + tip_wei, limits.fee_wei_max)
    return Fees(max_fee_wei=max_fee_wei, tip_wei=min(tip_wei, max_fee_wei))


def raised(old: Fees, present: Fees, limits: FeeLimits) -> Fees | None:
    """Return an offer that replaces `old`, no lower than the present one; None above the cap."""
    tip_wei = max(_raise(old.tip_wei), present.tip_wei)
    max_fee_wei = max(_raise(old.max_fee_wei), present.max_fee_wei, tip_wei)
    if max_fee_wei > limits.fee_wei_max:
        return None
    return Fees(max_fee_wei=max_fee_wei, tip_wei=tip_wei)


def _raise(wei: int) -> int:
    return wei + -(-wei // _RAISE_BY) + (wei == 0)
