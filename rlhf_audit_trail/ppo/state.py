"""Where a PPO training stands, as files: trained weights, optimizer, generators, prompts.

    trained.safetensors   parameters with gradients, policy and value head; of an adapter, it alone
    state.pt              the rest; read with `weights_only`, so that it cannot run code

What is frozen is not saved: the reference must be the one that training began with, and its
digest says whether it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = ["WrongCheckpoint", "load_state", "save_state"]

WEIGHTS_FILE: Final = "trained.safetensors"
STATE_FILE: Final = "state.pt"


class WrongCheckpoint(AuditTrailError):
    """These files are no checkpoint of this training."""


def save_state(folder: Path, actor: torch.nn.Module, state: dict[str, Any]) -> None:
    """Write a checkpoint; the folder appears whole, or not at all.

    Args:
        folder: new.
        actor: whose trained parameters are saved.
        state: tensors, numbers, text, lists and mappings of these.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.draft")
    draft.mkdir(exist_ok=True)
    trained = {name: p.detach().contiguous() for name, p in _trained(actor).items()}
    save_file(trained, draft / WEIGHTS_FILE)
    torch.save(state, draft / STATE_FILE)
    draft.replace(folder)


def load_state(folder: Path, actor: torch.nn.Module) -> dict[str, Any]:
    """Put trained parameters back in place, and return the state beside them.

    Raises:
        WrongCheckpoint: files are missing, or are of another model; nothing was changed.
    """
    try:
        stored = load_file(folder / WEIGHTS_FILE)
        state: dict[str, Any] = torch.load(folder / STATE_FILE, weights_only=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise WrongCheckpoint(
            f"{folder} holds no checkpoint of a PPO training: {type(error).__name__}",
            next_step="pass a folder that `save` has written",
        ) from error
    trained = _trained(actor)
    shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    if shapes != {name: tuple(parameter.shape) for name, parameter in trained.items()}:
        raise WrongCheckpoint(
            f"{folder} holds the weights of another model",
            next_step="make the trainer with the model that training began with",
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(stored[name])
    return state


def _trained(actor: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in actor.named_parameters() if p.requires_grad}
