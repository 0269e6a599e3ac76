"""A model as it lies on disk: safetensors, whole or in shards, torch files, or DCP folders.

No pickle is ever executed: torch files are read with `weights_only=True`, and the index of a
torch.distributed.checkpoint by an unpickler that knows its few classes and no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rlhf_audit_trail.ledger.proof.bundle import parse_json
from rlhf_audit_trail.ledger.proof.errors import MalformedBundle
from rlhf_audit_trail.ledger.weights.digest import TensorRecord, tensor_record, weights_digest
from rlhf_audit_trail.ledger.weights.safetensors_file import (
    FileTensor,
    UnreadableModel,
    read_safetensors,
)
from rlhf_audit_trail.weights.pinned_files import PinnedFiles

__all__ = ["COMPANIONS", "FoundModel", "read_model"]

_THREADS: Final = 2
_INDEX_BYTES_MAX: Final = 256 * 1024 * 1024
# Files beside the weights that change what a model says.
COMPANIONS: Final = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "adapter_config.json",
)
# In order of preference: where a folder holds several, the first is what loaders take.
_WHOLE: Final = ("model.safetensors", "adapter_model.safetensors", "pytorch_model.bin")
_TORCH: Final = (".bin", ".pt", ".pth", ".ckpt")


@dataclass
class FoundModel:
    """What was found at a path.

    Attributes:
        form: safetensors, sharded safetensors, torch, torch.distributed.checkpoint.
        tensors: by name; tied ones once, where the file says that they are tied.
        aliases: further names of one storage.
        missing: files that an index names and that are not there.
        companions: SHA-256, hex, of the files beside the weights that matter.
    """

    form: str
    tensors: Mapping[str, FileTensor]
    aliases: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    companions: Mapping[str, str] = field(default_factory=dict)

    def records(self) -> tuple[TensorRecord, ...]:
        """Hash all tensors, in threads."""
        with ThreadPoolExecutor(_THREADS) as pool:
            return tuple(
                pool.map(
                    lambda x: tensor_record(x.name, x.dtype, x.shape, x.data),
                    self.tensors.values(),
                )
            )

    def digest(self) -> bytes:
        """Return the weights digest of what is there."""
        return weights_digest(self.records())


def read_model(path: Path) -> FoundModel:
    """Find and read a model.

    Args:
        path: a weights file, an index of shards, or a folder with either.

    Raises:
        UnreadableModel: there is none, it is not sound, or reading it would execute it.
        OSError: it cannot be opened.
        ModuleNotFoundError: torch is needed for this form, and not installed.
    """
    if not path.is_dir():
        return _read_file(path)
    found = _read_folder(path)
    found.companions = {
        name: PinnedFiles(path / name).digest()[0] for name in COMPANIONS if (path / name).is_file()
    }
    return found


def _read_file(path: Path) -> FoundModel:
    if path.name.endswith(".index.json"):
        return _read_index(path)
    if path.suffix == ".safetensors":
        return FoundModel("safetensors", _named(read_safetensors(path)))
    if path.suffix in _TORCH:
        return _torch([path])
    if not path.exists():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    raise UnreadableModel(
        f"{path.name} is of no form that can be read safely",
        next_step="pass a .safetensors file, a torch file, or a model's folder",
    )


def _read_folder(path: Path) -> FoundModel:
    if (path / ".metadata").is_file():
        from rlhf_audit_trail.weights.distributed_files import read_distributed  # noqa: PLC0415 - torch

        return FoundModel("torch.distributed.checkpoint", _named(read_distributed(path)))
    indices = sorted(path.glob("*.index.json"))
    for name in _WHOLE:
        if (path / name).is_file():
            return _read_file(path / name)
    if indices:
        chosen = [x for x in indices if x.name.endswith(".safetensors.index.json")] or indices
        return _read_index(chosen[0])
    shards = sorted(path.glob("*.safetensors"))
    if shards:
        tensors = _named(x for shard in shards for x in read_safetensors(shard))
        return FoundModel("sharded safetensors", tensors)
    files = sorted(x for x in path.iterdir() if x.suffix in _TORCH and x.is_file())
    if len(files) == 1:
        return _torch(files)
    raise UnreadableModel(
        f"{path.name or path} holds no model, or several",
        next_step="pass the file itself",
    )


def _read_index(path: Path) -> FoundModel:
    """Read the shards that an index names, and compare what it says with what they hold."""
    if path.stat().st_size > _INDEX_BYTES_MAX:
        raise UnreadableModel(f"{path.name} is impossibly long")
    try:
        said: Any = parse_json(path.read_bytes())["weight_map"]
        if not isinstance(said, dict) or not all(isinstance(x, str) for x in said.values()):
            raise TypeError  # noqa: TRY301 - one refusal for all of it
    except (KeyError, TypeError, MalformedBundle) as error:
        raise UnreadableModel(f"{path.name} is no index of shards") from error
    names = sorted(set(said.values()))
    if any(Path(name).name != name for name in names):  # never follow a path out of the folder
        raise UnreadableModel(f"{path.name} names files of other folders")
    present = [path.parent / name for name in names if (path.parent / name).is_file()]
    missing = tuple(name for name in names if not (path.parent / name).is_file())
    if any(x.suffix != ".safetensors" for x in present):
        found = _torch(present)
    else:
        tensors = _named(x for shard in present for x in read_safetensors(shard))
        found = FoundModel("sharded safetensors", tensors)
    lost = [x for x, shard in said.items() if shard not in missing and not _has(found, x)]
    if lost:
        raise UnreadableModel(f"{path.name} names {lost[0]:.200}, which its shard does not hold")
    found.missing = missing
    return found


def _has(found: FoundModel, name: str) -> bool:
    return name in found.tensors or name in found.aliases


def _torch(paths: Iterable[Path]) -> FoundModel:
    from rlhf_audit_trail.weights.torch_files import read_torch  # noqa: PLC0415 - torch

    tensors, aliases = read_torch(paths)
    return FoundModel("torch", _named(tensors), aliases)


def _named(tensors: Iterable[FileTensor]) -> dict[str, FileTensor]:
    found: dict[str, FileTensor] = {}
    for tensor in tensors:
        if found.setdefault(tensor.name, tensor) is not tensor:
            raise UnreadableModel(f"two shards hold {tensor.name:.200}")
    if not found:
        raise UnreadableModel("there is no tensor in it")
    return found
