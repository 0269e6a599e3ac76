"""One run being recorded: the neutral core that the facade and every trainer call.

A recorder turns what happened into events, hands them to the run's log and returns
receipts. It decides nothing about the training and changes nothing in it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_audit_trail.capture import Movement, WrongArgument, environment, one_number, row_count
from rlhf_audit_trail.ledger.append_call import NotAnswered
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.guard import PeersUnreachable
from rlhf_audit_trail.ledger.log import Log, Receipt
from rlhf_audit_trail.ledger.progress import progress_of
from rlhf_audit_trail.ledger.remote_ledger import RemoteRun
from rlhf_audit_trail.ledger.weights import TensorRecord
from rlhf_audit_trail.run_events import (
    annotation_columns,
    check_source,
    checkpoint_event,
    config_event,
    model_event,
    rollout_event,
    sealed_event,
    update_event,
)

if TYPE_CHECKING:
    from rlhf_audit_trail.optimizer_watch import OptimizerWatch

__all__ = ["CheckpointRecord", "NoStepSeen", "PolicyUpdate", "RunRecorder"]

_logger = logging.getLogger(__name__)


class NoStepSeen(UserWarning):
    """A policy update was announced, but no optimizer step was seen since the last one."""


@dataclass(frozen=True)
class PolicyUpdate:
    """What was recorded of one policy update; figures that nobody knows are None."""

    policy_step: int
    updates: int
    delta_norm_kind: str
    parameter_delta_norm: float | None
    grad_norm_preclip: float | None
    grad_norm_applied: float | None
    learning_rate: float | None
    receipt: Receipt = field(repr=False)


@dataclass(frozen=True)
class CheckpointRecord:
    """What was recorded of a model checkpoint; the digest is hex, or None without weights."""

    name: str
    weights_digest: str | None
    receipt: Receipt = field(repr=False)


class RunRecorder:
    """Records one run; made by `AuditableRLHF.track_training`."""

    def __init__(self, log: Log | RemoteRun, *, source: str, judge_model: str = "") -> None:
        """Record into `log`; counters go on where its entries end."""
        self._log = log
        self.source = check_source(source, judge_model)
        self.judge_model = judge_model
        self.watch: OptimizerWatch | None = None
        begun = log.begun if isinstance(log, RemoteRun) else progress_of(log)
        self._size = begun.size
        self._policy_step, self._batch = begun.policy_step, begun.batch
        self._warned = False

    @property
    def log(self) -> Log:
        """The run's log.

        Raises:
            NotHere: it is on another machine, and only written from here.
        """
        if isinstance(self._log, RemoteRun):
            self._log.entries()
        return self._log

    @property
    def run_id(self) -> str:
        """Id of the run's log."""
        return self._log.run_id

    @property
    def tree_head(self) -> str:
        """Text of the newest signed tree head that is known here without asking anybody."""
        if isinstance(self._log, RemoteRun):
            return self._log.tree_head
        signed = self._log.published()
        return signed.head.text if signed else f"{self._log.origin}\n0\n"

    @property
    def policy_step(self) -> int:
        """Number of policy updates recorded so far, in this process and before it."""
        return self._policy_step

    # --- before the first step --------------------------------------------------------

    def begin(self, name: str, model_name: str, config: Mapping[str, Any], seed: Any) -> None:
        """Record start or resumption, settings and environment; the seed only sealed."""
        if self._size:
            reason = "the run was opened again under the same name"
            first = Event("run.resumed", {"tree_size": self._size, "reason": reason})
        else:
            fields = {"name": name, "model_name": model_name, "source": self.source}
            first = Event("run.started", fields)
        self._record([first, config_event(config, seed), Event("env.snapshot", environment())])

    def config(self, config: Mapping[str, Any], *, seed: Any = None) -> Receipt:
        """Record further settings, for example a trainer's; the seed only sealed."""
        return self._record([config_event(config, seed)])[0]

    def register_model(self, model: Any, role: str) -> Receipt:
        """Record the digest of a model in a role.

        Args:
            model: torch module, mapping of names to tensors, or list of tensor records.
            role: policy_init, reference, reward, value or policy_final.
        """
        return self._record([model_event(_records_of(model), role)])[0]

    # --- while training ---------------------------------------------------------------

    def log_annotations(
        self, *, prompts: Any, responses: Any, rewards: Any, annotator_ids: Any = None
    ) -> Sequence[Receipt]:
        """Record preference values, one entry each; all are checked before any is taken.

        Args:
            prompts: text per row.
            responses: text per row.
            rewards: finite number per row; a list, an array or a tensor.
            annotator_ids: who gave the value; None, or None in a row, when nobody knows.
                Ids reach no entry: a person appears as a pseudonym behind a commitment.

        Raises:
            UnequalLengths, NonFiniteValue, InvalidColumn: rows are named, nothing was recorded.
        """
        public: dict[str, Any] = {"source": self.source, "batch": self._batch + 1}
        if self.judge_model:
            public["judge_model"] = self.judge_model
        columns = annotation_columns(
            prompts=prompts,
            responses=responses,
            rewards=rewards,
            annotator_ids=annotator_ids,
            public=public,
        )
        receipts = self._log.record_columns(columns)
        self._batch += bool(receipts)
        return receipts

    def rollouts_scored(
        self,
        *,
        rewards: Any,
        kl: Any = None,
        entropy: Any = None,
        lengths: Any = None,
        rows: Sequence[Mapping[str, Any]] = (),
    ) -> Receipt:
        """Record the scores of completions; every figure and all rows are sealed.

        Args:
            rewards: number per completion.
            kl: KL divergence to the reference per completion, in nats.
            entropy: mean entropy of the policy per completion, in nats.
            lengths: live tokens per completion.
            rows: more per completion, for example its text.
        """
        means = {"kl_mean": kl, "entropy_mean": entropy, "length_mean": lengths}
        step = self._policy_step
        return self._record(
            rollout_event(policy_step=step, rewards=rewards, means=means, rows=rows)
        )[0]

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
        """Record what the optimizer did since the last call; never steps it.

        Without a step since then, `updates` is 0, the norms are absent, and one warning
        says so.

        Args:
            model: names the parameters in the sealed statistics; may be None.
            optimizer: the one that stepped, also inside a wrapper.
            batch: the rows of this update; only their number is recorded.
            algorithm: for example `ppo`.
            grad_norm_preclip: what `clip_grad_norm_` returned; the optimizer cannot know it.
            metrics: losses and the like, sealed.

        Raises:
            WrongArgument: one of them is something else; nothing was recorded.
        """
        names, norm, rows = _parameter_names(model), None, row_count(batch)
        if grad_norm_preclip is not None:
            norm = one_number("grad_norm_preclip", grad_norm_preclip)
        movement = self.watch.take(optimizer, names) if self.watch else None
        return self.policy_moved(
            movement,
            rows=rows,
            algorithm=algorithm,
            grad_norm_preclip=norm,
            metrics=metrics,
        )

    def policy_moved(
        self,
        movement: Movement | None,
        *,
        rows: int,
        algorithm: str,
        grad_norm_preclip: float | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> PolicyUpdate:
        """Record a policy update whose figures the caller measured; None if no step was seen."""
        step = self._policy_step + 1
        events = update_event(
            movement,
            policy_step=step,
            algorithm=algorithm,
            rows=rows,
            grad_norm_preclip=grad_norm_preclip,
            metrics=metrics,
        )
        receipt = self._record(events)[0]
        self._policy_step = step
        if movement is None:
            self._warn_no_step()
        elif movement.failure:
            self.alert("optimizer_watch_failed", f"figures are missing: {movement.failure}")
        return PolicyUpdate(
            policy_step=step,
            updates=movement.updates if movement else 0,
            delta_norm_kind=movement.kind if movement else "absent",
            parameter_delta_norm=movement.delta_norm if movement else None,
            grad_norm_preclip=grad_norm_preclip,
            grad_norm_applied=movement.grad_norm_applied if movement else None,
            learning_rate=movement.learning_rate if movement else None,
            receipt=receipt,
        )

    def checkpoint(
        self,
        *,
        epoch: int,
        metrics: Mapping[str, Any] | None = None,
        model: Any = None,
        path: Path | str | None = None,
    ) -> CheckpointRecord:
        """Record a model checkpoint, named `epoch_<n>`.

        Args:
            epoch: 0 or more.
            metrics: sealed, since a mean reward says something about its annotators.
            model: torch module, mapping of names to tensors, or list of tensor records;
                its weights are digested now.
            path: file or folder as saved; its digest is for transport only.
        """
        events = checkpoint_event(
            epoch=epoch,
            records=None if model is None else _records_of(model),
            metrics=metrics,
            path=None if path is None else Path(path),
            step=self._policy_step,
        )
        receipt = self._record(events)[0]
        fields = events[0].fields
        return CheckpointRecord(fields["name"], fields["weights_digest"], receipt)

    def metrics(self, step: int, metrics: Mapping[str, Any]) -> Receipt:
        """Record metrics of a step, sealed; numbers that are not finite also raise an alert."""
        events = sealed_event("metrics.logged", {"step": step}, {"metrics": metrics}, step=step)
        return self._record(events)[0]

    def alert(self, name: str, detail: str, *, severity: str = "warning") -> Receipt:
        """Record a finding that a reader must know; `detail` is public."""
        fields = {"name": name, "severity": severity, "step": self._policy_step, "detail": detail}
        return self._record([Event("alert.raised", fields)])[0]

    # --- the end ----------------------------------------------------------------------

    def finish(self, outcome: str, error: str = "") -> None:
        """Record the end, wait until all of it is durable, and sign the tree head.

        While no witness, mirror or chain answers, that is left to whoever signs next. So it is
        where the ledger is on another machine that does not answer now.

        Raises:
            AppendFailed: the store refused the last entry.
            RolledBack, Forked: a peer can prove that the store is not the newest copy.
        """
        receipt = self._record([Event("run.finished", {"outcome": outcome, "error": error})])[0]
        try:
            self._log.flush()
            receipt.result()
            self._log.publish()
        # a training must not fail over somebody else's server
        except (PeersUnreachable, NotAnswered) as unheard:
            _logger.warning("%s", unheard)

    def _record(self, events: list[Event]) -> Sequence[Receipt]:
        return self._log.record_many(events)

    def _warn_no_step(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                "no optimizer step was seen since the last policy update: norms are absent",
                NoStepSeen,
                stacklevel=5,
            )


def _parameter_names(model: Any) -> dict[int, str]:
    if model is None:
        return {}
    if not callable(getattr(model, "named_parameters", None)):
        raise WrongArgument(
            f"model is of type {type(model).__name__}, and has no named_parameters()",
            next_step="pass the torch module that is trained, or None",
        )
    return {id(parameter): name for name, parameter in model.named_parameters()}


def _records_of(model: Any) -> Sequence[TensorRecord]:
    """Return the tensor records of a model; torch is imported only for one that needs it."""
    if isinstance(model, list | tuple):
        return model
    from rlhf_audit_trail.model_weights import digest_model  # noqa: PLC0415 - takes over a second

    return digest_model(model).records
