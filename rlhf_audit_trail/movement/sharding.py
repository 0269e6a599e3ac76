"""Weights of which each process holds a part (FSDP2 and other DTensors): sums, and whole tensors.

A sum over all parts is the local sum and one all-reduce over the processes that hold different
parts; copies of a part, as in hybrid sharding, are counted once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.weights.digest import TensorRecord, tensor_record
from rlhf_audit_trail.weights.model_weights import DTYPE_NAMES, named_tensors, tensor_bytes

__all__ = [
    "Parts",
    "UnknownSharding",
    "aliases",
    "bare",
    "is_sharded",
    "local_part",
    "places",
    "whole_records",
    "whole_tensors",
]

_FLATTENED: Final = "_fsdp_flattened"  # what the first FSDP marks its parameters with
_WRAPPERS: Final = ("DistributedDataParallel", "DataParallel", "OptimizedModule")


class UnknownSharding(AuditTrailError):
    """Weights lie in parts, and nothing says where each part belongs."""


def bare(model: Any) -> Any:
    """Return a module out of wrappers that put a prefix before the names of its tensors."""
    while type(model).__name__ in _WRAPPERS:
        model = model.module if hasattr(model, "module") else model._orig_mod  # noqa: SLF001 - of torch.compile
    return model


def is_sharded(tensors: Any) -> bool:
    """Whether one of a model's tensors lies in parts on several processes; nothing else does."""
    kind = _dtensor()
    if kind is None:
        return False
    values: Iterable[Any]
    if isinstance(tensors, nn.Module):
        values = tensors.parameters()
    elif isinstance(tensors, Iterable):
        values = tensors.values() if isinstance(tensors, Mapping) else tensors
    else:
        return False
    return any(isinstance(x, kind) or hasattr(x, _FLATTENED) for x in values)


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this process holds of a tensor; a plain tensor is itself."""
    kind = _dtensor()
    if kind is None or not isinstance(tensor, kind):
        return tensor
    part: torch.Tensor = tensor.detach().to_local()
    return part


@dataclass(frozen=True)
class _Group:
    """Tensors whose parts lie on the same processes; `dims` of the mesh hold different ones."""

    mesh: Any
    dims: tuple[int, ...]
    rows: tuple[int, ...]


class Parts:
    """How a list of tensors is spread over processes."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        """Group them by where their parts lie; in the same order on every process.

        Raises:
            UnknownSharding: the first FSDP has flattened them.
        """
        _require_places(tensors)
        kind = _dtensor()
        found: dict[Any, list[int]] = {}
        for row, tensor in enumerate(tensors):
            key: Any = None
            if kind is not None and isinstance(tensor, kind):
                dims = tuple(d for d, x in enumerate(tensor.placements) if not x.is_replicate())
                key = (tensor.device_mesh, dims)
            found.setdefault(key, []).append(row)
        self._whole = tuple(found.pop(None, ()))
        self._groups = [_Group(mesh, dims, tuple(rows)) for (mesh, dims), rows in found.items()]
        self.count = len(tensors)

    @property
    def processes(self) -> int:
        """How many processes hold a part of some tensor."""
        return max((int(group.mesh.size()) for group in self._groups), default=1)

    def summed(self, table: torch.Tensor) -> torch.Tensor:
        """Return sums over all processes that hold different parts; all of them must call it.

        Args:
            table: float64, a row for each tensor, with this process's sums.
        """
        for group in self._groups:
            rows = table[list(group.rows)].contiguous()
            for dim in group.dims:
                torch.distributed.all_reduce(rows, group=group.mesh.get_group(dim))
            table[list(group.rows)] = rows
        return table


def places(tensor: torch.Tensor, coordinates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which flat coordinates of a whole tensor this process holds, and where.

    Args:
        tensor: plain or in parts.
        coordinates: int64, into the flattened whole tensor.

    Returns:
        Rows of `coordinates`, and for each the index into the flattened local part.
    """
    kind = _dtensor()
    if kind is None or not isinstance(tensor, kind):
        return torch.arange(len(coordinates)), coordinates
    (chunk,) = tensor.__create_chunk_list__()  # what torch.distributed.checkpoint asks
    inside = torch.ones(len(coordinates), dtype=torch.bool)
    local, left, stride = torch.zeros_like(coordinates), coordinates, 1
    for size, start, held in reversed(
        list(zip(tensor.shape, chunk.offsets, chunk.sizes, strict=True))
    ):
        index = left % size - start
        left = left // size
        inside &= (index >= 0) & (index < held)
        local += index * stride
        stride *= held
    rows = inside.nonzero().reshape(-1)
    return rows, local[rows]


def whole_tensors(model: nn.Module | Mapping[str, torch.Tensor]) -> Iterator[tuple[str, Any]]:
    """Put a model's tensors together, one after another; every process must exhaust it.

    Tied tensors come once, under the first of their names.

    Raises:
        NotWeights, UnknownDtype: as `digest_model`.
        UnknownSharding: the first FSDP has flattened them.
    """
    if isinstance(model, nn.Module):
        _require_places(list(model.parameters()))
    state = model.state_dict(keep_vars=True) if isinstance(model, nn.Module) else model
    kind, seen = _dtensor(), set()
    plain: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if kind is None or not isinstance(tensor, kind):
            if isinstance(tensor, torch.Tensor):
                plain[name] = tensor
        elif id(tensor) not in seen:
            seen.add(id(tensor))
            with torch.no_grad():
                yield name, tensor.full_tensor()
    if plain:
        yield from named_tensors(plain).tensors.items()


def aliases(model: Any) -> dict[str, str]:
    """Return further names of a sharded model's tensors, to the first under which they are told."""
    kind = _dtensor()
    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True) if isinstance(model, nn.Module) else model
    found: dict[str, str] = {}
    for name, tensor in state.items():
        if kind is not None and isinstance(tensor, kind):
            known = first.setdefault(id(tensor), name)
            if known != name:
                found[name] = known
    return found


def whole_records(
    model: nn.Module | Mapping[str, torch.Tensor], *, is_main: bool
) -> list[TensorRecord]:
    """Digest a model that lies in parts; one whole tensor at a time, hashed on one process.

    Returns:
        The records on the main process, and nothing on the others.
    """
    found = []
    for name, tensor in whole_tensors(model):
        if is_main:
            shape, dtype = tuple(tensor.shape), DTYPE_NAMES[tensor.dtype]
            found.append(tensor_record(name, dtype, shape, tensor_bytes(tensor)))
    return found


def _require_places(tensors: Sequence[torch.Tensor]) -> None:
    if any(hasattr(tensor, _FLATTENED) for tensor in tensors):
        raise UnknownSharding(
            "FullyShardedDataParallel has flattened the weights",
            next_step="use fully_shard (FSDP2), with transformers by fsdp_version 2",
        )


def _dtensor() -> Any:
    """Return the type of tensors in parts, where somebody has imported it."""
    module: Any = sys.modules.get("torch.distributed.tensor")
    return getattr(module, "DTensor", None)
