"""Budgets of many annotators at once: the same decisions as `account`, in 64-bit columns.

The arithmetic is exact: counts and sums of signed 64-bit integers, never float weights
(`numpy.bincount` with weights would add in floats). Needs NumPy, and `account` does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rlhf_audit_trail.privacy.account import Budget, Spent
from rlhf_audit_trail.privacy.cost import UNBOUNDED, Cost
from rlhf_audit_trail.privacy.errors import InvalidParameter

__all__ = ["StreamFilter", "use_counts"]

Numbers: TypeAlias = NDArray[np.int64]
Decisions: TypeAlias = NDArray[np.bool_]

_LANES: Final = 3  # epsilon, second, delta
_ROUNDS_MAX: Final = 64  # beyond it one annotator has so many charges that a plain loop is quicker
_CELLS_MAX: Final = 1 << 26


def use_counts(
    annotators: Numbers, mechanisms: Numbers, *, n_annotators: int, n_mechanisms: int
) -> Numbers:
    """Return how often each annotator was charged for each mechanism.

    Times the integer costs of the mechanisms this is everything that was spent, in whatever
    order it happened.

    Args:
        annotators: number of each event's annotator, from 0; shape (events,).
        mechanisms: number of each event's mechanism, from 0; the same shape.
        n_annotators: how many annotators there are.
        n_mechanisms: how many mechanisms there are.

    Returns:
        Shape (n_annotators, n_mechanisms).

    Raises:
        InvalidParameter: a number is out of range, or the table would be above 2^26 cells.
    """
    if n_annotators * n_mechanisms > _CELLS_MAX:
        raise InvalidParameter("the table of uses would be too large")
    _check_numbers(annotators, n_annotators)
    if n_mechanisms == 1:
        _check_numbers(mechanisms, 1)
        return np.bincount(annotators, minlength=n_annotators)[:, None]
    _check_numbers(mechanisms, n_mechanisms)
    cells = annotators * n_mechanisms + mechanisms
    counts = np.bincount(cells, minlength=n_annotators * n_mechanisms)
    return counts.reshape(n_annotators, n_mechanisms)


class StreamFilter:
    """One budget each for many annotators; decides batches of charges in their order.

    Not thread-safe: the caller's transaction is the lock.
    """

    def __init__(self, budget: Budget, costs: Sequence[Cost], *, n_annotators: int) -> None:
        """Begin with nothing spent.

        Args:
            budget: of every annotator.
            costs: of the mechanisms, in the order of their numbers.
            n_annotators: how many annotators there are.
        """
        self._budget = budget
        self._charges = [budget.charge(cost) for cost in costs]
        table = [_lanes(charge) for charge in self._charges]
        self._table: Numbers = np.array(table, dtype=np.int64).reshape(len(costs), _LANES)
        self._caps = (budget.epsilon_units, budget.second_cap_units, budget.share_units)
        self._spent: Numbers = np.zeros((_LANES, n_annotators), dtype=np.int64)

    def spent(self, annotator: int) -> Spent:
        """Return what one annotator has been charged."""
        epsilon, second, delta = self._spent[:, annotator].tolist()
        return Spent(epsilon, second, delta)

    def restore(self, annotator: int, spent: Spent) -> None:
        """Take up what an annotator was charged before."""
        self._spent[:, annotator] = _lanes(spent)

    def charge(self, annotators: Numbers, mechanisms: Numbers) -> Decisions:
        """Charge a batch, in its order, and return which events were admitted.

        An event that is refused is not charged; a later one that costs less may be admitted,
        exactly as if events came one by one.

        Args:
            annotators: number of each event's annotator; shape (events,), int64.
            mechanisms: number of each event's mechanism; the same shape.

        Raises:
            InvalidParameter: shapes differ, or a number is out of range.
        """
        if annotators.shape != mechanisms.shape or annotators.ndim != 1:
            raise InvalidParameter("there is one mechanism for each annotator of a batch")
        _check_numbers(annotators, self._spent.shape[1])
        _check_numbers(mechanisms, len(self._charges))
        admitted: Decisions = np.zeros(annotators.shape, dtype=np.bool_)
        size = self._batch_max()
        for start in range(0, len(annotators), size):
            part = slice(start, start + size)
            admitted[part] = self._batch(annotators[part], mechanisms[part])
        return admitted

    def _batch_max(self) -> int:
        """Return how many of the dearest finite charge 64 bits can hold."""
        finite = self._table[self._table < UNBOUNDED]
        return max(1, UNBOUNDED // max(int(finite.max(initial=1)), 1))

    def _batch(self, annotators: Numbers, mechanisms: Numbers) -> Decisions:
        """Admit whoever's charges all fit; look at the others one by one."""
        after = self._after(annotators, mechanisms)
        fits = self._within(after)
        self._spent[:, fits] = after[:, fits]
        admitted = fits[annotators]
        if not admitted.all():
            rest = np.flatnonzero(~admitted)
            admitted[rest] = self._in_order(annotators[rest], mechanisms[rest])
        return admitted

    def _after(self, annotators: Numbers, mechanisms: Numbers) -> Numbers:
        """Return everybody's sums if all were admitted; shape (lanes, annotators)."""
        n_annotators, n_mechanisms = self._spent.shape[1], len(self._charges)
        counts = use_counts(
            annotators, mechanisms, n_annotators=n_annotators, n_mechanisms=n_mechanisms
        )
        after = np.empty_like(self._spent)
        for lane in range(_LANES):
            column = self._table[:, lane]
            endless = column >= UNBOUNDED
            total = counts @ np.where(endless, 0, column) + self._spent[lane]
            np.minimum(total, UNBOUNDED, out=after[lane])
            if endless.any():
                after[lane][counts[:, endless].any(axis=1)] = UNBOUNDED
        return after

    def _within(self, sums: Numbers) -> Decisions:
        epsilon, second, delta = sums
        found = (epsilon <= self._caps[0]) | (second <= self._caps[1])
        found &= delta <= self._caps[2]
        return np.asarray(found, dtype=np.bool_)

    def _in_order(self, annotators: Numbers, mechanisms: Numbers) -> Decisions:
        """Decide event by event; in each round one event of every annotator, the earliest."""
        admitted: Decisions = np.zeros(annotators.shape, dtype=np.bool_)
        order = np.argsort(annotators, kind="stable")
        sorted_annotators = annotators[order]
        starts = np.flatnonzero(np.diff(sorted_annotators, prepend=-1))
        lengths = np.diff(starts, append=len(order))
        for round_number in range(min(int(lengths.max(initial=0)), _ROUNDS_MAX)):
            events = order[starts[lengths > round_number] + round_number]
            who = annotators[events]
            sums = self._spent[:, who] + self._table[mechanisms[events]].T
            np.minimum(sums, UNBOUNDED, out=sums)
            good = self._within(sums)
            self._spent[:, who[good]] = sums[:, good]
            admitted[events] = good
        for group in np.flatnonzero(lengths > _ROUNDS_MAX):
            late = order[starts[group] + _ROUNDS_MAX : starts[group] + lengths[group]]
            admitted[late] = self._one_by_one(
                int(sorted_annotators[starts[group]]), mechanisms[late]
            )
        return admitted

    def _one_by_one(self, annotator: int, mechanisms: Numbers) -> list[bool]:
        spent, decisions = self.spent(annotator), []
        for number in mechanisms.tolist():
            after = spent.plus(self._charges[number])
            good = self._budget.holds(after)
            spent = after if good else spent
            decisions.append(good)
        self.restore(annotator, spent)
        return decisions


def _lanes(spent: Spent) -> tuple[int, int, int]:
    return spent.epsilon_units, spent.second_units, spent.delta_units


def _check_numbers(numbers: Numbers, count: int) -> None:
    if numbers.dtype != np.int64 or numbers.ndim != 1:  # 32 bits would overflow silently
        raise InvalidParameter("numbers are signed 64-bit integers, in one dimension")
    if len(numbers) and not (numbers.min() >= 0 and numbers.max() < count):
        raise InvalidParameter("an annotator or mechanism has no such number")
