"""Each writer counts its entries from 0: holes must be covered by `gap` events.

Entries are looked at in ranges, by several processes. Each says in a few steps what the
numbers in its range are; the steps of all ranges, in order, give the whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

__all__ = ["Numbering", "Sequences", "Step"]

_HOLES_MAX: Final = 1_000


class Step(NamedTuple):
    """Numbers of one writer, one after the other; recorded, or known not to have been.

    Attributes:
        writer_id: whose.
        first: the first number.
        last: the last number.
        leaf_index: of the first number; -1 for a `gap` event, which says why they are missing.
    """

    writer_id: str
    first: int
    last: int
    leaf_index: int


class Numbering:
    """Takes the numbers of a range of entries; entries of different writers may alternate."""

    def __init__(self) -> None:
        """No entry was seen yet."""
        self._steps: list[Step] = []
        self._running: dict[str, list[int]] = {}  # first, last, index

    def see(self, writer_id: str, seq: int, index: int, count: int = 1) -> None:
        """Take the next entry, or the next `count` of them, numbered from `seq` on."""
        run = self._running.get(writer_id)
        if run is not None and run[1] + 1 == seq:
            run[1] += count
            return
        if run is not None:
            self._steps.append(Step(writer_id, *run))
        self._running[writer_id] = [seq, seq + count - 1, index]

    def cover(self, writer_id: str, first: int, last: int) -> None:
        """Take note of a `gap` event: these numbers are known not to have been recorded."""
        self._close()  # it speaks of what came before it, so the order of steps must tell
        self._steps.append(Step(writer_id, first, last, -1))

    def steps(self) -> list[Step]:
        """Return all steps."""
        self._close()
        return self._steps

    def _close(self) -> None:
        self._steps += (Step(writer, *run) for writer, run in self._running.items())
        self._running.clear()


class Sequences:
    """Follows all writers of a log."""

    def __init__(self) -> None:
        """No writer was seen yet."""
        self._next: dict[str, int] = defaultdict(int)
        self._holes: list[tuple[str, int, int]] = []

    def take(self, steps: Iterable[Step]) -> Iterator[Step]:
        """Take the next steps; yield those that begin below a number that was there already."""
        for step in steps:
            if step.leaf_index < 0:
                self._cover(step)
                continue
            expected = self._next[step.writer_id]
            if step.first > expected:
                self._holes.append((step.writer_id, expected, step.first - 1))
            elif step.first < expected:
                yield step
            self._next[step.writer_id] = max(expected, step.last + 1)

    def _cover(self, gap: Step) -> None:
        left: list[tuple[str, int, int]] = []
        for writer, low, high in self._holes:
            if writer != gap.writer_id or gap.last < low or high < gap.first:
                left.append((writer, low, high))
                continue
            rests = ((low, gap.first - 1), (gap.last + 1, high))
            left += [(writer, *rest) for rest in rests if rest[0] <= rest[1]]
        self._holes = left

    def holes(self, *, beyond: int = _HOLES_MAX) -> Iterator[tuple[str, int, int]]:
        """Take out the oldest holes (writer, first, last) until `beyond` are left."""
        while len(self._holes) > beyond:
            yield self._holes.pop(0)
