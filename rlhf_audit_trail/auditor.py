"""The facade: what a training script calls.

auditor = AuditableRLHF("gpt2", ledger="audit")
with auditor.track_training(experiment_name="helpful-1"):
    ...  # train; log_annotations, track_policy_update, checkpoint
assert auditor.verify_provenance(start_checkpoint="epoch_0", end_checkpoint="epoch_3")
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self, overload

from rlhf_audit_trail.auditor_runs import AuditorRuns, UnsupportedMode
from rlhf_audit_trail.detectors.rule import Rule
from rlhf_audit_trail.detectors.rules import DEFAULT_RULES
from rlhf_audit_trail.ledger.log import Log, Receipt
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.proof.verify import OnChain
from rlhf_audit_trail.privacy.ledger_report import privacy_report
from rlhf_audit_trail.privacy.report import PrivacyReport
from rlhf_audit_trail.record.provenance import Provenance, verify_provenance
from rlhf_audit_trail.record.recorder import CheckpointRecord, PolicyUpdate, RunRecorder
from rlhf_audit_trail.record.reward import recorded_reward

__all__ = ["AuditableRLHF", "NoLedger", "NotTracking", "UnsupportedMode", "of_environment"]


LEDGER_VARIABLE: Final = "RLHF_AUDIT_LEDGER"
_logger = logging.getLogger(__name__)


class NotTracking(AuditTrailError):
    """A call that belongs to a run was made outside `track_training`."""


class NoLedger(AuditTrailError):
    """Nothing says where the ledger is."""


class AuditableRLHF(AuditorRuns):
    """Records preference training into a ledger, and checks what was recorded.

    Safe to share between threads. Runs tracked at the same time stay separate: within
    its block each thread or task records into its own run.
    """

    @classmethod
    def from_environment(cls) -> Self:
        """Return an auditor for a training that does not make one itself.

        Of RLHF_AUDIT_LEDGER (a directory or address), RLHF_AUDIT_SOURCE (human by default),
        RLHF_AUDIT_JUDGE_MODEL and RLHF_AUDIT_MODEL; `rlhf-audit run` sets them.

        Raises:
            NoLedger: nothing says where the ledger is.
            UnknownSource, LedgerMissing: as the constructor.
        """
        ledger = os.environ.get(LEDGER_VARIABLE, "")
        if not ledger:
            raise NoLedger(
                f"a trainer should record itself, and {LEDGER_VARIABLE} is not set",
                next_step=f"set {LEDGER_VARIABLE} to the ledger's directory or address",
            )
        return cls(
            os.environ.get("RLHF_AUDIT_MODEL", "policy"),
            ledger=ledger,
            source=os.environ.get("RLHF_AUDIT_SOURCE", "human"),
            judge_model=os.environ.get("RLHF_AUDIT_JUDGE_MODEL", ""),
        )

    # --- a run ------------------------------------------------------------------------

    @contextmanager
    def track_training(
        self,
        experiment_name: str,
        *,
        config: Mapping[str, Any] | None = None,
        detectors: Iterable[Rule] = DEFAULT_RULES,
    ) -> Iterator[RunRecorder]:
        """Record a training run; the same name again resumes it.

        An exception is recorded by its type and raised again. On leaving, everything is
        durable and the tree head is signed; the run's log stays open for a later resumption.
        Where the ledger's settings say so, tree heads are anchored meanwhile, in a thread
        beside; on leaving, the last anchor is waited for, ten seconds at most.

        Args:
            experiment_name: names the run and its log: letters, digits, dots, dashes.
            config: settings to record before the first step.
            detectors: rules for drift and reward hacking, whose alerts are recorded; empty
                for none.

        Raises:
            InvalidName: the name cannot be part of a log's origin.
            RunClosed: the run was closed for good.
            LogMissing, NotPermitted, BadToken, NotAnswered: a ledger on another machine has no
                such run, does not let this writer in, or does not answer.
        """
        with self._begun(experiment_name, config, self.seed, detectors) as recorder:
            token = self._current.set(recorder)
            try:
                yield recorder
            finally:
                self._current.reset(token)

    @overload
    def run(self) -> RunRecorder: ...

    @overload
    def run(
        self, name: str, config: Mapping[str, Any] | None = None, seed: int | None = None
    ) -> RunRecorder: ...

    def run(
        self,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> RunRecorder:
        """Begin a run, or return the recorder of the one that is being tracked here.

        A run that was begun so ends with `with`, or by `finish` and `ends_with().close()`.

        Args:
            name: of the run to begin; None for the one that is being tracked.
            config: settings to record before the first step.
            seed: recorded as a commitment only; by default the auditor's.

        Raises:
            NotTracking: there is none, or several and none was begun in this thread.
            InvalidName, RunClosed, LogMissing, NotPermitted: as `track_training`.
        """
        if name is not None:
            return self._begun(name, config, self.seed if seed is None else seed)
        current = self._current.get()
        if current is not None:
            return current
        with self._lock:
            active = list(self._active)
        if len(active) == 1:  # a worker thread of the one run
            return active[0]
        which = "no run is" if not active else f"{len(active)} runs are"
        raise NotTracking(
            f"{which} being tracked here",
            next_step="call this inside `with auditor.track_training(experiment_name=...)`",
        )

    def current(self) -> RunRecorder | None:
        """Return the recorder of the run that is being tracked here, or None."""
        try:
            return self.run()
        except NotTracking:
            return None

    def lasting(self, name: str) -> RunRecorder:
        """Begin a run that ends when the process does; for trainers that nothing encloses.

        A process that an exception ends leaves the run as failed, by the exception's type.

        Raises:
            InvalidName, RunClosed, LogMissing, NotPermitted: as `track_training`.
        """
        recorder = self._begun(name, None, self.seed)

        def finish() -> None:
            error = getattr(sys, "last_value", None)
            try:
                recorder.__exit__(type(error), error, None)
            except AuditTrailError as why:  # the process ends: there is nobody to raise to
                _logger.warning("the end of %s was not recorded: %s", recorder.run_id, why)

        atexit.register(finish)
        return recorder

    def log_annotations(
        self, *, prompts: Any, responses: Any, rewards: Any, annotator_ids: Any = None
    ) -> Sequence[Receipt]:
        """Record preference values; see `RunRecorder.log_annotations`."""
        return self.run().log_annotations(
            prompts=prompts, responses=responses, rewards=rewards, annotator_ids=annotator_ids
        )

    def track_policy_update(
        self,
        *,
        model: Any,
        optimizer: Any,
        batch: Any = None,
        algorithm: str = "unknown",
        grad_norm_preclip: Any = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> PolicyUpdate:
        """Record what the optimizer did; see `RunRecorder.track_policy_update`."""
        return self.run().track_policy_update(
            model=model,
            optimizer=optimizer,
            batch=batch,
            algorithm=algorithm,
            grad_norm_preclip=grad_norm_preclip,
            metrics=metrics,
        )

    def checkpoint(
        self,
        *,
        epoch: int,
        metrics: Mapping[str, Any] | None = None,
        model: Any = None,
        path: Path | str | None = None,
        derived_from: Any = None,
        derivation: str = "training",
    ) -> CheckpointRecord:
        """Record a model checkpoint, named `epoch_<n>`; see `RunRecorder.checkpoint`."""
        return self.run().checkpoint(
            epoch=epoch,
            metrics=metrics,
            model=model,
            path=path,
            derived_from=derived_from,
            derivation=derivation,
        )

    def model(
        self, model: Any, role: str, *, derived_from: Any = None, derivation: str = "training"
    ) -> Receipt:
        """Record the digest of a model in a role; see `RunRecorder.register_model`."""
        return self.run().register_model(
            model, role, derived_from=derived_from, derivation=derivation
        )

    def reward(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a reward function, sync or async, that records what it returns.

        It keeps its name, of which trainers make a metric's key, and None stays None.
        """
        return recorded_reward(function, self.run)

    def attach(self, trainer: Any) -> Any:
        """Have a trainer of transformers or TRL record itself from now on, and return it.

        Raises:
            NotATrainer: it is something else.
        """
        from rlhf_audit_trail.trl import attach  # noqa: PLC0415 - imports transformers

        return attach(trainer, self)

    # --- afterwards -------------------------------------------------------------------

    def verify_provenance(
        self,
        *,
        start_checkpoint: str,
        end_checkpoint: str,
        experiment_name: str | None = None,
        on_chain: Iterable[OnChain] = (),
    ) -> Provenance:
        """Check a run between two checkpoints, recomputing everything from stored bytes.

        Works inside the block and after it: the run is the current one, else the last
        one tracked, else `experiment_name`.

        Raises:
            NotTracking: no run was tracked, and none is named.
            NotHere: the entries are on another machine; nothing was checked.
            UnknownCheckpoint, EmptyRange: there is nothing to check.
        """
        return verify_provenance(
            self._log(experiment_name),
            start_checkpoint=start_checkpoint,
            end_checkpoint=end_checkpoint,
            on_chain=on_chain,
        )

    def get_privacy_report(self, experiment_name: str | None = None) -> PrivacyReport:
        """Return what may be said about the privacy of a run; public view.

        The run is the current one, else the last one tracked, else `experiment_name`.

        Raises:
            NotTracking: no run was tracked, and none is named.
            NotHere: the entries are on another machine.
        """
        log = self._log(experiment_name)
        log.flush()
        return privacy_report(self.ledger, log.run_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _log(self, experiment_name: str | None) -> Log:
        if experiment_name is not None:
            return self.ledger.find(experiment_name)
        run = self._current.get() or self._last_run
        if run is None:
            raise NotTracking(
                "no run was tracked by this auditor, so there is none to check",
                next_step=f"pass experiment_name; known: {', '.join(self.ledger.runs()[-10:])}",
            )
        return run.log


@functools.cache
def of_environment() -> AuditableRLHF:
    """Return the process's one auditor as its environment describes it; raises as there."""
    return AuditableRLHF.from_environment()
