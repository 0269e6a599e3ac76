"""Settings of a PPO training, and the figures of one of its steps; free of torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = ["InvalidPPOArgs", "PPOArgs", "StepReport"]


_KL_ERROR_MAX: Final = 0.2


class InvalidPPOArgs(AuditTrailError):
    """A setting of the trainer is outside its range."""


@dataclass(frozen=True, kw_only=True)
class PPOArgs:
    """Settings of PPO.

    Attributes:
        batch_size: completions per step.
        mini_batch_size: completions per optimizer step; at most `batch_size`.
        epochs: passes over a batch.
        learning_rate: of AdamW, where no optimizer is given.
        max_new_tokens: longest completion.
        temperature: of sampling, and of all log-probabilities.
        generation_batch_size: completions that are sampled and read at once; 0 for all of a
            batch. Smaller ones need less memory, since a row takes its length times the
            vocabulary.
        kl_coef: price of one nat of KL to the reference, in units of the score.
        kl_target: KL in nats that the price is steered towards; 0 keeps the price as it is.
        kl_horizon: completions over which a deviation from the target changes the price.
        gamma: discount per token.
        lam: decay of the advantage estimate.
        clip_range: how far a ratio may leave 1 before its gradient ends.
        value_clip_range: the same for values, in units of the score.
        value_coef: weight of the value loss.
        max_grad_norm: gradients are clipped to this L2 norm.
        missing_eos_penalty: taken off the score of a completion that did not end.
        checkpoint_every: steps between recorded checkpoints; 0 records first and last only.
        seed: of sampling and shuffling.
    """

    batch_size: int = 32
    mini_batch_size: int = 8
    epochs: int = 2
    learning_rate: float = 1e-5
    max_new_tokens: int = 32
    temperature: float = 1.0
    generation_batch_size: int = 0
    kl_coef: float = 0.05
    kl_target: float = 0.0
    kl_horizon: int = 10_000
    gamma: float = 1.0
    lam: float = 0.95
    clip_range: float = 0.2
    value_clip_range: float = 0.2
    value_coef: float = 0.1
    max_grad_norm: float = 1.0
    missing_eos_penalty: float = 0.0
    checkpoint_every: int = 0
    seed: int = 0

    def next_kl_coef(self, kl_coef: float, kl: float, *, completions: int) -> float:
        """Return the price of KL after completions with this mean KL (Ziegler et al. 2019).

        It grows by the share that `kl` exceeds the target, at most a fifth, in proportion to
        the horizon; it shrinks alike.
        """
        if not self.kl_target or not math.isfinite(kl):
            return kl_coef
        error = min(max(kl / self.kl_target - 1, -_KL_ERROR_MAX), _KL_ERROR_MAX)
        return kl_coef * (1 + error * completions / self.kl_horizon)

    def __post_init__(self) -> None:
        """Raise InvalidPPOArgs for a setting that cannot work."""
        counts = ("batch_size", "mini_batch_size", "epochs", "max_new_tokens", "kl_horizon")
        positive = ("learning_rate", "temperature", "clip_range", "value_clip_range")
        for name in (*counts, *positive, "max_grad_norm"):
            _check_above(name, getattr(self, name), least=1 if name in counts else None)
        natural = ("kl_coef", "kl_target", "value_coef", "missing_eos_penalty")
        for name in (*natural, "checkpoint_every", "generation_batch_size"):
            _check_above(name, getattr(self, name), least=0)
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidPPOArgs(f"{name} must be from 0 to 1")
        if self.mini_batch_size > self.batch_size:
            raise InvalidPPOArgs("mini_batch_size must not be above batch_size")


@dataclass(frozen=True)
class StepReport:
    """Figures of one PPO step; all but `step` belong in the vault once recorded."""

    step: int
    score_mean: float
    score_std: float
    kl_mean: float
    entropy_mean: float
    length_mean: float
    policy_loss: float
    value_loss: float
    approx_kl: float
    clip_fraction: float
    first_ratio_deviation: float
    kl_coef: float
    grad_norm_preclip: float
    parameter_delta_norm: float | None = None


def _check_above(name: str, value: Any, *, least: int | None) -> None:
    """Check a finite number above 0, or one of at least `least`."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or (value <= 0 if least is None else value < least):
        raise InvalidPPOArgs(
            f"{name} must be a finite number {'above 0' if least is None else f'from {least} on'}"
        )
