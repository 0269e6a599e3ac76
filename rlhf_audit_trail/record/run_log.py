"""What every part of a recorder needs: the run's log, its counters, and its two ends."""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Self

from rlhf_audit_trail.capture import environment
from rlhf_audit_trail.detectors.watching import Detectors
from rlhf_audit_trail.ledger.append_call import NotAnswered
from rlhf_audit_trail.ledger.blobs import BlobStore
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.guard import PeersUnreachable
from rlhf_audit_trail.ledger.log import Log, Receipt
from rlhf_audit_trail.ledger.progress import progress_of
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.remote_ledger import RemoteRun
from rlhf_audit_trail.ranks.listener import RankListener
from rlhf_audit_trail.ranks.log import RankLog
from rlhf_audit_trail.ranks.processes import Place
from rlhf_audit_trail.record.project_code import listing
from rlhf_audit_trail.run_events import check_source, config_event, sealed_event

if TYPE_CHECKING:
    from rlhf_audit_trail.movement.optimizer_watch import OptimizerWatch

__all__ = ["RunLog"]

_logger = logging.getLogger(__name__)


class RunLog:
    """The log of one run, as a recorder writes to it; safe to share between threads."""

    def __init__(
        self,
        log: Log | RemoteRun | RankLog,
        *,
        source: str,
        judge_model: str = "",
        blobs: BlobStore | None = None,
        detectors: Detectors | None = None,
    ) -> None:
        """Record into `log`; counters go on where its entries end.

        Args:
            log: of the run.
            source: who gives the preferences.
            judge_model: the judging model, for ai_feedback.
            blobs: where large tables go; None keeps all of them with their entry.
            detectors: of drift and reward hacking; None for the usual ones.
        """
        self._log = log
        self._blobs = blobs
        self._detectors = detectors or Detectors()
        self.source = check_source(source, judge_model)
        self.judge_model = judge_model
        self.optimizer_watch: OptimizerWatch | None = None
        begun = progress_of(log) if isinstance(log, Log) else log.begun
        self._size = begun.size
        self._policy_step, self._batch = begun.policy_step, begun.batch
        self._closing = ExitStack()  # what ends with the run
        self._held: deque[Event] = deque()  # recorded with whatever comes next
        self._is_finished = False
        self._sources_digest = ""  # of the code that was imported when the run began
        self.is_ending = False
        self._ranks: RankListener | None = None

    @property
    def log(self) -> Log:
        """The run's log.

        Raises:
            NotHere: it is on another machine, and only written from here; or another process
                of this training writes it.
        """
        if not isinstance(self._log, Log):
            self._log.entries()
        return self._log

    @property
    def is_main(self) -> bool:
        """Whether this process is the one of its training that records."""
        return not isinstance(self._log, RankLog)

    @property
    def run_id(self) -> str:
        """Id of the run's log."""
        return self._log.run_id

    def all_here(self) -> bool:
        """Whether all processes of this training take part in the run; waits for the last."""
        if isinstance(self._log, RankLog):
            return self._log.all_here()
        return self._ranks is not None and self._ranks.all_here()

    @property
    def is_strict(self) -> bool:
        """Whether losing an entry ends the training."""
        return self._log.is_strict

    @property
    def is_resumed(self) -> bool:
        """Whether the run had entries before this process began."""
        return self._size > 0

    @property
    def tree_head(self) -> str:
        """Text of the newest signed tree head that is known here without asking anybody."""
        if not isinstance(self._log, Log):
            return self._log.tree_head
        signed = self._log.published()
        return signed.head.text if signed else f"{self._log.origin}\n0\n"

    @property
    def policy_step(self) -> int:
        """Number of policy updates recorded so far, in this process and before it."""
        return self._policy_step

    # --- before the first step --------------------------------------------------------

    def listen(self, place: Place) -> None:
        """Record what the other processes of this training tell, until the run ends."""
        self._ranks = RankListener(
            self.run_id,
            place.size,
            record=lambda events: self._detectors.record(self._log, events),
            lose=self.gap,
            flush=self._log.flush,
            policy_step=lambda: self._policy_step,
        )
        self._closing.callback(self._ranks.close)

    def begin(self, name: str, model_name: str, config: Mapping[str, Any], seed: Any) -> None:
        """Record start or resumption, settings and environment; the seed only sealed."""
        rules = [rule.to_dict() for rule in self._detectors.rules]
        config = {**config, "detectors": rules}  # with them anyone can tell what was watched for
        if self._size:
            reason = "the run was opened again under the same name"
            first = Event("run.resumed", {"tree_size": self._size, "reason": reason})
        else:
            fields = {"name": name, "model_name": model_name, "source": self.source}
            first = Event("run.started", fields)
        self._record([first, config_event(config, seed), self._environment()])

    def _environment(self) -> Event:
        """Return versions, and digests of the code that is imported now."""
        fields, sources = environment(), listing()
        if sources:
            # the list, not the code: who has the code can tell that it was this one
            digest = (
                self._blobs.put(sources) if self._blobs else hashlib.sha256(sources).hexdigest()
            )
            self._sources_digest = digest
            fields |= {"sources": sources.count(b"\n"), "sources_digest": digest}
        return Event("env.snapshot", fields)

    def _late_code(self) -> list[Event]:
        """Return the environment again if code was imported since it was recorded."""
        sources = listing() if self.is_main and self._sources_digest else b""
        is_known = hashlib.sha256(sources).hexdigest() == self._sources_digest
        return [] if not sources or is_known else [self._environment()]

    def config(self, config: Mapping[str, Any], *, seed: Any = None) -> Receipt:
        """Record further settings, for example a trainer's; the seed only sealed."""
        return self._record([config_event(config, seed)])[0]

    # --- at any time --------------------------------------------------------------------

    def metrics(self, step: int, metrics: Mapping[str, Any]) -> Receipt:
        """Record metrics of a step, sealed; numbers that are not finite also raise an alert."""
        events = sealed_event("metrics.logged", {"step": step}, {"metrics": metrics}, step=step)
        return self._record(events)[0]

    def hold(self, events: Iterable[Event]) -> None:
        """Record events together with those that come next, which is known to be at once.

        One group costs a fraction of several. Whatever is recorded next, signing and the end of
        the run included, takes them along in this order.
        """
        self._held.extend(events)

    def alert(self, name: str, detail: str, *, severity: str = "warning") -> Receipt:
        """Record a finding that a reader must know; `detail` is public."""
        fields = {"name": name, "severity": severity, "step": self._policy_step, "detail": detail}
        return self._record([Event("alert.raised", fields)])[0]

    def gap(self, count: int, reason: str) -> None:
        """Declare that so many events were observed and could not be recorded.

        A `gap` event tells it before the next entry, as soon as the store takes entries.
        """
        self._log.lose(count, reason)

    @contextmanager
    def kept_alive(self, what: str) -> Iterator[None]:
        """Keep a failure to record out of the training, unless the ledger is strict.

        What failed is logged by its type and counted as a gap of one event.

        Args:
            what: was to be recorded, for the gap; public.

        Raises:
            Exception: whatever the block raised, where the ledger's `on_loss` is strict.
        """
        try:
            yield
        except Exception as error:
            if self.is_strict:
                raise
            _logger.warning("%s: %s was not recorded: %s", self.run_id, what, error)
            self.gap(1, f"{what} could not be recorded: {type(error).__name__}")

    # --- the end ----------------------------------------------------------------------

    def sign(self) -> None:
        """Wait until all is durable and sign the tree head.

        While no witness, mirror or chain answers, that is left to whoever signs next. So it is
        where the ledger is on another machine that does not answer now.

        Raises:
            AppendFailed: under the strict policy, entries were lost.
            RolledBack, Forked: a peer can prove that the store is not the newest copy.
        """
        if self._held:
            self._record([])
        try:
            self._log.flush()
            self._log.publish()
        # a training must not fail over somebody else's server
        except (PeersUnreachable, NotAnswered) as unheard:
            _logger.warning("%s", unheard)

    def finish(self, outcome: str, error: str = "") -> None:
        """Record the end, wait until all of it is durable, and sign the tree head.

        Where a training has several processes, the others are waited for; it has failed if one
        of them did.

        Raises:
            AppendFailed: the store refused the last entry.
            RolledBack, Forked: as `sign`.
        """
        self.is_ending = True
        if self._ranks is not None:
            outcome, error = self._ranks.settled(outcome, error)
        last = Event("run.finished", {"outcome": outcome, "error": error})
        receipt = self._record([*self._late_code(), last])[-1]
        self._is_finished = True
        if not self.is_main:
            return
        try:
            self._log.flush()
            receipt.result()
            self._log.publish()
        except (PeersUnreachable, NotAnswered) as unheard:
            _logger.warning("%s", unheard)

    def ends_with(self) -> ExitStack:
        """Return what is left when the run ends here."""
        return self._closing

    def fail(self, error: BaseException) -> None:
        """Record how the run ended; if even that fails, the training's own error comes first."""
        try:
            # by type only: a message may hold a prompt, a path or a value
            self.finish("failed", type(error).__name__)
        except AuditTrailError as second:
            error.add_note(f"the end of the run could not be recorded: {second.message}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.is_ending = True
        try:
            if error is not None:
                self.fail(error)
            elif not self._is_finished:
                self.finish("completed")
        finally:
            self._closing.close()

    def _record(self, events: list[Event]) -> Sequence[Receipt]:
        held: list[Event] = []
        while self._held:
            held.append(self._held.popleft())
        if self._ranks is not None:
            self._ranks.count(held + events)
        try:
            return self._detectors.record(self._log, held + events)[len(held) :]
        except Exception as error:
            if held:
                self.gap(
                    len(held), f"not taken together with what followed: {type(error).__name__}"
                )
            raise
