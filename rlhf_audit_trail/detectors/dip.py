"""The dip of a sample: how far it is from every distribution with one peak.

Hartigan and Hartigan 1985, "The Dip Test of Unimodality", doi 10.1214/aos/1176346577. The
dip is the smallest possible largest distance between the sample's distribution function and
one that is convex up to some point and concave from there on.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Final

__all__ = ["SAMPLE_MAX", "dip", "scaled_dip"]

SAMPLE_MAX: Final = 256  # of larger ones, so many quantiles: the cost of a step must not grow


def scaled_dip(values: Sequence[float]) -> float:
    """Return sqrt(n) times the dip, which has a limit distribution as n grows.

    For samples of a uniform distribution, the hardest with one peak, it is below 0.54 in 95
    of 100 cases.
    """
    sample = sorted(values)
    if len(sample) > SAMPLE_MAX:
        last = len(sample) - 1
        sample = [sample[round(i * last / (SAMPLE_MAX - 1))] for i in range(SAMPLE_MAX)]
    return math.sqrt(len(sample)) * dip(sample)


def dip(sample: Sequence[float]) -> float:
    """Return the dip of a sorted sample, from 1/(2n) to 1/4; 0 for fewer than four values.

    Finds the shortest modal interval: between the greatest convex minorant and the least
    concave majorant of the distribution function the largest gap is sought, the interval is
    drawn in to where it stands, and the distances outside of it are kept.
    """
    count = len(sample)
    if count < 4 or sample[0] == sample[-1]:  # noqa: PLR2004 - two groups need two members each
        return 0.0
    low, high, found = 0, count - 1, 1.0 / count
    while True:
        convex = _hull(sample, low, high, is_convex=True)
        concave = _hull(sample, low, high, is_convex=False)
        below, above = _ranks(sample, convex), _ranks(sample, concave)
        gap, at_low, at_high = _largest_gap(convex, concave, below, above)
        if gap / count <= found:
            return found / 2
        outside = [i + 1 - below[i - low] for i in range(low, at_low + 1)]
        outside += [above[i - low] - i + 1 for i in range(at_high, high + 1)]
        found = max(found, max(outside) / count)
        if (at_low, at_high) == (low, high):
            return found / 2
        low, high = at_low, at_high


def _hull(sample: Sequence[float], low: int, high: int, *, is_convex: bool) -> list[int]:
    """Return the corners of the minorant or majorant of ranks over values, as indices."""
    sign = 1.0 if is_convex else -1.0
    corners: list[int] = []
    for i in range(low, high + 1):
        while len(corners) > 1:
            a, b = corners[-2:]
            turn = (b - a) * (sample[i] - sample[a]) - (i - a) * (sample[b] - sample[a])
            if sign * turn < 0:
                break
            corners.pop()
        corners.append(i)
    return corners


def _ranks(sample: Sequence[float], corners: Sequence[int]) -> list[float]:
    """Return the rank that a hull gives to each value between its ends."""
    ranks = [float(corners[0])]
    for a, b in itertools.pairwise(corners):
        width = sample[b] - sample[a]
        slope = (b - a) / width if width > 0 else 0.0
        ranks += [a + slope * (sample[i] - sample[a]) if width > 0 else b for i in range(a + 1, b)]
        ranks.append(float(b))
    return ranks


def _largest_gap(
    convex: Sequence[int],
    concave: Sequence[int],
    below: Sequence[float],
    above: Sequence[float],
) -> tuple[float, int, int]:
    """Return the largest distance between the hulls, in ranks, and the corners around it."""
    low, best = convex[0], (0.0, convex[0], convex[-1])
    for i in convex:
        gap = above[i - low] - i + 1
        if gap > best[0]:
            best = (gap, i, concave[bisect_left(concave, i)])
    for i in concave:
        gap = i - below[i - low] + 1
        if gap > best[0]:
            best = (gap, convex[bisect_right(convex, i) - 1], i)
    return best
