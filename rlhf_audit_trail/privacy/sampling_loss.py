"""How much a Poisson-sampled Gaussian loses over many steps: privacy loss distributions.

The privacy loss of one step is put on a grid and composed by one Fourier transform. Every
approximation goes one way, so the epsilon returned is never below the true one:

- a bin of outputs becomes two points of the grid that enclose it, which keep its probability
  under both neighbours ("connect the dots", Doroshenko et al. 2022): the curve of delta is
  replaced by chords above it;
- what lies outside of the grid counts as lost altogether;
- a bound on the rounding of the transform is added to delta.

One person's examples are at most `examples`; each of them is in a step's batch with
probability `sample_rate`, so that the sum moves by j clipping norms with binomial probability
(a mixture of Gaussians, Choquette-Choo et al. 2024). Needs NumPy and SciPy, never torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.special import logsumexp, ndtr

from rlhf_audit_trail.privacy.errors import InvalidDelta, InvalidParameter

__all__ = ["RELATIONS", "Steps", "composed_epsilon"]

Floats: TypeAlias = NDArray[np.float64]

RELATIONS: Final = ("add_remove", "replace", "replace_paired")

_TAIL_STD: Final = 10.0  # beyond it lies 8e-24 of a Gaussian
_COARSE: Final = 4096
_INTERVAL_MAX: Final = 1e-3
_CELLS_PER_STD: Final = 64  # rounding then adds below 1e-4 to the variance of the loss
_ROOT_STEPS: Final = 8
_CELLS_MAX: Final = 1 << 20  # of one step
_SIZE_MAX: Final = 1 << 22  # of the composition
_CHUNK: Final = 1 << 16
_WEIGHT_MIN: Final = 1e-25
# of delta, for what the grid of the composition leaves out; exp(epsilon) may multiply it
_TAIL_SHARE: Final = 1e-12
_GROUPS: Final = 4096
_GROUP_COST: Final = 0.5
_BISECTIONS: Final = 48
_SCAN: Final = 64
_EXPONENT_MAX: Final = 700.0
_ROUNDING: Final = 8 * 2.0**-52  # per step: the transform's error, summed over a tail
_ORDERS: Final = np.geomspace(0.1, 500.0, 24)
_SPREADS: Final = np.geomspace(0.5, 60.0, 16)


@dataclass(frozen=True)
class Steps:
    """Some steps in a row with the same noise; the entries of an accountant's history.

    Attributes:
        noise_multiplier: standard deviation of the noise over the clipping norm.
        sample_rate: probability with which each example is in a step's batch.
        steps: how many.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int

    def __post_init__(self) -> None:
        good = (
            math.isfinite(self.noise_multiplier)
            and self.noise_multiplier > 0
            and 0 < self.sample_rate <= 1
            and isinstance(self.steps, int)
            and self.steps >= 0
        )
        if not good:
            raise InvalidParameter(
                "noise_multiplier is above 0, sample_rate from above 0 to 1, steps a whole number"
            )


@lru_cache(maxsize=64)
def composed_epsilon(
    history: tuple[Steps, ...], dp_delta: float, *, examples: int = 1, relation: str = "add_remove"
) -> float:
    """Return an epsilon such that all steps together are (epsilon, dp_delta)-DP.

    Args:
        history: of the accountant; steps may have been chosen by what earlier ones returned.
        dp_delta: of the guarantee, above 0 and below 1.
        examples: of one person at most; 1 is the guarantee of an example.
        relation: add_remove; replace, which is removing and adding: an (e, d) under add/remove is
            (2 e, (1 + exp(e)) d) under replace, here with the best e; or replace_paired, the
            usually smaller figure of the pair that moves the sum by +j against -j, which is not
            proven to be the worst one for every q, and which we show but do not claim.

    Returns:
        Infinity where nothing finite can be claimed.

    Raises:
        InvalidDelta: too small for what floating point can tell, or no probability.
        InvalidParameter: another one is outside its range.
    """
    if relation not in RELATIONS or examples < 1:
        raise InvalidParameter(f"relation is one of {', '.join(RELATIONS)}, and examples 1 or more")
    done = [entry for entry in history if entry.steps]
    total = sum(entry.steps for entry in done)
    rounding = _ROUNDING * total
    if not 0 < dp_delta < 1 or rounding > dp_delta / 10:
        raise InvalidDelta(
            f"over {total} steps delta cannot be told apart from rounding, or is no probability",
            next_step="use 1e-6, or less than one over the number of annotators",
        )
    if not done:
        return 0.0
    directions = ("replace",) if relation == "replace_paired" else ("remove", "add")
    is_twice = relation == "replace"
    tail = dp_delta * _TAIL_SHARE
    curves = [_curve(tuple(done), tail, rounding, examples, name) for name in directions]
    return (2 if is_twice else 1) * _smallest_epsilon(curves, dp_delta, is_twice=is_twice)


