"""Observations: which figures an event holds, under the names that rules know.

Events are read as they are recorded, so that the log says later what was seen. A figure may
stand in several kinds of event, under the names of several trainers; the kind that had it
first is its source from then on, and nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["METRICS", "OBSERVED_KINDS", "Observation", "observation"]

OBSERVED_KINDS: Final = ("rollout.scored", "policy.update", "metrics.logged")
METRICS: Final = (
    "entropy", "kl", "reward_mean", "reward_std", "reward_dip", "advantage_std", "loss",
    "grad_norm", "length", "truncated_share", "frac_reward_zero_std", "chosen_logps",
)  # fmt: skip

# Sealed fields of `rollout.scored`.
_OF_ROLLOUTS: Final = {
    "reward_mean": "reward_mean",
    "reward_std": "reward_std",
    "kl_mean": "kl",
    "entropy_mean": "entropy",
    "length_mean": "length",
}
# What TRL 0.24 to 1.16 logs in its GRPO, RLOO, PPO, DPO and reward trainers, and our PPO.
_OF_METRICS: Final = {
    "loss": "loss",
    "policy_loss": "loss",
    "loss/policy_avg": "loss",
    "grad_norm": "grad_norm",
    "entropy": "entropy",
    "policy/entropy_avg": "entropy",
    "kl": "kl",
    "objective/kl": "kl",
    "reward": "reward_mean",
    "reward_std": "reward_std",
    "objective/scores": "reward_mean",
    "completions/mean_length": "length",
    "completions/clipped_ratio": "truncated_share",
    "frac_reward_zero_std": "frac_reward_zero_std",
    "logps/chosen": "chosen_logps",
}
_SPELT: Final = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


@dataclass(frozen=True)
class Observation:
    """What one event says: the step, and a number for each figure that it holds."""

    kind: str
    step: int
    figures: Mapping[str, float]


def observation(
    kind: str, fields: Mapping[str, Any], sealed: Mapping[str, Any]
) -> Observation | None:
    """Return the figures of an event, or None if it holds none that are watched.

    Args:
        kind: of the event.
        fields: its public fields.
        sealed: its opened values; numbers that are not finite are text, as they are recorded.
    """
    if kind == "rollout.scored":
        if fields.get("purpose") == "evaluation":  # of other prompts, and sampled otherwise
            return None
        figures = _named(sealed, _OF_ROLLOUTS) | _of_figures(sealed.get("figures"))
        return Observation(kind, _step(fields, "policy_step"), figures)
    if kind == "policy.update":
        statistics = sealed.get("statistics")
        metrics = statistics.get("metrics") if isinstance(statistics, Mapping) else None
        norm = {"grad_norm_preclip": "grad_norm"}
        figures = _named(metrics, _OF_METRICS) | _named(sealed, norm)
        return Observation(kind, _step(fields, "policy_step"), figures)
    if kind == "metrics.logged":
        return Observation(kind, _step(fields, "step"), _named(sealed.get("metrics"), _OF_METRICS))
    return None


def _step(fields: Mapping[str, Any], name: str) -> int:
    step = fields.get(name)
    return step if type(step) is int else 0


def _named(found: Any, names: Mapping[str, str]) -> dict[str, float]:
    if not isinstance(found, Mapping):
        return {}
    numbers = ((ours, _number(found.get(theirs))) for theirs, ours in names.items())
    return {name: number for name, number in numbers if number is not None}


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        return _SPELT.get(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else None


def _of_figures(figures: Any) -> dict[str, float]:
    """Return what is recorded of the completions together, beside their means."""
    if not isinstance(figures, Mapping):
        return {}
    names = ("reward_dip", "frac_reward_zero_std", "truncated_share")
    return _named(figures.get("shape"), dict(zip(names, names, strict=True))) | _named(
        figures.get("advantage"), {"std": "advantage_std"}
    )
