"""What anchors have cost, by their receipts, and how long the balance lasts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Any

from sqlalchemy import Engine, func, select

from rlhf_audit_trail.ledger.chain.anchoring.fees import WEI_PER_ETHER
from rlhf_audit_trail.ledger.store.models import AnchorRow

__all__ = ["AnchorCost", "CostReport", "anchors_left", "report_costs"]

_ANCHORS = AnchorRow.__table__  # type: ignore[attr-defined]
_RECENT = 20  # anchors that stand for the next ones


@dataclass(frozen=True)
class AnchorCost:
    """What one transaction cost.

    Attributes:
        tx_hash: 32 bytes.
        day: of its block, UTC, such as `2026-11-21`.
        logs: how many it anchored; 0 if it failed.
        gas_used: by the whole transaction.
        gas_price_wei: of each unit.
    """

    tx_hash: bytes
    day: str
    logs: int
    gas_used: int
    gas_price_wei: int

    @property
    def fee_wei(self) -> int:
        """The whole cost."""
        return self.gas_used * self.gas_price_wei

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "tx_hash": f"0x{self.tx_hash.hex()}", "day": self.day, "logs": self.logs,
            "gas_used": self.gas_used, "gas_price_wei": self.gas_price_wei,
            "fee_ether": self.fee_wei / WEI_PER_ETHER,
        }  # fmt: skip


@dataclass(frozen=True)
class CostReport:
    """All that one publisher spent, oldest first, and what is left."""

    anchors: tuple[AnchorCost, ...]
    balance_wei: int

    @property
    def by_day(self) -> dict[str, int]:
        """Wei spent on each day."""
        days: dict[str, int] = {}
        for anchor in self.anchors:
            days[anchor.day] = days.get(anchor.day, 0) + anchor.fee_wei
        return days

    @property
    def total_wei(self) -> int:
        """Wei spent in all."""
        return sum(anchor.fee_wei for anchor in self.anchors)

    @property
    def anchors_left(self) -> int | None:
        """How many more the balance pays for, as the recent ones cost; None if there were none."""
        return anchors_left(self.balance_wei, [x.fee_wei for x in self.anchors[-_RECENT:]])


def anchors_left(balance_wei: int, fees_wei: list[int]) -> int | None:
    """Divide a balance by the usual fee; None if there is none to go by."""
    usual_wei = int(median(fees_wei)) if fees_wei else 0
    return balance_wei // usual_wei if usual_wei else None


def report_costs(engine: Engine, publisher: str, *, balance_wei: int) -> CostReport:
    """Read what a publisher's transactions cost from the journal, which has it from receipts."""
    columns = _ANCHORS.c
    sizes = select(columns.tx_hash, func.count().label("logs")).where(columns.state != "dropped")
    counted = sizes.group_by(columns.tx_hash).subquery()
    query = (
        select(columns.tx_hash, columns.block_timestamp, columns.gas_used, columns.gas_price_wei,
               func.coalesce(counted.c.logs, 0).label("logs"))
        .outerjoin(counted, counted.c.tx_hash == columns.tx_hash)
        .where(columns.gas_used.is_not(None), func.lower(columns.publisher) == publisher.lower())
        .order_by(columns.block_timestamp, columns.id)
    )  # fmt: skip
    with engine.connect() as connection:
        rows = connection.execute(query).all()
    return CostReport(
        tuple(
            AnchorCost(
                tx_hash=bytes(row.tx_hash),
                day=datetime.fromtimestamp(row.block_timestamp or 0, UTC).date().isoformat(),
                logs=row.logs,
                gas_used=row.gas_used,
                gas_price_wei=row.gas_price_wei or 0,
            )
            for row in rows
        ),
        balance_wei,
    )
