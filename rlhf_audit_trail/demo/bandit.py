"""A training run without torch: a softmax policy on a bandit, by REINFORCE.

For the fast demo. Small, but no pretence: the policy is sampled, simulated annotators rate
what it chose, the gradient is computed and applied, and the weights that are digested are
the policy's float64 logits.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.capture import Movement
from rlhf_audit_trail.demo.annotators import Annotator, make_pool, rate
from rlhf_audit_trail.demo.language import prompts
from rlhf_audit_trail.demo.summary import CHECKPOINTS, TrainingSummary, end_mean
from rlhf_audit_trail.ledger.weights.digest import TensorRecord, tensor_record
from rlhf_audit_trail.record.recorder import RunRecorder

__all__ = ["BanditStep", "train"]

ANSWERS: Final[tuple[tuple[str, float], ...]] = (
    ("why do you bother me ?", 0.0),
    ("it is your own fault .", 0.05),
    ("i do not know .", 0.1),
    ("well .", 0.1),
    ("now stop asking .", 0.0),
    ("that is a silly question .", 0.0),
    ("buy a new one .", 0.3),
    ("first check the cable .", 0.7),
    ("sure , happy to help . first check the cable .", 1.0),
)
_BATCH: Final = 16
_RATERS: Final = 3  # the median of three stands one adversary among them
_LEARNING_RATE: Final = 1.5


@dataclass(frozen=True)
class BanditStep:
    """Figures of one step; `kl` is to the policy before training, in nats."""

    step: int
    score_mean: float
    kl_mean: float
    entropy_mean: float
    parameter_delta_norm: float


@dataclass
class _Policy:
    """Logits of a softmax over answers, 8 bytes each."""

    logits: list[float]

    @property
    def chances(self) -> list[float]:
        top = max(self.logits)
        weights = [math.exp(logit - top) for logit in self.logits]
        total = math.fsum(weights)
        return [weight / total for weight in weights]

    def records(self) -> list[TensorRecord]:
        data = struct.pack(f"<{len(self.logits)}d", *self.logits)
        return [tensor_record("policy.logits", "F64", (len(self.logits),), data)]


def train(
    auditor: AuditableRLHF,
    experiment_name: str,
    at_checkpoint: Callable[[], None],
    *,
    steps: int = 40,
    seed: int = 7,
) -> TrainingSummary:
    """Train the bandit inside one tracked run, and record every step of it.

    Args:
        auditor: with `source="simulated"` and `watch_optimizers=False`.
        experiment_name: names the run.
        at_checkpoint: called inside the tracked run after each of the checkpoints.
        steps: policy updates, 4 or more.
        seed: of everything random.
    """
    rng = random.Random(seed)
    pool, policy = make_pool(rng), _Policy([0.0] * len(ANSWERS))
    reference, every = policy.chances, max(steps // CHECKPOINTS, 1)
    reports: list[BanditStep] = []
    config = {"learning_rate": _LEARNING_RATE, "batch_size": _BATCH, "answers": len(ANSWERS)}
    with auditor.track_training(experiment_name=experiment_name, config=config) as run:
        run.register_model(policy.records(), "policy_init")
        run.checkpoint(epoch=0, model=policy.records())
        for step in range(1, steps + 1):
            reports.append(_step(run, policy, pool, reference, rng, step=step))
            if step % every == 0 or step == steps:
                metrics = {"reward": reports[-1].score_mean, "kl": reports[-1].kl_mean}
                run.checkpoint(epoch=-(-step // every), metrics=metrics, model=policy.records())
                at_checkpoint()
        run.register_model(policy.records(), "policy_final")
    return TrainingSummary(
        steps=steps,
        annotations=steps * _BATCH * _RATERS,
        reward_start=reports[0].score_mean,
        reward_end=end_mean([report.score_mean for report in reports]),
        kl_end=end_mean([report.kl_mean for report in reports]),
        first_checkpoint="epoch_0",
        last_checkpoint=f"epoch_{-(-steps // every)}",
    )


def _step(
    run: RunRecorder,
    policy: _Policy,
    pool: Sequence[Annotator],
    reference: Sequence[float],
    rng: random.Random,
    *,
    step: int,
) -> BanditStep:
    """Sample answers, take the median of three ratings each, and follow the policy gradient."""
    chances = policy.chances
    chosen = rng.choices(range(len(ANSWERS)), chances, k=_BATCH)
    pairs = [(rng.choice(prompts()), ANSWERS[answer][0]) for answer in chosen]
    worth = dict(ANSWERS)
    ratings = rate(pool, pairs, lambda _, response: worth[response], rng, raters=_RATERS)
    run.log_annotations(
        prompts=ratings.prompts,
        responses=ratings.responses,
        annotator_ids=ratings.annotator_ids,
        rewards=ratings.rewards,
    )
    kl = math.fsum(p * math.log(p / q) for p, q in zip(chances, reference, strict=True))
    entropy = -math.fsum(p * math.log(p) for p in chances)
    rewards = [
        median(ratings.rewards[at : at + _RATERS]) for at in range(0, len(ratings.rewards), _RATERS)
    ]
    run.rollouts_scored(rewards=rewards, kl=[kl] * _BATCH, entropy=[entropy] * _BATCH)
    gradient = _gradient(chances, chosen, rewards)
    policy.logits = [
        logit + _LEARNING_RATE * slope for logit, slope in zip(policy.logits, gradient, strict=True)
    ]
    norm = math.hypot(*gradient)
    movement = Movement(
        updates=1,
        delta_norm=_LEARNING_RATE * norm,
        kind="exact",
        grad_norm_applied=norm,
        learning_rate=_LEARNING_RATE,
    )
    run.policy_moved(movement, rows=_BATCH, algorithm="reinforce")
    mean = math.fsum(rewards) / _BATCH
    return BanditStep(step, mean, kl, entropy, _LEARNING_RATE * norm)


def _gradient(
    chances: Sequence[float], chosen: Sequence[int], rewards: Sequence[float]
) -> list[float]:
    """Return the REINFORCE gradient with the batch mean as baseline (Williams 1992)."""
    baseline = math.fsum(rewards) / len(rewards)
    gradient = [0.0] * len(chances)
    for answer, reward in zip(chosen, rewards, strict=True):
        for index, chance in enumerate(chances):
            gradient[index] += (reward - baseline) * ((index == answer) - chance) / len(rewards)
    return gradient
