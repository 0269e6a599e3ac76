"""A window: what one optimizer did between two records, measured where the weights lie.

Displacement is measured from before the first step to the moment it is asked for: exactly up
to 50 million trainable parameters, beyond that at sampled coordinates, and exactly once more
after each checkpoint, beside the sample, to tell how good the estimate is.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch.optim.optimizer import Optimizer

from rlhf_audit_trail.capture import Movement
from rlhf_audit_trail.movement.host_fetch import fetch
from rlhf_audit_trail.movement.tensor_norms import exchanged, moved, norms, stacked, total_norm
from rlhf_audit_trail.movement.weight_sample import SAMPLED_VALUES_KEPT, Sample, draw

__all__ = ["MODES", "MovementWindow", "Pending"]

MODES: Final = ("auto", "exact", "sampled", "off")
REDRAW_WINDOWS: Final = 100  # drawing costs ten times what a gather does
WHOLE_WINDOWS: Final = 10  # of so many sampled ones, one reads all gradients
GRADIENTS_EVERY: Final = 8  # coordinate: 5 % off at 96 million, where all were 1.5 %
_OF_SAMPLE: Final = 2  # tensors: the norm, and some values
_LARGE: Final = 1 << 22  # elements; the weights' own norms are measured less often beyond
COMPARED_PARAMETERS_MAX: Final = 1_000_000_000  # a copy on the host, for one step: 4 GB

Names = Callable[[], Mapping[int, str]]


@dataclass(frozen=True)
class Pending:
    """Figures of a window that lie on a device still.

    Attributes:
        tensors: to be fetched, in whatever company.
        finish: makes the movement of them once they are on the host.
    """

    tensors: Sequence[torch.Tensor]
    finish: Callable[[Sequence[torch.Tensor]], Movement]


@dataclass
class _Gradients:
    """Norms of the gradients of some steps; they stay on the device."""

    count: int = 0
    total: torch.Tensor | None = None
    largest: torch.Tensor | None = None
    last: torch.Tensor | None = None

    def add(self, norm: torch.Tensor) -> None:
        """Fold in one step's."""
        self.count += 1
        self.last = norm
        if self.total is None or self.largest is None:
            self.total = self.largest = norm
        else:
            self.total = self.total + norm
            self.largest = torch.maximum(self.largest, norm)

    def figures(self) -> torch.Tensor:
        """Return total, largest and last, or nothing."""
        found = (self.total, self.largest, self.last)
        return stacked([x for x in found if x is not None])


