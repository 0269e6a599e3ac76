"""The weights of a torch model as the records of `ledger/weights/digest.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.weights.digest import TensorRecord, tensor_record, weights_digest

__all__ = [
    "DTYPE_NAMES",
    "ModelWeights",
    "NamedTensors",
    "NotWeights",
    "UnknownDtype",
    "digest_model",
    "named_tensors",
    "tensor_bytes",
]

# torch's types and the names that safetensors gives them
DTYPE_NAMES: Final[Mapping[torch.dtype, str]] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.int64: "I64",
    torch.uint64: "U64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.complex64: "C64",
}


class UnknownDtype(AuditTrailError):
    """A tensor has a type for which no byte format is fixed."""


@dataclass(frozen=True)
class ModelWeights:
    """The digest of a model's weights, and what it stands for.

    Attributes:
        digest: 32 bytes.
        records: one per storage, in the state dict's order.
        aliases: left-out name to the name under which its storage was hashed.
    """

    digest: bytes
    records: tuple[TensorRecord, ...]
    aliases: Mapping[str, str]


class NotWeights(AuditTrailError):
    """What was passed as a model holds no weights, or something else beside them."""


@dataclass(frozen=True)
class NamedTensors:
    """A model's tensors, one for each storage.

    Attributes:
        tensors: in the state dict's order, of types that have a byte format.
        aliases: left-out name to the name under which its storage is listed.
    """

    tensors: Mapping[str, torch.Tensor]
    aliases: Mapping[str, str]


def named_tensors(model: torch.nn.Module | Mapping[str, torch.Tensor]) -> NamedTensors:
    """Return a model's tensors, tied ones once, under the first of their names.

    Raises:
        NotWeights, UnknownDtype: as `digest_model`.
    """
    state = model.state_dict() if isinstance(model, torch.nn.Module) else model
    if not isinstance(state, Mapping):
        raise NotWeights(
            f"a {type(model).__name__} is no model",
            next_step="pass the module, or its state_dict()",
        )
    first_names: dict[object, str] = {}
    aliases: dict[str, str] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            if isinstance(model, torch.nn.Module):  # an extra state of a module is no weight
                continue
            raise NotWeights(
                f"{name!r:.80} is a {type(tensor).__name__}, not a tensor",
                next_step="pass the model, or its state_dict() itself",
            )
        first = first_names.setdefault(_storage_of(name, tensor), name)
        if first != name:
            aliases[name] = first
            continue
        _require_format(name, tensor)
        tensors[name] = tensor
    if not tensors:
        raise NotWeights("there is no tensor to digest", next_step="pass the model itself")
    return NamedTensors(tensors, aliases)


def digest_model(model: torch.nn.Module | Mapping[str, torch.Tensor]) -> ModelWeights:
    """Digest a model's state dict, or a mapping of names to tensors.

    Tied tensors are hashed once, under the first of their names, as model files hold them.
    Reading changes nothing: weights, gradients and random state stay as they are.

    Raises:
        NotWeights: no model, a mapping of something else than tensors, or no tensor in it.
        UnknownDtype: a tensor's type has no fixed byte format.
    """
    found = named_tensors(model)
    records = tuple(_record(name, tensor) for name, tensor in found.tensors.items())
    return ModelWeights(weights_digest(records), records, found.aliases)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """Return a tensor's contiguous little-endian bytes; a copy only where one is needed."""
    plain = tensor.detach().resolve_conj().resolve_neg()
    flat = plain.to("cpu").contiguous().reshape(-1)
    if flat.numel() == 0:  # NumPy has no view of nothing, and a scalar none before reshape
        return memoryview(b"")
    if sys.byteorder == "big":
        flat = _swapped(flat)
    # as uint8, because NumPy knows neither bfloat16 nor the 8-bit floats
    array: Any = flat.view(torch.uint8).numpy()  # NumPy's types name no buffer
    return memoryview(array)


def _require_format(name: str, tensor: torch.Tensor) -> None:
    if tensor.dtype not in DTYPE_NAMES or tensor.layout != torch.strided:
        raise UnknownDtype(
            f"{name} is a {tensor.layout} tensor of {tensor.dtype}",
            next_step="convert it to a dense tensor of a type that safetensors knows",
        )


def _record(name: str, tensor: torch.Tensor) -> TensorRecord:
    return tensor_record(name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), tensor_bytes(tensor))


def _storage_of(name: str, tensor: torch.Tensor) -> object:
    """Return what two names share only when they are the same view of one storage."""
    if tensor.layout != torch.strided or not tensor.numel():
        return name
    place: Iterable[object] = (tensor.shape, tensor.stride(), tensor.dtype)
    return (tensor.device, tensor.data_ptr(), *place)


def _swapped(flat: torch.Tensor) -> torch.Tensor:
    width = flat.element_size() // (2 if flat.is_complex() else 1)
    return flat.view(torch.uint8).reshape(-1, width).flip(1).reshape(-1)
