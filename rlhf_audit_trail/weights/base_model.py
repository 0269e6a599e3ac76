"""What a model says of the one it was made from: its configuration's name, its adapter's base."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from rlhf_audit_trail.derivation import MadeFrom
from rlhf_audit_trail.ledger.weights.digest import TensorRecord

__all__ = ["base_records", "loaded_from"]

_WRAPPED: Final = "base_model.model."  # how PEFT begins the names of what it wraps


def loaded_from(model: Any) -> MadeFrom | None:
    """Return the hub's name and commit that a model's configuration gives; None for a folder.

    The weights may have been changed since, and nobody compared them with the hub's.
    """
    config = getattr(model, "config", None)
    name = getattr(config, "_name_or_path", None) or ""
    if not isinstance(name, str) or not name or name.startswith((".", "~")) or Path(name).exists():
        return None
    if Path(name).is_absolute():  # a folder that is gone
        return None
    revision = getattr(config, "_commit_hash", None)
    return MadeFrom(name=name, revision=revision if isinstance(revision, str) else "")


def base_records(model: Any, records: Iterable[TensorRecord]) -> list[TensorRecord]:
    """Return the records of an adapter's base, under the names that it has without the adapter.

    So its digest is that of the base itself. Nothing is hashed again.

    Args:
        model: of PEFT.
        records: of its state dict, adapters included.

    Returns:
        None of them for a kind of adapter whose tensors cannot be told from the base's.
    """
    prefix = getattr(getattr(model, "base_model", None), "prefix", "")
    if not isinstance(prefix, str) or not prefix:
        return []
    found = []
    for record in records:
        name = record.name.removeprefix(_WRAPPED)
        parts = name.split(".")
        if any(part.startswith(prefix) for part in parts) or "modules_to_save" in parts:
            continue
        bare = [part for part in parts if part not in {"base_layer", "original_module"}]
        found.append(replace(record, name=".".join(bare)))
    return found
