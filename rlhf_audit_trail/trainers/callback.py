"""The one callback: it tells a trainer's record what the trainer's events tell, and when.

It is also state: each checkpoint carries the head of the log, and a resumed training finds
it again. What is restored from a checkpoint is made anew from JSON, without its trainer, so
a callback looks its record up by the model that is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from weakref import ReferenceType, WeakKeyDictionary, ref

from torch import nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from rlhf_audit_trail.trainers.state import KnownHead
from rlhf_audit_trail.trainers.trainer_record import TrainerRecord

__all__ = ["AuditCallback", "bind", "when_built"]

_RECORDS: Final[WeakKeyDictionary[nn.Module, ReferenceType[TrainerRecord]]] = WeakKeyDictionary()

_WHEN_BUILT: Final[list[Callable[[AuditCallback], None]]] = []


def bind(model: nn.Module, record: TrainerRecord) -> None:
    """Have callbacks of this model's trainer tell `record`; whoever trains keeps it alive."""
    _RECORDS[model] = ref(record)


def when_built(attach: Callable[[AuditCallback], None]) -> None:
    """Have `attach` called while a trainer is constructed, from within its constructor."""
    _WHEN_BUILT.append(attach)


class AuditCallback(TrainerCallback, ExportableState):
    """Tells a `TrainerRecord` what happens; without one it does nothing."""

    def __init__(self) -> None:
        """Belong to nobody yet: built without arguments by `report_to` and by resuming."""
        self.head: dict[str, Any] | None = None
        self._record: TrainerRecord | None = None

    def state(self) -> dict[str, Any]:
        """Return the log's head, for the trainer's state file."""
        head = self._record.head() if self._record is not None else None
        return {"args": {}, "attributes": {"head": head.to_json() if head else self.head}}

    def on_init_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Have the trainer found that this callback was built for, where it was by name."""
        del args, state, control
        for attach in _WHEN_BUILT:
            attach(self)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        """Record what must be known before the first step."""
        del args, control
        found = _RECORDS.get(model)
        record = found() if found is not None else None
        self._record = record if record is not None and record.is_told_by(self) else None
        if self._record is None:
            return
        stored = state.stateful_callbacks.get(type(self).__name__)
        stored = stored[-1] if isinstance(stored, list) and stored else stored
        said = stored.get("attributes", {}).get("head") if isinstance(stored, dict) else None
        self._record.begin(KnownHead.parse(said) if state.global_step else None)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Record rows and update of an optimizer step, also one that a loss scaler skipped."""
        del args, state
        if self._record is not None:
            self._record.step_ended(is_logged=bool(control.should_log))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Record logged metrics, those of evaluations included."""
        del args, state, control
        if self._record is not None and logs:
            self._record.logged(dict(logs))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Record the checkpoint that was just completed."""
        del args
        if self._record is not None:
            is_last = control.should_training_stop or state.global_step >= state.max_steps
            self._record.checkpoint_complete(is_last=is_last)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Record the policy as it is now: with the best weights, if they were loaded back."""
        del args, state, control
        if self._record is not None:
            self._record.end()
