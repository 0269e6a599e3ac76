"""What a demo training did, for the screen; the record itself is in the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["CHECKPOINTS", "TrainingSummary", "end_mean"]

CHECKPOINTS: Final = 4  # recorded after the untrained one, evenly over the steps
_LAST_AVERAGED: Final = 5  # steps whose mean stands for the end


@dataclass(frozen=True)
class TrainingSummary:
    """Figures of a training run; with simulated annotators throughout.

    Attributes:
        steps: policy-gradient steps made.
        annotations: ratings that were logged.
        reward_start: mean reward of the first step, sampled before any update.
        reward_end: mean reward of the last steps.
        kl_end: KL to the reference at the end, nats per answer.
        first_checkpoint: name of the untrained policy's checkpoint.
        last_checkpoint: name of the newest checkpoint.
        quality_start: what an honest and exact annotator would say of the untrained policy,
            0 to 1; None where it was not asked.
        quality_end: the same of the trained one; falling while the reward rises, it would
            show reward hacking.
        samples: (prompt, answer before, answer after).
    """

    steps: int
    annotations: int
    reward_start: float
    reward_end: float
    kl_end: float
    first_checkpoint: str
    last_checkpoint: str
    quality_start: float | None = None
    quality_end: float | None = None
    samples: tuple[tuple[str, str, str], ...] = ()


def end_mean(values: Sequence[float]) -> float:
    """Return the mean of the last steps' values."""
    last = values[-_LAST_AVERAGED:]
    return sum(last) / len(last)
