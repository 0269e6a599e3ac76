"""What the policy must stay near: a frozen model, or the policy without its adapter."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["Reference", "frozen"]


class Reference:
    """The reference of a policy; an adapter's is the model below it, and costs no memory."""

    def __init__(self, policy: Any, given: Any | None) -> None:
        """Freeze `given`, or take the policy as it is now.

        Args:
            policy: that is trained; a model of PEFT is its own reference without adapters.
            given: another model, or None.
        """
        is_own = given is not None and given is not policy
        self._adapted = None if is_own or not hasattr(policy, "disable_adapter") else policy
        self.model = (
            None
            if self._adapted is not None
            else frozen(given if is_own else copy.deepcopy(policy))
        )

    @contextmanager
    def here(self) -> Iterator[Any]:
        """Lend the reference for the block; meanwhile an adapter is switched off."""
        if self._adapted is None:
            yield self.model
            return
        with self._adapted.disable_adapter():
            yield self._adapted

    def weights(self) -> Any:
        """Return what its digest is made of: the model, or the adapter's frozen base."""
        if self._adapted is None:
            return self.model
        return {
            name: parameter
            for name, parameter in self._adapted.named_parameters()
            if not parameter.requires_grad
        }


def frozen(model: Any) -> Any:
    """Return a model that is only read from now on."""
    if isinstance(model, torch.nn.Module):
        return model.eval().requires_grad_(False)  # noqa: FBT003 - torch's own signature
    return model
