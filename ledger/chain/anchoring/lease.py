"""Who may use a publisher key now: a lease in the ledger's own database.

Two processes that sign with one key would use the same nonces. Each holds the lease for one
step, and names itself in it; every intent is committed only under the lease. Whoever holds it
and dies on this machine is seen to be dead; on another machine, its silence tells. Silence is
measured by a clock that only goes forward, so that a wrong wall clock takes nothing from anybody.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, delete, select

from rlhf_audit_trail.ledger.chain.errors import PublisherBusy
from rlhf_audit_trail.ledger.store.database import insert_missing, transact
from rlhf_audit_trail.ledger.store.models import PublisherLeaseRow

__all__ = ["SILENCE_S", "PublisherLease"]

SILENCE_S: Final = 45.0
"""Longer than a step waits for a block. Whoever was only slow commits no intent afterwards."""

_WAIT_S: Final = 60.0
_PAUSE_S: Final = 0.05
_LEASES = PublisherLeaseRow.__table__  # type: ignore[attr-defined]


class PublisherLease:
    """The right to sign with one publisher key on one chain; not thread-safe."""

    def __init__(
        self,
        engine: Engine,
        *,
        chain_id: int,
        publisher: str,
        silence_s: float = SILENCE_S,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Remember what it is about; nothing is taken yet."""
        self._engine = engine
        self._key = {"chain_id": chain_id, "publisher": publisher.lower()}
        self._holder = ""  # another one each time
        self._silence_s = silence_s
        self._now_s = now_s

    @contextmanager
    def held(self, *, wait_s: float = _WAIT_S) -> Iterator[None]:
        """Hold the lease, after waiting for it for a while.

        Raises:
            PublisherBusy: another process holds it all that time.
        """
        self._take(wait_s)
        try:
            yield
        finally:
            transact(self._engine, partial(self._evict, holder=self._holder))

    def require(self, connection: Connection) -> None:
        """Refuse what is committed by a process that lost the lease while it was stopped.

        Raises:
            PublisherBusy: somebody else holds it.
        """
        query = select(_LEASES.c.holder).where(*self._mine()).with_for_update()
        if connection.scalar(query) != self._holder:
            raise self._busy("another process")

    def _take(self, wait_s: float) -> None:
        began_s, self._holder = self._now_s(), secrets.token_hex(16)
        seen, seen_s = "", began_s
        while True:
            row = transact(self._engine, self._try)
            if row is None:
                return
            if row.holder != seen:
                seen, seen_s = row.holder, self._now_s()
            is_dead = _is_gone(row.host, row.process)
            if is_dead or self._now_s() - seen_s > self._silence_s:
                transact(self._engine, partial(self._evict, holder=seen))
            elif self._now_s() - began_s >= wait_s:
                raise self._busy(f"process {row.process.partition(' ')[0]} on {row.host}")
            else:
                time.sleep(_PAUSE_S)

    def _try(self, connection: Connection) -> Any:
        """Take it if it is free; return who has it otherwise."""
        values = {"holder": self._holder, "host": socket.gethostname(), "process": _this_process()}
        insert_missing(connection, _LEASES, [self._key | values])
        row = connection.execute(select(_LEASES).where(*self._mine())).one()
        return None if row.holder == self._holder else row

    def _evict(self, connection: Connection, holder: str) -> None:
        connection.execute(delete(_LEASES).where(*self._mine(), _LEASES.c.holder == holder))

    def _mine(self) -> list[Any]:
        return [_LEASES.c[name] == value for name, value in self._key.items()]

    def _busy(self, who: str) -> PublisherBusy:
        return PublisherBusy(
            f"{who} is anchoring with the key of {self._key['publisher']}",
            next_step="leave it to that process, or try again once it has ended",
        )


def _this_process() -> str:
    """Return number and start time: a number alone is used again."""
    return f"{os.getpid()} {_started(os.getpid())}"


def _started(process_id: int) -> str:
    """Return when a process began, in the kernel's own count; empty where there is no /proc."""
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text("utf-8", "replace")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]  # field 22; the name before it may hold spaces


def _is_gone(host: str, process: str) -> bool:
    """Whether a process of this machine has ended; of another machine nobody here knows."""
    if host != socket.gethostname():
        return False
    number, _, started = process.partition(" ")
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return bool(started) and _started(int(number)) != started
