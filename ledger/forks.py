"""What becomes of a ledger when its process forks, and when a process ends.

A forked child has none of the parent's threads, and must not touch its connections: SQLite
would lose its locks, PostgreSQL its protocol. So a child begins anew: it is a writer of its
own, with connections of its own. What the parent had queued is the parent's to store.

SQLite's own locks cannot be made anew: were another thread inside it at the moment of the
fork, the child would wait for ever. So all threads stay out of it meanwhile.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import weakref
from typing import Any, Protocol

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = ["finish_at_exit", "survive_forks"]

_logger = logging.getLogger(__name__)


class Forking(Protocol):
    """What has threads, locks or connections."""

    def hold_still(self) -> None:
        """Return when no thread uses a database; none but this one will before `go_on`."""

    def go_on(self) -> None:
        """Let other threads use the databases again; in the parent."""

    def begin_anew(self) -> None:
        """Forget, in a forked child, what only the parent may use."""

    def close(self) -> None:
        """Make everything durable."""


_OPEN: weakref.WeakSet[Any] = weakref.WeakSet()
_HELD: list[Any] = []  # between the hooks before and after a fork


def survive_forks(item: Forking) -> None:
    """Have `begin_anew` called in every child that is forked from now on."""
    _OPEN.add(item)


def _before() -> None:
    _HELD[:] = list(_OPEN)
    for item in _HELD:
        item.hold_still()


def _in_parent() -> None:
    for item in _HELD:
        item.go_on()
    _HELD.clear()


def _in_child() -> None:
    for item in _HELD:
        item.begin_anew()
    _HELD.clear()


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)


def finish_at_exit(item: Forking) -> None:
    """Have `item` closed when the process ends, if nobody did it before.

    Children of `multiprocessing`, among them the workers of a DataLoader, leave without
    the interpreter's own last steps, and have a list of their own for that.
    """
    finish = _Finish(item)
    atexit.register(finish)
    multiprocessing = sys.modules.get("multiprocessing.util")
    if multiprocessing is not None:
        multiprocessing.Finalize(None, finish, exitpriority=100)


class _Finish:
    def __init__(self, item: Forking) -> None:
        self._item = weakref.ref(item)
        self._process_id = os.getpid()

    def __call__(self) -> None:
        item = self._item()
        if item is None or os.getpid() != self._process_id:
            return
        try:
            item.close()
        except AuditTrailError as error:
            _logger.error("%s", error)  # noqa: TRY400 - the message says it all
