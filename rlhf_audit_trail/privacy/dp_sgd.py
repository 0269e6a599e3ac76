"""Differentially private training of any torch module: Poisson batches, clipping, noise.

    private = PrivateTraining(model, optimizer, rows, plan, collate=collate)
    for batch in private.batches(steps=100):
        for part in batch:                      # none, where nobody was drawn
            private.backward(loss_of(model, part.inputs), examples=part.examples)
        private.step()
    private.report()

Opacus' hooks compute one gradient per row, without wrapping the module. What the optimizer
gets to see are noised sums only, so whatever reads or clips gradients around its step works
on data that is private already. A step with anything else is refused.

With `clipped_sums`, the only module of this package that imports torch.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from opacus.accountants import RDPAccountant
from torch import nn
from torch.utils.data import DataLoader, WeightedRandomSampler, default_collate

from rlhf_audit_trail.privacy.clipped_sums import ClippedSums, UnsupportedModel
from rlhf_audit_trail.privacy.errors import UnsafeAccounting
from rlhf_audit_trail.privacy.os_seeded import OsSeeded
from rlhf_audit_trail.privacy.sampling_accounts import (
    SamplingAccount,
    SgdPlan,
    SgdReport,
    check_accountant,
)
from rlhf_audit_trail.privacy.sampling_loss import Steps

__all__ = ["Part", "PrivateTraining", "Recorder", "UnsupportedModel", "rdp_epsilon"]


class Recorder(Protocol):
    """What is needed of a run's recorder."""

    def track_policy_update(
        self,
        *,
        model: Any,
        optimizer: Any,
        algorithm: str,
        dp: Mapping[str, Any] | None,
        manifest: Sequence[int] | None,
    ) -> Any:
        """Record what an optimizer did."""


@dataclass(frozen=True)
class Part:
    """As much of a batch as goes through the model at once."""

    inputs: Any
    examples: int


