"""Trainers of TRL that train privately: reward models and DPO, with LoRA and Opacus' hooks.

    trainer = make_private(RewardTrainer(..., peft_config=LoraConfig(...)), plan)
    auditor.attach(trainer)
    trainer.train()
    trainer.private.report()

The trainer computes its own loss. What changes is which rows it gets (a Poisson sample for
each step, in parts) and what its optimizer sees (noised sums of clipped gradients, where a
preference, chosen and rejected together, is one example). So whatever the trainer reads off
gradients afterwards, such as their norm, is private already. Its own log of losses is not, and
stays with whoever trains: a run records none of it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from transformers import Trainer

from rlhf_audit_trail.privacy.dp_sgd import PrivateTraining, UnsupportedModel
from rlhf_audit_trail.privacy.errors import PrivacyError, UnsafeAccounting
from rlhf_audit_trail.privacy.sampling_accounts import SgdPlan

__all__ = ["ACCOUNT_FILE", "UnsupportedTrainer", "make_private"]

ACCOUNT_FILE: Final = "dp_account.json"
_PAIRS: Final = ("RewardTrainer", "DPOTrainer")
# of each pair by itself; other losses of DPO look at the batch, or were not looked at
_DPO_LOSSES: Final = frozenset({"sigmoid", "hinge", "ipo", "robust"})


class UnsupportedTrainer(PrivacyError):
    """A trainer, or one of its settings, cannot train privately here."""


class _Batches:
    """What a trainer takes for its loader: Poisson batches, as many as there are steps."""

    def __init__(self, private: PrivateTraining, dataset: Any, collate: Any, steps: int) -> None:
        self.dataset, self.collate_fn = dataset, collate
        self._private, self._steps = private, steps

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Any]:
        return self._private.batches(self._steps)


class _Private:
    """What a generated class adds to a trainer. Never used alone."""

    private: PrivateTraining

    def get_train_dataloader(self) -> Any:
        """Return Poisson batches, in place of shuffled ones."""
        return _Batches(
            self.private,
            self.train_dataset,  # type: ignore[attr-defined]
            self.data_collator,  # type: ignore[attr-defined]
            self.args.max_steps,  # type: ignore[attr-defined]
        )

    def create_optimizer(self, *args: Any, **named: Any) -> Any:
        """Make the optimizer, which from then on steps with noised gradients only."""
        made = super().create_optimizer(*args, **named)  # type: ignore[misc]
        if self.private.optimizer is not self.optimizer:  # type: ignore[attr-defined]
            self.private.guard(self.optimizer)  # type: ignore[attr-defined]
        return made

    def training_step(self, model: Any, inputs: Any, *args: Any, **named: Any) -> torch.Tensor:
        """Go through a batch in parts, and put noised gradients in place."""
        del args, named  # a number of items in the batch would couple its examples
        losses = [torch.zeros((), device=self.args.device)]  # type: ignore[attr-defined]
        for part in inputs:
            one = super().training_step(model, part.inputs)  # type: ignore[misc]
            self.private.absorb(part.examples)
            losses.append(one.detach() * part.examples)
        self.private.noise()
        total = torch.stack(losses).sum()
        return total / self.private.plan.normaliser

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **named: Any) -> Any:
        """Compute the loss; where positions are trained, each row of tokens has its own."""
        if model.training and _trains_positions(model) and "position_ids" not in inputs:
            ids = inputs["input_ids"]
            positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
            inputs = {**inputs, "position_ids": positions}
        return super().compute_loss(model, inputs, *args, **named)  # type: ignore[misc]

    def floating_point_ops(self, inputs: Any) -> int:
        """Return nothing: a count of tokens would be saved beside the weights."""
        del inputs
        return 0


def make_private(
    trainer: Any,
    plan: SgdPlan,
    *,
    annotators: str | Sequence[str] | None = None,
    part_examples_max: int | None = None,
    account_path: Path | None = None,
) -> Any:
    """Have a trainer train privately from now on, and return it.

    Args:
        trainer: a RewardTrainer or DPOTrainer of TRL, before `train` is called.
        plan: public parameters; `max_steps` of the trainer is at most its `steps_max`.
        annotators: whose pair each row of the trainer's own dataset is, or the name of its
            column that says so; None where no guarantee for annotators is wanted.
        part_examples_max: pairs that go through the model at once; by default the trainer's
            batch size, which has no other meaning here.
        account_path: by default a file in the output folder; it outlives crashes.

    Raises:
        UnsupportedTrainer: the trainer or a setting; the message says what to change.
        UnsupportedModel, UnsafeAccounting: as `PrivateTraining`.
    """
    _check_trainer(trainer, plan)
    names: Any = annotators
    if isinstance(annotators, str):
        names = _column(trainer.train_dataset, annotators)
    path = account_path or Path(trainer.args.output_dir) / ACCOUNT_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    trainer.private = PrivateTraining(
        trainer.model,
        trainer.optimizer,
        trainer.train_dataset,
        plan,
        collate=trainer.data_collator,
        rows_per_example=2,
        annotators=names,
        part_examples_max=part_examples_max or trainer.args.per_device_train_batch_size,
        account_path=path,
    )
    trainer.args.ignore_data_skip = True  # a resumed training draws anew, and pays for it
    cls: Any = type(trainer)
    trainer.__class__ = _private_class(cls)
    return trainer


@functools.cache
def _private_class(cls: type[Any]) -> type[Any]:
    return type(f"Private{cls.__name__}", (_Private, cls), {"__module__": __name__})


def _check_trainer(trainer: Any, plan: SgdPlan) -> None:
    names, model = [cls.__name__ for cls in type(trainer).__mro__], getattr(trainer, "model", None)
    if not isinstance(trainer, Trainer) or not any(name in _PAIRS for name in names):
        raise UnsupportedTrainer(
            f"a {type(trainer).__name__} cannot train privately here",
            next_step=f"use {' or '.join(_PAIRS)} of TRL, PrivatePPOTrainer of ppo.private, or "
            "PrivateTraining in a loop of your own",
        )
    if isinstance(trainer, _Private):
        raise UnsupportedTrainer("this trainer is private already", next_step="make it once")
    wrong = _wrong_setting(trainer, plan)
    if wrong:
        raise UnsupportedTrainer(wrong[0], next_step=wrong[1])
    if isinstance(model, nn.Module) and _is_tied_down(model):
        raise UnsupportedModel(
            "positions of this model cannot be passed, and are trained",
            next_step="train LoRA adapters: pass peft_config=LoraConfig(...)",
        )


def _wrong_setting(trainer: Any, plan: SgdPlan) -> tuple[str, str] | None:
    """Return what is wrong with a trainer's settings, and what to do about it."""
    args = trainer.args
    losses = getattr(args, "loss_type", None) or ()
    losses = [losses] if isinstance(losses, str) else losses
    checks = (
        (args.gradient_accumulation_steps != 1, "gradients are accumulated over batches",
         "set gradient_accumulation_steps=1; part_examples_max limits memory"),
        (args.gradient_checkpointing, "gradient checkpointing loses gradients per example",
         "set gradient_checkpointing=False"),
        (args.fp16 or args.bf16, "half precision was not tried with gradients per example",
         "set bf16=False and fp16=False"),
        (trainer.accelerator.num_processes > 1 or args.n_gpu > 1, "there are several processes",
         "train in one process, on one device"),
        (not 0 < args.max_steps <= plan.steps_max, "max_steps is not within the plan's steps_max",
         "set max_steps; epochs would depend on the number of rows"),
        ("DPOTrainer" in str(type(trainer).__mro__) and not _DPO_LOSSES.issuperset(losses),
         "this loss may couple the pairs of a batch",
         f"use one of {', '.join(sorted(_DPO_LOSSES))}"),
        (args.neftune_noise_alpha, "noise on embeddings is shifted by the other examples",
         "leave neftune_noise_alpha out"),
        (getattr(trainer, "aux_loss_enabled", False), "the loss of a router couples a batch",
         "switch output_router_logits off"),
    )  # fmt: skip
    return next(((what, advice) for is_wrong, what, advice in checks if is_wrong), None)


def _column(dataset: Any, name: str) -> list[str]:
    if name not in (getattr(dataset, "column_names", None) or ()):
        raise UnsafeAccounting(
            "the trainer's dataset has no such column of annotators",
            next_step="pass one annotator for each of its rows",
        )
    return list(dataset[name])


def _position_tables(model: nn.Module) -> bool:
    """Whether learned positions are trained: a table that is looked up once for all rows."""
    marks = ("wpe", "position_embeddings", "embed_positions")
    return any(
        isinstance(module, nn.Embedding)
        and module.weight.requires_grad
        and name.rsplit(".", 1)[-1] in marks
        for name, module in model.named_modules()
    )


def _takes_positions(model: Any) -> bool:
    return "position_ids" in inspect.signature(model.forward).parameters


def _trains_positions(model: nn.Module) -> bool:
    return _position_tables(model) and _takes_positions(model)


def _is_tied_down(model: nn.Module) -> bool:
    return _position_tables(model) and not _takes_positions(model)