@dataclass
class MovementWindow:
    """What is known of one optimizer; owned by the thread that steps it.

    Attributes:
        updates: steps since the window was opened.
        failure: type of an error inside, empty when all went well.
        compares: whether the next window is measured exactly beside its sample.
    """

    updates: int = 0
    failure: str = ""
    compares: bool = False
    before: list[torch.Tensor] = field(default_factory=list)
    sample: Sample | None = None
    gradient_sample: Sample | None = None
    _mode: str = "auto"
    _parameters: list[torch.Tensor] = field(default_factory=list)
    _size: int = 0
    _windows: int = 0
    _steps_total: int = 0
    _version: int = 0  # of the parameters, after the last step
    _kept_version: int = -1  # of the parameters that `before` is equal to
    _learning_rates: tuple[float, ...] = ()
    _gradients: _Gradients = field(default_factory=_Gradients)
    _sampled_gradients: _Gradients = field(default_factory=_Gradients)
    _labels: tuple[object, list[str]] = (None, [])
    _sizes: list[float] = field(default_factory=list)  # the weights' norms when last measured
    _whole: list[torch.Tensor] = field(default_factory=list)  # on the host, to be compared with

    # --- around a step ------------------------------------------------------------------

    def before_step(
        self, optimizer: Optimizer, mode: str, exact_max: int, tree_head: Callable[[], str]
    ) -> None:
        """Open a window before its first step, and read the gradients that are to be applied."""
        with self._harmless():
            groups = optimizer.param_groups
            parameters = [p for group in groups for p in group["params"] if p.requires_grad]
            if not self.updates:
                self._open(parameters, mode, exact_max, tree_head)
            self._learning_rates = tuple([float(group.get("lr", math.nan)) for group in groups])
            gradients = [p.grad for p in parameters]
            present = [x for x in gradients if x is not None]
            if not present:
                return
            sample = self.gradient_sample if self.sample is not None else None
            if sample is not None and len(gradients) == len(self._parameters):
                norm = torch.linalg.vector_norm(sample.of(gradients))
                self._sampled_gradients.add(norm * math.sqrt(self._size / sample.count))
            if sample is None or self._whole or self._windows % WHOLE_WINDOWS == 1:
                self._gradients.add(total_norm(present))

    def after_step(self) -> None:
        """Count a step."""
        self.updates += 1
        self._steps_total += 1
        self._version = _version(self._parameters)

    def _open(
        self,
        parameters: list[torch.Tensor],
        mode: str,
        exact_max: int,
        tree_head: Callable[[], str],
    ) -> None:
        """Keep the weights, or a sample of them, as they are before the first step."""
        same = len(parameters) == len(self._parameters) and all(
            map(operator.is_, parameters, self._parameters)
        )
        if not same:
            self._size = sum([parameter.numel() for parameter in parameters])
            self._labels, self._sizes, self._kept_version = (None, []), [], -1
        self._parameters = parameters
        self._mode = mode
        self._windows += 1
        size = self._size
        self._whole = []
        if mode == "off" or not size:
            self.sample, self.before = None, []
        elif mode == "sampled" or (mode == "auto" and size > exact_max):
            self._open_sampled(tree_head, same=same)
        else:
            self._open_exact(same=same)

    def _open_sampled(self, tree_head: Callable[[], str], *, same: bool) -> None:
        if self.sample is None or not same or self._windows % REDRAW_WINDOWS == 0:
            self.sample = None  # until the new one is there: drawing may fail
            head, step = tree_head(), self._steps_total
            self.gradient_sample = draw(
                head, self._parameters, step=step, size=self._size, every=GRADIENTS_EVERY
            )
            self.sample = draw(head, self._parameters, step=step, size=self._size)
            self._kept_version = -1
        # the last window's end is this one's beginning, if nobody moved the weights since
        if self._kept_version != _version(self._parameters):
            self.before = [self.sample.of(self._parameters)]
        if self.compares and self._mode == "auto" and self._size <= COMPARED_PARAMETERS_MAX:
            self._whole = [p.detach().to("cpu", copy=True) for p in self._parameters]
        self.compares = False

    def _open_exact(self, *, same: bool) -> None:
        if self.sample is not None or not same or len(self.before) != len(self._parameters):
            self.sample = None
            self.before = [torch.empty_like(parameter) for parameter in self._parameters]
            self._kept_version = -1
        if self._kept_version != _version(self._parameters):
            torch._foreach_copy_(self.before, self._parameters)

    # --- the figures ----------------------------------------------------------------------

    def close(self, names: Names, key: object) -> Pending:
        """End the window, and return its figures; those of the next one may be gathered already.

        Args:
            names: id of a parameter to its name; asked when the parameters are others.
            key: what `names` follows from; names are kept as long as it is the same.
        """
        tensors: list[torch.Tensor] = []
        statistics: dict[str, Any] = {"learning_rates": list(self._learning_rates)}
        kind = "absent" if self._mode == "off" else "sampled" if self.sample else "exact"
        with self._harmless():
            # an in-place change after the last step: not the optimizer's work, so say it
            statistics["changed_after_step"] = _version(self._parameters) != self._version
            tensors = [self._gradients.figures(), self._sampled_gradients.figures()]
            if self.failure:  # there is nothing to compare with
                kind = "absent"
            elif self.sample is not None:
                tensors += self._sampled(self.sample)
            elif kind == "exact":
                self._label(names, key)
                tensors += self._exact()
        closed = _Closed(
            updates=self.updates,
            kind=kind,
            learning_rates=self._learning_rates,
            gradients=(self._gradients.count, self._sampled_gradients.count),
            statistics=statistics,
            failure=self.failure,
        )
        self.updates, self.failure = 0, ""
        self._gradients, self._sampled_gradients = _Gradients(), _Gradients()
        return Pending(tensors, lambda found: self._finished(closed, found))

    def _label(self, names: Names, key: object) -> None:
        known, labels = self._labels
        if known is not key or not labels:
            found = names()
            labels = [found.get(id(p), f"parameter {i}") for i, p in enumerate(self._parameters)]
            self._labels = key, labels

    def _exact(self) -> list[torch.Tensor]:
        """Return the norms of all displacements, and those of all weights where they are due."""
        steps = exchanged(self._parameters, self.before)
        if steps is None:
            steps = moved(self._parameters, self.before)
            self._kept_version = -1
        else:
            self._kept_version = _version(self._parameters)
        is_due = not self._sizes or self._size < _LARGE or self._windows % WHOLE_WINDOWS == 1
        return [stacked(steps), stacked(norms(self._parameters) if is_due else ())]

    def _sampled(self, sample: Sample) -> list[torch.Tensor]:
        """Return the sample's displacement, some of its values, and exact norms where due."""
        (before,), after = self.before, sample.of(self._parameters)
        self.before, self._kept_version = [after], _version(self._parameters)
        norm = torch.linalg.vector_norm(after - before)
        found = [norm.reshape(1), after[:SAMPLED_VALUES_KEPT]]
        if self._whole:
            found.append(stacked(moved(fetch(self._parameters), self._whole)))
            self._whole = []
        return found

    def _finished(self, closed: _Closed, found: Sequence[torch.Tensor]) -> Movement:
        """Make a movement of figures that are on the host."""
        statistics, kind = dict(closed.statistics), closed.kind
        applied = delta_norm = None
        with self._harmless():
            gradients, sampled, *rest = [x.tolist() for x in found]
            whole, some = closed.gradients
            if gradients and whole == closed.updates:
                applied = gradients[0] / whole
                statistics["grad_norm_applied_max"] = gradients[1]
                statistics["grad_norm_applied_last"] = gradients[2]
            if sampled:
                statistics["grad_norm_applied_sampled"] = sampled[0] / some
            if kind == "exact":
                delta_norm = self._exact_figures(rest, statistics)
            elif kind == "sampled" and self.sample is not None:
                delta_norm = self._sampled_figures(self.sample, rest, statistics)
                for steps in rest[_OF_SAMPLE:]:  # it was compared: the estimate stands beside
                    statistics["sample"]["delta_norm"] = delta_norm
                    kind, delta_norm = "exact", _joint(steps)
        failure = closed.failure or self.failure
        self.failure = ""
        return Movement(
            updates=closed.updates,
            delta_norm=delta_norm,
            kind=kind,
            grad_norm_applied=applied,
            learning_rate=max(closed.learning_rates, default=None),
            statistics=statistics,
            failure=failure,
        )

    def _exact_figures(
        self, found: Sequence[list[float]], statistics: dict[str, Any]
    ) -> float | None:
        steps, sizes = found
        labels = self._labels[1]
        if sizes:
            self._sizes = sizes
            statistics["tensor_norms"] = dict(zip(labels, sizes, strict=True))
        statistics["relative_delta"] = {
            label: step / size if size else None
            for label, step, size in zip(labels, steps, self._sizes, strict=True)
        }
        return _joint(steps)

    def _sampled_figures(
        self, sample: Sample, found: Sequence[list[float]], statistics: dict[str, Any]
    ) -> float:
        (norm,), values = found[:_OF_SAMPLE]
        statistics["sample"] = {
            "tree_head": sample.tree_head,
            "step": sample.step,
            "count": sample.count,
            "values": values,
        }
        return norm * math.sqrt(self._size / sample.count)

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        """Keep an error of the watch out of the training; it is reported with the figures."""
        try:
            with torch.no_grad():
                yield
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end a training run
            self.failure = self.failure or type(error).__name__


@dataclass(frozen=True)
class _Closed:
    """What is known of a window without waiting for a device."""

    updates: int
    kind: str
    learning_rates: tuple[float, ...]
    gradients: tuple[int, int]  # steps whose gradients were read whole, and as a sample
    statistics: Mapping[str, Any]
    failure: str


def _joint(norms_of_parts: Sequence[float]) -> float:
    return math.sqrt(math.fsum([norm * norm for norm in norms_of_parts]))


def _version(parameters: Sequence[torch.Tensor]) -> int:
    return sum([p._version for p in parameters])  # noqa: SLF001 - torch's in-place change counter
