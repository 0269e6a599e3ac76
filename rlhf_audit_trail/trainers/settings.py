"""A trainer's arguments: what is recorded of them, and the run's name that follows from them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Final

__all__ = ["run_name", "settings_of", "weights_file"]

_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9._-]+")
_NAME_MAX: Final = 100
# paths and accounts of whoever trains; seeds are sealed
_LEFT_OUT: Final = frozenset(
    {"output_dir", "logging_dir", "run_name", "hub_model_id", "hub_token", "push_to_hub_token",
     "seed", "data_seed", "project", "trackio_space_id", "resume_from_checkpoint"}
)  # fmt: skip


def run_name(args: Any) -> str:
    """Return a run's name: of the environment, of a trainer's arguments, else of its folder."""
    given = os.environ.get("RLHF_AUDIT_RUN")
    for text in (given, getattr(args, "run_name", None), Path(args.output_dir or "").name):
        name = _NOT_IN_NAMES.sub("-", Path(str(text or "")).name).strip("-._")[:_NAME_MAX]
        if name:
            return name
    return "training"


def weights_file(folder: Path) -> Path | None:
    """Return the one file that holds the weights; a folder of outputs holds much else."""
    names = ("model.safetensors", "adapter_model.safetensors")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def settings_of(args: Any) -> tuple[dict[str, Any], Any]:
    """Return a trainer's arguments without paths, accounts and seeds; and the seed."""
    given = args.to_sanitized_dict() if hasattr(args, "to_sanitized_dict") else dict(vars(args))
    settings = {
        name: value
        for name, value in given.items()
        if name not in _LEFT_OUT and not name.endswith("_token")
    }
    seeds = {name: getattr(args, name, None) for name in ("seed", "data_seed")}
    return settings, seeds
