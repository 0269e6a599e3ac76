"""The prompts of a PPO training: every pass over them in a new order, and where it stands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = ["MissingDataset", "Prompts", "prompt_of", "token_ids"]


class MissingDataset(AuditTrailError):
    """There are no prompts to train on."""


class Prompts:
    """Draws prompts for ever; what it will draw next can be saved and put back."""

    def __init__(self, tokenizer: Any, generator: torch.Generator) -> None:
        """Draw orders from `generator`, which others may use as well."""
        self._tokenizer = tokenizer
        self._generator = generator
        self._order: list[int] = []

    def draw(self, dataset: Sequence[Any], count: int) -> list[tuple[int, str, list[int]]]:
        """Return (row, text, token ids) of so many prompts.

        Raises:
            MissingDataset: a row holds no prompt.
        """
        found = []
        for _ in range(count):
            if not self._order:
                self._order = torch.randperm(len(dataset), generator=self._generator).tolist()
            row = self._order.pop(0)
            found.append((row, *prompt_of(self._tokenizer, dataset[row])))
        return found

    def state(self) -> list[int]:
        """Return the rows that are still to come in this pass."""
        return list(self._order)

    def restore(self, state: Sequence[int]) -> None:
        """Go on with what `state` returned."""
        self._order = list(state)


def prompt_of(tokenizer: Any, item: Any) -> tuple[str, list[int]]:
    """Return text and token ids of a row: text, or a mapping with `prompt` or `input_ids`.

    Raises:
        MissingDataset: the row holds no prompt.
    """
    text = item["prompt"] if isinstance(item, Mapping) and "prompt" in item else item
    if isinstance(text, str):
        return text, token_ids(tokenizer(text)["input_ids"])
    if isinstance(item, Mapping) and "input_ids" in item:
        ids = token_ids(item["input_ids"])
        return tokenizer.decode(ids, skip_special_tokens=True), ids
    raise MissingDataset(
        f"a row of the dataset is a {type(item).__name__} without a prompt",
        next_step="use text, or mappings with `prompt` or `input_ids`",
    )


def token_ids(values: Any) -> list[int]:
    """Return token ids of any library as integers."""
    plain: Iterable[Any] = values.tolist() if hasattr(values, "tolist") else values
    return [int(value) for value in plain]
