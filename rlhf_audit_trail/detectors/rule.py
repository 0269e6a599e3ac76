"""A rule: which figure is watched, by which test, with which thresholds.

It is plain data. It stands in the run's recorded settings and in each alert, so that a
stranger can recompute an alert from the alert itself, or all of them from the log.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Self

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = ["FORMULAS_VERSION", "TESTS", "InvalidRule", "Rule"]

FORMULAS_VERSION: Final = 1  # of the tests in `judging.py`; alerts say by which they were judged
TESTS: Final = (
    "above_for", "below_for", "dip", "falls", "monotone", "non_finite", "ratio", "rises_with",
    "spike", "square_ratio",
)  # fmt: skip
WINDOW_MAX: Final = 200  # an alert holds what it was judged by, and an entry is small
_METRICS_MAX: Final = 2


class InvalidRule(AuditTrailError):
    """A rule names no test, or a setting of it is outside its range."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One thing to watch for; counts are of observations, as many as the figure was recorded.

    Attributes:
        name: of the alert.
        test: one of `TESTS`, a function of `judging.py`.
        metrics: what is watched; names of `observing.METRICS`.
        warning: threshold of a warning, in the test's own unit.
        critical: threshold of a critical alert; equal to `warning` where there is no middle.
        floor: a second condition, in the figure's unit; what it means says the test.
        baseline: how many of the first observations say what is usual; 0 where none do.
        window: how many of the newest observations are judged.
        warm_up: observations before the first judgement.
        cooldown: observations before the same alert is raised again; a warning that becomes
            critical does not wait.
    """

    name: str
    test: str
    metrics: tuple[str, ...]
    warning: float
    critical: float
    floor: float = 0.0
    baseline: int = 0
    window: int = 1
    warm_up: int = 20
    cooldown: int = 100

    def __post_init__(self) -> None:
        """Refuse what could not be judged; raises InvalidRule."""
        if self.test not in TESTS:
            raise InvalidRule(
                f"{self.test!r:.60} is no test", next_step=f"use one of {', '.join(TESTS)}"
            )
        counts = (self.baseline, self.window, self.warm_up, self.cooldown)
        numbers = (self.warning, self.critical, self.floor)
        is_sound = (
            all(type(count) is int and count >= 0 for count in counts)
            and 1 <= self.window <= WINDOW_MAX
            and self.baseline <= WINDOW_MAX
            and all(type(x) in {int, float} and math.isfinite(x) for x in numbers)
            and 1 <= len(self.metrics) <= _METRICS_MAX
        )
        if not is_sound:
            raise InvalidRule(
                f"the rule {self.name!r:.60} has a setting outside its range",
                next_step=f"use finite thresholds, and counts up to {WINDOW_MAX}",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the rule as it is recorded."""
        return {"formulas": FORMULAS_VERSION, **asdict(self), "metrics": list(self.metrics)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Read a recorded rule.

        Raises:
            InvalidRule: it was judged by formulas that this version does not know, or is none.
        """
        if record.get("formulas") != FORMULAS_VERSION:
            raise InvalidRule(
                f"the alert was judged by formulas of version {record.get('formulas')!r:.20}",
                next_step=f"check it with a release that has them; this one has {FORMULAS_VERSION}",
            )
        known = {item.name for item in fields(cls)}
        metrics = record.get("metrics")
        if record.keys() != known | {"formulas"} or not isinstance(metrics, list):
            raise InvalidRule("the recorded rule lacks a setting, or has one too many")
        values = {name: record[name] for name in known}
        if not all(isinstance(x, str) for x in (values["name"], values["test"], *metrics)):
            raise InvalidRule("the recorded rule's names are no text")
        return cls(**values | {"metrics": tuple(metrics)})
