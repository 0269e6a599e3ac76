"""Watching optimizers step: how far the weights moved, and under which gradients.

Torch calls global hooks around every `step` of every optimizer, also of one nobody named
yet, so the first step is measured too. Reading takes no random numbers and changes no
tensor: a run gives bit-equal weights with and without the watch.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from rlhf_audit_trail.capture import Movement, WrongArgument
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.movement.host_fetch import fetch
from rlhf_audit_trail.movement.movement_window import (
    MODES,
    REDRAW_WINDOWS,
    MovementWindow,
    Names,
    Pending,
)
from rlhf_audit_trail.movement.sharded_window import ShardedWindow
from rlhf_audit_trail.movement.sharding import is_sharded
from rlhf_audit_trail.movement.tensor_norms import total_norm
from rlhf_audit_trail.movement.weight_sample import coordinates

__all__ = [
    "EXACT_PARAMETERS_MAX",
    "MODES",
    "OptimizerWatch",
    "ProcessesMissing",
    "coordinates",
    "relay",
    "total_norm",
]

EXACT_PARAMETERS_MAX: Final = 50_000_000  # an exact copy costs memory once the trainable weights


class ProcessesMissing(AuditTrailError):
    """Weights lie in parts on processes that do not all take part in the run."""


@dataclass(frozen=True)
class _Followed:
    """An optimizer whose steps are recorded without further calls."""

    every: int
    record: Callable[[], None]


# An optimizer belongs to the run that asked for it first; other runs stop watching it.
_owners: WeakKeyDictionary[Optimizer, OptimizerWatch] = WeakKeyDictionary()
_owners_lock = threading.Lock()


# Where a launcher has hooks of its own, it calls the watches in here: torch forbids that hooks
# are added while it goes through them, and the launcher begins a run within the first step.
_relay: list[list[OptimizerWatch]] = []


def relay() -> list[OptimizerWatch]:
    """Return the watches that are to be called from now on, in place of torch's hooks."""
    if not _relay:
        _relay.append([])
    return _relay[0]


class OptimizerWatch:
    """Watches every optimizer of this process between `install` and `remove`."""

    def __init__(
        self,
        tree_head: Callable[[], str],
        *,
        exact_parameters_max: int = EXACT_PARAMETERS_MAX,
        is_main: bool = True,
        all_here: Callable[[], bool] = lambda: False,
    ) -> None:
        """Sample coordinates from what `tree_head` returns: the text of the newest one.

        Args:
            tree_head: is asked before steps.
            exact_parameters_max: up to so many, displacement is measured exactly.
            is_main: whether this process records; another one only measures its part of
                weights that lie in parts.
            all_here: whether all processes that hold parts take part.
        """
        self._tree_head, self._is_main, self._all_here = tree_head, is_main, all_here
        self._exact_parameters_max = exact_parameters_max
        self._seen: WeakKeyDictionary[Optimizer, MovementWindow | _Parts] = WeakKeyDictionary()
        self._modes: WeakKeyDictionary[Optimizer, str] = WeakKeyDictionary()
        self._followed: WeakKeyDictionary[Optimizer, _Followed] = WeakKeyDictionary()
        self._handles: list[Any] = []

    def install(self) -> None:
        """Ask torch to call back around every optimizer step."""
        if _relay:
            _relay[0].append(self)
        elif not self._handles:
            self._handles = [
                register_optimizer_step_pre_hook(self._before_step),
                register_optimizer_step_post_hook(self._after_step),
            ]

    def remove(self) -> None:
        """Take the hooks back and let go of all copies."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if _relay and self in _relay[0]:
            _relay[0].remove(self)
        self._seen.clear()
        self._followed.clear()
        with _owners_lock:
            mine = [optimizer for optimizer, owner in _owners.items() if owner is self]
            for optimizer in mine:
                del _owners[optimizer]

    def measure(self, optimizer: Any, delta_norm: str) -> Optimizer:
        """Set how an optimizer's displacement is measured, from its next window on.

        Raises:
            WrongArgument: no optimizer, or no way of measuring.
        """
        inner = _unwrap(optimizer)
        if inner is None or delta_norm not in MODES:
            what = f"delta_norm {delta_norm!r:.40}" if inner else type(optimizer).__name__
            raise WrongArgument(
                f"{what} is not known here",
                next_step=f"pass a torch optimizer, and one of {', '.join(MODES)}",
            )
        self._modes[inner] = delta_norm
        return inner

    def follow(
        self, optimizer: Any, delta_norm: str, *, every: int, record: Callable[[], None]
    ) -> None:
        """Call `record` after every so many steps of an optimizer; it may call `take`.

        Raises:
            WrongArgument: as `measure`.
        """
        inner = self.measure(optimizer, delta_norm)
        self._own(inner)
        self._followed[inner] = _Followed(max(1, every), record)

    def take(self, optimizer: Any, names: Mapping[int, str] | None = None) -> Movement | None:
        """Return what `optimizer` did since the last call, or None if no step was seen.

        Args:
            optimizer: one of torch's, or a wrapper that keeps one under `optimizer`.
            names: id of a parameter to its name, for the figures per tensor.
        """
        known = names or {}
        pending = self.close(optimizer, lambda: known, known)
        return pending.finish(fetch(pending.tensors)) if pending is not None else None

    def close(self, optimizer: Any, names: Names, key: object) -> Pending | None:
        """End an optimizer's window, as `take`; its figures may lie on a device still.

        Args:
            optimizer: as there.
            names: returns id of a parameter to its name; asked when the parameters are others.
            key: what `names` follows from, for example the model.
        """
        inner = _unwrap(optimizer)
        if inner is None:
            return None
        self._own(inner)
        seen = self._seen.get(inner)
        return seen.close(names, key) if seen is not None and seen.updates else None

    def compare_next(self) -> None:
        """Measure the next window of every sampled optimizer exactly, beside its sample."""
        for seen in list(self._seen.values()):
            if isinstance(seen, MovementWindow):
                seen.compares = True

    def _own(self, optimizer: Optimizer) -> None:
        if optimizer not in _owners:
            with _owners_lock:
                _owners.setdefault(optimizer, self)

    def is_known(self, optimizer: Optimizer) -> bool:
        """Whether somebody has said how this optimizer is to be measured, and so records it."""
        return optimizer in self._modes

    # --- the hooks --------------------------------------------------------------------

    def before_step(self, optimizer: Optimizer) -> None:
        """Do what torch's hook does before a step."""
        self._before_step(optimizer)

    def after_step(self, optimizer: Optimizer) -> None:
        """Do what torch's hook does after a step."""
        self._after_step(optimizer)

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        if _owners.get(optimizer, self) is not self:
            self._seen.pop(optimizer, None)  # another run's: let go of the copy made for it
            return
        seen = self._seen.get(optimizer)
        if seen is None or not seen.updates:
            seen = self._window(seen, optimizer)
        mode = self._modes.get(optimizer, "auto")
        seen.before_step(optimizer, mode, self._exact_parameters_max, self._tree_head)

    def _window(
        self, seen: MovementWindow | _Parts | None, optimizer: Optimizer
    ) -> MovementWindow | _Parts:
        """Return the window of an optimizer, of the kind that its weights ask for now."""
        is_whole = self._is_main and not is_sharded(_parameters(optimizer))
        if seen is None or isinstance(seen, MovementWindow) is not is_whole:
            seen = MovementWindow() if is_whole else _Parts(self._all_here)
            self._seen[optimizer] = seen
        return seen

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        seen = self._seen.get(optimizer)
        if seen is None or _owners.get(optimizer, self) is not self:
            return
        seen.after_step()
        followed = self._followed.get(optimizer)
        if followed is not None and seen.updates >= followed.every:
            followed.record()


