"""Scored completions as rows and figures; which of it is public is decided in `events.py`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_audit_trail.capture import InvalidColumn, check_lengths, plain_value
from rlhf_audit_trail.detectors.shape import batch_shape
from rlhf_audit_trail.ledger.events import encode_value
from rlhf_audit_trail.record.row_commitments import TableKey

__all__ = ["ScoredRows", "scored_rows", "spread"]


@dataclass(frozen=True)
class ScoredRows:
    """A batch of scored completions, ready to be recorded.

    Attributes:
        rows: JSON values, one per completion.
        encoded: the same as bytes.
        sealed: figures over all rows.
        odd: names of numbers that were not finite, and became text.
        key: of the commitments to the rows.
    """

    rows: list[dict[str, Any]]
    encoded: list[bytes]
    sealed: dict[str, Any]
    odd: list[str]
    key: TableKey

    @property
    def table(self) -> bytes:
        """All rows as one JSON array."""
        return b"[" + b",".join(self.encoded) + b"]"

    @property
    def root(self) -> str:
        """Root of the salted row commitments, in hex."""
        return self.key.root(self.encoded).hex()


def scored_rows(
    prompts: Any,
    completions: Any,
    rewards: Mapping[str, Any],
    advantages: Any,
    *,
    token_ids: Any,
    weights: Mapping[str, float] | None,
    more: Mapping[str, Any],
) -> ScoredRows:
    """Return the rows of a batch and the figures over them.

    Args:
        prompts: text, message lists or token ids per completion.
        completions: the same.
        rewards: name of a reward to a value per completion; None where it does not apply.
        advantages: per completion, or None.
        token_ids: of the completion, per completion, or None.
        weights: of the rewards in the total; 1 for one that is not named.
        more: further columns, None left out: kl, entropy, length, finish_reason.

    Raises:
        UnequalLengths, InvalidColumn: the columns do not describe the same rows.
    """
    odd: list[str] = []
    columns: dict[str, list[Any]] = {
        "prompt": _plain_column("prompts", prompts, odd),
        "completion": _plain_column("completions", completions, odd),
    }
    given = {"advantage": advantages, **more}
    columns |= {
        name: _plain_column(name, values, odd)
        for name, values in given.items()
        if values is not None
    }
    if token_ids is not None:
        columns["tokens"] = [_tokens(ids) for ids in token_ids]
        if "length" not in columns:
            columns["length"] = [len(ids) for ids in columns["tokens"]]
    scores = {name: _plain_column("rewards", values, odd) for name, values in rewards.items()}
    check_lengths(**columns, **{f"rewards {name}": values for name, values in scores.items()})
    names = list(columns)
    rows = [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    for number, row in enumerate(rows):
        row["rewards"] = {name: values[number] for name, values in scores.items()}
    encoded = [encode_value(row) for row in rows]
    return ScoredRows(rows, encoded, _figures(columns, scores, weights or {}), odd, TableKey())


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return mean, min, max and standard deviation of numbers; nothing of none."""
    if not values:
        return {}
    mean = math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return {"mean": mean, "min": min(values), "max": max(values), "std": deviation}


def _figures(
    columns: Mapping[str, list[Any]],
    scores: Mapping[str, list[Any]],
    weights: Mapping[str, float],
) -> dict[str, Any]:
    totals = [_total(scores, weights, row) for row in range(len(columns["prompt"]))]
    known = [_number(total) for total in totals if total is not None]
    figures: dict[str, Any] = {f"reward_{name}": x for name, x in spread(known).items()}
    for name in ("kl", "entropy", "length"):
        if name in columns:
            figures[f"{name}_mean"] = spread(_numbers(columns[name])).get("mean")
    parts: dict[str, Any] = {"rewards": {}}
    for name, values in scores.items():
        numbers = _numbers(values)
        parts["rewards"][name] = spread(numbers) | {"scored": len(numbers)}
    parts["shape"] = batch_shape(columns["prompt"], totals, columns.get("finish_reason"))
    if "advantage" in columns:
        parts["advantage"] = spread(_numbers(columns["advantage"]))
    return figures | {"figures": parts}


def _total(scores: Mapping[str, list[Any]], weights: Mapping[str, float], row: int) -> float | None:
    """Return the weighted sum of the rewards that apply to a row; None if none does."""
    parts = [
        weights.get(name, 1.0) * _number(values[row])
        for name, values in scores.items()
        if values[row] is not None
    ]
    return sum(parts) if parts else None


def _numbers(values: Sequence[Any]) -> list[float]:
    return [_number(value) for value in values if value is not None]


def _number(value: Any) -> float:
    """Read back a number that `plain_value` may have made text of."""
    return float(value)


def _plain_column(name: str, values: Any, odd: list[str]) -> list[Any]:
    plain = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(plain, str | bytes) or not hasattr(plain, "__iter__"):
        raise InvalidColumn(
            f"{name} must be a sequence with one value per row, not {type(values).__name__}",
            next_step="wrap a single value in a list",
        )
    return [value if type(value) is str else plain_value(name, value, odd) for value in plain]


def _tokens(ids: Any) -> list[int]:
    plain = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    return plain if set(map(type, plain)) <= {int} else [int(token) for token in plain]
