"""Watching a run: recorded events come in, alerts that can be recomputed come out."""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from rlhf_audit_trail.detectors.judging import CRITICAL, WARNING, Judgement, judge
from rlhf_audit_trail.detectors.observing import Observation, observation
from rlhf_audit_trail.detectors.rule import Rule
from rlhf_audit_trail.detectors.rules import DEFAULT_RULES
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.writer import Receipt

__all__ = ["ALERT", "Detectors"]

ALERT: Final = "alert.raised"
_RANK: Final = {WARNING: 1, CRITICAL: 2}
_UNTESTED: Final = "non_finite"  # the one test that wants what the others cannot use

Row = tuple[float, ...]


class Recording(Protocol):
    """A run's log, here or on another machine."""

    def record_many(self, events: Iterable[Event]) -> Sequence[Receipt]:
        """Hand over events to be made durable, in order."""


@dataclass
class _Watched:
    """What is known of one rule's figures so far."""

    rule: Rule
    recent: deque[Row]
    baseline: list[Row] = field(default_factory=list)
    seen: int = 0
    raised_at: int = 0  # `seen` when the last alert was raised
    raised: str = ""  # its severity

    def is_due(self, severity: str) -> bool:
        """Whether an alert of this severity may be raised now."""
        is_cool = not self.raised or self.seen - self.raised_at > self.rule.cooldown
        return is_cool or _RANK[severity] > _RANK[self.raised]


class Detectors:
    """Watches one run from the process that records it.

    Begins anew with each process: a resumed run, and a forked child, has a baseline of its
    own. Safe between threads: what is recorded through it is judged in the recorded order.
    """

    def __init__(self, rules: Iterable[Rule] = DEFAULT_RULES) -> None:
        """Watch by `rules`; none of them: nothing is watched."""
        self.rules = tuple(rules)
        self._begin()

    def _begin(self) -> None:
        rules = self.rules
        self._process, self._lock = os.getpid(), threading.Lock()
        self._watched = [_Watched(rule, deque(maxlen=rule.window)) for rule in rules]
        self._source: dict[str, str] = {}  # of a figure: the kind of event that has it

    def record(self, log: Recording, events: list[Event]) -> Sequence[Receipt]:
        """Record events, and behind them the alerts that they give rise to.

        Returns the receipts of the events; raises what recording them does.
        """
        if os.getpid() != self._process:
            self._begin()
        with self._lock:
            receipts = log.record_many(events)
            alerts = self.look_at(events)
            if alerts:
                log.record_many(alerts)
        return receipts

    def look_at(self, events: Sequence[Event]) -> list[Event]:
        """Return the alerts that these events give rise to, with what they were judged by."""
        return [alert for event in events for alert in self._look_at(event)] if self.rules else []

    def _look_at(self, event: Event) -> list[Event]:
        found = observation(event.kind, event.fields, event.sealed)
        if found is None or not found.figures:
            return []
        figures = {
            name: value
            for name, value in found.figures.items()
            if self._source.setdefault(name, found.kind) == found.kind
        }
        alerts = (self._step(watched, found, figures) for watched in self._watched)
        return [alert for alert in alerts if alert is not None]

    def _step(
        self, watched: _Watched, found: Observation, figures: Mapping[str, float]
    ) -> Event | None:
        """Take one more observation of a rule's figures, and judge it."""
        rule = watched.rule
        row = tuple([figures[name] for name in rule.metrics if name in figures])
        if len(row) < len(rule.metrics):
            return None
        if rule.test != _UNTESTED and not all(map(math.isfinite, row)):
            return None
        watched.seen += 1
        watched.recent.append(row)
        if len(watched.baseline) < rule.baseline:
            watched.baseline.append(row)
        if watched.seen <= max(rule.warm_up, rule.baseline):
            return None
        recent = list(watched.recent)
        judged = judge(rule, watched.baseline, recent)
        if judged is None or not watched.is_due(judged.severity):
            return None
        watched.raised, watched.raised_at = judged.severity, watched.seen
        return _alert(rule, judged, found.step, watched.baseline, recent)


def _alert(
    rule: Rule, judged: Judgement, step: int, baseline: Sequence[Row], recent: Sequence[Row]
) -> Event:
    """Return an alert that holds what it was judged by; figures are sealed, thresholds not."""
    fields = {
        "name": rule.name,
        "severity": judged.severity,
        "step": step,
        "detail": judged.finding,
        "rule": rule.to_dict(),
    }
    inputs = {
        "statistic": judged.statistic,
        "baseline": [[_spelt(x) for x in row] for row in baseline],
        "recent": [[_spelt(x) for x in row] for row in recent],
    }
    return Event(ALERT, fields, {"inputs": inputs})


def _spelt(value: float) -> float | str:
    """Return a number as it is recorded; JSON has none that are not finite."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
