"""What one trainer of transformers or TRL does, told to a run in the core's words.

The seams that see it are in `trl.py` (a generated subclass) and `trainer_callback.py`; here
is what becomes of it. Only the main process records; where there are several, all of them
take part in gathering.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import torch

from rlhf_audit_trail.capture import file_digest, row_count
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.movement.host_fetch import fetched
from rlhf_audit_trail.record.dataset_rows import DatasetRecord
from rlhf_audit_trail.record.recorder import RunRecorder
from rlhf_audit_trail.trainers.consumed_rows import LABELS, RowIndex, row_keys
from rlhf_audit_trail.trainers.rollout_batch import RolloutBatch, RolloutIndex, rollout_batch
from rlhf_audit_trail.trainers.settings import run_name, settings_of, weights_file
from rlhf_audit_trail.trainers.state import KnownHead, check_head
from rlhf_audit_trail.trainers.trained_models import TrainedModels

__all__ = ["Runs", "TrainerRecord", "run_name"]

STATE_FILE: Final = "trainer_state.json"
_OF_NO_EXAMPLE: Final = ("learning_rate", "epoch")


class Runs(Protocol):
    """What is needed of `AuditableRLHF`."""

    def current(self) -> RunRecorder | None:
        """Return the run that is being tracked, if one is."""

    def lasting(self, name: str) -> RunRecorder:
        """Begin a run that ends with the process."""


class TrainerRecord:
    """Binds one trainer to a run; owned by the thread that trains."""

    def __init__(self, trainer: Any, runs: Runs, *, delta_norm: str = "auto") -> None:
        """Record nothing before training begins.

        Args:
            trainer: of transformers, or of TRL.
            runs: an `AuditableRLHF`.
            delta_norm: auto, exact, sampled or off.
        """
        self._trainer = trainer
        self._runs = runs
        self._delta_norm = delta_norm
        self._run: RunRecorder | None = None
        self._joined: RunRecorder | None = None  # where another process records
        self._dataset: DatasetRecord | None = None
        self._index: RowIndex | None = None
        self._rollouts = RolloutIndex()
        self._batches: list[Mapping[str, Any]] = []  # of the step that is under way
        self._grad_norm: Any = None
        self._saved: Path | None = None
        self._models = TrainedModels(trainer)
        self.is_stepping = False
        self._wrap_clipping()

    @property
    def algorithm(self) -> str:
        """The trainer's kind, for example dpo."""
        for cls in type(self._trainer).__mro__:
            name = cls.__name__.removeprefix("Auditable").removesuffix("Trainer")
            if cls.__name__.endswith("Trainer") and not name.startswith("_"):
                return name.lower() or "trainer"
        return "trainer"

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that records."""
        return bool(self._trainer.is_world_process_zero())

    def is_told_by(self, callback: Any) -> bool:
        """Whether a callback is the one that tells; a trainer may have got several by name."""
        callbacks = self._trainer.callback_handler.callbacks
        return callback is next((x for x in callbacks if type(x) is type(callback)), None)

    # --- before the first step ----------------------------------------------------------

    def begin(self, head: KnownHead | None) -> None:
        """Record settings, datasets and models; look for rows by their tokens from now on.

        Args:
            head: what the checkpoint that is resumed from knew of this log; None at a start.
        """
        self._index_rows()
        run = self._begun()
        if not self.is_main:
            self._joined = run
            self._record_models(run)
            return
        self._run = run
        with run.kept_alive("run.config"):
            settings, seed = settings_of(self._trainer.args)
            config = {"trainer": self.algorithm, "arguments": settings}
            if self._private is not None:
                config["dp_sgd"] = self._private.plan.to_public_dict()
            run.config(config, seed=seed)
        with run.kept_alive("dataset.registered"):
            self._dataset = run.dataset(
                self._trainer.train_dataset,
                "train",
                self._id_column(),
                ending=self._ending(),
                decode=self._decode,
            )
        self._other_datasets(run)
        self._record_models(run)
        if run.optimizer_watch is not None and self._trainer.optimizer is not None:
            run.optimizer_watch.measure(self._trainer.optimizer, self._delta_norm)
        if head is not None:
            with run.kept_alive("alert.raised"):
                check_head(run, head)

    def _begun(self) -> RunRecorder:
        """Return the run that is tracked, or begin one; the same one in every process."""
        run, args = self._runs.current(), self._trainer.args
        if self._trainer.accelerator.num_processes == 1:
            return run or self._runs.lasting(run_name(args))
        from accelerate.utils import broadcast_object_list  # noqa: PLC0415 - only where there are several

        if run is None and self.is_main:
            run = self._runs.lasting(run_name(args))
        name = [run.run_id if run is not None else ""]
        broadcast_object_list(name)
        return run or self._runs.lasting(name[0])

    def _index_rows(self) -> None:
        """Collate the training set once, as the trainer will do."""
        loader = getattr(self._trainer.callback_handler, "train_dataloader", None)
        dataset = getattr(loader, "dataset", None)
        collate = getattr(loader, "collate_fn", None)
        if self._makes_rollouts or self._private is not None:
            return
        if collate is None or not hasattr(dataset, "__getitem__"):
            return
        try:
            self._index = RowIndex(collate, dataset)
        except Exception as error:
            run = self._runs.current() if self.is_main else None
            if run is not None and run.is_strict:
                raise
            if run is not None:
                run.alert("rows_not_indexed", f"rows are only counted: {type(error).__name__}")

    @property
    def _private(self) -> Any:
        """The trainer's private training (`private_trainers`), or None."""
        return getattr(self._trainer, "private", None)

    @property
    def _makes_rollouts(self) -> bool:
        return hasattr(self._trainer, "_generate_and_score_completions")

    def _id_column(self) -> str | None:
        names = getattr(self._trainer.train_dataset, "column_names", None) or ()
        return "audit_id" if "audit_id" in names else None

    def _ending(self) -> str:
        """Return the end token's text, which TRL appends to responses."""
        return str(getattr(self._trainer.processing_class, "eos_token", None) or "")

    def _decode(self, tokens: Sequence[int]) -> str:
        """Read a response back; TRL before 1.0 leaves a DPO dataset without its texts."""
        return str(self._trainer.processing_class.decode(tokens, skip_special_tokens=True))

    def _other_datasets(self, run: RunRecorder) -> None:
        given = self._trainer.eval_dataset
        datasets = given if isinstance(given, dict) else {"": given}
        for name, dataset in datasets.items():
            if dataset is not None:
                with run.kept_alive("dataset.registered"):
                    run.dataset(dataset, f"eval/{name}" if name else "eval")

    def _record_models(self, run: RunRecorder) -> None:
        if self._models.is_out_of_reach:
            if self.is_main:
                run.alert("weights_not_digested", "the weights are sharded over processes")
        elif self.is_main or self._models.is_spread:
            with run.kept_alive("model.registered"):
                self._models.begin(run)

    def _wrap_clipping(self) -> None:
        """Read the gradient norm before it is clipped; logs have it only now and then."""
        accelerator = self._trainer.accelerator
        inner: Callable[..., Any] = accelerator.clip_grad_norm_

        def clip(*args: Any, **named: Any) -> Any:
            self._grad_norm = inner(*args, **named)
            return self._grad_norm

        accelerator.clip_grad_norm_ = clip

    # --- while training -----------------------------------------------------------------

    def consumed(self, inputs: Any) -> None:
        """Keep what a loss is computed of until the step ends; nothing is copied or fetched."""
        if self.is_stepping and self._private is None and isinstance(inputs, Mapping):
            self._batches.append(
                {
                    name: x.detach() if isinstance(x, torch.Tensor) else x
                    for name, x in inputs.items()
                    # TRL 0.24 has labels of KTO as a list
                    if isinstance(x, torch.Tensor) or (name in LABELS and isinstance(x, list))
                }
            )

    def rollouts(self, batch: RolloutBatch, *, is_training: bool) -> None:
        """Record scored completions; every process calls it with its own part."""
        run = self._run
        if run is None:
            return
        with run.kept_alive("rollout.scored"):
            found = run.on_rollouts_scored(
                batch.prompts,
                batch.completions,
                batch.rewards,
                batch.advantages if is_training else None,
                token_ids=batch.token_ids,
                finish_reasons=batch.finish_reasons,
                kl=batch.kl,
                weights=batch.weights,
                trainer_step=self._trainer.state.global_step,
                purpose="" if is_training else "evaluation",
            )
            if is_training:
                self._rollouts.add(found.rows_root, batch.keys)

    def generated(self, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Have the trainer generate and score, and record it: for training, or to evaluate."""
        is_training = bool(self._trainer.model.training)
        run = self._run or self._joined
        if run is not None:
            run.reward_calls = []
        try:
            output = make()
            calls = list(run.reward_calls or ()) if run is not None else []
        finally:
            if run is not None:
                run.reward_calls = None
        if run is not None or self._trainer.accelerator.num_processes > 1:
            batch = rollout_batch(self._trainer, output, calls, is_training=is_training)
            self.rollouts(batch, is_training=is_training)
        return output

    def step_ended(self, *, is_logged: bool = False) -> None:
        """Record the rows and the update of one optimizer step.

        Args:
            is_logged: whether the step's metrics come next; then one group holds them all.
        """
        (batches, self._batches), (norm, self._grad_norm) = (self._batches, []), (
            self._grad_norm, None,
        )  # fmt: skip
        run, trainer = self._run or self._joined, self._trainer
        if run is None:
            return
        pending = None
        with run.kept_alive("policy.update"):
            pending = run.close_window(trainer.model, trainer.optimizer)
        figures = pending.tensors if pending is not None else ()
        columns = [x for batch in batches for x in batch.values()]
        host = fetched([norm, *figures, *columns])  # the only wait for the device
        norm, figures, values = host[0], host[1 : 1 + len(figures)], iter(host[1 + len(figures) :])
        batches = [{name: next(values) for name in batch} for batch in batches]
        rows = self._gathered([row for batch in batches for row in self._rows(batch)])
        movement = pending.finish(figures) if pending is not None else None
        if self._run is None:  # another process records, and has got this one's rows
            run.policy_moved(movement, rows=0, algorithm=self.algorithm)
            return
        events: list[Event] = []
        step = trainer.state.global_step
        dp, manifest = self._private.last_step() if self._private is not None else (None, None)
        with run.kept_alive("batch.consumed"):
            if dp is not None:
                pass  # how many rows a private batch has tells of its members
            elif self._makes_rollouts:
                links = [self._rollouts.find(key) for key in rows]
                events += run.consumed_events(step, (), completions=links)
            else:
                events += run.consumed_events(step, rows, dataset=self._dataset)
        if norm is None and movement is not None and not trainer.args.max_grad_norm:
            norm = movement.grad_norm_applied  # nothing was clipped
        with run.kept_alive("policy.update"):
            events += run.update_events(
                movement,
                rows=len(rows),
                algorithm=self.algorithm,
                grad_norm_preclip=None if norm is None else float(norm),
                trainer_step=step,
                dp=dp,
                manifest=manifest,
            )
        with run.kept_alive("batch.consumed, policy.update"):
            run.step_taken(events, is_logged=is_logged)

    def logged(self, logs: Mapping[str, Any]) -> None:
        """Record what the trainer logs."""
        if self._private is not None:  # losses are read off single examples, without noise
            logs = {name: value for name, value in logs.items() if name in _OF_NO_EXAMPLE}
        if self._run is not None:
            with self._run.kept_alive("metrics.logged"):
                self._run.metrics(self._trainer.state.global_step, logs)

    def _rows(self, batch: Mapping[str, Any]) -> list[Any]:
        """Return row numbers; of rollouts keys, for only the recording process knows the rest."""
        if self._makes_rollouts:
            return row_keys(batch)
        if self._index is None:
            return [None] * row_count(batch)
        return self._index.find(batch)

    def _gathered(self, values: list[Any]) -> list[Any]:
        if self._trainer.accelerator.num_processes == 1:
            return values
        from accelerate.utils import gather_object  # noqa: PLC0415 - only where there are several

        found: list[Any] = gather_object(values)
        return found

    # --- checkpoints and the end --------------------------------------------------------

    def saved(self, folder: str, *, is_internal: bool) -> None:
        """Take the weights as they were saved; one that is to be resumed from follows later."""
        self._saved = Path(folder)
        run = self._taking_part
        if run is not None and not is_internal:
            with run.kept_alive("checkpoint.saved"):
                self._checkpoint(run, "use")

    def checkpoint_complete(self, *, is_last: bool) -> None:
        """Record the checkpoint whose folder is whole now, the trainer's state included.

        Args:
            is_last: of this training; the best weights may be loaded over these ones at once.
        """
        run = self._taking_part
        if run is not None and self._saved is not None:
            with run.kept_alive("checkpoint.saved"):
                self._checkpoint(run, "resume", wait=is_last)

    @property
    def _taking_part(self) -> RunRecorder | None:
        """The run that a checkpoint is told to: of each process where each holds a part."""
        return self._run or (self._joined if self._models.is_spread else None)

    def _checkpoint(self, run: RunRecorder, saved_for: str, *, wait: bool = False) -> None:
        saved, self._saved = self._saved, None
        if saved is None:
            return
        state, folder = self._trainer.state, saved
        more: dict[str, Any] = {"saved_for": saved_for, "trainer_step": state.global_step}
        state_file = folder / STATE_FILE
        is_there = run.is_main and state_file.is_file()  # rotation may have been faster
        if saved_for == "resume" and is_there:
            more["trainer_state_digest"] = file_digest(state_file)
        run.checkpoint(
            epoch=int(state.epoch or 0),
            model=None if self._models.is_out_of_reach else self._models.saved(),
            path=folder if saved_for == "resume" else weights_file(folder),
            wait=wait,
            name=folder.name if saved_for == "resume" else f"saved-{state.global_step}",
            derived_from=self._models.made_from,
            derivation=self._models.how,
            more=more,
        )
        if saved_for == "use" and not self._trainer.is_in_train and run.is_main:
            run.sign()  # after training nothing else would

    def head(self) -> KnownHead | None:
        """Return how far the log is durable, for the trainer's state."""
        found: KnownHead | None = None
        if self._run is not None:
            with self._run.kept_alive("log head"):
                found = KnownHead.of(self._run)
        return found

    def end(self) -> None:
        """Record the policy as training left it, and sign what there is."""
        run = self._taking_part
        if run is None:
            return
        if not self._models.is_out_of_reach:
            with run.kept_alive("model.registered"):
                report = None if self._private is None else self._private.report()
                self._models.end(run, dp=None if report is None else report.to_public_dict())
        if run.is_main:
            with run.kept_alive("signature"):
                run.sign()
