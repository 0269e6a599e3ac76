"""What the PPO trainer records of itself: settings and models, rollouts, updates."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch

from rlhf_audit_trail.ppo.args import PPOArgs, StepReport
from rlhf_audit_trail.ppo.rollout import Sequences
from rlhf_audit_trail.record.recorder import RunRecorder
from rlhf_audit_trail.weights.base_model import loaded_from

__all__ = ["completions_of", "record_rollouts", "record_start", "record_update"]


def completions_of(tokenizer: Any, sequences: Sequences) -> list[str]:
    """Return the live tokens of each completion as text, without the end token."""
    return _texts(tokenizer, sequences.responses, sequences.live)


def record_start(
    recorder: RunRecorder,
    args: PPOArgs,
    *,
    policy: Any,
    reference: Any,
    reward_model: Any | None,
    is_first: bool,
) -> None:
    """Record settings and the digests of all models; at first also the untrained checkpoint."""
    settings = asdict(args)
    seed = settings.pop("seed")
    recorder.config({"trainer": "ppo", "ppo": settings}, seed=seed)
    known = loaded_from(policy)
    recorder.register_model(policy, "policy_init", derived_from=known, derivation="loaded")
    recorder.register_model(reference, "reference")
    if reward_model is not None:
        recorder.register_model(reward_model, "reward")
    if is_first:
        recorder.checkpoint(epoch=0, model=policy)


def record_rollouts(
    recorder: RunRecorder,
    tokenizer: Any,
    sequences: Sequences,
    scores: torch.Tensor,
    *,
    kl: torch.Tensor,
    entropy: torch.Tensor,
    advantages: torch.Tensor,
    trainer_step: int,
) -> None:
    """Record a batch of completions with scores, KL and entropy in nats, advantages; all (B,)."""
    before = slice(None, sequences.prompt_length)
    prompts = _texts(tokenizer, sequences.tokens[:, before], sequences.attention[:, before])
    completions = completions_of(tokenizer, sequences)
    recorder.on_rollouts_scored(
        prompts,
        completions,
        {"score": scores},
        advantages,
        token_ids=sequences.live_responses(),
        kl=kl,
        entropy=entropy,
        trainer_step=trainer_step,
    )


def record_update(
    recorder: RunRecorder,
    report: StepReport,
    *,
    actor: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    rows: torch.Tensor,
) -> StepReport:
    """Record a step's optimizer updates, and return its report with the measured delta norm."""
    update = recorder.track_policy_update(
        model=actor,
        optimizer=optimizer,
        batch=rows,
        algorithm="ppo",
        grad_norm_preclip=report.grad_norm_preclip,
        trainer_step=report.step,
        metrics={name: value for name, value in asdict(report).items() if value is not None},
    )
    return replace(report, parameter_delta_norm=update.parameter_delta_norm)


def _texts(tokenizer: Any, tokens: torch.Tensor, mask: torch.Tensor) -> list[str]:
    rows = zip(tokens, mask, strict=True)
    return [tokenizer.decode(ids[live], skip_special_tokens=True) for ids, live in rows]
