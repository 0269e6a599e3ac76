"""Checking alerts: from an alert alone, or all alerts of a run from its log.

An alert holds rule and inputs, so it can be judged again. From the whole log more follows:
that its inputs are the recorded figures, and that no alert is missing. For that the detectors
run once more over the recorded events, one writer after the other, as each process had its
own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from rlhf_audit_trail.detectors.judging import Judgement, judge
from rlhf_audit_trail.detectors.observing import OBSERVED_KINDS
from rlhf_audit_trail.detectors.rule import Rule
from rlhf_audit_trail.detectors.watching import ALERT, Detectors
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = [
    "DIFFERS",
    "MISSING",
    "NOT_JUDGED",
    "RECOMPUTED",
    "REPRODUCED",
    "AlertDiffers",
    "AlertNotJudged",
    "CheckedAlert",
    "check_alerts",
    "recompute",
]

REPRODUCED: Final = "reproduced"  # the recorded figures give this alert, with these inputs
RECOMPUTED: Final = "recomputed"  # its own inputs do; what it was made from is not all here
DIFFERS: Final = "differs"
MISSING: Final = "missing"  # the recorded figures give an alert that was not recorded
NOT_JUDGED: Final = "not judged"  # no detector raised it: there is nothing to recompute
_ENTRY_FIELDS: Final = ("v", "kind", "run_id", "writer_id", "seq", "recorded_at", "c")
_SPELT: Final = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


class AlertDiffers(AuditTrailError):
    """An alert's rule and inputs do not give what it says."""


class AlertNotJudged(AuditTrailError):
    """An alert was raised by the recorder or a trainer: it holds no rule and no inputs."""


@dataclass(frozen=True)
class CheckedAlert:
    """One alert of a run and what the check found.

    Attributes:
        leaf_index: of the alert; of the event that should have raised it, if it is missing.
        name: of the detector.
        severity: as recorded; as it should be, if it is missing.
        step: policy step, or that of the metrics.
        state: reproduced, recomputed, differs, missing, or not judged.
        finding: more about it, for people; holds no figure.
    """

    leaf_index: int
    name: str
    severity: str
    step: int
    state: str
    finding: str


class _Entry(Protocol):
    @property
    def leaf_index(self) -> int: ...
    @property
    def writer_id(self) -> str: ...
    @property
    def event(self) -> dict[str, Any]: ...


class _Log(Protocol):
    def entries(self, start: int = 0, stop: int | None = None) -> Iterable[_Entry]: ...
    def opened(self, leaf_index: int) -> dict[str, Any]: ...


def recompute(public: Mapping[str, Any], inputs: Mapping[str, Any]) -> Judgement:
    """Judge an alert again, from what it holds itself.

    Args:
        public: the alert's public fields, or its whole entry.
        inputs: its sealed field `inputs`, opened.

    Raises:
        AlertNotJudged: no detector raised it.
        AlertDiffers: severity, statistic or finding are not what its inputs give.
        InvalidRule: it was judged by formulas of another version.
    """
    if not isinstance(public.get("rule"), Mapping):
        raise AlertNotJudged(
            "this alert holds no rule: the recorder or the trainer raised it by itself",
            next_step="read its detail; there is nothing to recompute",
        )
    rule = Rule.from_dict(public["rule"])
    baseline, recent = _rows(inputs, "baseline", rule), _rows(inputs, "recent", rule)
    if len(recent) > rule.window or len(baseline) > rule.baseline or not recent:
        raise AlertDiffers("the alert's inputs are not as many as its rule says")
    judged = judge(rule, baseline, recent)
    said = (public.get("name"), public.get("severity"), public.get("detail"))
    if judged is None or said != (rule.name, judged.severity, judged.finding):
        found = "nothing to report" if judged is None else f"{judged.severity}: {judged.finding}"
        raise AlertDiffers(
            f"the alert's own inputs give another result: {found}",
            next_step="treat the alert as forged, or as made by changed software",
        )
    if inputs.get("statistic") != judged.statistic:
        raise AlertDiffers("the alert's statistic is not the one its inputs give")
    return judged


def check_alerts(log: _Log) -> list[CheckedAlert]:
    """Check every alert of a run against the recorded figures; missing ones are listed too.

    Raises:
        VaultDamaged, Pruned: stored values or entries cannot be read.
    """
    return list(_Replay(log).checked())


