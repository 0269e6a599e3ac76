"""The facade: what a training script calls.

auditor = AuditableRLHF("gpt2", ledger="audit")
with auditor.track_training(experiment_name="helpful-1"):
    ...  # train; log_annotations, track_policy_update, checkpoint
assert auditor.verify_provenance(start_checkpoint="epoch_0", end_checkpoint="epoch_3")
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Self

from rlhf_audit_trail.capture import WrongArgument
from rlhf_audit_trail.ledger.chain.following import following
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Ledger, Log, Receipt
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.proof.verify import OnChain
from rlhf_audit_trail.ledger.remote_ledger import RemoteLedger
from rlhf_audit_trail.privacy.config import PrivacyConfig, PrivacyError
from rlhf_audit_trail.provenance import Provenance, verify_provenance
from rlhf_audit_trail.recorder import CheckpointRecord, PolicyUpdate, RunRecorder
from rlhf_audit_trail.run_events import check_source, config_event, rehearse

__all__ = ["AuditableRLHF", "NotTracking", "UnsupportedMode"]


class NotTracking(AuditTrailError):
    """A call that belongs to a run was made outside `track_training`."""


class UnsupportedMode(PrivacyError):
    """A privacy mode promises what cannot be kept here."""


class AuditableRLHF:
    """Records preference training into a ledger, and checks what was recorded.

    Safe to share between threads. Runs tracked at the same time stay separate: within
    its block each thread or task records into its own run.
    """

    def __init__(
        self,
        model_name: str,
        *,
        ledger: Ledger | RemoteLedger | Path | str,
        token: str | None = None,
        privacy_config: PrivacyConfig | None = None,
        source: str = "human",
        judge_model: str = "",
        seed: int | None = None,
        watch_optimizers: bool = True,
    ) -> None:
        """Open the ledger.

        Args:
            model_name: of the policy, for people.
            ledger: an open one, or its directory, which is then closed by `close`. Or the
                address of `rlhf-audit serve` on another machine: https://audit.acme.example.
            token: for such an address; by default RLHF_AUDIT_WRITER_TOKEN.
            privacy_config: how annotators are protected; by default the mode moderate.
            source: who gives the preferences: human, user_interaction, ai_feedback, simulated.
            judge_model: the judging model's name and revision, for ai_feedback.
            seed: of the training; recorded as a commitment only.
            watch_optimizers: measure every torch optimizer step while training is tracked.

        Raises:
            WrongArgument: `privacy_config` is something else, or a token comes with a directory.
            UnknownSource: nobody could tell who gave the preferences.
            UnsupportedMode: the mode strong, under which no raw value may be stored.
            LedgerMissing, RolledBack, Forked: the ledger cannot be opened or trusted.
        """
        if privacy_config is not None and not isinstance(privacy_config, PrivacyConfig):
            raise WrongArgument(
                f"privacy_config is of type {type(privacy_config).__name__}",
                next_step="pass PrivacyConfig(...), for example with annotator_privacy_mode",
            )
        self.model_name = model_name
        self.privacy_config = privacy_config or PrivacyConfig()
        self.source = check_source(source, judge_model)
        self.judge_model = judge_model
        self.seed = seed
        if self.privacy_config.annotator_privacy_mode == "strong":
            raise UnsupportedMode(
                "the mode strong keeps raw values off the disk; here they would lie in the vault",
                next_step="use moderate, or privatise the values before they are logged",
            )
        self._watch_optimizers = watch_optimizers
        self._owns_ledger = not isinstance(ledger, Ledger | RemoteLedger)
        self.ledger = _opened(ledger, token)
        self._current: ContextVar[RunRecorder | None] = ContextVar("run", default=None)
        self._active: list[RunRecorder] = []  # owned by _lock
        self._lock = threading.Lock()
        self._last_run: RunRecorder | None = None

    # --- a run ------------------------------------------------------------------------

    @contextmanager
    def track_training(
        self, experiment_name: str, *, config: Mapping[str, Any] | None = None
    ) -> Iterator[RunRecorder]:
        """Record a training run; the same name again resumes it.

        An exception is recorded by its type and raised again. On leaving, everything is
        durable and the tree head is signed; the run's log stays open for a later resumption.
        Where the ledger's settings say so, tree heads are anchored meanwhile, in a thread
        beside; on leaving, the last anchor is waited for, ten seconds at most.

        Args:
            experiment_name: names the run and its log: letters, digits, dots, dashes.
            config: settings to record before the first step.

        Raises:
            InvalidName: the name cannot be part of a log's origin.
            RunClosed: the run was closed for good.
            LogMissing, NotPermitted, BadToken, NotAnswered: a ledger on another machine has no
                such run, does not let this writer in, or does not answer.
        """
        settings = {"model_name": self.model_name, **(config or {})}
        settings["privacy"] = self.privacy_config.to_public_dict()
        started = {"name": experiment_name, "model_name": self.model_name, "source": self.source}
        # opening a run announces it for ever: what would be refused is refused before
        rehearse([Event("run.started", started), config_event(settings, self.seed)])
        log = self.ledger.open_run(experiment_name)
        recorder = RunRecorder(log, source=self.source, judge_model=self.judge_model)
        recorder.begin(experiment_name, self.model_name, settings, self.seed)
        with (
            # a ledger on another machine is anchored there
            following(self.ledger) if isinstance(self.ledger, Ledger) else nullcontext(),
            self._made_current(recorder),
            self._watching(recorder),
        ):
            try:
                yield recorder
            except BaseException as error:
                _record_failure(recorder, error)
                raise
            recorder.finish("completed")

    def run(self) -> RunRecorder:
        """Return the recorder of the run that is being tracked here.

        Raises:
            NotTracking: there is none, or several and none was begun in this thread.
        """
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
    ) -> CheckpointRecord:
        """Record a model checkpoint, named `epoch_<n>`; see `RunRecorder.checkpoint`."""
        return self.run().checkpoint(epoch=epoch, metrics=metrics, model=model, path=path)

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

    def close(self) -> None:
        """Let go of the ledger, if it was opened here."""
        if self._owns_ledger:
            self.ledger.close()

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

    @contextmanager
    def _made_current(self, recorder: RunRecorder) -> Iterator[None]:
        token = self._current.set(recorder)
        with self._lock:
            self._active.append(recorder)
            self._last_run = recorder
        try:
            yield
        finally:
            self._current.reset(token)
            with self._lock:
                self._active.remove(recorder)

    @contextmanager
    def _watching(self, recorder: RunRecorder) -> Iterator[None]:
        """Keep torch's optimizer hooks installed for the block; without torch, do nothing."""
        if not self._watch_optimizers or importlib.util.find_spec("torch") is None:
            yield
            return
        from rlhf_audit_trail.optimizer_watch import OptimizerWatch  # noqa: PLC0415 - imports torch

        recorder.watch = watch = OptimizerWatch(lambda: recorder.tree_head)
        watch.install()
        try:
            yield
        finally:
            watch.remove()
            recorder.watch = None


def _record_failure(recorder: RunRecorder, error: BaseException) -> None:
    """Record how the run ended; if even that fails, the training's own error comes first."""
    try:
        # by type only: a message may hold a prompt, a path or a value
        recorder.finish("failed", type(error).__name__)
    except AuditTrailError as second:
        error.add_note(f"the end of the run could not be recorded: {second.message}")


def _opened(ledger: Ledger | RemoteLedger | Path | str, token: str | None) -> Ledger | RemoteLedger:
    if isinstance(ledger, str) and ledger.startswith(("http://", "https://")):
        return RemoteLedger(ledger, token)
    if token is not None:
        raise WrongArgument(
            "a writer token is for a ledger at an address",
            next_step='pass ledger="https://...", or leave the token out',
        )
    return ledger if isinstance(ledger, Ledger | RemoteLedger) else Ledger.open(ledger)
