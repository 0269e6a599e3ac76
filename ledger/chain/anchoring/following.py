"""Anchoring in the background: a thread that looks what the policy wants, and outlives outages.

It reads sizes from the database, so it needs nothing from whoever records: training does not
know it is there. The same loop serves `rlhf-audit anchor --follow`. Whatever fails, it waits a
while, longer each time, and looks again; what could not be anchored is signed and kept.
"""

from __future__ import annotations

import logging
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Self

from sqlalchemy import func, select

from rlhf_audit_trail.ledger.chain.anchoring.anchorer import Step
from rlhf_audit_trail.ledger.chain.anchoring.costs import CostReport
from rlhf_audit_trail.ledger.chain.anchoring.policy import Growth, Timing, Wish
from rlhf_audit_trail.ledger.chain.anchoring.publishing import Publisher
from rlhf_audit_trail.ledger.chain.signing.signer import Signer
from rlhf_audit_trail.ledger.chain.signing.signers import make_signer
from rlhf_audit_trail.ledger.log import REGISTRY, Ledger, Log
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.entries import newest_by_log

__all__ = ["Follower", "Round", "following", "growth_of"]

LOOK_EVERY_S: Final = 1.0
PAUSE_S_MAX: Final = 300.0
CLOSE_S: Final = 10.0  # how long the end of a run is waited for; the rest comes at the next start
_FINDING_PAUSE_S: Final = 60.0
_PENDING_LOOK_S: Final = 12.0  # about a block

_LOGS = models.LogRow.__table__  # type: ignore[attr-defined]
_ANCHORS = models.AnchorRow.__table__  # type: ignore[attr-defined]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Round:
    """What one look came to.

    Attributes:
        step: what was anchored; None if nothing was due.
        failure: what stood in the way; None if nothing did.
        pause_s: how long it is until the next look.
    """

    step: Step | None = None
    failure: AuditTrailError | None = None
    pause_s: float = LOOK_EVERY_S


class Follower:
    """Keeps a ledger's logs anchored as its settings say, in a thread of its own.

    Use it as a context manager, or call `start` and `close`. Opening the signer, which takes a
    second of imports, happens in the thread, too.
    """

    def __init__(
        self,
        ledger: Ledger,
        make_signer: Callable[[], Signer],
        *,
        after_mined: Callable[[], None] = lambda: None,
        look_every_s: float = LOOK_EVERY_S,
        tell: Callable[[Round], None] = lambda _: None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; nothing runs yet.

        Args:
            ledger: whose logs; open for as long as this runs.
            make_signer: called in the thread; what it raises is tried again later.
            after_mined: see `Publisher`.
            look_every_s: how often sizes are read.
            tell: called after each look, in the thread.
            now_s: a clock that only goes forward.
        """
        self._ledger = ledger
        self._make_signer = make_signer
        self._after_mined = after_mined
        self._look_every_s = look_every_s
        self._tell = tell
        self._now_s = now_s
        self._timings: dict[str, Timing] = {}
        self._publisher: Publisher | None = None
        self._not_before_s: dict[str, float] = {}  # by run, after a finding
        self._failures = 0
        self._pending_at_s = 0.0  # when what waits for finality is looked at again
        self._told: str = ""
        self._changed = threading.Condition()  # owns the two below
        self._is_awake = False
        self._closing_at_s: float | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        """Begin, and return at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="ledger-anchors", daemon=True)
            self._thread.start()
        return self

    def wake(self) -> None:
        """Look soon; returns at once."""
        with self._changed:
            self._is_awake = True
            self._changed.notify_all()

    def close(self, *, timeout_s: float = CLOSE_S) -> None:
        """Look once more, for the end of a run, then stop; bounded by `timeout_s`.

        What is not anchored by then is anchored after the next start.
        """
        with self._changed:
            self._closing_at_s = self._now_s() + timeout_s
            thread = self._thread
            self._changed.notify_all()
        if thread is not None:
            thread.join(timeout_s)
            if thread.is_alive():
                _logger.warning("anchoring has not ended in time; the next start goes on with it")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the thread -------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    closing_at_s, self._is_awake = self._closing_at_s, False
                is_last = closing_at_s is not None
                if closing_at_s is not None and self._now_s() > closing_at_s:
                    return
                found = self._round()
                self._tell(found)
                if is_last:
                    return
                with self._changed:
                    self._changed.wait_for(
                        lambda: self._is_awake or self._closing_at_s is not None, found.pause_s
                    )
        finally:
            self._let_go()

    def _round(self) -> Round:
        """Look once; nothing that happens here reaches whoever records."""
        try:
            step = self.look()
        except AuditTrailError as error:
            return self._failed(error)
        except Exception as error:  # the store may be away; the thread must go on
            _logger.debug("a look at the anchors failed", exc_info=True)
            return self._failed(AuditTrailError(f"unexpected {type(error).__name__}"))
        self._failures, self._told = 0, ""
        return Round(step, pause_s=self._look_every_s)

    def _failed(self, error: AuditTrailError) -> Round:
        """Wait longer each time, by a different length, so that many do not come at once."""
        self._failures += 1
        pause_s = min(PAUSE_S_MAX, self._look_every_s * 2.0 ** min(self._failures, 20))
        if error.message != self._told:  # once for each outage
            self._told = error.message
            _logger.warning("nothing is anchored for now, and all is kept: %s", error)
        return Round(failure=error, pause_s=pause_s * random.uniform(0.5, 1.0))  # noqa: S311

    def look(self) -> Step | None:
        """Anchor what the policy wants now; None if that is nothing.

        Raises:
            AuditTrailError: what stands in the way; see `Publisher.anchor_wishes`.
        """
        wishes = self._wishes()
        publisher = self._publisher
        if not wishes:
            if publisher is not None and self._now_s() >= self._pending_at_s:
                self._pending_at_s = self._now_s() + _PENDING_LOOK_S
                publisher.reconcile()
            return None
        publisher = self._publisher_now()
        step = publisher.anchor_wishes(wishes, align_to=self._ledger.anchoring.align_to)
        self._leave_out(wishes, step)
        if step.held_back is not None and step.held_back.message != self._told:
            self._told = step.held_back.message
            _logger.warning("%s", step.held_back)
        if step.anchored:
            _warn_when_low(publisher.costs(), self._ledger.anchoring.warn_below_anchors)
        return step

    def _leave_out(self, wishes: Mapping[Log, Wish], step: Step) -> None:
        """Leave a log that cannot be anchored alone for a while; the others go on."""
        for log in wishes:
            finding = step.findings.get(log.log_id)
            if finding is not None:
                if log.run_id not in self._not_before_s:
                    _logger.error("%s is not anchored: %s", log.origin, finding)
                self._not_before_s[log.run_id] = self._now_s() + _FINDING_PAUSE_S
            else:
                self._not_before_s.pop(log.run_id, None)

    def _wishes(self) -> dict[Log, Wish]:
        """Ask the policy about every log; the registry goes along with any other."""
        now_s, found = self._now_s(), {}
        for run_id, growth in growth_of(self._ledger).items():
            timing = self._timings.setdefault(run_id, Timing(self._ledger.anchoring))
            wish = timing.wish(growth, now_s)
            if wish is not Wish.NOTHING and now_s >= self._not_before_s.get(run_id, 0.0):
                found[run_id] = wish
        if found:
            found[REGISTRY] = Wish.NEWEST
        return {self._ledger.find(run_id): wish for run_id, wish in found.items()}

    def _publisher_now(self) -> Publisher:
        if self._publisher is None:
            signer = self._make_signer()
            self._publisher = Publisher(self._ledger, signer, after_mined=self._after_mined)
        return self._publisher

    def _let_go(self) -> None:
        if self._publisher is not None:
            self._publisher.close()
            self._publisher = None


