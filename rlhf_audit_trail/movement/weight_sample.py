"""A sample of the weights, at coordinates that follow from a tree head signed before."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

__all__ = ["SAMPLED_COORDINATES", "SAMPLED_VALUES_KEPT", "Sample", "coordinates", "draw"]

SAMPLED_COORDINATES: Final = 65_536  # the estimate was 0.06 to 0.16 % off at 97.5 million
SAMPLED_VALUES_KEPT: Final = 64  # enough for a spot check against a checkpoint


def coordinates(
    tree_head: str, *, step: int, size: int, count: int = SAMPLED_COORDINATES
) -> Sequence[int]:
    """Return sorted coordinates, `0 <= coordinate < size`, that follow from a tree head.

    SHAKE-256(tree head text || u64 big-endian step), read as u64 little-endian, modulo size.
    They bind only if that tree head was anchored or witnessed before the step.
    """
    found = array("Q")
    found.frombytes(_drawn(tree_head, step, size, count).tobytes())
    return found


@dataclass(frozen=True)
class Sample:
    """Coordinates drawn for one optimizer, split by parameter.

    Attributes:
        tree_head: text of the one they follow from.
        step: steps of the optimizer before they were drawn.
        count: how many there are.
        places: row of a parameter, and the coordinates inside it; only of those that have any.
    """

    tree_head: str
    step: int
    count: int
    places: Sequence[tuple[int, torch.Tensor]]

    def of(self, tensors: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """Return the sampled values of tensors, 0 for one that is missing; in float32 at least.

        On the device of the first of them, in the order of the coordinates.
        """
        parts = []
        for row, inside in self.places:
            tensor = tensors[row]
            if tensor is None or tensor.is_sparse:
                tensor = None if tensor is None else tensor.to_dense()
            if tensor is None:
                parts.append(torch.zeros(len(inside), device=inside.device))
            else:
                parts.append(torch.take(tensor.detach(), inside))
        home = parts[0].device
        widest = torch.float64 if any(x.dtype == torch.float64 for x in parts) else torch.float32
        return torch.cat([x.to(home, widest) for x in parts])


def draw(
    tree_head: str,
    parameters: Sequence[torch.Tensor],
    *,
    step: int,
    size: int,
    every: int = 1,
) -> Sample:
    """Draw coordinates over all parameters, which have `size` elements together.

    Of the sorted ones, one of `every` is kept.
    """
    drawn = _drawn(tree_head, step, size, SAMPLED_COORDINATES)[::every]
    ends = np.cumsum([parameter.numel() for parameter in parameters], dtype=np.uint64)
    cuts = [0, *np.searchsorted(drawn, ends, side="left").tolist()]
    starts = [0, *ends.tolist()]
    places = []
    for row, parameter in enumerate(parameters):
        inside = drawn[cuts[row] : cuts[row + 1]] - np.uint64(starts[row])
        if len(inside):
            index = torch.from_numpy(inside.astype(np.int64))
            places.append((row, index.to(parameter.device)))
    return Sample(tree_head, step, len(drawn), places)


def _drawn(
    tree_head: str, step: int, size: int, count: int
) -> np.ndarray[Any, np.dtype[np.uint64]]:
    seed = tree_head.encode() + step.to_bytes(8, "big")
    stream = hashlib.shake_256(seed).digest(8 * count)
    numbers = np.frombuffer(stream, "<u8").astype(np.uint64) % np.uint64(size)
    return np.sort(numbers)
