"""Reading torch's own files, which are pickles, without executing anything that they hold."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from rlhf_audit_trail.ledger.weights.safetensors_file import FileTensor, UnreadableModel
from rlhf_audit_trail.weights.model_weights import (
    DTYPE_NAMES,
    NotWeights,
    UnknownDtype,
    named_tensors,
    tensor_bytes,
)

__all__ = ["file_tensor", "read_torch"]

# Under which name trainers put the weights beside other things.
_NESTED: Final = ("state_dict", "model_state_dict", "model", "module")


def read_torch(paths: Iterable[Path]) -> tuple[list[FileTensor], Mapping[str, str]]:
    """Return the tensors of torch files, and the further names of tied ones.

    Raises:
        UnreadableModel: not a torch file, more than tensors in it, or it would have to be
            executed to be read.
    """
    tensors: dict[str, Any] = {}
    for path in paths:
        for name, tensor in _state(path).items():
            if name in tensors:
                raise UnreadableModel(f"two files hold {name!r:.200}")
            tensors[name] = tensor
    try:
        found = named_tensors(tensors)
    except (NotWeights, UnknownDtype) as error:
        raise UnreadableModel(error.message, next_step=error.next_step) from error
    return [file_tensor(name, tensor) for name, tensor in found.tensors.items()], found.aliases


def file_tensor(name: str, tensor: torch.Tensor) -> FileTensor:
    """Return a dense tensor of a known type as its bytes."""
    shape = tuple(tensor.shape)
    return FileTensor(name, DTYPE_NAMES[tensor.dtype], shape, tensor_bytes(tensor))


def _state(path: Path) -> Mapping[str, Any]:
    try:
        # a legacy file, which is no zip archive, cannot be mapped into memory
        mapped = zipfile.is_zipfile(path)
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, TypeError) as error:
        raise UnreadableModel(
            f"{path.name} is no torch file, or would have to be executed to be read",
            next_step="save the state dict alone, best as safetensors",
        ) from error
    for name in _NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not all(isinstance(x, str) for x in found):
        raise UnreadableModel(f"{path.name} does not hold a state dict")
    return found
