"""A gate before a database's connections: none is in use while a process forks.

SQLite keeps locks of its own inside the process. Were another thread inside it at the
moment of a fork, the child would find them locked, and nobody there to unlock them.
"""

from __future__ import annotations

import threading
from typing import Final

__all__ = ["Gate"]

# a thread that keeps a connection for longer is not waited for: a fork must come to an end
_PATIENCE_S: Final = 5.0


class Gate:
    """Counts connections in use; closed, it lets no other thread take one."""

    def __init__(self) -> None:
        """Begin open, with nobody inside."""
        self.begin_anew()

    def begin_anew(self) -> None:
        """In a forked child: its only thread is outside."""
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._inside = 0
        self._closed_by: int | None = None

    def enter(self, *_: object) -> None:
        """Take a connection from the pool; waits while another thread forks."""
        with self._lock:
            if self._closed_by is not None:
                me = threading.get_ident()
                self._changed.wait_for(lambda: self._closed_by in (None, me))
            self._inside += 1

    def leave(self, *_: object) -> None:
        """Give a connection back."""
        with self._lock:
            self._inside -= 1
            if self._closed_by is not None:
                self._changed.notify_all()

    def close(self) -> None:
        """Wait until no connection is in use, and let nobody else take one."""
        with self._lock:
            self._closed_by = threading.get_ident()
            self._changed.wait_for(lambda: self._inside <= 0, _PATIENCE_S)

    def open(self) -> None:
        """Let everybody in again."""
        with self._lock:
            self._closed_by = None
            self._changed.notify_all()
