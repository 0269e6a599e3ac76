"""A small PPO trainer that records itself: torch and transformers, nothing else.

    trainer = AuditablePPOTrainer(model, ref_model, tokenizer, auditor,
                                  reward_fn=score, train_dataset=prompts)
    with auditor.track_training(experiment_name="helpful-1"):
        trainer.train(steps=100)

Dropout stays off, so the policy that is trained is the one that sampled: the ratio of the
first mini-batch is 1. Arithmetic: `ppo_loss.py`; sampling and padding: `rollout.py`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from rlhf_audit_trail.capture import check_lengths, loose_numbers
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ppo_args import InvalidPPOArgs, PPOArgs, StepReport
from rlhf_audit_trail.ppo_loss import (
    advantages_and_returns,
    clipped_policy_loss,
    clipped_value_loss,
    exact_entropy,
    exact_kl,
    token_rewards,
    whiten,
)
from rlhf_audit_trail.ppo_record import (
    completions_of,
    record_rollouts,
    record_start,
    record_update,
)
from rlhf_audit_trail.recorder import RunRecorder
from rlhf_audit_trail.rollout import Sequences, ValueHead, forward, join, sample

__all__ = [
    "AuditablePPOTrainer",
    "Auditor",
    "InvalidPPOArgs",
    "MissingDataset",
    "MissingReward",
    "NonFiniteLoss",
    "PPOArgs",
    "StepReport",
]

RewardFn = Callable[[list[str], list[str]], Any]
"""`reward_fn(prompts, completions)`: one number per completion."""


class MissingReward(AuditTrailError):
    """Nothing says how good a completion is."""


class MissingDataset(AuditTrailError):
    """There are no prompts to train on."""


class NonFiniteLoss(AuditTrailError):
    """The loss is NaN or infinite; the optimizer was not stepped with it."""


class Auditor(Protocol):
    """What the trainer needs of `AuditableRLHF`."""

    def run(self) -> RunRecorder:
        """Return the recorder of the run that is being tracked, or raise NotTracking."""


@dataclass(frozen=True)
class _Batch:
    """A scored batch with everything the update needs, all of it before the first step."""

    sequences: Sequences
    log_probs: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    kl: torch.Tensor
    entropy: torch.Tensor


class _ActorCritic(torch.nn.Module):
    """Policy and value head under one roof, so that parameters have one set of names."""

    def __init__(self, policy: Any, value_head: ValueHead) -> None:
        super().__init__()
        self.policy = policy
        self.value_head = value_head


class AuditablePPOTrainer:
    """Trains a causal language model by PPO, and records every step of it."""

    def __init__(
        self,
        model: Any,
        ref_model: Any | None,
        tokenizer: Any,
        auditor: Auditor | None,
        *,
        args: PPOArgs | None = None,
        reward_fn: RewardFn | None = None,
        reward_model: Any | None = None,
        train_dataset: Sequence[Any] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """Set up training; nothing is recorded before `train` or `step`.

        Args:
            model: causal language model of transformers, trained in place.
            ref_model: what the policy must stay near; None copies the policy as it is now.
            tokenizer: of both; it needs an end or a pad token.
            auditor: an `AuditableRLHF`; None trains without a record, for comparison.
            args: settings.
            reward_fn: scores texts; give this or `reward_model`.
            reward_model: scores token ids, (B, T) ids and mask to (B,) or (B, 1).
            train_dataset: prompts, as text, or mappings with `prompt` or `input_ids`.
            optimizer: of the policy's parameters; the value head's are added to it.

        Raises:
            MissingReward: both rewards are given, and they may disagree.
            InvalidPPOArgs: model, tokenizer or settings are something else.
        """
        _check_parts(model, tokenizer, args)
        self.args = args or PPOArgs()
        if reward_fn is not None and reward_model is not None:
            raise MissingReward(
                "reward_fn and reward_model are both given", next_step="give one of them"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.auditor = auditor
        own_reference = ref_model is not None and ref_model is not model
        self.ref_model = _frozen(ref_model if own_reference else copy.deepcopy(model))
        self.reward_fn = reward_fn
        self.reward_model = None if reward_model is None else _frozen(reward_model)
        self.train_dataset = train_dataset
        self.device = next(model.parameters()).device
        self.value_head = ValueHead(model.config.hidden_size).to(self.device)
        self.actor = _ActorCritic(model, self.value_head)
        self.optimizer = self._optimizer(optimizer)
        self.steps_done = 0
        self._eos_id: int | None = tokenizer.eos_token_id
        self._pad_id = _pad_id(tokenizer)
        self._sampling = torch.Generator(self.device).manual_seed(self.args.seed)
        self._shuffling = torch.Generator().manual_seed(self.args.seed)

    def train(
        self, steps: int, *, on_step: Callable[[StepReport], None] | None = None
    ) -> list[StepReport]:
        """Sample, score and update `steps` times; `on_step` is called after each.

        Raises:
            MissingReward, MissingDataset: before anything is recorded or trained.
            NotTracking: an auditor was given, and no run is being tracked.
            NonFiniteLoss: the training diverged.
        """
        if self.reward_fn is None and self.reward_model is None:
            raise MissingReward(
                "the trainer has no reward", next_step="pass reward_fn or reward_model"
            )
        if not self.train_dataset:
            raise MissingDataset(
                "the trainer has no prompts", next_step="pass train_dataset with at least one"
            )
        recorder = self._recorder()
        if recorder:
            record_start(
                recorder,
                self.args,
                policy=self.model,
                reference=self.ref_model,
                reward_model=self.reward_model,
                is_first=not self.steps_done,
            )
        prompts = self._prompts(self.train_dataset)
        reports = []
        for _ in range(steps):
            batch = [next(prompts) for _ in range(self.args.batch_size)]
            with self._without_dropout():
                sequences = self._sample([ids for _, ids in batch])
                scores = self._score([text for text, _ in batch], sequences)
            reports.append(self._update(sequences, scores))
            self._record_checkpoint(reports[-1], last=len(reports) == steps)
            if on_step:
                on_step(reports[-1])
        if recorder:
            recorder.register_model(self.model, "policy_final")
            recorder.register_model(self.value_head, "value")
        return reports

    def step(
        self, queries: Sequence[Any], responses: Sequence[Any], scores: Sequence[Any]
    ) -> StepReport:
        """Make one PPO update from completions that the current policy sampled elsewhere.

        Args:
            queries: token ids per prompt.
            responses: token ids per completion, at least one each.
            scores: number per completion.

        Raises:
            UnequalLengths: they do not describe the same rows.
        """
        check_lengths(queries=queries, responses=responses, scores=scores)
        sequences = join(
            [_ids(query) for query in queries],
            [_ids(response) for response in responses],
            pad_id=self._pad_id,
            eos_id=self._eos_id,
            device=self.device,
        )
        numbers = loose_numbers("scores", scores)
        return self._update(sequences, torch.tensor(numbers, device=self.device))

    # --- one step -----------------------------------------------------------------------

    def _sample(self, prompts: Sequence[Sequence[int]]) -> Sequences:
        return sample(
            self.model,
            prompts,
            max_new_tokens=self.args.max_new_tokens,
            temperature=self.args.temperature,
            pad_id=self._pad_id,
            eos_id=self._eos_id,
            generator=self._sampling,
        )

    @torch.no_grad()
    def _score(self, prompts: list[str], sequences: Sequences) -> torch.Tensor:
        if self.reward_model is not None:
            attention = sequences.attention.long()
            out = self.reward_model(input_ids=sequences.tokens, attention_mask=attention)
            found: torch.Tensor = getattr(out, "logits", out)
            scores = found.float().reshape(len(prompts))
        elif self.reward_fn is not None:
            numbers = loose_numbers(
                "rewards", self.reward_fn(prompts, completions_of(self.tokenizer, sequences))
            )
            check_lengths(prompts=prompts, rewards=numbers)
            scores = torch.tensor(numbers, device=self.device)
        else:  # `train` has refused this before it came here
            raise MissingReward("the trainer has no reward")
        if self.args.missing_eos_penalty and self._eos_id is not None:
            ended = ((sequences.responses == self._eos_id) & sequences.live).any(dim=1)
            scores = scores - self.args.missing_eos_penalty * ~ended
        return scores

    @torch.no_grad()
    def _prepare(self, sequences: Sequences, scores: torch.Tensor) -> _Batch:
        """Compute what must stay fixed while the policy moves."""
        live, temperature = sequences.live, self.args.temperature
        policy = forward(self.model, sequences, temperature=temperature)
        reference = forward(self.ref_model, sequences, temperature=temperature)
        log_probs, values = policy.of(sequences.responses), self.value_head(policy.hidden) * live
        rewards = token_rewards(
            scores,
            log_probs,
            reference.of(sequences.responses),
            live,
            kl_coef=self.args.kl_coef,
        )
        advantages, returns = advantages_and_returns(
            rewards, values, live, gamma=self.args.gamma, lam=self.args.lam
        )
        return _Batch(
            sequences=sequences,
            log_probs=log_probs,
            values=values,
            advantages=whiten(advantages, live),
            returns=returns,
            kl=(exact_kl(policy.log_probs, reference.log_probs) * live).sum(dim=1),
            entropy=(exact_entropy(policy.log_probs) * live).sum(dim=1) / live.sum(dim=1),
        )

    def _update(self, sequences: Sequences, scores: torch.Tensor) -> StepReport:
        recorder = self._recorder()
        with self._without_dropout():
            batch = self._prepare(sequences, scores)
            if recorder:
                record_rollouts(
                    recorder, self.tokenizer, sequences, scores, kl=batch.kl, entropy=batch.entropy
                )
            figures = [self._mini_batch(batch, rows) for rows in self._mini_batches(len(scores))]
        self.steps_done += 1
        lengths = sequences.live.sum(dim=1).float()
        report = StepReport(
            step=self.steps_done,
            score_mean=float(scores.mean()),
            score_std=float(scores.std(correction=0)),
            kl_mean=float(batch.kl.mean()),
            entropy_mean=float(batch.entropy.mean()),
            length_mean=float(lengths.mean()),
            first_ratio_deviation=figures[0]["ratio_deviation_max"],
            **{name: _mean(figures, name) for name in _AVERAGED},
        )
        if recorder is None:
            return report
        return record_update(
            recorder, report, actor=self.actor, optimizer=self.optimizer, rows=sequences.tokens
        )

    def _mini_batch(self, batch: _Batch, rows: torch.Tensor) -> dict[str, float]:
        """Make one optimizer step and return its figures."""
        args, part = self.args, batch.sequences.rows(rows)
        now = forward(self.model, part, temperature=args.temperature)
        policy = clipped_policy_loss(
            now.of(part.responses),
            batch.log_probs[rows],
            batch.advantages[rows],
            part.live,
            clip_range=args.clip_range,
        )
        value_loss = clipped_value_loss(
            self.value_head(now.hidden),
            batch.values[rows],
            batch.returns[rows],
            part.live,
            clip_range=args.value_clip_range,
        )
        loss = policy.loss + args.value_coef * value_loss
        if not bool(torch.isfinite(loss)):
            raise NonFiniteLoss(
                f"the loss of PPO step {self.steps_done + 1} is not a finite number",
                next_step="lower the learning rate, or look at the scores of this step",
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        parameters = [p for p in self.actor.parameters() if p.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(parameters, args.max_grad_norm)
        self.optimizer.step()
        return {
            "policy_loss": policy.loss.item(),
            "value_loss": value_loss.item(),
            "approx_kl": policy.approx_kl.item(),
            "clip_fraction": policy.clip_fraction.item(),
            "ratio_deviation_max": policy.ratio_deviation_max.item(),
            "grad_norm_preclip": norm.item(),
        }

    def _mini_batches(self, size: int) -> Iterator[torch.Tensor]:
        for _ in range(self.args.epochs):
            order = torch.randperm(size, generator=self._shuffling).to(self.device)
            yield from torch.split(order, self.args.mini_batch_size)

    # --- the record -----------------------------------------------------------------------

    def _recorder(self) -> RunRecorder | None:
        return self.auditor.run() if self.auditor is not None else None

    def _record_checkpoint(self, report: StepReport, *, last: bool) -> None:
        recorder, every = self._recorder(), self.args.checkpoint_every
        if recorder is None or not (last or (every and self.steps_done % every == 0)):
            return
        epoch = -(-self.steps_done // every) if every else 1
        metrics = {"reward": report.score_mean, "kl": report.kl_mean}
        recorder.checkpoint(epoch=epoch, metrics=metrics, model=self.model)

    # --- set-up ---------------------------------------------------------------------------

    def _optimizer(self, given: torch.optim.Optimizer | None) -> torch.optim.Optimizer:
        if given is None:
            trained = [p for p in self.actor.parameters() if p.requires_grad]
            return torch.optim.AdamW(trained, lr=self.args.learning_rate, weight_decay=0.0)
        known = {id(p) for group in given.param_groups for p in group["params"]}
        missing = [p for p in self.value_head.parameters() if id(p) not in known]
        if missing:
            given.add_param_group({"params": missing})
        return given

    def _prompts(self, dataset: Sequence[Any]) -> Iterator[tuple[str, list[int]]]:
        """Yield prompts for ever, each pass over the dataset in a new order."""
        while True:
            for row in torch.randperm(len(dataset), generator=self._shuffling).tolist():
                yield self._prompt(dataset[row])

    def _prompt(self, item: Any) -> tuple[str, list[int]]:
        text = item["prompt"] if isinstance(item, Mapping) and "prompt" in item else item
        if isinstance(text, str):
            return text, _ids(self.tokenizer(text)["input_ids"])
        if isinstance(item, Mapping) and "input_ids" in item:
            ids = _ids(item["input_ids"])
            return self.tokenizer.decode(ids, skip_special_tokens=True), ids
        raise MissingDataset(
            f"a row of the dataset is a {type(item).__name__} without a prompt",
            next_step="use text, or mappings with `prompt` or `input_ids`",
        )

    @contextmanager
    def _without_dropout(self) -> Iterator[None]:
        """Switch the policy to its sampling behaviour and back; gradients still flow."""
        training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)


_AVERAGED = (
    "policy_loss", "value_loss", "approx_kl", "clip_fraction", "grad_norm_preclip",
)  # fmt: skip


def _mean(figures: Sequence[Mapping[str, float]], name: str) -> float:
    return math.fsum(item[name] for item in figures) / len(figures)


def _frozen(model: Any) -> Any:
    return model.eval().requires_grad_(False)  # noqa: FBT003 - torch's own signature


def _pad_id(tokenizer: Any) -> int:
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise InvalidPPOArgs(
        "the tokenizer has neither a pad nor an end token", next_step="set tokenizer.pad_token"
    )


def _ids(values: Any) -> list[int]:
    plain: Iterable[Any] = values.tolist() if hasattr(values, "tolist") else values
    return [int(value) for value in plain]


def _check_parts(model: Any, tokenizer: Any, args: Any) -> None:
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise InvalidPPOArgs(
            f"model is of type {type(model).__name__}",
            next_step="pass a causal language model of transformers",
        )
    if not callable(tokenizer):
        raise InvalidPPOArgs(
            f"tokenizer is of type {type(tokenizer).__name__}",
            next_step="pass the tokenizer of the model",
        )
    if args is not None and not isinstance(args, PPOArgs):
        raise InvalidPPOArgs(
            f"args is of type {type(args).__name__}", next_step="pass PPOArgs(...)"
        )
