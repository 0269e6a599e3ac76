"""Reading a torch.distributed.checkpoint folder: shards put together, nothing executed.

Its index, `.metadata`, is a pickle. torch's own reader executes it; here an unpickler reads it
that finds the classes of such an index, which only hold values, and refuses everything else.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, Final

import torch

from rlhf_audit_trail.ledger.weights.safetensors_file import FileTensor, UnreadableModel
from rlhf_audit_trail.weights.model_weights import DTYPE_NAMES
from rlhf_audit_trail.weights.torch_files import file_tensor

__all__ = ["read_distributed"]

_INDEX_BYTES_MAX: Final = 256 * 1024 * 1024
_MODULE: Final = "torch.distributed.checkpoint"
_ALLOWED: Final = {
    (f"{_MODULE}.metadata", "Metadata"),
    (f"{_MODULE}.metadata", "MetadataIndex"),
    (f"{_MODULE}.metadata", "TensorStorageMetadata"),
    (f"{_MODULE}.metadata", "BytesStorageMetadata"),
    (f"{_MODULE}.metadata", "ChunkStorageMetadata"),
    (f"{_MODULE}.metadata", "TensorProperties"),
    (f"{_MODULE}.metadata", "_MEM_FORMAT_ENCODING"),
    (f"{_MODULE}.metadata", "StorageMeta"),
    (f"{_MODULE}.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
}
_DTYPES: Final = {str(dtype).removeprefix("torch.") for dtype in DTYPE_NAMES}


class _Index(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED or (module == "torch" and name in _DTYPES):
            return super().find_class(module, name)
        raise UnreadableModel(
            f"the index would execute {module:.100}.{name:.100}",
            next_step="treat the folder as hostile",
        )


def read_distributed(folder: Path) -> list[FileTensor]:
    """Return the tensors of a checkpoint folder, each put together from its shards.

    What is no tensor, and optimizer state, is left out.

    Raises:
        UnreadableModel: the index is not sound, or a shard does not fit it.
        OSError: a file cannot be opened.
    """
    index = _index(folder / ".metadata")
    parts: dict[str, list[Any]] = {}
    for place in index.storage_data:
        parts.setdefault(place.fqn, []).append(place)
    found = []
    for name, model_name in _model_names(index).items():
        whole = _whole(name, index.state_dict_metadata[name])
        left = whole.numel()
        for place in parts.get(name, []):
            left -= _put(folder, index.storage_data[place], place, whole)
        if left:
            raise UnreadableModel(f"the shards of {name:.200} do not make it whole")
        found.append(file_tensor(model_name, whole))
    return found


def _model_names(index: Any) -> dict[str, str]:
    """Return stored name to the model's own, which is the last part of its path.

    A state such as {"model": …, "optimizer": …} is stored flat; the index keeps the paths.
    """
    paths = index.planner_data if isinstance(index.planner_data, dict) else {}
    groups: dict[tuple[Any, ...], dict[str, str]] = {}
    for name, kind in index.state_dict_metadata.items():
        path = paths.get(name, (name,))
        if hasattr(kind, "chunks") and not str(path[0]).startswith("optim"):
            groups.setdefault(tuple(path[:-1]), {})[name] = str(path[-1])
    chosen = next(iter(groups.values())) if len(groups) == 1 else groups.get(("model",))
    if chosen is None:
        shown = ", ".join(".".join(map(str, x)) or "(top)" for x in groups) or "nothing"
        raise UnreadableModel(
            f"the checkpoint does not say which of it is the model: {shown:.300}",
            next_step='save the weights alone, or under the name "model"',
        )
    return chosen


def _index(path: Path) -> Any:
    if path.stat().st_size > _INDEX_BYTES_MAX:
        raise UnreadableModel("the index is impossibly long")
    try:
        found = _Index(io.BytesIO(path.read_bytes())).load()
    except UnreadableModel:
        raise
    # a damaged pickle fails in as many ways as there are instructions
    except Exception as error:
        raise UnreadableModel("the index of the checkpoint is damaged") from error
    data = getattr(found, "storage_data", None)
    if not isinstance(data, dict) or not isinstance(found.state_dict_metadata, dict):
        raise UnreadableModel("the index of the checkpoint is not one of files")
    return found


def _whole(name: str, kind: Any) -> torch.Tensor:
    dtype, size = kind.properties.dtype, tuple(kind.size)
    if dtype not in DTYPE_NAMES or any(type(x) is not int or x < 0 for x in size):
        raise UnreadableModel(f"{name:.200} has an impossible type or shape")
    return torch.zeros(size, dtype=dtype)


def _put(folder: Path, info: Any, place: Any, whole: torch.Tensor) -> int:
    """Copy one shard to its place; return how many elements it has."""
    if Path(info.relative_path).name != info.relative_path:
        raise UnreadableModel("the index names files of other folders")
    with (folder / info.relative_path).open("rb") as file:
        file.seek(info.offset)
        data = file.read(info.length)
    try:
        shard = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        target = whole
        for dim, start in enumerate(place.offset or ()):
            target = target.narrow(dim, start, shard.shape[dim])
        if target.shape != shard.shape or target.dtype != shard.dtype:
            raise ValueError  # noqa: TRY301 - one refusal for all of it
        target.copy_(shard)
    except (pickle.UnpicklingError, RuntimeError, ValueError, AttributeError, IndexError,
            TypeError, EOFError) as error:  # fmt: skip
        raise UnreadableModel(f"a shard of {place.fqn:.200} does not fit the index") from error
    return int(shard.numel())
