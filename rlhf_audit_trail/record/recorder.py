"""One run being recorded: the neutral core that the facade and every trainer call.

A recorder turns what happened into events, hands them to the run's log and returns
receipts. It decides nothing about the training and changes nothing in it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import Any

from rlhf_audit_trail.derivation import derivation_fields
from rlhf_audit_trail.ledger.budgets import Budgets
from rlhf_audit_trail.ledger.correcting import correct
from rlhf_audit_trail.ledger.drafts import EventColumns
from rlhf_audit_trail.ledger.log import Ledger, Log, Receipt
from rlhf_audit_trail.ledger.weights.digest import TensorRecord
from rlhf_audit_trail.privacy.config import PrivacyConfig
from rlhf_audit_trail.privacy.errors import NotChargedHere, RawValueRefused
from rlhf_audit_trail.privacy.labels import RunLabels, is_per_label
from rlhf_audit_trail.privacy.recorded_settings import RAW_FIELDS
from rlhf_audit_trail.privacy.releases import RunPrivacy
from rlhf_audit_trail.ranks.log import elsewhere
from rlhf_audit_trail.record.updates import NoStepSeen, PolicyUpdate, RunUpdates
from rlhf_audit_trail.run_events import (
    annotation_columns,
    model_event,
)
from rlhf_audit_trail.weights.checkpointing import CheckpointRecord, Checkpoints, WeightKeeping

__all__ = ["CheckpointRecord", "NoStepSeen", "PolicyUpdate", "RunRecorder"]


class RunRecorder(RunUpdates):
    """Records one run; made by `AuditableRLHF.run` and `AuditableRLHF.track_training`.

    As a context manager it ends the run: completed, or failed by an exception's type.
    """

    # --- before the first step --------------------------------------------------------

    def register_model(
        self,
        model: Any,
        role: str,
        *,
        derived_from: Any = None,
        derivation: str = "training",
        dp: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Record the digest of a model in a role.

        Where the model lies in parts on several processes, each of them must call it.

        Args:
            model: torch module, mapping of names to tensors, or list of tensor records.
            role: base, policy_init, reference, reward, value or policy_final.
            derived_from: what it was made from: a name, a `MadeFrom`, what `checkpoint` returned,
                or several of these; public.
            derivation: how: copy, training, adapter, merge, quantisation, cast, pruning,
                distillation, other.
            dp: what a private training may say of it; public.

        Raises:
            WrongArgument, InvalidColumn: `derived_from` or `derivation` says nothing that is known.
        """
        more = derivation_fields(derived_from, derivation)
        if dp is not None:
            more = {**more, "dp": dict(dp)}
        return self._record([model_event(_records_of(self._whole(model)), role, more)])[0]

    model = register_model  # the short name, beside `dataset`

    # --- statistics about annotators ----------------------------------------------------

    def protect(self, config: PrivacyConfig, ledger: Ledger | None) -> None:
        """Record and release under these settings; None if the ledger is on another machine."""
        self._config, self._privacy, self._labels = config, None, None
        if ledger is not None and isinstance(self._log, Log):
            budgets = Budgets(ledger.engine)
            self._privacy = RunPrivacy(self._log, config, budgets, ledger.chain)
            if is_per_label(config):
                self._labels = RunLabels(self._log, config, budgets)

    @property
    def privacy(self) -> RunPrivacy:
        """What may be released about annotators: rounds, coins, noised statistics.

        Raises:
            NotChargedHere: budgets are charged where the ledger is, by the recording process.
        """
        if self._privacy is None:
            raise _not_charged("release statistics")
        return self._privacy

    _config: PrivacyConfig | None = None
    _privacy: RunPrivacy | None = None
    _labels: RunLabels | None = None

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

        Under the mode strong, and with `release_values`, each value is charged to its annotator
        and privatised, and the call waits until that is durable; it returns `Labels`, whose
        `rewards` are what to train on. Rows that are logged again are charged again. Under strong
        the given values are kept nowhere.

        Raises:
            UnequalLengths, NonFiniteValue, InvalidColumn: rows are named, nothing was recorded.
            BudgetExhausted, UnattributedLabel, InvalidDelta: of labels; nothing was recorded.
            LabelsLost: they were charged, and nothing came out.
            NotChargedHere: labels are charged by another process.
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
        receipts = self._recorded(columns)
        self._batch += bool(receipts)
        self._annotated.remember(columns.sealed["prompt"], columns.sealed["response"], receipts)
        return receipts

    def _recorded(self, columns: EventColumns) -> Sequence[Receipt]:
        if self._config is None or not is_per_label(self._config):
            return self._log.record_columns(columns)
        if self._labels is None:
            raise _not_charged("log annotations")
        if self._held:  # what was recorded before stands before
            self._record([])
        return self._labels.record(columns)

    def correct_annotation(
        self, leaf_index: int, *, annotator_id: str = "", reason: str = "", **values: Any
    ) -> Receipt:
        """Record values that replace those of an earlier annotation; both stay provable.

        Args:
            leaf_index: of the annotation, as its receipt gave it.
            annotator_id: who made it; empty where nobody knew.
            reason: why, in words: public, and about nobody.
            values: sealed fields of the annotation that change, for example `reward`.

        Raises:
            NotCorrectable: it is no annotation of this person, or has no such fields.
            Erased: its values were erased.
            NotHere: the ledger is on another machine.
            RawValueRefused: under the mode strong it would store a raw value.
        """
        is_strong = self._config is not None and self._config.annotator_privacy_mode == "strong"
        if is_strong and values.keys() & RAW_FIELDS:
            raise RawValueRefused(
                "a correction would keep a raw value, which the mode strong keeps off the disk",
                next_step="log the annotation again, which charges another label",
            )
        log = self.log
        return correct(
            log, leaf_index, values, subject=annotator_id, source=self.source, reason=reason
        )

    def checkpoint(
        self,
        *,
        epoch: int,
        metrics: Mapping[str, Any] | None = None,
        model: Any = None,
        path: Path | str | None = None,
        wait: bool | None = None,
        name: str | None = None,
        derived_from: Any = None,
        derivation: str = "training",
        more: Mapping[str, Any] | None = None,
    ) -> CheckpointRecord:
        """Record a model checkpoint, named `epoch_<n>` unless it has another name.

        Where the model lies in parts on several processes, each of them must call it.

        Args:
            epoch: 0 or more.
            metrics: sealed, since a mean reward says something about its annotators.
            model: torch module, mapping of names to tensors, or list of tensor records; its
                weights are digested as they are now, and stored where the run stores weights.
            path: file or folder as saved; its digest is for transport only.
            wait: False returns at once, and the next step of any torch optimizer waits until
                the weights were copied; by default so where the run stores weights.
            name: of the checkpoint, for example its folder's.
            derived_from: what it was made from, and
            derivation: how, for example cast or merge; as `register_model` takes them.
            more: further public fields: saved_for, trainer_step, trainer_state_digest.

        Raises:
            OSError: `path` cannot be read.
            WrongArgument, InvalidColumn: as `register_model`.
            NotWeights, UnknownDtype: `model` is none, or has a type without a byte format.
            AuditTrailError: this one could not be recorded or, under the strict policy, the
                one before.
        """
        made, aliases = derivation_fields(derived_from, derivation), self._aliases(model)
        model = self._whole(model)
        if not self.is_main:
            return _left_to_main(name or f"epoch_{epoch}")
        if self.optimizer_watch is not None:
            self.optimizer_watch.compare_next()
        return self._checkpoints.save(
            epoch=epoch,
            metrics=metrics,
            model=model,
            path=None if path is None else Path(path),
            wait=self._checkpoints.keeping is None if wait is None else wait,
            name=name,
            aliases=aliases,
            more={**(more or {}), **made},
        )

    def _aliases(self, model: Any) -> Mapping[str, str]:
        """Return further names of tied tensors that lie in parts; others tell theirs themselves."""
        if isinstance(model, list | tuple) or "torch" not in sys.modules or not self.is_main:
            return {}
        from rlhf_audit_trail.movement import sharding  # noqa: PLC0415 - imports torch

        model = sharding.bare(model)
        return sharding.aliases(model) if sharding.is_sharded(model) else {}

    def _whole(self, model: Any) -> Any:
        """Return a model out of its wrappers, put together where it lies in parts.

        Nothing for a process that does not record.
        """
        if isinstance(model, list | tuple) or "torch" not in sys.modules:
            return model
        from rlhf_audit_trail.movement import sharding  # noqa: PLC0415 - imports torch

        model = sharding.bare(model)
        if model is None or not sharding.is_sharded(model):
            return model if self.is_main else []
        if self._checkpoints.keeping is None:
            return sharding.whole_records(model, is_main=self.is_main)
        whole = sharding.whole_tensors(model)
        return {name: tensor.cpu() for name, tensor in whole if self.is_main}

    def keep_weights(self, keeping: WeightKeeping) -> None:
        """Store the weights of checkpoints from now on."""
        self._checkpoints.keeping = keeping

    def awaits(self, outcome: Future[Any]) -> None:
        """Have the run's end, and its next signature, wait for what becomes a checkpoint."""
        self._checkpoints.await_too(outcome)

    def fails_with(self, error: BaseException) -> None:
        """Have the next checkpoint, signature or the run's end raise an error of another thread."""
        self._checkpoints.failed(error)

    def sign(self) -> None:
        """Wait for the last checkpoint, then as `RunLog.sign`."""
        self._checkpoints.settle()
        super().sign()

    def finish(self, outcome: str, error: str = "") -> None:
        """Wait for the last checkpoint, then as `RunLog.finish`."""
        try:
            self._checkpoints.settle()
        finally:
            super().finish(outcome, error)

    @cached_property
    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self, self._record, self._blobs)


def _not_charged(what: str) -> NotChargedHere:
    return NotChargedHere(
        "this process cannot charge budgets: the ledger is not here, or not its to write",
        next_step=f"{what} on the ledger's machine: AuditableRLHF(..., ledger=DIRECTORY), in the "
        "process of rank 0",
    )


def _left_to_main(name: str) -> CheckpointRecord:
    """Return a checkpoint that another process records."""
    outcome: Future[tuple[str | None, Receipt]] = Future()
    outcome.set_exception(elsewhere("the entry of a checkpoint"))
    return CheckpointRecord(name, outcome)


def _records_of(model: Any) -> Sequence[TensorRecord]:
    """Return the tensor records of a model; torch is imported only for one that needs it."""
    if isinstance(model, list | tuple):
        return model
    from rlhf_audit_trail.weights.model_weights import digest_model  # noqa: PLC0415 - takes over a second

    return digest_model(model).records
