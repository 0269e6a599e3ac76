"""PPO by which no row of the dataset shows in the policy: Poisson batches, clipping, noise.

    trainer = PrivatePPOTrainer(model, None, tokenizer, plan, reward_fn=score,
                                train_dataset=prompts, auditor=auditor)
    with auditor.track_training(experiment_name="helpful-1"):
        report = trainer.train(steps=100)

**One sample is one row of the dataset**: its prompt, the completion that is drawn for it in a step,
and its score. Policy and value head are trained together, and clipped as one. Protected are a
row's text and whatever the reward says because of this row. Not protected is what the reward
model or the reference learnt from others: if people's preferences are only in a reward model
that was trained privately, and the prompts are public, then the policy costs nothing more,
and the ordinary trainer will do.

What a batch shares in PPO would let one row move the gradients of others, and is left out:

- Advantages are not whitened, and token losses are means over a row, not over the batch.
- Each batch is used for one optimizer step. A second one would look at the same sample again,
  which the figures do not count. So the ratio is 1, nothing is clipped by it, and what remains of
  PPO is its policy gradient with a value baseline, GAE and the KL price.
- The KL price is fixed: one that follows the measured KL would follow the rows.
- Completions are drawn with randomness from the operating system, each independent of the others.

Rewards of a function are asked for one by one. Figures of the training (scores, KL, losses) are
private, so there are none; `report` says what was spent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch

from rlhf_audit_trail.capture import check_lengths, loose_numbers
from rlhf_audit_trail.ppo.args import PPOArgs
from rlhf_audit_trail.ppo.loss import advantages_and_returns, token_rewards
from rlhf_audit_trail.ppo.prompts import MissingDataset, prompt_of
from rlhf_audit_trail.ppo.record import completions_of
from rlhf_audit_trail.ppo.reference import Reference, frozen
from rlhf_audit_trail.ppo.rollout import Sequences, ValueHead, forward, sample
from rlhf_audit_trail.ppo.trainer import Auditor, MissingReward, RewardFn, check_parts, pad_id_of
from rlhf_audit_trail.ppo.update import ActorCritic
from rlhf_audit_trail.privacy.dp_sgd import PrivateTraining
from rlhf_audit_trail.privacy.errors import UnsafeAccounting
from rlhf_audit_trail.privacy.os_seeded import OsSeeded
from rlhf_audit_trail.privacy.sampling_accounts import SgdPlan, SgdReport
from rlhf_audit_trail.record.recorder import RunRecorder
from rlhf_audit_trail.weights.base_model import loaded_from

__all__ = ["PrivatePPOTrainer"]

_Row = tuple[str, list[int]]
_PART_ROWS: Final = 8
# of PPOArgs, what has a meaning here
_USED: Final = (
    "learning_rate", "max_new_tokens", "temperature", "kl_coef", "gamma", "lam", "value_coef",
    "missing_eos_penalty",
)  # fmt: skip


class PrivatePPOTrainer:
    """Trains a causal language model and its value head privately; one process, one device."""

    def __init__(
        self,
        model: Any,
        ref_model: Any | None,
        tokenizer: Any,
        plan: SgdPlan,
        *,
        train_dataset: Sequence[Any],
        args: PPOArgs | None = None,
        reward_fn: RewardFn | None = None,
        reward_model: Any | None = None,
        annotators: Sequence[str | None] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        part_rows_max: int = _PART_ROWS,
        account_path: Path | None = None,
        auditor: Auditor | None = None,
    ) -> None:
        """Hook the model; nothing is drawn or spent before `train`.

        Args:
            model: causal language model of transformers without dropout, best with LoRA adapters.
            ref_model: as for `AuditablePPOTrainer`.
            tokenizer: of both.
            plan: public parameters; an example is a row of the dataset.
            train_dataset: prompts, as text, or mappings with `prompt` or `input_ids`.
            args: settings; by default PPOArgs(epochs=1). Sizes of batches have no meaning here.
            reward_fn: scores texts; it is called for one completion at a time.
            reward_model: scores token ids, each row by itself; give this or `reward_fn`.
            annotators: whose row each is; None where no guarantee for annotators is wanted.
            optimizer: of policy and value head's parameters, all of them.
            part_rows_max: so many rows go through the model at once; memory only.
            account_path: a file that outlives crashes, see `SamplingAccount`.
            auditor: an `AuditableRLHF`; None trains without a record.

        Raises:
            UnsafeAccounting: a setting would couple the rows of a batch, or use one twice.
            UnsupportedModel: gradients of single rows cannot be had.
            MissingReward, MissingDataset, InvalidPPOArgs: as `AuditablePPOTrainer`.
        """
        check_parts(model, tokenizer, args)
        self.args = args or PPOArgs(epochs=1)
        _check_args(self.args)
        if (reward_fn is None) == (reward_model is None):
            raise MissingReward(
                "a private PPO training has one reward", next_step="pass reward_fn or reward_model"
            )
        rows = [prompt_of(tokenizer, item) for item in train_dataset]
        if not rows:
            raise MissingDataset("the trainer has no prompts", next_step="pass train_dataset")
        self.model, self.tokenizer, self.auditor = model, tokenizer, auditor
        self._pad_id, self._eos_id = pad_id_of(tokenizer), tokenizer.eos_token_id
        self._reward_fn = reward_fn
        self._reward_model = None if reward_model is None else frozen(reward_model)
        # before the hooks, which a copy would take along
        self._reference = Reference(model, ref_model)
        device = next(model.parameters()).device
        self.value_head = ValueHead(model.config.hidden_size).to(device)
        self.actor = ActorCritic(model, self.value_head)
        self._choice = _OsChoice(device)
        self.private = PrivateTraining(
            self.actor,
            optimizer or self._adamw(),
            rows,
            plan,
            collate=list,
            annotators=annotators,
            part_examples_max=part_rows_max,
            account_path=account_path,
            algorithm="ppo",
        )
        self.steps_done = 0

    def train(self, steps: int) -> SgdReport:
        """Sample, score and update `steps` times; return what was spent.

        Raises:
            StepsExhausted: the plan's steps are spent.
            NotTracking: an auditor was given, and no run is being tracked.
            UnsafeAccounting: two accountants contradict each other.
        """
        recorder = self.auditor.run() if self.auditor is not None else None
        if recorder and not self.steps_done:
            self._record_start(recorder)
        mode = self.actor.training
        try:
            for batch in self.private.batches(steps):
                for part in batch:
                    self.private.backward(self._loss(part.inputs), examples=part.examples)
                self.private.step()
                self.steps_done += 1
                if recorder:
                    self._record_step(recorder)
        finally:
            self.actor.train(mode)
        report = self.private.report()
        if recorder:
            public = report.to_public_dict()
            recorder.register_model(self.model, "policy_final", dp=public)
            recorder.register_model(self.value_head, "value", dp=public)
        return report

    def close(self) -> None:
        """Take all hooks off the model again."""
        self.private.close()

    # --- one part of a batch -------------------------------------------------------------

    def _loss(self, rows: Sequence[_Row]) -> torch.Tensor:
        """Return the mean of the rows' losses, each of which looks at its own row only."""
        args = self.args
        self.actor.eval()
        sequences = sample(
            self.model,
            [ids for _, ids in rows],
            max_new_tokens=args.max_new_tokens,
            temperature=args.temperature,
            pad_id=self._pad_id,
            eos_id=self._eos_id,
            generator=self._choice,
        )
        live, responses = sequences.live, sequences.responses
        with torch.no_grad():
            scores = self._score([text for text, _ in rows], sequences)
            with self._reference.here() as model:
                reference = forward(model, sequences, temperature=args.temperature).of(responses)
        self.actor.train()  # hooks work in this mode only; there is no dropout
        now = forward(self.model, sequences, temperature=args.temperature)
        log_probs, values = now.of(responses), self.value_head(now.hidden)
        with torch.no_grad():
            rewards = token_rewards(scores, log_probs, reference, live, kl_coef=args.kl_coef)
            advantages, returns = advantages_and_returns(
                rewards, values * live, live, gamma=args.gamma, lam=args.lam
            )
        ratio = (log_probs - log_probs.detach()).exp()  # 1, with the gradient of the log
        losses = args.value_coef * 0.5 * (values - returns).square() - advantages * ratio
        of_rows: torch.Tensor = (losses * live).sum(dim=1) / live.sum(dim=1)
        return of_rows.mean()

    def _score(self, prompts: list[str], sequences: Sequences) -> torch.Tensor:
        device = sequences.tokens.device
        if self._reward_model is not None:
            attention = sequences.attention.long()
            out = self._reward_model(input_ids=sequences.tokens, attention_mask=attention)
            found: torch.Tensor = getattr(out, "logits", out)
            scores = found.float().reshape(len(prompts))
        else:
            texts = completions_of(self.tokenizer, sequences)
            pairs = zip(prompts, texts, strict=True)
            scores = torch.tensor([self._one(*pair) for pair in pairs], device=device)
        if self.args.missing_eos_penalty and self._eos_id is not None:
            ended = ((sequences.responses == self._eos_id) & sequences.live).any(dim=1)
            scores = scores - self.args.missing_eos_penalty * ~ended
        return scores

    def _one(self, prompt: str, completion: str) -> float:
        if self._reward_fn is None:  # refused when this was made
            raise MissingReward("the trainer has no reward")
        numbers = loose_numbers("rewards", self._reward_fn([prompt], [completion]))
        check_lengths(prompts=[prompt], rewards=numbers)
        return float(numbers[0])

    # --- the record ----------------------------------------------------------------------

    def _record_start(self, recorder: RunRecorder) -> None:
        given = asdict(self.args)
        settings = {name: given[name] for name in _USED}
        plan = self.private.plan.to_public_dict()
        recorder.config({"trainer": "private_ppo", "ppo": settings, "dp": plan})
        known = loaded_from(self.model)
        recorder.register_model(self.model, "policy_init", derived_from=known, derivation="loaded")
        recorder.register_model(self._reference.weights(), "reference")
        if self._reward_model is not None:
            recorder.register_model(self._reward_model, "reward")

    def _record_step(self, recorder: RunRecorder) -> None:
        public, manifest = self.private.last_step()
        recorder.track_policy_update(
            model=self.actor,
            optimizer=self.private.optimizer,
            algorithm="ppo",
            trainer_step=self.steps_done,
            dp=public,
            manifest=manifest,
        )

    def _adamw(self) -> torch.optim.Optimizer:
        trained = [p for p in self.actor.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=self.args.learning_rate, weight_decay=0.0)


class _OsChoice:
    """Draws tokens by numbers of the operating system's seeding, which nobody can repeat."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._numbers = OsSeeded()

    def choose(self, chances: torch.Tensor) -> torch.Tensor:
        """Return (B,) ids drawn with (B, V) probabilities, each by a number of its own."""
        reached = chances.double().cumsum(dim=1)
        numbers = torch.from_numpy(self._numbers.uniform(len(chances))).to(chances.device)
        aims = (numbers * reached[:, -1]).unsqueeze(1)
        found = torch.searchsorted(reached, aims, right=True).squeeze(1)
        return found.clamp(max=chances.shape[1] - 1)


def _check_args(args: PPOArgs) -> None:
    checks = (
        (args.epochs != 1, "a batch would be used for more than one step",
         "set epochs=1; a second look at the same rows is not in the figures"),
        (args.kl_target != 0, "the price of KL would follow what is measured on the rows",
         "leave kl_target out; kl_coef stays as it is"),
        (args.seed != 0, "a private training takes no seed: whoever knows it can repeat it",
         "leave the seed out; the operating system seeds everything"),
    )  # fmt: skip
    for is_wrong, what, advice in checks:
        if is_wrong:
            raise UnsafeAccounting(what, next_step=advice)