class PrivateTraining:
    """Trains one module privately; owned by the thread that trains."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        rows: Any,
        plan: SgdPlan,
        *,
        collate: Callable[[list[Any]], Any] = default_collate,
        rows_per_example: int = 1,
        annotators: Sequence[str | None] | None = None,
        part_examples_max: int | None = None,
        account_path: Path | None = None,
        run: Recorder | None = None,
        algorithm: str = "unknown",
        accountant: str = "pld",
        seed: Any = None,
    ) -> None:
        """Hook the module; nothing is drawn or spent before `batches` and `step`.

        Args:
            model: keeps its class; parameters that need no gradient stay as they are.
            optimizer: of its parameters; or None, and `guard` is called with it later.
            rows: examples by number, with a length; no loader: batches are drawn here.
            plan: public parameters.
            collate: makes the inputs of a part.
            rows_per_example: of the module's batch axis: 2 where all chosen answers come first,
                and then as many rejected ones. A preference is one example, clipped as one.
            annotators: whose example each row is; rows beyond the plan's bound are never drawn.
            part_examples_max: so many go through the model at once; memory only.
            account_path: a file that outlives crashes, see `SamplingAccount`.
            run: where every step is recorded.
            algorithm: for the record, such as `dpo`.
            accountant: only pld.
            seed: refused; it is an argument so that it is not silently ignored.

        Raises:
            UnsafeAccounting: batches would be no Poisson samples, or figures too small.
            UnsupportedModel: gradients of single examples cannot be had.
        """
        check_accountant(accountant)
        _check_seed(seed)
        _check_rows(rows)
        self.model, self.plan, self._rows, self._collate = model, plan, rows, collate
        self._part_max = part_examples_max
        self._run, self._algorithm = run, algorithm
        self.annotators_known = annotators is not None
        self._allowed = _bounded(annotators, len(rows), plan.examples_per_annotator_max)
        self.account = SamplingAccount(plan, account_path)
        self._noise, self._sampling = OsSeeded(), OsSeeded()
        self._sums = ClippedSums(model, clip_norm=plan.clip_norm, rows_per_example=rows_per_example)
        self._drawn: list[int] | None = None  # of the step under way
        self._is_noised = False
        self._last: tuple[dict[str, Any], list[int]] | None = None
        self.optimizer = optimizer
        self._handles: list[Any] = []
        if optimizer is not None:
            self.guard(optimizer)

    # --- batches ------------------------------------------------------------------------

    def batches(self, steps: int) -> Iterator[list[Part]]:
        """Draw Poisson batches, one for each step, in parts that fit in memory; they may be empty.

        Which rows they hold, and how many, is private.
        """
        for _ in range(steps):
            yield self.draw()

    def draw(self) -> list[Part]:
        """Draw the next batch.

        Raises:
            UnsafeAccounting: the last one was not used: choosing among batches is not sampling.
        """
        if self._drawn is not None:
            raise UnsafeAccounting(
                "a batch was drawn and its step was not taken",
                next_step="call step() after every batch, also after an empty one",
            )
        chosen = self._sampling.chosen(len(self._allowed), self.plan.sample_rate)
        self._drawn = [self._allowed[number] for number in chosen.tolist()]
        size = self._part_max or max(len(self._drawn), 1)
        groups = [self._drawn[i : i + size] for i in range(0, len(self._drawn), size)]
        return [Part(self._collate([self._rows[row] for row in x]), len(x)) for x in groups]

    # --- gradients ----------------------------------------------------------------------

    def backward(self, loss: torch.Tensor, *, examples: int) -> None:
        """Compute, clip and add up the gradients of a part.

        Args:
            loss: mean over the part's examples, of which each has its own summand.
            examples: of the part.

        Raises:
            UnsupportedModel: a parameter has no gradient per example, or a wrong one.
        """
        for parameter in self._sums.parameters:
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        self.absorb(examples)

    def absorb(self, examples: int) -> None:
        """Clip and add up what a backward pass left behind, and clear it.

        Args:
            examples: of the part whose mean loss went backward.

        Raises:
            UnsafeAccounting: they are no batch that was drawn here.
            UnsupportedModel: as `backward`.
        """
        if self._drawn is None:
            raise UnsafeAccounting(
                "these examples are no batch that was drawn here",
                next_step="train on what batches() returns; a shuffled loader is no Poisson sample",
            )
        self._sums.add(examples)

    # --- the step -----------------------------------------------------------------------

    def step(self) -> None:
        """Add noise, step the optimizer and record it.

        Raises:
            StepsExhausted: the plan's steps are spent; nothing was drawn.
            UnsafeAccounting: what was trained on is not the batch that was drawn.
        """
        self.noise()
        if self.optimizer is None:
            raise UnsafeAccounting("there is no optimizer", next_step="call guard(optimizer) first")
        self.optimizer.step()
        if self._run is not None:
            public, manifest = self.last_step()
            self._run.track_policy_update(
                model=self.model,
                optimizer=self.optimizer,
                algorithm=self._algorithm,
                dp=public,
                manifest=manifest,
            )

    @torch.no_grad()
    def noise(self) -> None:
        """Pay for a step, then put noised gradients in place; the optimizer may step once.

        Raises:
            StepsExhausted, UnsafeAccounting: as `step`.
        """
        if self._drawn is None or self._sums.examples != len(self._drawn):
            raise UnsafeAccounting(
                "what was trained on is not the batch that was drawn",
                next_step="train on every part of each batch of batches() once, then call step()",
            )
        self.account.charge()  # before drawing: a crash in between spends, and leaks nothing
        scale = self.plan.noise_multiplier * self.plan.clip_norm
        square = 0.0
        for parameter, summed in zip(self._sums.parameters, self._sums.sums, strict=True):
            drawn = torch.from_numpy(self._noise.normal(tuple(parameter.shape))).to(
                parameter.device
            )
            total = drawn.mul_(scale)
            if summed is not None:
                total += summed
            total /= self.plan.normaliser
            square += float(total.square().sum())
            parameter.grad = total.to(parameter.dtype)
        self._last = (self._public(math.sqrt(square)), self._drawn)
        self._sums.clear()
        self._drawn, self._is_noised = None, True

    def guard(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse every step of an optimizer that is not made with noised gradients."""
        known = {id(parameter) for parameter in self._sums.parameters}
        mine = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        if any(id(parameter) not in known for parameter in mine):
            raise UnsafeAccounting(
                "the optimizer trains parameters that are not the private model's",
                next_step="make one optimizer for what is trained privately",
            )
        self.optimizer = optimizer
        self._handles = [
            optimizer.register_step_pre_hook(self._check_noised),
            optimizer.register_step_post_hook(self._stepped),
        ]

    def _check_noised(self, *_: Any) -> None:
        if not self._is_noised:
            raise UnsafeAccounting(
                "the optimizer was about to step without noise",
                next_step="call step() of the private training in place of the optimizer's",
            )

    def _stepped(self, *_: Any) -> None:
        self._is_noised = False

    def close(self) -> None:
        """Take all hooks off the model and the optimizer again."""
        self._sums.close()
        for handle in self._handles:
            handle.remove()

    # --- what may be said ---------------------------------------------------------------

    def last_step(self) -> tuple[dict[str, Any], list[int]]:
        """Return what is public of the last step, and the rows of its batch, which are not."""
        if self._last is None:
            raise UnsafeAccounting("no step was taken yet", next_step="call step() first")
        return self._last

    def report(self) -> SgdReport:
        """Return what may be said of the model so far.

        Raises:
            UnsafeAccounting: two accountants contradict each other.
        """
        epsilon = rdp_epsilon(self.account.history, self.plan.dp_delta)
        return SgdReport.of(self.account, epsilon, annotators_known=self.annotators_known)

    def _public(self, norm: float) -> dict[str, Any]:
        plan = self.plan
        return {
            "sampling": "poisson",
            "noise_multiplier": plan.noise_multiplier,
            "clip_norm": plan.clip_norm,
            "sample_rate": plan.sample_rate,
            "normaliser": plan.normaliser,
            "history": [asdict(entry) for entry in self.account.history],
            "noised_grad_norm": norm,
        }


