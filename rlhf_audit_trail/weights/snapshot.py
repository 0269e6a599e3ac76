"""A copy of live weights, taken while the training goes on.

Between two optimizer steps nothing writes to a model's parameters, so a thread copies them while
the next batch runs forward and backward; the next step of any torch optimizer waits until the
copy is done. Buffers, which a forward pass may write to, are copied at once. Whoever writes to
parameters by other means meanwhile is noticed by torch's own version counters, and then there
is no copy. (A write through `.data` escapes them.)
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.weights.delta import Layout, TensorPlace
from rlhf_audit_trail.ledger.weights.scratch import Scratch
from rlhf_audit_trail.weights.model_weights import DTYPE_NAMES, NamedTensors, tensor_bytes

__all__ = ["LiveCopy", "WeightsMoved", "layout_of"]

_THREADS: Final = 2
_PIECE_BYTES: Final = 64 * 1024 * 1024  # so that one large tensor keeps both threads busy


class WeightsMoved(AuditTrailError):
    """Something wrote to the weights while they were being copied."""


def layout_of(named: NamedTensors) -> Layout:
    """Return what a model's tensors look like, without their bytes."""
    return Layout(
        TensorPlace(name, DTYPE_NAMES[x.dtype], tuple(x.shape), x.numel() * x.element_size())
        for name, x in named.tensors.items()
    )


class _Holders:
    """The copies that optimizers wait for, behind one hook that stays.

    A hook of each copy's own could not be removed: torch walks through the hooks while it runs
    them, and fails if another thread changes their number meanwhile.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: list[threading.Event] = []  # owned by _lock
        self._is_hooked = False

    def hold(self, done: threading.Event) -> None:
        """Have optimizers wait for `done`."""
        with self._lock:
            self._running = [*(x for x in self._running if not x.is_set()), done]
            if not self._is_hooked:
                register_optimizer_step_pre_hook(self._wait)
                self._is_hooked = True

    def _wait(self, *_: object) -> None:
        for done in self._running:  # a list is replaced, never changed
            done.wait()


_HOLDERS: Final = _Holders()


class LiveCopy:
    """Copies tensors into a scratch file in a thread, with optimizers held off meanwhile."""

    def __init__(self, named: NamedTensors, scratch: Scratch, urgent: Collection[str] = ()) -> None:
        """Note where the tensors are now; nothing is copied yet.

        Args:
            named: what to copy.
            scratch: where to, of the same layout.
            urgent: names of those that others than an optimizer write to.
        """
        self._left = [
            number for number, x in enumerate(scratch.layout.tensors) if x.name not in urgent
        ]
        self._urgent = sorted(set(range(len(scratch.layout.tensors))) - set(self._left))
        self._tensors = [named.tensors[x.name].detach() for x in scratch.layout.tensors]
        self._versions = [_version(tensor) for tensor in self._tensors]
        self._scratch = scratch
        self._done = threading.Event()

    def hold_optimizers(self) -> None:
        """Copy what is urgent, and have torch's optimizers wait, before they step, for the rest."""
        self._copy_all(self._urgent)
        self._urgent = []
        _HOLDERS.hold(self._done)

    def take(self) -> None:
        """Copy; optimizers go on when it returns.

        Raises:
            WeightsMoved: a tensor was written to meanwhile.
        """
        try:
            self._copy_all(self._urgent + self._left)
            moved = sum(
                _version(self._tensors[number]) != self._versions[number] for number in self._left
            )
        finally:
            self._tensors = []  # what the training lets go of must not live on here
            self.release()
        if moved:
            raise WeightsMoved(
                f"{moved} tensors were written to while they were being copied",
                next_step="pass wait=True to checkpoint(), or write to the weights after it",
            )

    def release(self) -> None:
        """Let optimizers step."""
        self._done.set()

    def _copy_all(self, numbers: list[int]) -> None:
        if numbers:
            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(self._copy, self._pieces(numbers)))

    def _pieces(self, numbers: list[int]) -> list[tuple[int, int, int]]:
        found = []
        for number in numbers:
            tensor = self._tensors[number]
            size = tensor.numel() * tensor.element_size()
            # an odd layout is gathered as a whole
            step = _PIECE_BYTES if _is_plain(tensor) else max(size, 1)
            found += [(number, at, min(at + step, size)) for at in range(0, size, step)]
        return found

    def _copy(self, piece: tuple[int, int, int]) -> None:
        number, begin, end = piece
        tensor, room = self._tensors[number], self._scratch.tensor(number)
        if _is_plain(tensor):  # also from a device: one copy, and no second one here
            target = torch.frombuffer(room, dtype=torch.uint8, offset=begin, count=end - begin)
            target.copy_(tensor.reshape(-1).view(torch.uint8)[begin:end])
        else:
            room[begin:end] = tensor_bytes(tensor)


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else int(tensor._version)  # noqa: SLF001 - torch's own word
