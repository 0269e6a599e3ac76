"""Where the processes of a training find the one that records, and what both ends agree on.

A channel of its own, and no collective: processes may report at different times and different
often, no device waits, and the end of a process is noticed at once, however it came. The main
process says in the process group's store where it listens; who can read that store may report.
One JSON object a line.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Final, Self

from rlhf_audit_trail.ranks.processes import default_store

__all__ = ["BATCH", "CONNECT_TIMEOUT_S", "OWN_KINDS", "Address", "host", "key"]

BATCH: Final = "batch.consumed"
# what a process does by itself; all else is the same on every one, and recorded once
OWN_KINDS: Final = frozenset({BATCH, "rollout.scored", "alert.raised"})
CONNECT_TIMEOUT_S: Final = 60.0  # the main process may still be opening its ledger
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1", "")

_began: Counter[str] = Counter()  # runs of each name in this process


@dataclass(frozen=True)
class Address:
    """Where the main process listens; who knows the token may report."""

    host: str
    port: int
    token: str

    @classmethod
    def found(cls, name: str) -> Self:
        """Wait until the main process has published it under a key.

        Raises:
            ConnectionRefusedError: there is no process group yet.
            RuntimeError: it did not within a minute.
        """
        store = default_store()
        if store is None:
            raise ConnectionRefusedError
        store.wait([name], timedelta(seconds=CONNECT_TIMEOUT_S))
        said: dict[str, Any] = json.loads(store.get(name))
        return cls(**said)

    def published(self, name: str) -> bool:
        """Publish it under a key; False before there is a process group."""
        store = default_store()
        if store is not None:
            store.set(name, json.dumps(asdict(self)))
        return store is not None


def key(name: str) -> str:
    """Return the store's key for a run: the same in all processes, another one each time."""
    _began[name] += 1
    return f"rlhf-audit/{name}/{_began[name]}"


def host() -> str:
    """Return where others reach this process; rank 0 is where the rendezvous is."""
    address = os.environ.get("MASTER_ADDR", "")
    is_one_machine = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
    return "127.0.0.1" if is_one_machine or address in _LOOPBACK else address