class _Parts:
    """A window on weights that lie in parts, or that another process measures."""

    def __init__(self, all_here: Callable[[], bool]) -> None:
        self._all_here = all_here
        self._sharded: ShardedWindow | None = None  # None: steps are only counted
        self._windows = self._steps_total = self.updates = 0
        self._learning_rates: tuple[float, ...] = ()
        self._failure = ""

    def before_step(
        self, optimizer: Optimizer, mode: str, exact_max: int, tree_head: Callable[[], str]
    ) -> None:
        """As the method of `MovementWindow`, of whose window this is a part."""
        with self._harmless():
            if not self.updates:
                self._open(_parameters(optimizer), mode, exact_max, tree_head)
            groups = optimizer.param_groups
            self._learning_rates = tuple([float(group.get("lr", math.nan)) for group in groups])
            if self._sharded is not None:
                self._sharded.count_gradients()

    def after_step(self) -> None:
        """Count a step."""
        self.updates += 1
        self._steps_total += 1

    def close(self, names: Names, _: object) -> Pending:
        """End the window; all processes that hold parts must do so at once."""
        if self._sharded is not None:
            movement = self._sharded.movement(
                dict(names()), updates=self.updates, learning_rates=self._learning_rates
            )
        else:
            movement = Movement(
                updates=self.updates,
                delta_norm=None,
                kind="absent",
                learning_rate=max(self._learning_rates, default=None),
                statistics={"learning_rates": list(self._learning_rates)},
                failure=self._failure,
            )
        self.updates, self._failure = 0, ""
        return Pending((), lambda _: movement)

    def _open(
        self,
        parameters: list[torch.Tensor],
        mode: str,
        exact_max: int,
        tree_head: Callable[[], str],
    ) -> None:
        window, self._sharded = self._sharded, None
        self._windows += 1
        if not is_sharded(parameters):
            return
        if not self._all_here():
            raise ProcessesMissing("not all processes take part in the run")
        if mode == "auto":
            size = sum(parameter.numel() for parameter in parameters)
            mode = "sampled" if size > exact_max else "exact"
        same = window is not None and list(map(id, parameters)) == list(map(id, window.parameters))
        if window is None or not same or window.mode != mode:
            window = ShardedWindow(parameters, mode)
        is_due = self._windows % REDRAW_WINDOWS == 0
        window.open(tree_head(), self._steps_total, _drawn, redraw=is_due)
        self._sharded = window

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            with torch.no_grad():
                yield
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end a training run
            self._failure = type(error).__name__


def _drawn(tree_head: str, step: int, size: int) -> Any:
    return coordinates(tree_head, step=step, size=size)


def _parameters(optimizer: Optimizer) -> list[torch.Tensor]:
    groups = optimizer.param_groups
    return [p for group in groups for p in group["params"] if p.requires_grad]


def _unwrap(optimizer: Any) -> Optimizer | None:
    """Return torch's own optimizer below wrappers such as Accelerate's."""
    for _ in range(8):  # deeper nesting is a cycle
        inner = getattr(optimizer, "optimizer", None)
        if inner is None or inner is optimizer:
            break
        optimizer = inner
    return optimizer if isinstance(optimizer, Optimizer) else None
