"""A small PPO trainer that records itself: torch and transformers, nothing else.

    trainer = AuditablePPOTrainer(model, ref_model, tokenizer, auditor,
                                  reward_fn=score, train_dataset=prompts)
    with auditor.track_training(experiment_name="helpful-1"):
        trainer.train(steps=100)

Dropout stays off, so the policy that is trained is the one that sampled: the ratio of the
first mini-batch is 1. Arithmetic: `ppo_loss.py`; sampling and padding: `rollout.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from rlhf_audit_trail.capture import check_lengths, loose_numbers
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ppo.args import InvalidPPOArgs, PPOArgs, StepReport
from rlhf_audit_trail.ppo.prompts import MissingDataset, Prompts, token_ids
from rlhf_audit_trail.ppo.record import (
    completions_of,
    record_rollouts,
    record_start,
    record_update,
)
from rlhf_audit_trail.ppo.reference import Reference, frozen
from rlhf_audit_trail.ppo.rollout import Sequences, ValueHead, join, sample
from rlhf_audit_trail.ppo.state import WrongCheckpoint, load_state, save_state
from rlhf_audit_trail.ppo.update import ActorCritic, NonFiniteLoss, PPOUpdate, averages, parts_of
from rlhf_audit_trail.record.recorder import RunRecorder
from rlhf_audit_trail.weights.model_weights import digest_model

__all__ = [
    "AuditablePPOTrainer",
    "Auditor",
    "InvalidPPOArgs",
    "MissingDataset",
    "MissingReward",
    "NonFiniteLoss",
    "PPOArgs",
    "StepReport",
    "WrongCheckpoint",
]

RewardFn = Callable[[list[str], list[str]], Any]
"""`reward_fn(prompts, completions)`: one number per completion."""


class MissingReward(AuditTrailError):
    """Nothing says how good a completion is."""


class Auditor(Protocol):
    """What the trainer needs of `AuditableRLHF`."""

    def run(self) -> RunRecorder:
        """Return the recorder of the run that is being tracked, or raise NotTracking."""

    def current(self) -> RunRecorder | None:
        """Return it, or None where no run is being tracked."""


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
            ref_model: what the policy must stay near; None copies the policy as it is now, or,
                for a model of PEFT, takes it without its adapters.
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
        check_parts(model, tokenizer, args)
        self.args = args or PPOArgs()
        if reward_fn is not None and reward_model is not None:
            raise MissingReward(
                "reward_fn and reward_model are both given", next_step="give one of them"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.auditor = auditor
        self._reference = Reference(model, ref_model)
        self.ref_model = self._reference.model
        self.reward_fn = reward_fn
        self.reward_model = None if reward_model is None else frozen(reward_model)
        self.train_dataset = train_dataset
        self.device = next(model.parameters()).device
        self.value_head = ValueHead(model.config.hidden_size).to(self.device)
        self.actor = ActorCritic(model, self.value_head)
        self.optimizer = self._optimizer(optimizer)
        self._steps = PPOUpdate(self.actor, self._reference, self.optimizer, self.args)
        self.steps_done = 0
        self.kl_coef = self.args.kl_coef
        self._eos_id: int | None = tokenizer.eos_token_id
        self._pad_id = pad_id_of(tokenizer)
        self._sampling = torch.Generator(self.device).manual_seed(self.args.seed)
        self._shuffling = torch.Generator().manual_seed(self.args.seed)
        self._prompts = Prompts(tokenizer, self._shuffling)

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
                reference=self._reference.weights(),
                reward_model=self.reward_model,
                is_first=not self.steps_done,
            )
        reports = []
        for _ in range(steps):
            batch = self._prompts.draw(self.train_dataset, self.args.batch_size)
            with self._without_dropout():
                sequences = self._sample([ids for _, _, ids in batch])
                scores = self._score([text for _, text, _ in batch], sequences)
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
            [token_ids(query) for query in queries],
            [token_ids(response) for response in responses],
            pad_id=self._pad_id,
            eos_id=self._eos_id,
            device=self.device,
        )
        numbers = loose_numbers("scores", scores)
        return self._update(sequences, torch.tensor(numbers, device=self.device))

    # --- checkpoints ----------------------------------------------------------------------

    def save(self, folder: Path | str) -> None:
        """Write everything that training goes on with, into a new folder; record its digest."""
        target = Path(folder)
        state = {
            "steps_done": self.steps_done,
            "kl_coef": self.kl_coef,
            "optimizer": self.optimizer.state_dict(),
            "sampling": self._sampling.get_state(),
            "shuffling": self._shuffling.get_state(),
            "prompts": self._prompts.state(),
            "reference": digest_model(self._reference.weights()).digest.hex(),
        }
        save_state(target, self.actor, state)
        recorder = self.auditor.current() if self.auditor is not None else None
        if recorder is not None:
            recorder.checkpoint(
                epoch=self._epoch(),
                model=self.model,
                path=target,
                name=target.name,
                more={"saved_for": "resume", "trainer_step": self.steps_done},
            )

    def resume(self, folder: Path | str) -> None:
        """Go on from what `save` wrote; the trainer was made as it was then.

        Raises:
            WrongCheckpoint: it is of another model, or began with another reference.
        """
        state = load_state(Path(folder), self.actor)
        if state["reference"] != digest_model(self._reference.weights()).digest.hex():
            raise WrongCheckpoint(
                f"the training saved in {folder} began with another reference",
                next_step="make the trainer with the models that training began with",
            )
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps_done, self.kl_coef = state["steps_done"], state["kl_coef"]
        self._sampling.set_state(state["sampling"])
        self._shuffling.set_state(state["shuffling"])
        self._prompts.restore(state["prompts"])

    # --- one step -----------------------------------------------------------------------

    def _sample(self, prompts: Sequence[Sequence[int]]) -> Sequences:
        parts = [
            sample(
                self.model,
                prompts[rows.start : rows.stop],
                max_new_tokens=self.args.max_new_tokens,
                temperature=self.args.temperature,
                pad_id=self._pad_id,
                eos_id=self._eos_id,
                generator=self._sampling,
            )
            for rows in parts_of(len(prompts), self.args)
        ]
        if len(parts) == 1:
            return parts[0]
        return join(
            prompts,
            [token_ids(ids) for part in parts for ids in part.live_responses()],
            pad_id=self._pad_id,
            eos_id=self._eos_id,
            device=self.device,
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

    def _update(self, sequences: Sequences, scores: torch.Tensor) -> StepReport:
        recorder = self._recorder()
        with self._without_dropout():
            batch = self._steps.prepare(sequences, scores, kl_coef=self.kl_coef)
            if recorder:
                record_rollouts(
                    recorder,
                    self.tokenizer,
                    sequences,
                    scores,
                    kl=batch.kl,
                    entropy=batch.entropy,
                    advantages=batch.advantages.sum(dim=1) / sequences.live.sum(dim=1),
                    trainer_step=self.steps_done + 1,
                )
            figures = [
                self._steps.step(batch, rows, number=self.steps_done + 1)
                for rows in self._mini_batches(len(scores))
            ]
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
            kl_coef=self.kl_coef,
            **averages(figures),
        )
        self.kl_coef = self.args.next_kl_coef(self.kl_coef, report.kl_mean, completions=len(scores))
        if recorder is None:
            return report
        return record_update(
            recorder, report, actor=self.actor, optimizer=self.optimizer, rows=sequences.tokens
        )

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
        metrics = {"reward": report.score_mean, "kl": report.kl_mean}
        recorder.checkpoint(epoch=self._epoch(), metrics=metrics, model=self.model)

    def _epoch(self) -> int:
        every = self.args.checkpoint_every
        return -(-self.steps_done // every) if every else min(self.steps_done, 1)

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

    @contextmanager
    def _without_dropout(self) -> Iterator[None]:
        """Switch the policy to its sampling behaviour and back; gradients still flow."""
        training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)


def pad_id_of(tokenizer: Any) -> int:
    """Return by what completions are padded: the pad token, or else the end token.

    Raises:
        InvalidPPOArgs: the tokenizer has neither.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise InvalidPPOArgs(
        "the tokenizer has neither a pad nor an end token", next_step="set tokenizer.pad_token"
    )


def check_parts(model: Any, tokenizer: Any, args: Any) -> None:
    """Return if a trainer can be made of these.

    Raises:
        InvalidPPOArgs: one is something else.
    """
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
