"""Norms of many tensors at the speed of memory; figures stay on their device until asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

__all__ = ["exchanged", "moved", "norms", "stacked", "total_norm"]

_WIDE: Final = (torch.float32, torch.float64)
_LARGE: Final = 1 << 20  # elements; below, the call costs more than the memory
_ROWS: Final = 64  # a norm over rows uses all cores, one over everything a single one
_CHUNK: Final = (
    1 << 18
)  # elements: what a core's cache holds of the new, the old and the difference
_SLICED_MIN: Final = 1 << 22  # elements of all tensors: fewer stay in the cache by themselves


@torch.no_grad()
def total_norm(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the L2 norm over all tensors together, a scalar on the first one's device.

    Half precision is summed in float32: in bfloat16 itself a norm of 0.9996 becomes 1.0.
    """
    found = norms(tensors)
    return torch.linalg.vector_norm(stacked(found)) if found else torch.zeros(())


def norms(tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """Return the L2 norm of each tensor, in order; one launch per width."""
    dense = [x.coalesce().values() if x.is_sparse else x for x in tensors]
    if all(x.dtype is torch.float32 and not _is_large(x) for x in dense):  # mostly
        return torch._foreach_norm(dense, 2) if dense else ()  # noqa: SLF001 - no public name
    found = list(dense)
    for wide in (True, False):
        rows = [row for row, x in enumerate(dense) if (x.dtype in _WIDE) is wide]
        small = [row for row in rows if not _is_large(dense[row])]
        if small:
            group, dtype = [dense[row] for row in small], None if wide else torch.float32
            some = torch._foreach_norm(group, 2, dtype=dtype)  # noqa: SLF001 - no public name
            for row, norm in zip(small, some, strict=True):
                found[row] = norm
        for row in set(rows).difference(small):
            found[row] = _norm_by_rows(dense[row])
    return found


def stacked(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return scalars as one tensor: on the device of the first, in the widest of their types."""
    if not tensors:
        return torch.zeros(0)
    first = tensors[0]
    if all(x.dtype is torch.float32 and x.device == first.device for x in tensors):
        return torch.stack(list(tensors))
    widest = torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
    return torch.stack([x.to(first.device, widest) for x in tensors])


def moved(after: Sequence[torch.Tensor], before: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """Return the norm of what was added to each tensor; `before` is used up for it.

    In float32 at least: in half precision the difference itself would round.
    """
    wide = [row for row, old in enumerate(before) if old.dtype in _WIDE]
    if wide:
        torch._foreach_sub_([before[row] for row in wide], [after[row] for row in wide])
    return norms(
        [
            old if old.dtype in _WIDE else new.float() - old.float()
            for new, old in zip(after, before, strict=True)
        ]
    )


def exchanged(
    after: Sequence[torch.Tensor], before: Sequence[torch.Tensor]
) -> Sequence[torch.Tensor] | None:
    """Return what `moved` does, and leave `before` equal to `after`; None where that is slower.

    Piece by piece, so that a difference never leaves the cache: memory is gone over three times
    instead of seven. That pays on a processor, for weights that no cache holds.
    """
    size = sum(x.numel() for x in after)
    if size < _SLICED_MIN or not all(map(_is_sliceable, after)):
        return None
    scratch: dict[torch.dtype, torch.Tensor] = {}
    found = []
    for new, old in zip(after, before, strict=True):
        buffer = scratch.setdefault(new.dtype, torch.empty(_CHUNK, dtype=new.dtype))
        pieces = zip(_pieces(new), _pieces(old), strict=True)
        parts = [_exchange(piece, kept, buffer) for piece, kept in pieces]
        found.append(torch.linalg.vector_norm(torch.stack(parts)) if parts else torch.zeros(()))
    return found


def _exchange(new: torch.Tensor, old: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    difference = torch.sub(new, old, out=buffer[: new.numel()])
    old.copy_(new)
    if len(difference) % _ROWS == 0:
        return _norm_by_rows(difference)
    norm: torch.Tensor = torch.linalg.vector_norm(difference)
    return norm


def _pieces(tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    found: Sequence[torch.Tensor] = torch.split(tensor.view(-1), _CHUNK)
    return found


def _is_sliceable(tensor: torch.Tensor) -> bool:
    return _is_plain(tensor) and tensor.device.type == "cpu"


def _is_large(tensor: torch.Tensor) -> bool:
    """Whether a norm by rows is faster: on a processor, which else uses one core for it."""
    return tensor.numel() >= _LARGE and _is_sliceable(tensor) and tensor.numel() % _ROWS == 0


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.dtype in _WIDE and tensor.layout is torch.strided and tensor.is_contiguous()


def _norm_by_rows(tensor: torch.Tensor) -> torch.Tensor:
    rows = torch.linalg.vector_norm(tensor.view(_ROWS, -1), dim=1)
    norm: torch.Tensor = torch.linalg.vector_norm(rows)
    return norm
