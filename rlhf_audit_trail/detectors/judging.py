"""The tests: pure functions from recorded figures to a severity, and nothing else.

Each gets the rule, the baseline (the first observations) and the recent ones, the newest
last, both as lists of rows with one number for each of the rule's metrics. All are finite,
but for those of `non_finite`. What is judged here is what an alert holds, so that judging it
again is the whole check.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from rlhf_audit_trail.detectors.rule import Rule

__all__ = ["CRITICAL", "WARNING", "Judgement", "judge"]

WARNING: Final = "warning"
CRITICAL: Final = "critical"
_NEVER_ZERO: Final = 1e-8  # a denominator: what never varied at all still has a scale
_STATISTIC_MAX: Final = 1e300  # written for infinity, which JSON has not
_SHARE_OF_USUAL: Final = 0.25
_SPIKE_LEAST: Final = 10  # fewer values say nothing about their spread

Rows = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Judgement:
    """What a test found.

    Attributes:
        severity: warning or critical.
        statistic: what was compared with the rule's thresholds.
        finding: a sentence without figures of the training: it is public.
    """

    severity: str
    statistic: float
    finding: str


def judge(rule: Rule, baseline: Rows, recent: Rows) -> Judgement | None:
    """Return what the rule says of these figures; None when there is nothing to report."""
    if len(baseline) < rule.baseline or not recent:
        return None
    test, finding = _TESTS[rule.test]
    try:
        statistic = test(rule, baseline, recent)
    except OverflowError:  # figures beyond what a float's square holds: nothing to compare
        return None
    if statistic is None or not statistic >= rule.warning:
        return None
    statistic = min(statistic, _STATISTIC_MAX)
    severity = CRITICAL if statistic >= rule.critical else WARNING
    return Judgement(severity, statistic, finding.format(" and ".join(rule.metrics)))


def _below_for(rule: Rule, baseline: Rows, recent: Rows) -> float:
    """Count the newest values in a row below `floor` and below a quarter of the baseline."""
    limit = min(rule.floor, _SHARE_OF_USUAL * fmean(_first(baseline)))
    count = 0
    for value in reversed(_first(recent)):
        if value >= limit:
            break
        count += 1
    return float(count)


def _spike(rule: Rule, _: Rows, recent: Rows) -> float | None:
    """Return (newest - mean) / std of those before it, if it is also `floor` times the mean."""
    *before, newest = _first(recent)
    if len(before) < _SPIKE_LEAST:
        return None
    mean = fmean(before)
    if newest < rule.floor * mean:
        return None
    return (newest - mean) / max(_std(before, mean), _NEVER_ZERO)


def _ratio(_: Rule, baseline: Rows, recent: Rows) -> float:
    """Return how many times the mean of the recent ones is the baseline's, or the reverse."""
    usual = max(abs(fmean(_first(baseline))), _NEVER_ZERO)
    now = max(abs(fmean(_first(recent))), _NEVER_ZERO)
    return max(now / usual, usual / now)


def _square_ratio(_: Rule, baseline: Rows, recent: Rows) -> float:
    """Return the mean square of the recent ones over that of the baseline."""
    usual = max(fmean([x * x for x in _first(baseline)]), _NEVER_ZERO)
    return fmean([x * x for x in _first(recent)]) / usual


def _dip(rule: Rule, baseline: Rows, recent: Rows) -> float | None:
    """Return the mean of the recent dips, if it has risen by `floor` and the spread is left.

    The second figure is the spread. Where it is below the baseline's, the two groups lie
    closer together than rewards did before: as neighbouring values of a scale do.
    """
    now, usual = fmean(_first(recent)), fmean(_first(baseline))
    spread, usual_spread = (fmean([row[1] for row in rows]) for rows in (recent, baseline))
    return now if now - usual >= rule.floor and spread >= usual_spread else None


def _non_finite(_: Rule, __: Rows, recent: Rows) -> float:
    """Return 1 if the newest value is NaN or infinite."""
    return float(not all(map(math.isfinite, recent[-1])))


def _monotone(_: Rule, __: Rows, recent: Rows) -> float:
    """Count the newest steps in a row that all go the same way, none of them level."""
    values = _first(recent)
    steps = [new - old for old, new in itertools.pairwise(values)]
    count = 0
    for step in reversed(steps):
        if not step or (step > 0) is not (steps[-1] > 0):
            break
        count += 1
    return float(count)


def _above_for(rule: Rule, _: Rows, recent: Rows) -> float | None:
    """Return the smallest of the recent values, once there are as many as the window."""
    return min(_first(recent)) if len(recent) >= rule.window else None


def _falls(rule: Rule, baseline: Rows, recent: Rows) -> float | None:
    """Return by which share of its size the baseline's mean has fallen."""
    if len(recent) < rule.window:
        return None
    usual = fmean(_first(baseline))
    return (usual - fmean(_first(recent))) / max(abs(usual), _NEVER_ZERO)


def _rises_with(rule: Rule, baseline: Rows, recent: Rows) -> float | None:
    """Return the mean of the second figure, if the first has risen with it.

    That is: over the recent ones the two correlate by `floor` at least (Pearson), and the
    first one's mean lies above the baseline's.
    """
    if len(recent) < rule.window:
        return None
    scores, distances = _first(recent), [row[1] for row in recent]
    if fmean(scores) <= fmean(_first(baseline)) or _correlation(scores, distances) < rule.floor:
        return None
    return fmean(distances)


def _first(rows: Rows) -> list[float]:
    return [row[0] for row in rows]


def _std(values: Sequence[float], mean: float) -> float:
    """Return the standard deviation of the values themselves; `statistics` has a slow exact one."""
    return math.sqrt(fmean([(x - mean) * (x - mean) for x in values]))


def _correlation(left: Sequence[float], right: Sequence[float]) -> float:
    mean_left, mean_right = fmean(left), fmean(right)
    shared = math.fsum((x - mean_left) * (y - mean_right) for x, y in zip(left, right, strict=True))
    spread = _std(left, mean_left) * _std(right, mean_right) * len(left)
    return shared / spread if spread > 0 else 0.0


_TESTS: Final[Mapping[str, tuple[Callable[[Rule, Rows, Rows], float | None], str]]] = {
    "below_for": (_below_for, "{} stayed far below what it was"),
    "spike": (_spike, "{} jumped above what it was"),
    "ratio": (_ratio, "{} is far from what it was at first"),
    "square_ratio": (_square_ratio, "{} is far above what it was at first"),
    "dip": (_dip, "{}: rewards fell apart into two groups"),
    "non_finite": (_non_finite, "{} is not a finite number"),
    "monotone": (_monotone, "{} went one way without ever turning back"),
    "above_for": (_above_for, "{} stayed high"),
    "falls": (_falls, "{} has fallen below what it was at first"),
    "rises_with": (_rises_with, "{} rose together, far from the reference"),
}
"""Test name to its function and the sentence that an alert says."""
