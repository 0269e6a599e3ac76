"""Who watches a ledger's logs: peers asked before writing, witnesses asked after signing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from sqlalchemy import Engine, select

from rlhf_audit_trail.ledger.alarm import AlarmFiles
from rlhf_audit_trail.ledger.collecting import Collector
from rlhf_audit_trail.ledger.guard import Guard, Peer
from rlhf_audit_trail.ledger.peers import contract_peers, mirror_peers, witness_peers
from rlhf_audit_trail.ledger.settings import ChainSettings, GuardSettings, WitnessSettings
from rlhf_audit_trail.ledger.signing import SigningLog
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.entries import newest_of_kinds
from rlhf_audit_trail.ledger.tlog_policy import TlogPolicy, read_policy
from rlhf_audit_trail.ledger.witness_client import Collection

__all__ = ["ALARMS", "Watch"]

ALARMS: Final = "alarms"
"""Folder in a ledger's directory for what contradicted its logs."""

_LOGS = models.LogRow.__table__  # type: ignore[attr-defined]
_ENTRIES = models.EntryRow.__table__  # type: ignore[attr-defined]


class Watch:
    """The guard and the collector of one ledger, as its settings want them."""

    def __init__(
        self,
        directory: Path,
        *,
        chain: ChainSettings,
        witnesses: WitnessSettings,
        guard: GuardSettings,
    ) -> None:
        """Read what the settings name; nobody is asked, and nothing started.

        Raises:
            InvalidPolicy: the policy cannot be read.
            SettingsError: a mirror's address is none.
        """
        self.policy: TlogPolicy | None = None
        if witnesses.policy:
            self.policy = read_policy(directory / witnesses.policy)
        self._mirrors = tuple(mirror_peers(guard.mirrors, directory))
        self._alarms = AlarmFiles(directory / ALARMS)
        self._chain = chain
        self._settings = guard
        self._collector: Collector | None = None
        self.guard = Guard()

    def begin(self, engine: Engine, find: Callable[[str], SigningLog]) -> None:
        """Make guard and collector for the ledger's database; `find` returns a run's log."""
        peers: list[Peer] = [*self._mirrors]
        if self.policy is not None:
            peers += witness_peers(engine, self.policy)
            self._collector = Collector(engine, self.policy, find)
        if self._chain.rpc_url:
            peers += contract_peers(self._chain, _registered_publisher(engine))
        self.guard = Guard(
            peers,
            timeout_s=self._settings.timeout_s,
            when_unreachable=self._settings.when_unreachable,
            alarms=self._alarms,
            publisher=self._chain.publisher,
        )

    def over(self, log: SigningLog, run_id: str) -> None:
        """Watch over a log from now on."""
        collector = self._collector
        log.watch(self.guard, (lambda: collector.wake(run_id)) if collector else None)

    def add_peer(self, peer: Peer, logs: Iterable[SigningLog]) -> None:
        """Ask one more peer from now on, also about logs that are open already."""
        if peer not in self.guard.peers:
            self.guard = self.guard.asking([*self.guard.peers, peer])
            for log in logs:
                log.watch(self.guard)

    def begin_anew(self) -> None:
        """In a forked child: use no lock and no thread of the parent's."""
        self.guard = self.guard.asking(self.guard.peers)
        if self._collector is not None:
            self._collector = self._collector.anew()

    def resume(self) -> None:
        """Have missing cosignatures asked for in the background."""
        if self._collector is not None:
            self._collector.resume()

    def await_quorum(self, run_id: str, tree_size: int, *, timeout_s: float) -> Collection | None:
        """Wait for the quorum over a signed tree head; see `Collector.wait`."""
        if self._collector is None:
            return None
        return self._collector.wait(run_id, tree_size, timeout_s=timeout_s)

    def close(self) -> None:
        """Have what was signed last cosigned if that takes no time; then ask nobody any more."""
        if self._collector is not None:
            self._collector.close()


def _registered_publisher(engine: Engine) -> str:
    """Return who anchored last, as the registry log says; empty if nobody did."""
    registry = select(_LOGS.c.number).where(_LOGS.c.run_id == "registry")
    with engine.connect() as connection:
        number = connection.scalar(registry) or 0
        row = newest_of_kinds(connection, (_ENTRIES.c.data,), number, ("chain.registered",))
    return "" if row is None else str(json.loads(row.data).get("publisher", ""))
