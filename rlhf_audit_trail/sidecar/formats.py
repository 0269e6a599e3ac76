"""What training frameworks write of their completions, read back as columns.

verl: `{step}.jsonl` in `trainer.rollout_data_dir`, one completion a line; no advantages.
NeMo-RL: `train_data_step{N}.jsonl` in its log folder, every value in a list of one; its
checkpoints are `step_N`, renamed from `tmp_step_N` when whole. TRL: a parquet file for each
logging step in `output_dir/completions`, of which it keeps the last completions only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rlhf_audit_trail.importers.preference import LeftOut, finite
from rlhf_audit_trail.importers.rows import read_rows
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = ["FORMATS", "Completions", "FileFormat", "NoCompletions", "read_completions"]

_NAMES_MAX: Final = 64  # columns; more is no record of completions


class NoCompletions(AuditTrailError):
    """A file has the name of one with completions, and holds none."""


@dataclass(frozen=True)
class Completions:
    """The completions of one file, column by column, None where a row does not say.

    Attributes:
        prompts: text or messages.
        completions: text or messages.
        rewards: name to values; those in `weights` with 0 are no part of the total.
        weights: of the rewards, where they are not 1.
        advantages: per completion, or None where the file has none.
        unreadable_rows: how many more rows the file has.
    """

    prompts: Sequence[Any]
    completions: Sequence[Any]
    rewards: Mapping[str, Sequence[float | None]]
    weights: Mapping[str, float]
    advantages: Sequence[float | None] | None
    unreadable_rows: int


@dataclass(frozen=True)
class FileFormat:
    """How a framework names and fills its files.

    Attributes:
        name: of a file; group 1 is the step.
        read: from rows to columns.
        is_lossy: whether the framework leaves out completions that it trained on.
        checkpoint: name of a folder with a whole checkpoint, group 1 the step; or None.
        limits: what such files do not say; it is recorded with the run.
    """

    name: re.Pattern[str]
    read: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]
    is_lossy: bool
    checkpoint: re.Pattern[str] | None
    limits: str


def read_completions(path: Path, form: FileFormat) -> Completions:
    """Read a file that is not written any more.

    Raises:
        UnreadableExport: it is no such file.
        NoCompletions: no row of it is a completion.
        OSError: it is gone.
    """
    rows: list[Mapping[str, Any]] = []
    unreadable = 0
    for row in read_rows(path):
        if isinstance(row, LeftOut) or len(row[1]) > _NAMES_MAX:
            unreadable += 1
        else:
            rows.append(row[1])
    if not rows:
        raise NoCompletions(f"{path.name} holds no completion that can be read")
    return Completions(**form.read(rows), unreadable_rows=unreadable)


def _verl(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    known = {"input", "output", "gts", "score", "step"}
    more = _numbers(rows, known)
    return {
        "prompts": [row.get("input") for row in rows],
        "completions": [row.get("output") for row in rows],
        "rewards": {"score": [finite(row.get("score")) for row in rows], **more},
        "weights": dict.fromkeys(more, 0.0),
        "advantages": None,
    }


def _nemo_rl(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    plain = [{name: _unwrapped(value) for name, value in row.items()} for row in rows]
    said = [_divided(row.get("content")) for row in plain]
    advantages = [_one_advantage(row.get("advantages")) for row in plain]
    return {
        "prompts": [prompt for prompt, _ in said],
        "completions": [completion for _, completion in said],
        "rewards": {"reward": [finite(row.get("rewards")) for row in plain]},
        "weights": {},
        "advantages": None if None in advantages else advantages,
    }


def _trl(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    known = {"step", "prompt", "completion", "advantage"}
    advantages = [finite(row.get("advantage")) for row in rows]
    return {
        "prompts": [row.get("prompt") for row in rows],
        "completions": [row.get("completion") for row in rows],
        "rewards": _numbers(rows, known),
        "weights": {},
        "advantages": None if None in advantages else advantages,
    }


def _numbers(rows: Sequence[Mapping[str, Any]], known: set[str]) -> dict[str, list[float | None]]:
    """Return the columns beside the known ones that hold numbers only, or nothing."""
    names = dict.fromkeys(name for row in rows for name in row if name not in known)
    found = {}
    for name in names:
        values = [row.get(name) for row in rows]
        if all(value is None or isinstance(value, int | float) for value in values):
            found[str(name)] = [
                float(value) if isinstance(value, bool) else finite(value) for value in values
            ]
    return found


def _unwrapped(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _divided(content: Any) -> tuple[Any, Any]:
    """Split a conversation before its last message; one text cannot be split."""
    if isinstance(content, list) and len(content) > 1:
        return content[:-1], content[-1]
    return None, content


def _one_advantage(value: Any) -> float | None:
    """Return the advantage of a completion: one number, or the one that its tokens share."""
    if isinstance(value, list):
        numbers = {item for item in value if item}
        value = numbers.pop() if len(numbers) == 1 else None if numbers else 0.0
    return finite(value)


FORMATS: Final[Mapping[str, FileFormat]] = {
    "verl": FileFormat(
        re.compile(r"(\d{1,12})\.jsonl"),
        _verl,
        is_lossy=False,
        checkpoint=None,
        limits="verl writes no advantages, log-probabilities or updates to these files",
    ),
    "nemo-rl": FileFormat(
        re.compile(r"train_data_step(\d{1,12})\.jsonl"),
        _nemo_rl,
        is_lossy=False,
        checkpoint=re.compile(r"step_(\d{1,12})"),
        limits="NeMo-RL does not write updates to these files",
    ),
    "trl-parquet": FileFormat(
        re.compile(r"completions_(\d{1,12})\.parquet"),
        _trl,
        is_lossy=True,
        checkpoint=None,
        limits="TRL keeps only the last completions before each logging step",
    ),
}
"""Name to format, as `--format` takes it."""
