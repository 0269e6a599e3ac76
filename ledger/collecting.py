"""Cosignatures collected in the background: signing never waits for a witness.

One thread asks the witnesses of the policy about each log's newest signed tree head. What a
crash cut short is found in the store by the same look at it as anything else that is
missing. `witness_client.collect` is what each round does.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Engine, func, select

from rlhf_audit_trail.ledger.reading import NotPublished
from rlhf_audit_trail.ledger.signing import SigningLog
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.tlog_policy import TlogPolicy
from rlhf_audit_trail.ledger.witness_client import Collection, collect

__all__ = ["Collector", "runs_behind"]

ROUND_S: Final = 5.0  # an honest witness answers in milliseconds; no close waits much longer
CLOSE_S: Final = ROUND_S  # in which a running round ends, and what is quick still begins
_STORING_S: Final = 1.0  # what came in at the last moment is stored, too
PAUSE_S_MIN: Final = 1.0
PAUSE_S_MAX: Final = 300.0
_NEVER: Final = float("inf")

_logger = logging.getLogger(__name__)

_LOGS = models.LogRow.__table__  # type: ignore[attr-defined]
_HEADS = models.TreeHeadRow.__table__  # type: ignore[attr-defined]
_COSIGNATURES = models.CosignatureRow.__table__  # type: ignore[attr-defined]


@dataclass
class _Due:
    """When a log's witnesses are asked next, and how often they have been asked in vain."""

    at_s: float = 0.0
    in_vain: int = 0


class Collector:
    """Asks the witnesses about one ledger's logs; safe to share between threads."""

    def __init__(
        self,
        engine: Engine,
        policy: TlogPolicy,
        find: Callable[[str], SigningLog],
        *,
        round_s: float = ROUND_S,
    ) -> None:
        """Remember whom to ask; the thread starts with the first thing there is to do.

        Args:
            engine: the ledger's database.
            policy: the witnesses, and the quorum.
            find: returns the log of a run.
            round_s: how long one round may take.
        """
        self._engine = engine
        self._policy = policy
        self._find = find
        self._round_s = round_s
        self._changed = threading.Condition()  # owns all that follows
        self._due: dict[str, _Due] = {}  # by run; whoever was woken last comes last
        self._newest: dict[str, Collection] = {}
        self._closing_at_s = _NEVER
        self._thread: threading.Thread | None = None

    def anew(self) -> Collector:
        """Return one like it that has nothing to do yet."""
        return Collector(self._engine, self._policy, self._find, round_s=self._round_s)

    def resume(self) -> None:
        """Ask about every signed tree head that lacks cosignatures, such as after a crash."""
        for run_id in runs_behind(self._engine, self._policy):
            self.wake(run_id)

    def wake(self, run_id: str) -> None:
        """Ask about this log's newest signed tree head soon; returns at once."""
        with self._changed:
            if self._closing_at_s < _NEVER:
                return
            self._due[run_id] = _Due()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="ledger-cosignatures", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def wait(self, run_id: str, tree_size: int, *, timeout_s: float) -> Collection | None:
        """Wait until a head of at least this size has its quorum, or an alarm came instead.

        Returns:
            What the last round gave, quorum or not; None if there was none in this process.
        """

        def is_settled() -> bool:
            found = self._newest.get(run_id)
            if found is None or found.head.size < tree_size:
                return False
            return found.is_quorum or bool(found.alarms)

        with self._changed:
            self._changed.wait_for(is_settled, timeout_s)
            return self._newest.get(run_id)

    def close(self, *, timeout_s: float = CLOSE_S) -> None:
        """Ask once more about what was signed last, then stop; bounded by `timeout_s`.

        What is missing then is asked for by the next start.
        """
        with self._changed:
            self._closing_at_s = min(self._closing_at_s, time.monotonic() + timeout_s)
            thread = self._thread
            self._changed.notify_all()
        if thread is not None:
            thread.join(timeout_s + _STORING_S)

    # --- the thread -------------------------------------------------------------------

    def _run(self) -> None:
        while (item := self._next()) is not None:
            run_id, due = item
            is_done = self._round(run_id)
            with self._changed:
                if not is_done and run_id not in self._due:  # else it was woken meanwhile
                    pause_s = min(PAUSE_S_MAX, PAUSE_S_MIN * 2.0 ** min(due.in_vain, 30))
                    self._due[run_id] = _Due(time.monotonic() + pause_s, due.in_vain + 1)
                self._changed.notify_all()

    def _next(self) -> tuple[str, _Due] | None:
        """Wait for the next log that is due; None when it is time to stop."""
        with self._changed:
            while True:
                now = time.monotonic()
                run_id = min(self._due, key=lambda name: self._due[name].at_s, default=None)
                wait_s = None if run_id is None else max(0.0, self._due[run_id].at_s - now)
                is_due = wait_s == 0.0 and now < self._closing_at_s
                if run_id is not None and is_due:
                    return run_id, self._due.pop(run_id)
                if self._closing_at_s < _NEVER:  # what failed is left for the next start
                    return None
                self._changed.wait(wait_s)

    def _round(self, run_id: str) -> bool:
        """Ask once; return whether there is nothing left to ask about this head."""
        try:
            log = self._find(run_id)
            left_s = min(self._round_s, self._closing_at_s - time.monotonic())
            found = collect(self._engine, log, self._policy, timeout_s=max(0.0, left_s))
            for outcome in found.alarms:
                if outcome.head is not None:
                    log.heed(outcome.head)
        except NotPublished:
            return True
        except Exception as error:  # noqa: BLE001 - the store may be away; the thread must go on
            _logger.warning("no cosignatures of %s for now: %s", run_id, type(error).__name__)
            return False
        with self._changed:
            self._newest[run_id] = found
        # an alarm is no matter of asking again, and a witness without address cannot be asked
        pairs = zip(found.outcomes, self._policy.witnesses, strict=True)
        return bool(found.alarms) or all(x.state == "cosigned" for x, item in pairs if item.url)


def runs_behind(engine: Engine, policy: TlogPolicy) -> list[str]:
    """Return the runs whose newest signed tree head lacks a cosignature by the policy's keys."""
    wanted = {(x.key.name, x.key.key_id.hex()) for x in policy.witnesses if x.url}
    columns, newest = _COSIGNATURES.c, func.max(_HEADS.c.tree_size)
    heads = select(_LOGS.c.number, _LOGS.c.run_id, newest).join(
        _HEADS, _HEADS.c.log_number == _LOGS.c.number
    )
    held = select(columns.log_number, columns.witness, columns.key_id, func.max(columns.tree_size))
    with engine.connect() as connection:
        signed = connection.execute(heads.group_by(_LOGS.c.number, _LOGS.c.run_id)).all()
        cosigned: dict[tuple[int, int], set[tuple[str, str]]] = defaultdict(set)
        grouped = held.group_by(columns.log_number, columns.witness, columns.key_id)
        for number, witness, key_id, size in connection.execute(grouped):
            cosigned[number, size].add((witness, key_id))
    return [run_id for number, run_id, size in signed if wanted - cosigned[number, size]]