# --- one step ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Step:
    """What one step does to a person's neighbours; in units of the clipping norm."""

    std: float
    weights: Floats  # of moving the sum by 0, 1, ... norms
    dropped: float  # weight of moves so unlikely that they count as lost
    direction: str

    @classmethod
    def of(cls, entry: Steps, examples: int, direction: str) -> _Step:
        weights = _binomial(examples, entry.sample_rate)
        kept = max(2, int(np.flatnonzero(weights > _WEIGHT_MIN)[-1]) + 1)
        dropped = float(weights[kept:].sum())
        return cls(entry.noise_multiplier, weights[:kept], dropped, direction)

    @property
    def edges(self) -> tuple[float, float]:
        reach, high = _TAIL_STD * self.std, float(len(self.weights) - 1)
        return (-high - reach if self.direction == "replace" else -reach), high + reach

    def loss(self, points: Floats) -> Floats:
        """Return the loss at outputs; growing, or for `add` falling."""
        loss = self._moved(points)
        if self.direction == "replace":
            return loss - self._moved(-points)
        return -loss if self.direction == "add" else loss

    def _moved(self, points: Floats) -> Floats:
        """Return log density of the mixture over that of the noise alone."""
        moves = np.arange(len(self.weights), dtype=np.float64)
        with np.errstate(divide="ignore"):
            logs = np.log(self.weights) - moves**2 / (2 * self.std**2)
        found = np.empty_like(points)
        for start in range(0, len(points), _CHUNK):
            part = slice(start, start + _CHUNK)
            exponents = logs + np.multiply.outer(points[part], moves / self.std**2)
            found[part] = logsumexp(exponents, axis=1)
        return found

    def masses(self, points: Floats) -> tuple[Floats, Floats]:
        """Return the probability between neighbouring points, under both neighbours."""
        alone = _gaussian_masses(points / self.std)
        moved = self._mixed(points)
        if self.direction == "replace":
            return moved, self._mixed(-points[::-1])[::-1]
        return (alone, moved) if self.direction == "add" else (moved, alone)

    def _mixed(self, points: Floats) -> Floats:
        total = np.zeros(len(points) - 1)
        for move, weight in enumerate(self.weights):
            total += weight * _gaussian_masses((points - move) / self.std)
        return total


@dataclass(frozen=True)
class _Losses:
    """A distribution on the grid: `masses[i]` at loss (first + i) * interval."""

    first: int
    masses: Floats
    lost: float

    def spread(self, interval: float) -> tuple[float, float]:
        """Return mean and standard deviation."""
        values = (self.first + np.arange(len(self.masses))) * interval
        mean = float(values @ self.masses)
        return mean, math.sqrt(max(float((values - mean) ** 2 @ self.masses), 1e-300))


def _on_grid(step: _Step, interval: float) -> _Losses:
    """Put the loss of a step on a grid, upwards."""
    points = _points(step, interval)
    losses = step.loss(points)
    first, second = step.masses(points)
    low = np.floor(np.minimum(losses[1:], losses[:-1]) / interval)
    high = np.maximum(np.ceil(np.maximum(losses[1:], losses[:-1]) / interval), low + 1)
    with np.errstate(divide="ignore", over="ignore", under="ignore"):
        there = np.exp(np.minimum(low * interval + np.log(second), 709.0))
        upper = (first - there) / -np.expm1((low - high) * interval)
    upper = np.clip(upper, 0.0, first)
    base = int(low.min())
    masses: Any = np.bincount((low - base).astype(np.int64), first - upper)
    top = np.bincount((high - base).astype(np.int64), upper)
    size = max(len(masses), len(top))
    masses = np.pad(masses, (0, size - len(masses))) + np.pad(top, (0, size - len(top)))
    # whatever lies outside of the edges counts as lost, on either side
    return _Losses(base, masses, 2 * float(ndtr(-_TAIL_STD)) + step.dropped)


def _points(step: _Step, interval: float) -> Floats:
    """Return outputs between which the loss changes by half a cell or less."""
    coarse = np.linspace(*step.edges, _COARSE + 1)
    rising = -step.loss(coarse) if step.direction == "add" else step.loss(coarse)
    losses = np.maximum.accumulate(rising)
    wanted = np.arange(losses[0], losses[-1], interval / 2)
    return np.unique(np.concatenate([coarse, np.interp(wanted, losses, coarse)]))


def _interval(step: _Step) -> float:
    """Return a width of cells that fits a step's losses."""
    coarse = np.linspace(*step.edges, _COARSE + 1)
    losses, (masses, _) = step.loss(coarse), step.masses(coarse)
    middles = (losses[1:] + losses[:-1]) / 2
    mean = float(middles @ masses)
    std = math.sqrt(float((middles - mean) ** 2 @ masses))
    span = abs(float(losses[-1] - losses[0]))
    return max(min(std / _CELLS_PER_STD, _INTERVAL_MAX), span / _CELLS_MAX, 1e-12)


def _gaussian_masses(points: Floats) -> Floats:
    """Return standard normal probability between points, exact to the last digits in both tails."""
    below, above = ndtr(points), ndtr(-points)
    found: Floats = np.where(points[:-1] > 0, above[:-1] - above[1:], below[1:] - below[:-1])
    return found