class _Replay:
    """The detectors of each writer, run again."""

    def __init__(self, log: _Log) -> None:
        self._log = log
        self._rules: tuple[Rule, ...] = ()  # of the newest settings
        self._detectors: dict[str, Detectors] = {}
        self._expected: dict[str, list[tuple[int, Event]]] = {}
        self._is_whole = True  # until a gap says otherwise

    def checked(self) -> Iterator[CheckedAlert]:
        for entry in self._log.entries():
            record = entry.event
            kind = record["kind"]
            if kind == "run.config":
                self._configure(record.get("config"), entry.writer_id)
            elif kind == "gap":
                self._is_whole = False
            elif kind == ALERT:
                yield self._check(entry, record)
            elif kind in OBSERVED_KINDS:
                yield from self._overdue(entry.writer_id)
                self._observe(entry, record)
        for writer_id in list(self._expected):
            yield from self._overdue(writer_id)

    def _configure(self, config: Any, writer_id: str) -> None:
        rules = config.get("detectors") if isinstance(config, Mapping) else None
        if isinstance(rules, list):
            self._rules = tuple(Rule.from_dict(rule) for rule in rules)
            self._detectors[writer_id] = Detectors(self._rules)

    def _observe(self, entry: _Entry, record: Mapping[str, Any]) -> None:
        writer_id = entry.writer_id
        watching = self._detectors.setdefault(writer_id, Detectors(self._rules))
        fields = {name: record[name] for name in record.keys() - set(_ENTRY_FIELDS)}
        event = Event(record["kind"], fields, self._log.opened(entry.leaf_index))
        found = [(entry.leaf_index, alert) for alert in watching.look_at([event])]
        self._expected.setdefault(writer_id, []).extend(found)

    def _check(self, entry: _Entry, record: Mapping[str, Any]) -> CheckedAlert:
        inputs = self._log.opened(entry.leaf_index).get("inputs", {})
        try:
            recompute(record, inputs)
        except AlertNotJudged:
            return _checked(entry.leaf_index, record, NOT_JUDGED, "raised by the recorder itself")
        except AuditTrailError as error:
            return _checked(entry.leaf_index, record, DIFFERS, error.message)
        waiting = self._expected.get(entry.writer_id, [])
        for place, (_, alert) in enumerate(waiting):
            if alert.fields.items() <= record.items() and alert.sealed["inputs"] == inputs:
                del waiting[place]
                return _checked(entry.leaf_index, record, REPRODUCED, "")
        if self._is_whole:
            finding = "its inputs are not the figures that this run recorded"
            return _checked(entry.leaf_index, record, DIFFERS, finding)
        finding = "events are missing (gap), so its inputs were not compared with the record"
        return _checked(entry.leaf_index, record, RECOMPUTED, finding)

    def _overdue(self, writer_id: str) -> Iterator[CheckedAlert]:
        """Report alerts that should stand behind the event which gave rise to them."""
        for leaf_index, alert in self._expected.pop(writer_id, []):
            if self._is_whole:
                finding = "the figures recorded here give this alert, and it was not recorded"
                yield _checked(leaf_index, alert.fields, MISSING, finding)


def _checked(leaf_index: int, said: Mapping[str, Any], state: str, finding: str) -> CheckedAlert:
    name, severity, step = (said.get(key) for key in ("name", "severity", "step"))
    step = step if isinstance(step, int) else 0
    return CheckedAlert(leaf_index, str(name), str(severity), step, state, finding)


def _rows(inputs: Mapping[str, Any], name: str, rule: Rule) -> list[Sequence[float]]:
    """Read recorded rows of numbers; raises AlertDiffers for anything else."""
    rows = inputs.get(name)
    if not isinstance(rows, list):
        raise AlertDiffers(f"the alert's inputs hold no rows `{name}`")
    found: list[Sequence[float]] = []
    for row in rows:
        items = row if isinstance(row, list) else []
        values: list[Any] = [_SPELT.get(x) if isinstance(x, str) else x for x in items]
        if len(values) != len(rule.metrics) or not all(type(x) in {int, float} for x in values):
            raise AlertDiffers(f"a row of the alert's inputs `{name}` is no row of numbers")
        found.append([float(value) for value in values])
    return found