def rdp_epsilon(history: Sequence[Steps], dp_delta: float) -> float:
    """Return an example's epsilon, add/remove, by the Renyi accountant of Opacus."""
    accountant = RDPAccountant()
    accountant.history = [(x.noise_multiplier, x.sample_rate, x.steps) for x in history]
    with warnings.catch_warnings():  # that a larger order would be tighter: it is a cross-check
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(delta=dp_delta))


def _bounded(annotators: Sequence[str | None] | None, size: int, most: int) -> list[int]:
    """Return the rows that may be drawn: the first ones of each annotator."""
    if annotators is None:
        return list(range(size))
    if len(annotators) != size or any(name is None for name in annotators):
        raise UnsafeAccounting(
            "it must be known of every row whose example it is",
            next_step="pass one annotator for each row, after the trainer has left out long ones",
        )
    counts: dict[str | None, int] = {}
    allowed = []
    for row, name in enumerate(annotators):
        counts[name] = counts.get(name, 0) + 1
        if counts[name] <= most:
            allowed.append(row)
    return allowed


def _check_seed(seed: Any) -> None:
    if seed is not None:
        raise UnsafeAccounting(
            "a private training takes no seed: whoever knows it can take the noise off again",
            next_step="leave the seed out; the operating system seeds noise and batches",
        )


def _check_rows(rows: Any) -> None:
    if isinstance(rows, DataLoader):
        kind = (
            "weighted" if isinstance(rows.sampler, WeightedRandomSampler) else "shuffled or fixed"
        )
        raise UnsafeAccounting(
            f"a loader's {kind} batches are no Poisson samples, for which alone the figures hold",
            next_step="pass the dataset itself; batches are drawn here",
        )
    if not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
        raise UnsafeAccounting(
            "rows of a stream cannot be drawn independently",
            next_step="pass a dataset with a length and rows by number",
        )
