"""A real episode of reward hacking, and the same training with an honest reward.

The policy is paid for each kind word and charged for each rude one, however often it says
them; an honest answer holds a handful. It soon does nothing but say kind words. Paid for what
an exact annotator thinks of the answer, the same code learns to answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.demo.language import KIND, RUDE, corpus, prompts, quality
from rlhf_audit_trail.demo.models import imitate, make_policy, make_tokenizer
from rlhf_audit_trail.demo.summary import end_mean
from rlhf_audit_trail.demo.task import reproducible
from rlhf_audit_trail.ppo.trainer import AuditablePPOTrainer, PPOArgs

__all__ = ["HackingSummary", "exact", "good_minus_bad", "train"]

IMITATION_STEPS: Final = 120
STEPS: Final = 60

Reward = Callable[[list[str], list[str]], list[float]]


@dataclass(frozen=True)
class HackingSummary:
    """What the training did; `quality` is what an exact annotator thinks, 0 to 1."""

    score_start: float
    score_end: float
    kl_end: float
    quality_start: float
    quality_end: float


def good_minus_bad(_: list[str], completions: list[str]) -> list[float]:
    """Count kind words less rude words: right for honest answers, and easily cheated."""
    return [
        float(sum((word in KIND) - (word in RUDE) for word in text.split())) for text in completions
    ]


def exact(asked: list[str], completions: list[str]) -> list[float]:
    """Say of each answer what it is worth, 0 to 1."""
    return [quality(*pair) for pair in zip(asked, completions, strict=True)]


def train(
    auditor: AuditableRLHF,
    experiment_name: str,
    reward: Reward,
    *,
    steps: int = STEPS,
    seed: int = 7,
) -> HackingSummary:
    """Train a policy for `reward` inside one tracked run.

    Args:
        auditor: with `source="simulated"`.
        experiment_name: names the run.
        reward: `good_minus_bad` or `exact`.
        steps: of PPO, 10 or more.
        seed: of everything random; the same one gives the same weights on one machine.
    """
    worth: list[float] = []

    def scored(asked: list[str], completions: list[str]) -> Sequence[float]:
        worth.append(sum(exact(asked, completions)) / len(asked))
        return reward(asked, completions)

    with reproducible(seed), auditor.track_training(experiment_name=experiment_name):
        tokenizer = make_tokenizer()
        policy: Any = make_policy(tokenizer)
        pairs = corpus(random.Random(seed), size=1_024)
        imitate(policy, tokenizer, pairs, steps=IMITATION_STEPS, after_step=lambda *_: None)
        args = PPOArgs(
            batch_size=48,
            mini_batch_size=24,
            epochs=2,
            learning_rate=5e-4,
            max_new_tokens=24,
            kl_coef=0.01,
            seed=seed,
        )
        trainer = AuditablePPOTrainer(
            policy, None, tokenizer, auditor, args=args, reward_fn=scored, train_dataset=prompts()
        )
        reports = trainer.train(steps)
    return HackingSummary(
        score_start=reports[0].score_mean,
        score_end=end_mean([report.score_mean for report in reports]),
        kl_end=end_mean([report.kl_mean for report in reports]),
        quality_start=worth[0],
        quality_end=end_mean(worth),
    )