def _binomial(trials: int, chance: float) -> Floats:
    if chance == 1:
        return np.concatenate([np.zeros(trials), np.ones(1)])
    counts = range(trials + 1)
    logs = [
        math.lgamma(trials + 1) - math.lgamma(j + 1) - math.lgamma(trials - j + 1)
        + j * math.log(chance) + (trials - j) * math.log1p(-chance)
        for j in counts
    ]  # fmt: skip
    weights: Floats = np.exp(np.array(logs))
    return weights


# --- all of them ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Curve:
    """The loss of all steps: `masses` on the grid, and what counts as lost altogether."""

    losses: Floats
    masses: Floats
    lost: float

    def delta(self, epsilon: float) -> float:
        """Return the hockey-stick divergence at epsilon, from above."""
        start = int(np.searchsorted(self.losses, epsilon, side="right"))
        kept = -np.expm1(epsilon - self.losses[start:])
        return self.lost + float(self.masses[start:] @ kept)


@lru_cache(maxsize=4)
def _curve(
    history: tuple[Steps, ...], tail: float, rounding: float, examples: int, direction: str
) -> _Curve:
    steps = [_Step.of(entry, examples, direction) for entry in history]
    counts = [entry.steps for entry in history]
    finer = min(1.0, math.sqrt(sum(counts)) / _ROOT_STEPS)  # few steps spread less
    interval = min(_interval(step) for step in steps) * finer
    interval = max([interval] + [_span(step) / _CELLS_MAX for step in steps])
    while True:
        parts = [_on_grid(step, interval) for step in steps]
        low, high = _window(parts, counts, interval, tail)
        size = int((high - low) / interval) + 2
        if size <= _SIZE_MAX:
            break
        interval *= 2.0 ** math.ceil(math.log2(size / _SIZE_MAX))
    first = math.floor(low / interval)
    masses = _composed(parts, counts, first, size)
    lost = tail + sum(part.lost * count for part, count in zip(parts, counts, strict=True))
    losses = (first + np.arange(len(masses), dtype=np.float64)) * interval
    return _Curve(losses, masses, lost + rounding)


def _span(step: _Step) -> float:
    ends = step.loss(np.array(step.edges))
    return abs(float(ends[1] - ends[0]))


def _window(
    parts: Sequence[_Losses], counts: Sequence[int], interval: float, tail: float
) -> tuple[float, float]:
    """Return losses between which the sum lies but for `tail` on either side (Chernoff)."""
    figures = [part.spread(interval) for part in parts]
    variance = sum(n * std**2 for n, (_, std) in zip(counts, figures, strict=True))
    orders = np.union1d(_ORDERS, _SPREADS / math.sqrt(variance))
    needed = -math.log(tail)
    high = min((_growth(parts, counts, interval, o) + needed) / o for o in orders.tolist())
    low = max(-(_growth(parts, counts, interval, -o) + needed) / o for o in orders.tolist())
    return low, high


def _growth(
    parts: Sequence[_Losses], counts: Sequence[int], interval: float, order: float
) -> float:
    """Return log E exp(order * sum of losses), from above: cells go in groups."""
    total = 0.0
    for part, count in zip(parts, counts, strict=True):
        fine = _GROUP_COST / (abs(order) * interval * count)  # what groups may add to the sum
        width = max(1, min(-(-len(part.masses) // _GROUPS), int(fine)))
        groups = np.add.reduceat(part.masses, np.arange(0, len(part.masses), width))
        there = np.flatnonzero(groups)
        edge = there * width + (width - 1 if order > 0 else 0)
        losses = (part.first + edge) * interval
        total += count * float(logsumexp(order * losses, b=groups[there]))
    return total


def _composed(parts: Sequence[_Losses], counts: Sequence[int], first: int, size: int) -> Floats:
    """Return the distribution of the sum, from cell `first` on; what lies outside wraps around."""
    size = fft.next_fast_len(size, real=True)
    product: Any = 1.0
    for part, count in zip(parts, counts, strict=True):
        cells = (part.first + np.arange(len(part.masses))) % size
        folded = np.bincount(cells, part.masses, minlength=size)
        product = product * fft.rfft(folded) ** count
    found: Floats = np.roll(fft.irfft(product, size), -(first % size))
    return np.maximum(found, 0.0)


def _smallest_epsilon(curves: Sequence[_Curve], dp_delta: float, *, is_twice: bool) -> float:
    """Return an epsilon, from above, at which every curve is within delta; infinity if none is."""

    def holds(epsilon: float) -> bool:
        factor = 1.0 + math.exp(min(epsilon, _EXPONENT_MAX)) if is_twice else 1.0
        return all(factor * curve.delta(epsilon) <= dp_delta for curve in curves)

    last = max(0.0, *(float(curve.losses[-1]) for curve in curves))
    # twice over it need not be monotone: the first that holds is looked for, then its edge
    tried: list[float] = np.linspace(0.0, last, _SCAN).tolist()
    number = next((i for i, epsilon in enumerate(tried) if holds(epsilon)), None)
    if number is None:
        return math.inf
    low, high = tried[max(number - 1, 0)], tried[number]
    for _ in range(_BISECTIONS if number else 0):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
