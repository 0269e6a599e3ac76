"""What an optimizer did to weights that lie in parts on several processes, with one all-reduce.

Every process takes part, and computes on its own part alone; all of them get the same figures.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from rlhf_audit_trail.capture import Movement
from rlhf_audit_trail.movement.sharding import Parts, local_part, places

__all__ = ["ShardedWindow"]

_VALUES_KEPT: Final = 64
_WIDE: Final = (torch.float32, torch.float64)
_MAIN: Final = 0

Draw = Callable[[str, int, int], Sequence[int]]


@dataclass(frozen=True)
class _Drawn:
    """Coordinates drawn over all parameters, and what of them lies here.

    Attributes:
        rows: per parameter, the numbers of its coordinates among all that were drawn.
        indices: per parameter, into the flattened local part.
    """

    tree_head: str
    step: int
    count: int
    rows: list[torch.Tensor]
    indices: list[torch.Tensor]


class ShardedWindow:
    """The steps of one optimizer between two records; owned by the thread that steps it."""

    def __init__(self, parameters: Sequence[torch.Tensor], mode: str) -> None:
        """Begin before the first step.

        Args:
            parameters: in the optimizer's order, the same on every process.
            mode: exact, sampled or off.
        """
        self.parameters, self.mode = list(parameters), mode
        self._parts = Parts(parameters)
        self._before: list[torch.Tensor] = []
        self._drawn: _Drawn | None = None
        self._device = local_part(parameters[0]).device
        self._squares: list[torch.Tensor] = []  # of gradients: one column for each step
        self.failure = ""

    @property
    def size(self) -> int:
        """Parameters over all processes."""
        return sum(parameter.numel() for parameter in self.parameters)

    @torch.no_grad()
    def open(self, tree_head: str, step: int, draw: Draw, *, redraw: bool) -> None:
        """Keep the local parts, or a sample of them, as they are before the first step.

        Args:
            tree_head: as the recording process knows it; the others get its own.
            step: steps of this optimizer so far.
            draw: returns sorted coordinates by tree head, step and number of parameters.
            redraw: whether to draw anew although there is a sample.
        """
        self._squares = []
        if self.mode == "exact":
            self._before = [local_part(x).clone() for x in self.parameters]
        elif self.mode == "sampled":
            if self._drawn is None or redraw:
                said = [tree_head]
                torch.distributed.broadcast_object_list(said, src=_MAIN)
                self._drawn = self._spread(said[0], step, draw(said[0], step, self.size))
            self._before = self._gathered(self._drawn)

    @torch.no_grad()
    def count_gradients(self) -> None:
        """Take the gradients' local sums of squares, before a step."""
        gradients = [x.grad for x in self.parameters]
        none = torch.zeros((), device=self._device)
        local = [local_part(x) if x is not None else none for x in gradients]
        self._squares.append(_squares(local))

    @torch.no_grad()
    def movement(
        self, names: dict[int, str], *, updates: int, learning_rates: tuple[float, ...]
    ) -> Movement:
        """Return the figures over all processes; each of them must call it."""
        statistics: dict[str, Any] = {
            "learning_rates": list(learning_rates), "processes": self._parts.processes,
        }  # fmt: skip
        steps, kept = len(self._squares), _VALUES_KEPT if self.mode == "sampled" else 0
        # columns: gradients of each step, displacement, weights, sampled values
        table = torch.full(
            (self._parts.count, steps + 2 + kept),
            math.nan,
            dtype=torch.float64,
            device=self._device,
        )
        try:
            self._fill(table, steps)
        except Exception as error:  # noqa: BLE001 - the others wait in the all-reduce
            self.failure = type(error).__name__
        found = self._parts.summed(table).cpu()  # the only wait for the device
        norms = found.sum(dim=0).sqrt().tolist()
        applied = norms[:steps]
        if applied:
            statistics["grad_norm_applied_max"] = max(applied)
            statistics["grad_norm_applied_last"] = applied[-1]
        delta_norm = self._delta_norm(found, steps, names, statistics)
        return Movement(
            updates=updates,
            delta_norm=delta_norm,
            kind="absent" if self.mode == "off" else self.mode,
            grad_norm_applied=sum(applied) / steps if applied else None,
            learning_rate=max(learning_rates, default=None),
            statistics=statistics,
            failure=self.failure,
        )

    def _fill(self, table: torch.Tensor, steps: int) -> None:
        """Put this process's sums of squares into the table, a row for each parameter."""
        table.zero_()
        for column, squares in enumerate(self._squares):
            table[:, column] = squares
        if self.mode == "exact":
            parts = [local_part(x) for x in self.parameters]
            pairs = zip(parts, self._before, strict=True)
            table[:, steps] = _squares([_wide(new) - _wide(old) for new, old in pairs])
            table[:, steps + 1] = _squares(parts)
        elif self._drawn is not None:
            after = self._gathered(self._drawn)
            pairs = zip(after, self._before, strict=True)
            table[:, steps] = _squares([_wide(new) - _wide(old) for new, old in pairs])
            for row, (numbers, values) in enumerate(zip(self._drawn.rows, after, strict=True)):
                first = numbers < _VALUES_KEPT
                table[row, steps + 2 + numbers[first]] = values.to(self._device)[first].double()

    def _delta_norm(
        self, found: torch.Tensor, steps: int, names: dict[int, str], statistics: dict[str, Any]
    ) -> float | None:
        moved, sizes = found[:, steps], found[:, steps + 1]
        if self.mode == "exact":
            labels = [names.get(id(x), f"parameter {i}") for i, x in enumerate(self.parameters)]
            statistics["tensor_norms"] = dict(zip(labels, sizes.sqrt().tolist(), strict=True))
            relative = [
                math.sqrt(step / size) if size else None
                for step, size in zip(moved.tolist(), sizes.tolist(), strict=True)
            ]
            statistics["relative_delta"] = dict(zip(labels, relative, strict=True))
            return math.sqrt(math.fsum(moved.tolist()))
        if self._drawn is None:
            return None
        kept = min(_VALUES_KEPT, self._drawn.count)
        statistics["sample"] = {
            "tree_head": self._drawn.tree_head,
            "step": self._drawn.step,
            "count": self._drawn.count,
            "values": found[:, steps + 2 : steps + 2 + kept].sum(dim=0).tolist(),
        }
        return math.sqrt(math.fsum(moved.tolist()) * self.size / self._drawn.count)

    def _spread(self, tree_head: str, step: int, drawn: Sequence[int]) -> _Drawn:
        """Split coordinates by parameter, and find those that lie here."""
        rows, indices, start, first = [], [], 0, 0
        for parameter in self.parameters:
            end = start + parameter.numel()
            last = bisect_left(drawn, end)
            inside = torch.tensor([x - start for x in drawn[first:last]], dtype=torch.int64)
            here, index = places(parameter, inside)
            rows.append((here + first).to(self._device))
            indices.append(index.to(local_part(parameter).device))
            start, first = end, last
        return _Drawn(tree_head, step, len(drawn), rows, indices)

    def _gathered(self, drawn: _Drawn) -> list[torch.Tensor]:
        pairs = zip(self.parameters, drawn.indices, strict=True)
        return [local_part(x).reshape(-1)[index] for x, index in pairs]


def _squares(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sum of squares of each tensor, in float64, on the device of the first."""
    norms = [torch.linalg.vector_norm(_wide(x)) for x in tensors]
    device = norms[0].device
    return torch.stack([x.to(device, torch.float64) for x in norms]).square()


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype in _WIDE else tensor.float()
