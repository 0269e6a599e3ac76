"""A connection kept at hand: taking one from the pool costs as much as a small transaction.

For SQLite, where a connection is an open file and one writer is all that there is. While
one thread has it, others take theirs from the pool.
"""

from __future__ import annotations

import threading
from typing import Any

from sqlalchemy import Connection, Engine

from rlhf_audit_trail.ledger.store.gate import Gate

__all__ = ["Kept"]


class Kept:
    """One connection of an engine, lent to one thread at a time.

    Attributes:
        connection: of SQLAlchemy; while it is lent.
        driver: what SQLAlchemy's stands on.
    """

    connection: Connection
    driver: Any

    def __init__(self, gate: Gate) -> None:
        """Open nothing yet; `gate` counts the connections in use."""
        self._gate = gate
        self._lent = threading.Lock()
        self._is_open = False

    def take(self, engine: Engine) -> bool:
        """Lend the connection until `give_back`; False while another thread has it."""
        if not self._lent.acquire(blocking=False):
            return False
        try:
            if self._is_open:
                self._gate.enter()
            else:  # the pool passes the gate by itself
                self.connection = engine.connect().execution_options(is_kept=True)
                self.driver = self.connection.connection.driver_connection
                self._is_open = True
        except BaseException:
            self._lent.release()
            raise
        return True

    def give_back(self, *, is_sound: bool) -> None:
        """Have it lent to others; what may be half done is undone by closing it."""
        try:
            if is_sound:
                self._gate.leave()
            else:
                self._is_open = False
                self.connection.invalidate()
                self.connection.close()
        finally:
            self._lent.release()

    def close(self) -> None:
        """Close it, once nobody has it; the next one to take it opens it again."""
        with self._lent:
            if self._is_open:
                self._is_open = False
                self._gate.enter()
                try:
                    self.connection.detach()  # or the pool would keep it open
                    self.connection.close()
                finally:
                    self._gate.leave()

    def abandon(self) -> Connection | None:
        """In a forked child: open another, and return the parent's, never to be closed."""
        parents = self.connection if self._is_open else None
        self._lent = threading.Lock()
        self._is_open = False
        return parents
