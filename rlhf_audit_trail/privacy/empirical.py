"""A lower bound on epsilon from watching a mechanism: it can show a claim false, never true.

Draws for two neighbouring inputs are halved. One half chooses the event that tells the inputs
apart best, the other half bounds its two probabilities (Clopper, Pearson 1934). Choosing and
bounding on the same draws would find differences that are not there.

Statistics, so floats are right here: a bound is wrong with probability 1 - confidence.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Final

from rlhf_audit_trail.privacy.errors import InvalidParameter

__all__ = ["epsilon_lower_bound", "interval_high", "interval_low"]

_BISECTIONS: Final = 60
_TERMS_MAX: Final = 10_000
_CAUTION: Final = 3.0  # standard errors by which a candidate event must stand out

Event = Callable[[int], bool]


def epsilon_lower_bound(
    first: Sequence[int],
    second: Sequence[int],
    *,
    dp_delta: float = 0.0,
    confidence: float = 0.999,
) -> float:
    """Return an epsilon below which the mechanism surely is not (epsilon, dp_delta)-DP.

    Args:
        first: outputs for one input, independent draws.
        second: outputs for a neighbouring input.
        dp_delta: of the claim.
        confidence: probability that the bound holds.

    Returns:
        0 or more; a correct mechanism's is above its epsilon with probability
        1 - confidence at most.

    Raises:
        InvalidParameter: there are fewer than two draws of either.
    """
    if min(len(first), len(second)) < 2:  # noqa: PLR2004 - one to choose by, one to count
        raise InvalidParameter("an audit needs draws of both inputs")
    halves = [(draws[: len(draws) // 2], draws[len(draws) // 2 :]) for draws in (first, second)]
    (choose_one, count_one), (choose_two, count_two) = halves
    event, swapped = _best_event(choose_one, choose_two, dp_delta)
    if swapped:
        count_one, count_two = count_two, count_one
    miss = (1 - confidence) / 2
    often = interval_low(sum(map(event, count_one)), len(count_one), miss) - dp_delta
    seldom = interval_high(sum(map(event, count_two)), len(count_two), miss)
    return max(math.log(often / seldom), 0.0) if often > 0 else 0.0


def _best_event(one: Sequence[int], two: Sequence[int], dp_delta: float) -> tuple[Event, bool]:
    """Return the event that tells best, and whether the inputs are to be exchanged for it.

    Candidates are each single output, everything up to it, and everything from it on.
    """
    counts = Counter(one), Counter(two)
    outputs = sorted(counts[0] | counts[1])
    best: tuple[float, Event, bool] = (-math.inf, lambda _: True, False)
    single = [[count[output] for output in outputs] for count in counts]
    up_to = [list(accumulate(row)) for row in single]
    onward = [list(accumulate(reversed(row)))[::-1] for row in single]
    shapes: tuple[tuple[list[list[int]], Callable[[int], Event]], ...] = (
        (single, lambda output: lambda found: found == output),
        (up_to, lambda output: lambda found: found <= output),
        (onward, lambda output: lambda found: found >= output),
    )
    for (row_one, row_two), event in shapes:
        for output, a, b in zip(outputs, row_one, row_two, strict=True):
            for more, less, swapped in ((a, b, False), (b, a, True)):
                score = _score(more - dp_delta * len(one), less)
                if score > best[0]:
                    best = score, event(output), swapped
    return best[1], best[2]


def _score(more: float, less: int) -> float:
    if more <= 0:
        return -math.inf
    return math.log(more / (less + 1)) - _CAUTION * math.sqrt(1 / more + 1 / (less + 1))


def interval_low(hits: int, draws: int, miss: float) -> float:
    """Return a probability that the true one is not below, except with probability `miss`."""
    return 1 - interval_high(draws - hits, draws, miss)


def interval_high(hits: int, draws: int, miss: float) -> float:
    """Return a probability that the true one is not above, except with probability `miss`.

    The largest p for which `hits` or fewer hits still have probability `miss` (Clopper, Pearson).
    """
    if hits >= draws:
        return 1.0
    low, high = hits / draws, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        # P[at most `hits` of `draws`] = I(1 - p; draws - hits, hits + 1)
        if _beta(1 - middle, draws - hits, hits + 1) > miss:
            low = middle
        else:
            high = middle
    return high


def _beta(x: float, a: float, b: float) -> float:
    """Return the regularised incomplete beta function I(x; a, b), 0 <= x <= 1."""
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):  # the fraction converges quickly below the mean only
        return 1 - _beta(1 - x, b, a)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front += a * math.log(x) + b * math.log1p(-x)
    return math.exp(front) / (a * _fraction(x, a, b))


def _fraction(x: float, a: float, b: float) -> float:
    """Return the continued fraction of I(x; a, b), by the modified method of Lentz.

    DLMF 8.17.22: 1 + d1 / (1 + d2 / (1 + ...)).
    """
    value, above, below = 1.0, 1.0, 0.0
    for term in range(1, _TERMS_MAX):
        m = term // 2
        if term % 2:
            d = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            d = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        above = 1 + d / above
        below = 1 / (1 + d * below)
        value *= above * below
        if abs(above * below - 1) < 1e-15:  # noqa: PLR2004 - the last digit of a float
            break
    return value
