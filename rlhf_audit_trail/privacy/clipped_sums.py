"""One clipped gradient for each example, added up: what a private step is made of.

Opacus' hooks leave one gradient for each row of the module's batch axis. An example may be
several rows, as a preference is: its gradient is their sum, and is clipped as one. What the
hooks found is checked against autograd once, and its shape always: a weight that is used
outside of its module would otherwise be trained without a bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from opacus.grad_sample import GradSampleHooks
from torch import nn

from rlhf_audit_trail.privacy.errors import PrivacyError

__all__ = ["ClippedSums", "UnsupportedModel"]

_CLIP: Final = 1 - 1e-6  # of the norm: rounding of floats must not exceed it
_AGREEMENT: Final = 1e-3
_LORA: Final = "train LoRA adapters (peft) in place of all weights"


class UnsupportedModel(PrivacyError):
    """Gradients of single examples cannot be had of this model, or not be trusted."""


class ClippedSums:
    """The sums of clipped gradients of one module's trained parameters."""

    def __init__(self, model: nn.Module, *, clip_norm: float, rows_per_example: int) -> None:
        """Hook the module, which keeps its class.

        Raises:
            UnsupportedModel: gradients of single examples cannot be had.
        """
        _check_model(model)
        self.model, self._clip_norm, self._rows_per_example = model, clip_norm, rows_per_example
        self._hooks = GradSampleHooks(model, loss_reduction="sum", strict=False)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self._names = {id(p): name for name, p in model.named_parameters()}
        self._is_checked = False
        self.clear()

    def clear(self) -> None:
        """Begin with sums of nothing."""
        self.sums: list[torch.Tensor | None] = [None] * len(self.parameters)
        self.examples = 0

    def close(self) -> None:
        """Take the hooks off again."""
        self._hooks.cleanup()

    @torch.no_grad()
    def add(self, examples: int) -> None:
        """Clip and add up what a backward pass left behind, and clear it.

        Args:
            examples: of the part whose mean loss went backward.

        Raises:
            UnsupportedModel: a parameter has no gradient per example, or a wrong one.
        """
        found = [self._gradients(parameter, examples) for parameter in self.parameters]
        self._check_left_over()
        self._is_checked = True
        self.examples += examples
        there = [gradients for gradients in found if gradients is not None]
        if not there:
            raise UnsupportedModel(
                "no gradient of any example was seen", next_step="train the model in training mode"
            )
        factors = self._factors(there, examples)
        finite = factors > 0  # another one counts as none: zero times infinity would not
        is_whole = bool(finite.all())
        for number, gradients in enumerate(found):
            if gradients is None:
                continue
            if is_whole:
                added = torch.einsum("i,i...->...", factors, gradients)
            else:
                added = torch.einsum("i,i...->...", factors[finite], gradients[finite])
            before = self.sums[number]
            self.sums[number] = added if before is None else before.add_(added)

    def _factors(self, gradients: Sequence[torch.Tensor], examples: int) -> torch.Tensor:
        """Return by what each example's gradient is multiplied; shape (examples,).

        The loss was a mean, so an example's own gradient is `examples` times what is here.
        """
        norms = torch.stack([x.reshape(examples, -1).norm(2, dim=1) for x in gradients])
        norm = norms.norm(2, dim=0)
        factors = (self._clip_norm * _CLIP / norm).clamp(max=float(examples))
        return torch.where(torch.isfinite(norm), factors, torch.zeros_like(factors))

    def _gradients(self, parameter: nn.Parameter, examples: int) -> torch.Tensor | None:
        """Take a parameter's gradients, one for each example; None if it was not used."""
        taken: Any = getattr(parameter, "grad_sample", None)
        whole, name = parameter.grad, self._names[id(parameter)]
        parameter.grad = None
        parameter.grad_sample = None  # type: ignore[attr-defined]
        if taken is None and whole is None:
            return None
        rows = examples * self._rows_per_example
        if not isinstance(taken, torch.Tensor) or len(taken) != rows:
            raise UnsupportedModel(
                f"{name} has no gradient for each of a part's rows",
                next_step=f"{_LORA}; or, where it embeds positions, pass position_ids of the shape "
                "(rows, length); train in training mode, with one backward pass for a forward",
            )
        gradients: torch.Tensor = taken.float()
        if not self._is_checked and whole is not None:
            _check_sum(name, gradients, whole)
        if self._rows_per_example == 1:
            return gradients
        return gradients.reshape(self._rows_per_example, examples, *parameter.shape).sum(0)

    def _check_left_over(self) -> None:
        for module in self.model.modules():
            if getattr(module, "activations", None):
                raise UnsupportedModel(
                    "a forward pass was not followed by its backward pass",
                    next_step="switch gradient checkpointing off, and evaluate under no_grad()",
                )


def _check_model(model: nn.Module) -> None:
    mixing = [n for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]  # noqa: SLF001 - its only common class
    if mixing:
        raise UnsupportedModel(
            f"{mixing[0]} mixes the examples of a batch", next_step="use LayerNorm or GroupNorm"
        )
    _check_dropout(model)
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise UnsupportedModel(
            "gradient checkpointing runs forward twice, and gradients per example are lost",
            next_step="set gradient_checkpointing=False",
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UnsupportedModel("nothing of the model is trained", next_step=_LORA)
    if hasattr(model, "autograd_grad_sample_hooks"):
        raise UnsupportedModel(
            "another private training has hooks on this model", next_step="close it first"
        )


def _check_dropout(model: nn.Module) -> None:
    """Return if no example's gradient depends on how many others stand in the batch.

    Masks come one after another from a generator with a known seed: one example more would
    shift those of all others, and move the sum by far more than one clipping norm.
    """
    for name, module in model.named_modules():
        rates = [getattr(module, rate, 0.0) for rate in ("p", "dropout", "attention_dropout")]
        is_layer = isinstance(module, nn.modules.dropout._DropoutNd)  # noqa: SLF001 - its only common class
        given = rates if is_layer else rates[1:]
        if any(isinstance(rate, int | float) and rate > 0 for rate in given):
            raise UnsupportedModel(
                f"{name or 'the model'} drops units out, by masks that other examples shift",
                next_step="set every dropout to 0, lora_dropout too; the noise regularises as well",
            )


def _check_sum(name: str, gradients: torch.Tensor, whole: torch.Tensor) -> None:
    """Return if the examples' gradients add up to what autograd found without them."""
    total, expected = gradients.sum(0), whole.float()
    if not (bool(torch.isfinite(total).all()) and bool(torch.isfinite(expected).all())):
        return
    scale = float(expected.norm()) + float(gradients.flatten(1).norm(dim=1).sum())
    if float((total - expected).norm()) > _AGREEMENT * scale:
        raise UnsupportedModel(
            f"gradients of {name} by example do not add up to its gradient",
            next_step=f"{_LORA}; weights used outside of their module cannot be trained privately",
        )