_SHARED: Final[weakref.WeakKeyDictionary[Ledger, list[Follower]]] = weakref.WeakKeyDictionary()
_SHARING: Final = threading.Lock()  # owns it: for each ledger one follower, once for each user


@contextmanager
def following(ledger: object) -> Iterator[None]:
    """Anchor in the background, if the settings say when, while anybody is in such a block.

    The last one to leave waits up to `CLOSE_S` seconds for the end of its run to be anchored.
    A ledger on another machine is anchored there.
    """
    if not isinstance(ledger, Ledger):
        yield
        return
    if not (ledger.anchoring.is_automatic and ledger.chain.rpc_url):
        yield
        return
    with _SHARING:
        users = _SHARED.setdefault(ledger, [])
        users.append(users[0] if users else Follower(ledger, _signer_maker(ledger)).start())
    try:
        yield
    finally:
        with _SHARING:
            follower = users.pop()
            is_last = not users  # asked here: the next one to come starts another
        if is_last:
            follower.close()
        else:
            follower.wake()


def _signer_maker(ledger: Ledger) -> Callable[[], Signer]:
    settings, directory = ledger.anchoring, ledger.directory
    return lambda: make_signer(settings, directory)


def growth_of(ledger: Ledger) -> dict[str, Growth]:
    """Read how far each run's log has grown, and how far it was seen to be anchored."""
    anchored = select(_ANCHORS.c.log_number, func.max(_ANCHORS.c.tree_size)).where(
        _ANCHORS.c.state.in_(("mined", "safe", "finalized"))
    )
    with ledger.engine.connect() as connection:
        logs = connection.execute(select(_LOGS).where(_LOGS.c.run_id != REGISTRY)).all()
        by_log = anchored.group_by(_ANCHORS.c.log_number)
        sizes: dict[int, int] = {row[0]: row[1] for row in connection.execute(by_log)}
        marks: dict[str, dict[int, int]] = {}
        for kind in ("checkpoint.saved", "run.finished"):
            newest = newest_by_log(connection, kind)
            marks[kind] = {number: index + 1 for number, index in newest.items()}
    return {
        log.run_id: Growth(
            size=log.size,
            anchored_size=sizes.get(log.number, 0),
            checkpoint_size=marks["checkpoint.saved"].get(log.number, 0),
            end_size=marks["run.finished"].get(log.number, 0),
            is_closed=log.closed,
        )
        for log in logs
    }


def _warn_when_low(found: CostReport, least: int) -> None:
    left = found.anchors_left
    if left is not None and left < least:
        _logger.warning(
            "the publisher's account pays for about %s more anchors; send ether to it", f"{left:,}"
        )
