"""The arithmetic of PPO over completions of unequal length; pure functions on tensors.

Shapes: B completions, R response tokens. `live` is a (B, R) bool mask, true up to and
including each completion's first end-of-sequence token; what lies behind it never counts.

References: Schulman et al. 2015 (generalised advantage estimation), 2017 (PPO);
Ziegler et al. 2019 (the per-token KL penalty).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = [
    "PolicyLoss",
    "advantages_and_returns",
    "clipped_policy_loss",
    "clipped_value_loss",
    "exact_entropy",
    "exact_kl",
    "live_mask",
    "masked_mean",
    "token_rewards",
    "whiten",
]

_EPSILON = 1e-8  # keeps the division finite when all live values are equal


@dataclass(frozen=True)
class PolicyLoss:
    """The clipped policy loss, and how far the policy has moved from the one that sampled.

    Attributes:
        loss: scalar with gradient.
        clip_fraction: share of live tokens whose ratio was clipped.
        approx_kl: mean of (ratio - 1) - log ratio, an estimate that is never negative.
        ratio_deviation_max: largest |ratio - 1| over live tokens.
    """

    loss: torch.Tensor
    clip_fraction: torch.Tensor
    approx_kl: torch.Tensor
    ratio_deviation_max: torch.Tensor


def live_mask(responses: torch.Tensor, eos_id: int | None) -> torch.Tensor:
    """Return the mask of live tokens of (B, R) responses: through the first end token."""
    if eos_id is None:
        return torch.ones_like(responses, dtype=torch.bool)
    ends = (responses == eos_id).long()
    return ends.cumsum(dim=1) - ends == 0


def masked_mean(values: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
    """Return the mean over live tokens of the whole batch, a scalar."""
    return (values * live).sum() / live.sum()


def whiten(values: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
    """Shift and scale live values to mean 0 and variance 1; dead ones become 0."""
    mean = masked_mean(values, live)
    variance = masked_mean((values - mean).square(), live)
    return (values - mean) * torch.rsqrt(variance + _EPSILON) * live


def token_rewards(
    scores: torch.Tensor,
    log_probs: torch.Tensor,
    ref_log_probs: torch.Tensor,
    live: torch.Tensor,
    *,
    kl_coef: float,
) -> torch.Tensor:
    """Return (B, R) rewards: the KL penalty on each live token, the score on the last one.

    Args:
        scores: (B,), one per completion.
        log_probs: (B, R) of the sampled tokens under the policy that sampled them.
        ref_log_probs: the same under the reference.
        live: mask with at least one live token per row.
        kl_coef: price of one nat.
    """
    rewards = -kl_coef * (log_probs - ref_log_probs) * live
    last = live.sum(dim=1) - 1
    rows = torch.arange(len(scores), device=scores.device)
    rewards[rows, last] += scores.to(rewards.dtype)
    return rewards


def advantages_and_returns(
    rewards: torch.Tensor, values: torch.Tensor, live: torch.Tensor, *, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (B, R) generalised advantages and the returns that values should predict.

    A completion ends after its last live token: nothing is expected from then on.
    """
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(following)
    for step in reversed(range(rewards.shape[1])):
        alive = live[:, step]
        surprise = rewards[:, step] + gamma * next_value - values[:, step]
        following = (surprise + gamma * lam * following) * alive
        next_value = values[:, step] * alive
        advantages[:, step] = following
    return advantages, (advantages + values) * live


def clipped_policy_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    live: torch.Tensor,
    *,
    clip_range: float,
) -> PolicyLoss:
    """Return the clipped surrogate, the mean over live tokens of the worse of both ratios."""
    log_ratio = (log_probs - old_log_probs) * live
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    loss = masked_mean(torch.maximum(-advantages * ratio, -advantages * clipped), live)
    with torch.no_grad():
        outside = ((ratio - 1).abs() > clip_range).to(ratio.dtype)
        return PolicyLoss(
            loss=loss,
            clip_fraction=masked_mean(outside, live),
            approx_kl=masked_mean(ratio - 1 - log_ratio, live),
            ratio_deviation_max=(ratio - 1).abs().max(),
        )


def clipped_value_loss(
    values: torch.Tensor,
    old_values: torch.Tensor,
    returns: torch.Tensor,
    live: torch.Tensor,
    *,
    clip_range: float,
) -> torch.Tensor:
    """Return half the squared error, the worse of the value and the value clipped to the old."""
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    error = torch.maximum((values - returns).square(), (clipped - returns).square())
    return 0.5 * masked_mean(error, live)


def exact_kl(log_probs: torch.Tensor, ref_log_probs: torch.Tensor) -> torch.Tensor:
    """Return KL(policy || reference) per position from (..., V) log-probabilities, in nats."""
    return (log_probs.exp() * (log_probs - ref_log_probs)).sum(dim=-1)


def exact_entropy(log_probs: torch.Tensor) -> torch.Tensor:
    """Return the entropy per position from (..., V) log-probabilities, in nats."""
    return -(log_probs.exp() * log_probs).sum(dim=-1)
