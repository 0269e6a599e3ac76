"""One update of PPO: what stays fixed while the policy moves, and one optimizer step.

The arithmetic stands in `ppo_loss.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ppo.args import PPOArgs
from rlhf_audit_trail.ppo.loss import (
    advantages_and_returns,
    clipped_policy_loss,
    clipped_value_loss,
    exact_entropy,
    exact_kl,
    token_rewards,
    whiten,
)
from rlhf_audit_trail.ppo.reference import Reference
from rlhf_audit_trail.ppo.rollout import Sequences, ValueHead, forward

__all__ = ["ActorCritic", "NonFiniteLoss", "PPOUpdate", "PreparedBatch", "averages", "parts_of"]

_AVERAGED: Final = (
    "policy_loss", "value_loss", "approx_kl", "clip_fraction", "grad_norm_preclip",
)  # fmt: skip


class NonFiniteLoss(AuditTrailError):
    """The loss is NaN or infinite; the optimizer was not stepped with it."""


@dataclass(frozen=True)
class PreparedBatch:
    """A scored batch with everything the update needs, all of it before the first step."""

    sequences: Sequences
    log_probs: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    kl: torch.Tensor
    entropy: torch.Tensor


class ActorCritic(torch.nn.Module):
    """Policy and value head under one roof, so that parameters have one set of names."""

    def __init__(self, policy: Any, value_head: ValueHead) -> None:
        super().__init__()
        self.policy = policy
        self.value_head = value_head


class PPOUpdate:
    """Makes updates of one actor by one optimizer; never switches dropout on or off."""

    def __init__(
        self,
        actor: ActorCritic,
        reference: Reference,
        optimizer: torch.optim.Optimizer,
        args: PPOArgs,
    ) -> None:
        """Take the parts of a trainer."""
        self._actor, self._reference = actor, reference
        self._optimizer, self._args = optimizer, args

    @torch.no_grad()
    def prepare(
        self, sequences: Sequences, scores: torch.Tensor, *, kl_coef: float
    ) -> PreparedBatch:
        """Compute what must stay fixed while the policy moves."""
        live, args, device = sequences.live, self._args, sequences.tokens.device
        parts = [
            self._view(sequences.rows(torch.arange(rows.start, rows.stop, device=device)))
            for rows in parts_of(len(scores), args)
        ]
        log_probs, ref_log_probs, values, kl, entropy = (
            torch.cat(column) for column in zip(*parts, strict=True)
        )
        rewards = token_rewards(scores, log_probs, ref_log_probs, live, kl_coef=kl_coef)
        advantages, returns = advantages_and_returns(
            rewards, values, live, gamma=args.gamma, lam=args.lam
        )
        return PreparedBatch(
            sequences=sequences,
            log_probs=log_probs,
            values=values,
            advantages=whiten(advantages, live),
            returns=returns,
            kl=kl,
            entropy=entropy,
        )

    def _view(self, part: Sequences) -> tuple[torch.Tensor, ...]:
        """Return what both models say of some rows: (B, R) three times, then (B,) twice."""
        live, temperature = part.live, self._args.temperature
        policy = forward(self._actor.policy, part, temperature=temperature)
        with self._reference.here() as model:
            reference = forward(model, part, temperature=temperature)
        return (
            policy.of(part.responses),
            reference.of(part.responses),
            self._actor.value_head(policy.hidden) * live,
            (exact_kl(policy.log_probs, reference.log_probs) * live).sum(dim=1),
            (exact_entropy(policy.log_probs) * live).sum(dim=1) / live.sum(dim=1),
        )

    def step(self, batch: PreparedBatch, rows: torch.Tensor, *, number: int) -> dict[str, float]:
        """Make one optimizer step on some rows and return its figures.

        Raises:
            NonFiniteLoss: in PPO step `number`; nothing was changed.
        """
        args, part = self._args, batch.sequences.rows(rows)
        now = forward(self._actor.policy, part, temperature=args.temperature)
        policy = clipped_policy_loss(
            now.of(part.responses),
            batch.log_probs[rows],
            batch.advantages[rows],
            part.live,
            clip_range=args.clip_range,
        )
        value_loss = clipped_value_loss(
            self._actor.value_head(now.hidden),
            batch.values[rows],
            batch.returns[rows],
            part.live,
            clip_range=args.value_clip_range,
        )
        loss = policy.loss + args.value_coef * value_loss
        if not bool(torch.isfinite(loss)):
            raise NonFiniteLoss(
                f"the loss of PPO step {number} is not a finite number",
                next_step="lower the learning rate, or look at the scores of this step",
            )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        parameters = [p for p in self._actor.parameters() if p.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(parameters, args.max_grad_norm)
        self._optimizer.step()
        return {
            "policy_loss": policy.loss.item(),
            "value_loss": value_loss.item(),
            "approx_kl": policy.approx_kl.item(),
            "clip_fraction": policy.clip_fraction.item(),
            "ratio_deviation_max": policy.ratio_deviation_max.item(),
            "grad_norm_preclip": norm.item(),
        }


def parts_of(size: int, args: PPOArgs) -> list[range]:
    """Return the rows of a batch in parts that fit in memory."""
    step = args.generation_batch_size or size
    return [range(start, min(start + step, size)) for start in range(0, size, step)]


def averages(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the means over the steps of an update, as a `StepReport` names them."""
    return {name: math.fsum(x[name] for x in figures) / len(figures) for name in _AVERAGED}
