"""Replay of labels: what each cost whom, for which annotation, and one answer at most."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from rlhf_audit_trail.privacy.charging import budget_of, public_budget, public_cost
from rlhf_audit_trail.privacy.errors import (
    NoiseProtocolError,
    ReleaseDiffers,
    ReleaseWithoutSpend,
    SpendDiffers,
    TamperedParameters,
)
from rlhf_audit_trail.privacy.labels import LABELS_KIND, PRIVATISED_KIND, SKIPPED_KIND
from rlhf_audit_trail.privacy.mechanisms import Mechanism, RandomisedResponse, RoundedResponse
from rlhf_audit_trail.privacy.replay_findings import Replay

__all__ = ["LABEL_KINDS", "LabelReplay", "Labelled", "Opened", "whole"]

LABEL_KINDS: Final = (LABELS_KIND, PRIVATISED_KIND, SKIPPED_KIND)

Opened = Callable[[int], Mapping[str, Any] | None]


@dataclass(frozen=True)
class Labelled:
    """Annotations of a run.

    Attributes:
        indices: of all of them, growing.
        annotators: first index and end to the pseudonyms of those between; None for one that is
            not opened.
    """

    indices: Sequence[int]
    annotators: Callable[[int, int], list[str | None]]


@dataclass
class _Labels:
    first: int
    end: int
    answers: int  # levels of the mechanism
    is_skipped: bool = False
    answered: set[int] = field(default_factory=set)


class LabelReplay:
    """The labels' part of one replay under way."""

    def __init__(
        self,
        found: Replay,
        mechanisms: Mapping[int, Mechanism | None],
        opened: Opened,
        labelled: Labelled | None,
    ) -> None:
        """Note what is found in `found`; `mechanisms` are those that entries stated so far."""
        self._found, self._mechanisms = found, mechanisms
        self._opened, self._labelled = opened, labelled
        self._labels: dict[int, _Labels] = {}
        self._end = 0

    def takes(self) -> dict[str, Callable[[int, Mapping[str, Any]], None]]:
        """Return what takes an entry, by kind."""
        return {
            LABELS_KIND: self._charge,
            PRIVATISED_KIND: self._privatised,
            SKIPPED_KIND: self._skipped,
        }

    def _charge(self, index: int, event: Mapping[str, Any]) -> None:
        count, mechanism = whole(event["labels"]), self._mechanisms.get(event["mechanism_ref"])
        if not isinstance(mechanism, RandomisedResponse | RoundedResponse):
            raise TamperedParameters("labels name no randomised response that is as it must be")
        budget, cost = budget_of(event["budget"]), mechanism.cost
        levels = mechanism.levels if isinstance(mechanism, RandomisedResponse) else 2
        made = self._labels[index] = _Labels(index + 1, index + 1 + count, levels)
        self._found.labels.append((cost, count))
        self._found.budgets.append(budget)
        values = self._opened(index)
        if values is None:
            self._found.unopened += 1
        else:
            names = [str(name) for name in values["participants"]]
            self._found.charge(names, budget, cost, index)
            self._compare_people(made, names)
        if any(event[name] != value for name, value in public_cost(cost).items()):
            raise SpendDiffers("a charge is not what its mechanism costs")
        if dict(event["budget"]) != public_budget(budget):
            raise SpendDiffers("the caps of a budget do not follow from its epsilon and delta")
        if index < self._end:
            raise SpendDiffers("an annotation was charged for by two entries")
        self._end = made.end
        if self._labelled is not None:
            known = self._labelled.indices
            if bisect_left(known, made.end) - bisect_left(known, made.first) != count:
                raise SpendDiffers("a charge is not followed by as many annotations as it says")

    def _compare_people(self, made: _Labels, names: Sequence[str]) -> None:
        """Compare whom a list names with whose the annotations are, of those that are opened."""
        left = Counter(names)
        if self._labelled is not None:
            left.subtract(x for x in self._labelled.annotators(made.first, made.end) if x)
        if len(names) != made.end - made.first or any(count < 0 for count in left.values()):
            raise SpendDiffers("labels were charged to others than their annotators")

    def _privatised(self, _index: int, event: Mapping[str, Any]) -> None:
        made, of = self._labels.get(event["labels_ref"]), whole(event["of"])
        if made is None or not made.first <= of < made.end:
            raise ReleaseWithoutSpend(
                "a privatised value was drawn that nobody was charged for",
                next_step="count everybody's guarantee as lost",
            )
        if of in made.answered or made.is_skipped:
            raise ReleaseWithoutSpend("one label was drawn twice, or after it was given up")
        made.answered.add(of)
        self._found.privatised += 1
        answer = event.get("released", 0)
        if not 0 <= whole(answer, least=0) < made.answers:
            raise ReleaseDiffers("a released label is none that its mechanism gives")

    def _skipped(self, _index: int, event: Mapping[str, Any]) -> None:
        made = self._labels.get(event["labels_ref"])
        if made is None or made.is_skipped or made.answered:
            raise NoiseProtocolError("labels were given up that had an answer, or were not charged")
        made.is_skipped = True
        self._found.skipped += made.end - made.first
        if event["labels"] != made.end - made.first:
            raise NoiseProtocolError("other labels were given up than were charged together")


def whole(value: object, *, least: int = 1) -> int:
    """Return a whole number of an entry; raises ValueError for anything else."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError
    return value
