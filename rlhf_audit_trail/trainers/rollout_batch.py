"""What TRL's online trainers generated and scored, read back from where they keep it.

`_generate_and_score_completions` returns this process's part; the trainer's `_logs` hold the
gathered rest: prompts, completions, one reward per function and the advantages.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rlhf_audit_trail.movement.host_fetch import fetched
from rlhf_audit_trail.record.reward import RewardCall
from rlhf_audit_trail.trainers.consumed_rows import row_keys

__all__ = ["RolloutBatch", "RolloutIndex", "rollout_batch"]

_READ: Final = (
    "prompt_ids", "prompt_mask", "completion_ids", "completion_mask",
    "old_per_token_logps", "ref_per_token_logps",
)  # fmt: skip
ROLLOUTS_KEPT_MAX: Final = 4  # later steps train on the newest sets only


@dataclass(frozen=True)
class RolloutBatch:
    """Scored completions of all processes, one row each; columns nobody knows are None.

    A reward that the trainer did not keep is None, too; it keeps no more than it trains on at once.
    """

    prompts: Sequence[Any]
    completions: Sequence[Any]
    rewards: Mapping[str, Sequence[Any]]
    advantages: Sequence[float] | None
    token_ids: Sequence[Sequence[int]]
    finish_reasons: Sequence[str]
    kl: Sequence[float] | None
    weights: Mapping[str, float]
    keys: Sequence[bytes]


class RolloutIndex:
    """Finds recorded completions again in the batches that are trained on."""

    def __init__(self) -> None:
        self._rows: OrderedDict[str, dict[bytes, list[int]]] = OrderedDict()

    def add(self, rows_root: str, keys: Sequence[bytes]) -> None:
        """Remember a set of completions; the oldest of more than four is forgotten."""
        rows: dict[bytes, list[int]] = {}
        for row, key in enumerate(keys):
            rows.setdefault(key, []).append(row)
        self._rows[rows_root] = rows
        while len(self._rows) > ROLLOUTS_KEPT_MAX:
            self._rows.popitem(last=False)

    def find(self, key: bytes) -> list[Any] | None:
        """Return [rows root, row] of the newest completion with this key; equal ones in turn."""
        for rows_root in reversed(self._rows):
            rows = self._rows[rows_root].get(key)
            if rows:
                rows.append(rows.pop(0))
                return [rows_root, rows[-1]]
        return None


def rollout_batch(
    trainer: Any, output: Mapping[str, Any], calls: Sequence[RewardCall], *, is_training: bool
) -> RolloutBatch:
    """Return the rows of a batch; called on every process, complete on each.

    Args:
        trainer: GRPO, RLOO, or another one of their kind.
        output: what `_generate_and_score_completions` returned here.
        calls: what recorded reward functions returned here, which knows None from NaN.
        is_training: rather than to evaluate, which may be more at once than the trainer keeps.
    """
    host = dict(zip(_READ, fetched([output.get(name) for name in _READ]), strict=True))
    answers = _live_tokens(host, "completion")
    # of what is trained on, the trainer keeps all texts: then tokens of prompts are not needed
    asked = [[]] * len(answers) if is_training else _live_tokens(host, "prompt")
    local = list(zip(asked, answers, row_keys(host), _kl(host), strict=True))
    rows = _gathered(trainer, local)
    count = len(rows)
    logs = trainer._logs  # noqa: SLF001 - where TRL keeps what is gathered over processes
    ends = _end_ids(trainer)
    named = {name: _last(values, count) for name, values in logs["rewards"].items()}
    divergences = [kl for _, _, _, kl in rows]
    advantages = _last(logs["advantages"], count)
    return RolloutBatch(
        prompts=_texts(trainer, logs["prompt"], [ids for ids, _, _, _ in rows]),
        completions=_texts(trainer, logs["completion"], [ids for _, ids, _, _ in rows]),
        rewards={name: _with_none(name, values, calls, count) for name, values in named.items()},
        advantages=advantages if len(advantages) == count else None,
        token_ids=[ids for _, ids, _, _ in rows],
        finish_reasons=["stop" if ids and ids[-1] in ends else "length" for _, ids, _, _ in rows],
        kl=None if None in divergences else [x for x in divergences if x is not None],
        weights=dict(zip(named, trainer.reward_weights.tolist(), strict=True)),
        keys=[key for _, _, key, _ in rows],
    )


def _live_tokens(output: Mapping[str, Any], part: str) -> list[list[int]]:
    pairs = zip(output[f"{part}_ids"].tolist(), output[f"{part}_mask"].tolist(), strict=True)
    return [[token for token, live in zip(ids, mask, strict=True) if live] for ids, mask in pairs]


def _kl(output: Mapping[str, Any]) -> list[float | None]:
    """Return the estimated KL to the reference per completion, where TRL computed both sides."""
    policy, reference = output.get("old_per_token_logps"), output.get("ref_per_token_logps")
    if policy is None or reference is None:
        return [None] * len(output["completion_ids"])
    log_ratio = reference - policy
    per_token = (log_ratio.exp() - log_ratio - 1) * output["completion_mask"]
    found: list[float | None] = per_token.sum(dim=1).tolist()
    return found


def _gathered(trainer: Any, rows: list[Any]) -> list[Any]:
    if trainer.accelerator.num_processes == 1:
        return rows
    from accelerate.utils import gather_object  # noqa: PLC0415 - only where there are several

    found: list[Any] = gather_object(rows)
    return found


def _last(values: Any, count: int) -> list[Any]:
    """Return the newest rows; logs may hold older ones before them."""
    return list(values)[-count:]


def _texts(trainer: Any, logged: Any, tokens: Sequence[Sequence[int]]) -> list[Any]:
    """Return texts or messages as the trainer has them; read back where it has not kept all."""
    if len(logged) >= len(tokens):
        return _last(logged, len(tokens))
    decode = trainer.processing_class.decode
    return [decode(ids, skip_special_tokens=True) for ids in tokens]


def _with_none(name: str, values: list[Any], calls: Sequence[RewardCall], count: int) -> list[Any]:
    """Return a reward's values with None where it does not apply; TRL makes NaN of that."""
    for call in calls:
        if call.name == name and len(call.values) == count:
            return list(call.values)
    known = [None if isinstance(x, float) and math.isnan(x) else x for x in values]
    return [None] * (count - len(known)) + known


def _end_ids(trainer: Any) -> set[int]:
    tokenizer = trainer.processing_class
    known = getattr(trainer, "eos_token_ids", None) or [getattr(tokenizer, "eos_token_id", None)]
    return {int(token) for token in known if token is not None}
