"""The demo's training: a tiny language model learns manners from simulated annotators.

Imitation of a rude corpus, ratings by the pool, a reward model fitted to those ratings,
then PPO against it. Every number comes from that training; the log says `simulated`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.demo.annotators import make_pool, rate
from rlhf_audit_trail.demo.language import corpus, prompts, quality
from rlhf_audit_trail.demo.models import (
    RewardModel,
    fit_reward_model,
    imitate,
    make_policy,
    make_tokenizer,
)
from rlhf_audit_trail.demo.summary import CHECKPOINTS, TrainingSummary, end_mean
from rlhf_audit_trail.ppo.rollout import sample
from rlhf_audit_trail.ppo.trainer import AuditablePPOTrainer, PPOArgs, StepReport
from rlhf_audit_trail.record.recorder import RunRecorder

__all__ = ["reproducible", "train"]

IMITATION_STEPS: Final = 240
IMITATION_STEPS_RECORDED: Final = 80  # one entry for so many optimizer steps
RATED_ANSWERS: Final = 288
ANSWER_TOKENS_MAX: Final = 24


def train(
    auditor: AuditableRLHF,
    experiment_name: str,
    at_checkpoint: Callable[[], None],
    *,
    steps: int = 40,
    seed: int = 7,
    on_step: Callable[[StepReport], None] | None = None,
) -> TrainingSummary:
    """Run the whole training inside one tracked run.

    Args:
        auditor: with `source="simulated"`.
        experiment_name: names the run.
        at_checkpoint: called inside the tracked run after each of the checkpoints.
        steps: of PPO, 4 or more.
        seed: of everything random; the same one gives the same weights on one machine.
        on_step: called inside the tracked run after each PPO step.
    """
    every = max(steps // CHECKPOINTS, 1)

    def after_step(report: StepReport) -> None:
        if report.step % every == 0:
            at_checkpoint()
        if on_step:
            on_step(report)

    with reproducible(seed), auditor.track_training(experiment_name=experiment_name) as run:
        rng = random.Random(seed)
        tokenizer = make_tokenizer()
        policy = make_policy(tokenizer)
        _imitate(run, policy, tokenizer, rng)
        before = _answers(policy, tokenizer, prompts(), seed)
        reward_model, annotations = _learn_reward(run, policy, tokenizer, rng, seed)
        trainer = AuditablePPOTrainer(
            policy,
            None,
            tokenizer,
            auditor,
            args=_ppo_args(every, seed),
            reward_model=reward_model,
            train_dataset=prompts(),
        )
        reports = trainer.train(steps, on_step=after_step)
        after = _answers(policy, tokenizer, prompts(), seed)
    return _summary(reports, annotations, before, after, last_epoch=-(-steps // every))


def _ppo_args(checkpoint_every: int, seed: int) -> PPOArgs:
    return PPOArgs(
        batch_size=48,
        mini_batch_size=24,
        epochs=2,
        learning_rate=3e-4,
        max_new_tokens=ANSWER_TOKENS_MAX,
        kl_coef=0.03,
        missing_eos_penalty=0.2,
        checkpoint_every=checkpoint_every,
        seed=seed,
    )


def _imitate(run: RunRecorder, policy: Any, tokenizer: Any, rng: random.Random) -> None:
    """Teach the policy the corpus, recording an update every so many steps."""
    done = 0

    def record(optimizer: Any, loss: float) -> None:
        nonlocal done
        done += 1
        if done % IMITATION_STEPS_RECORDED == 0:
            run.track_policy_update(
                model=policy, optimizer=optimizer, algorithm="sft", metrics={"loss": loss}
            )

    pairs = corpus(rng, size=1_024)
    imitate(policy, tokenizer, pairs, steps=IMITATION_STEPS, after_step=record)


def _learn_reward(
    run: RunRecorder, policy: Any, tokenizer: Any, rng: random.Random, seed: int
) -> tuple[RewardModel, int]:
    """Have answers rated, log the ratings, and fit the reward model to exactly those."""
    asked = [rng.choice(prompts()) for _ in range(RATED_ANSWERS)]
    written = corpus(rng, size=RATED_ANSWERS // 2)
    pairs = [*_answers(policy, tokenizer, asked, seed + 1), *written]
    ratings = rate(make_pool(rng), pairs, quality, rng)
    receipts = run.log_annotations(
        prompts=ratings.prompts,
        responses=ratings.responses,
        annotator_ids=ratings.annotator_ids,
        rewards=ratings.rewards,
    )
    model = RewardModel(len(tokenizer))
    texts = [
        f"{prompt} {response} {tokenizer.eos_token}"
        for prompt, response in zip(ratings.prompts, ratings.responses, strict=True)
    ]
    fit = fit_reward_model(model, tokenizer, texts, ratings.rewards)
    run.metrics(0, {"reward_model_loss": fit.loss, "reward_model_correlation": fit.correlation})
    return model, len(receipts)


def _answers(policy: Any, tokenizer: Any, asked: Sequence[str], seed: int) -> list[tuple[str, str]]:
    """Return (prompt, sampled answer) pairs."""
    policy.eval()
    sequences = sample(
        policy,
        [tokenizer(prompt)["input_ids"] for prompt in asked],
        max_new_tokens=ANSWER_TOKENS_MAX,
        temperature=1.0,
        pad_id=tokenizer.pad_token_id,
        eos_id=tokenizer.eos_token_id,
        generator=torch.Generator().manual_seed(seed),
    )
    rows = zip(sequences.responses, sequences.live, strict=True)
    texts = [tokenizer.decode(ids[live], skip_special_tokens=True) for ids, live in rows]
    return list(zip(asked, texts, strict=True))


def _summary(
    reports: Sequence[StepReport],
    annotations: int,
    before: Sequence[tuple[str, str]],
    after: Sequence[tuple[str, str]],
    *,
    last_epoch: int,
) -> TrainingSummary:
    both = zip(before[:3], after[:3], strict=True)
    return TrainingSummary(
        steps=len(reports),
        annotations=annotations,
        reward_start=reports[0].score_mean,
        reward_end=end_mean([report.score_mean for report in reports]),
        kl_end=end_mean([report.kl_mean for report in reports]),
        first_checkpoint="epoch_0",
        last_checkpoint=f"epoch_{last_epoch}",
        quality_start=_mean_quality(before),
        quality_end=_mean_quality(after),
        samples=tuple((prompt, old, new) for (prompt, old), (_, new) in both),
    )


def _mean_quality(pairs: Sequence[tuple[str, str]]) -> float:
    return sum(quality(*pair) for pair in pairs) / len(pairs)


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seed torch and use one thread, as tiny matrices want; both are put back."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
