"""Which process of a training this is: one of them records, however many there are.

Standard library only: torch is asked where it is imported already, and the variables that its
launchers set where it is not, or where its process group is not there yet.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final

__all__ = ["Place", "Terminated", "default_store", "place", "terminable"]

# what `init_process_group` reads: a lone RANK may mean something else
_VARIABLES: Final = ("RANK", "WORLD_SIZE", "MASTER_ADDR")


@dataclass(frozen=True)
class Place:
    """A process among those of one training.

    Attributes:
        rank: `0 <= rank < size`; 0 records.
        size: how many processes there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that records."""
        return self.rank == 0


def place() -> Place:
    """Return where this process stands: by torch's process group, else by the environment."""
    distributed = _distributed()
    if distributed is not None:
        return Place(distributed.get_rank(), distributed.get_world_size())
    rank, size, address = (os.environ.get(name, "") for name in _VARIABLES)
    if address and rank.isdecimal() and size.isdecimal() and int(rank) < int(size):
        return Place(int(rank), int(size))
    return Place()


def default_store() -> Any:
    """Return the store by which the process group came together; None before there is one."""
    distributed = _distributed()
    if distributed is None:
        return None
    store = distributed.distributed_c10d._get_default_store()  # noqa: SLF001 - no public name
    # a client of its own: torch's may be waiting for something else, locked
    return store.clone() if hasattr(store, "clone") else store


def _distributed() -> Any:
    """Return torch.distributed where a process group is there."""
    found: Any = sys.modules.get("torch.distributed")
    if found is None or not found.is_available() or not found.is_initialized():
        return None
    return found


class Terminated(SystemExit):
    """The process was asked to end, by the signal TERM."""


@contextmanager
def terminable(is_ending: Callable[[], bool]) -> Iterator[None]:
    """Have the signal TERM raise in the block, so that what ends with it ends in order.

    Only where nobody else handles it, and in the main thread: elsewhere nothing is changed.

    Args:
        is_ending: whether the end is on its way already; then the signal is let pass.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    owner = os.getpid()

    def end(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked child ends as it would have
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not is_ending():
            raise Terminated(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
