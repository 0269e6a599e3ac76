"""A simulated pool of annotators: each with a bias and noise of their own, one an adversary.

Nobody was asked. The log says `source: simulated`, and a card must never count these as
human. Standard library only, so that the fast demo can use them too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["LEVELS", "Annotator", "Ratings", "make_pool", "rate"]

LEVELS: Final = 5  # ratings are 0, 0.25, 0.5, 0.75 or 1, like five stars


@dataclass(frozen=True)
class Annotator:
    """Somebody who rates, with a bias and noise on a scale from 0 to 1.

    Attributes:
        annotator_id: stable id; in the log it is a pseudonym behind a commitment.
        bias: added to every rating.
        noise_std: standard deviation of what is added anew each time.
        is_adversary: rates upside down.
    """

    annotator_id: str
    bias: float
    noise_std: float
    is_adversary: bool = False

    def rate(self, quality: float, rng: random.Random) -> float:
        """Return a rating, one of `LEVELS` steps from 0 to 1, for a quality from 0 to 1."""
        seen = 1.0 - quality if self.is_adversary else quality
        felt = seen + self.bias + rng.gauss(0.0, self.noise_std)
        steps = LEVELS - 1
        return round(min(max(felt, 0.0), 1.0) * steps) / steps


@dataclass(frozen=True)
class Ratings:
    """Columns of equal length, as `log_annotations` takes them."""

    prompts: list[str]
    responses: list[str]
    annotator_ids: list[str]
    rewards: list[float]


def make_pool(rng: random.Random, *, size: int = 6) -> list[Annotator]:
    """Return `size` annotators, the last of them an adversary."""
    honest = [
        Annotator(
            annotator_id=f"annotator-{number}",
            bias=rng.uniform(-0.08, 0.08),
            noise_std=rng.uniform(0.05, 0.2),
        )
        for number in range(1, size)
    ]
    return [*honest, Annotator(f"annotator-{size}", 0.0, 0.1, is_adversary=True)]


def rate(
    pool: Sequence[Annotator],
    pairs: Sequence[tuple[str, str]],
    quality: Callable[[str, str], float],
    rng: random.Random,
    *,
    raters: int = 3,
) -> Ratings:
    """Have each (prompt, response) rated by `raters` different annotators."""
    found = Ratings([], [], [], [])
    for prompt, response in pairs:
        for annotator in rng.sample(list(pool), raters):
            found.prompts.append(prompt)
            found.responses.append(response)
            found.annotator_ids.append(annotator.annotator_id)
            found.rewards.append(annotator.rate(quality(prompt, response), rng))
    return found
