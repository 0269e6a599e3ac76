"""Trainers of TRL and transformers that record themselves.

    trainer = auditor.attach(GRPOTrainer(...))             # one made already
    trainer = AuditableDPOTrainer(..., auditor=auditor)    # or one that is made so
    GRPOConfig(..., report_to="rlhf_audit")                # or by name, after importing this

One path for all: a subclass generated from the trainer's own class overrides four methods
that transformers and TRL keep stable, and `attach` makes a trainer an instance of it. Nothing
of TRL is replaced; the trainer computes what it would have computed.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any, Final

from transformers import Trainer
from transformers.integrations import integration_utils

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.trainers.callback import AuditCallback, bind, when_built
from rlhf_audit_trail.trainers.trainer_record import Runs, TrainerRecord

__all__ = [
    "REPORT_TO",
    "AuditCallback",
    "NoTRL",
    "NotATrainer",
    "attach",
    "attach_builder",
    "auditable",
]

REPORT_TO: Final = "rlhf_audit"
_FRAMES_MAX: Final = 12
_READY: Final = ("DPO", "GRPO", "RLOO", "KTO", "Reward", "SFT")


class NotATrainer(AuditTrailError):
    """What should record itself is no trainer of transformers."""


class NoTRL(AuditTrailError):
    """TRL is not installed, or has no such trainer."""


class _Audited:
    """What a generated class adds: the four seams. Never used alone."""

    _audit_record: TrainerRecord | None = None

    def __init__(
        self, *args: Any, auditor: Any = None, tokenizer: Any = None, **named: Any
    ) -> None:
        """Take what the trainer takes, and `auditor`; `tokenizer` stands for processing_class."""
        if tokenizer is not None:
            named.setdefault("processing_class", tokenizer)
        super().__init__(*args, **named)
        if auditor is not None:
            attach(self, auditor)

    def training_step(self, *args: Any, **named: Any) -> Any:
        """Compute one step; what its loss reads was trained on, and nothing else was."""
        record = self._audit_record
        if record is None:
            return super().training_step(*args, **named)  # type: ignore[misc]
        record.is_stepping = True
        try:
            return super().training_step(*args, **named)  # type: ignore[misc]
        finally:
            record.is_stepping = False

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **named: Any) -> Any:
        """Compute the loss; its inputs are kept until the step ends."""
        if self._audit_record is not None:
            self._audit_record.consumed(inputs)
        return super().compute_loss(model, inputs, *args, **named)  # type: ignore[misc]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:  # noqa: FBT001, FBT002 - transformers' own signature
        """Save; a call after training fires no event, and is seen here."""
        super().save_model(output_dir, _internal_call)  # type: ignore[misc]
        if self._audit_record is not None:
            folder = output_dir or self.args.output_dir  # type: ignore[attr-defined]
            self._audit_record.saved(folder, is_internal=_internal_call)


class _Generating(_Audited):
    """The same for a trainer whose policy makes its own data."""

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        record = self._audit_record
        make: Callable[[Any], Any] = super()._generate_and_score_completions  # type: ignore[misc]
        return make(inputs) if record is None else record.generated(lambda: make(inputs))


@functools.cache
def auditable(cls: type[Any]) -> type[Any]:
    """Return a subclass of a trainer's class that takes `auditor=` and records itself.

    Raises:
        NotATrainer: the class is no trainer of transformers.
    """
    if not issubclass(cls, Trainer):
        raise NotATrainer(
            f"{cls.__name__} is no trainer of transformers",
            next_step="pass a class that inherits from transformers.Trainer",
        )
    if issubclass(cls, _Audited):
        return cls
    seams = _Generating if hasattr(cls, "_generate_and_score_completions") else _Audited
    made: type[Any] = type(
        f"Auditable{cls.__name__}", (seams, cls), {"__module__": __name__, "__doc__": cls.__doc__}
    )
    return made


def attach(trainer: Any, auditor: Runs, *, delta_norm: str = "auto") -> Any:
    """Have a trainer record itself into the auditor's run from now on, and return it.

    Where no run is being tracked when training begins, one is begun under the trainer's run
    name, which ends with the process.

    Args:
        trainer: of transformers or TRL, before `train` is called.
        auditor: an `AuditableRLHF`.
        delta_norm: auto, exact, sampled or off: how far weights moved, see `OptimizerWatch`.

    Raises:
        NotATrainer: it is something else.
    """
    is_trainer = isinstance(trainer, Trainer)
    if not is_trainer:
        raise NotATrainer(
            f"a {type(trainer).__name__} is no trainer of transformers",
            next_step="in loops of your own, use `track_training` and `watch`",
        )
    if getattr(trainer, "_audit_record", None) is None:
        cls: Any = type(trainer)
        trainer.__class__ = auditable(cls)
        trainer._audit_record = TrainerRecord(trainer, auditor, delta_norm=delta_norm)  # noqa: SLF001 - ours
        bind(trainer.model, trainer._audit_record)  # noqa: SLF001 - ours
        callbacks = trainer.callback_handler.callbacks
        if not any(isinstance(callback, AuditCallback) for callback in callbacks):
            trainer.add_callback(AuditCallback())
            # one that comes late is unknown to the state that checkpoints are saved with
            state: dict[str, Any] = trainer.state.stateful_callbacks
            state.setdefault(AuditCallback.__name__, {"args": {}, "attributes": {"head": None}})
    return trainer


def attach_builder(callback: AuditCallback) -> None:
    """Attach the trainer whose construction has just built `callback` by its name.

    Events do not name their trainer, and a callback built by name gets no arguments; so the
    trainer is found where it calls from. One that was attached otherwise is left alone.

    Raises:
        NoLedger: the environment does not say where the ledger is.
    """
    frame = sys._getframe(1)  # noqa: SLF001 - there is no other way to the caller
    for _ in range(_FRAMES_MAX):
        trainer = frame.f_locals.get("self")
        if isinstance(trainer, Trainer) and callback in trainer.callback_handler.callbacks:
            if getattr(trainer, "_audit_record", None) is None and _is_unclaimed(frame, trainer):
                attach(trainer, _auditor_of_environment())
            return
        if frame.f_back is None:
            return
        frame = frame.f_back


def _is_unclaimed(frame: Any, trainer: Any) -> bool:
    """Whether no `auditor=` was passed to the constructor that is under way."""
    while frame is not None and frame.f_locals.get("self") is trainer:
        if frame.f_locals.get("auditor") is not None:
            return False
        frame = frame.f_back
    return True


def _auditor_of_environment() -> Any:
    """Return the process's one auditor, as the environment describes it."""
    # the facade stands above this module, and attaches by it: it is looked up by its name
    facade = importlib.import_module("rlhf_audit_trail.auditor")
    return facade.of_environment()


def __getattr__(name: str) -> Any:
    """Make AuditableDPOTrainer and its kin when they are asked for: importing TRL takes seconds."""
    kind = name.removeprefix("Auditable").removesuffix("Trainer")
    if name != f"Auditable{kind}Trainer" or kind not in _READY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import trl  # noqa: PLC0415 - see above

        cls = getattr(trl, f"{kind}Trainer")
    except (ImportError, AttributeError) as error:
        raise NoTRL(
            f"there is no trl.{kind}Trainer here", next_step="pip install 'rlhf-audit-trail[trl]'"
        ) from error
    return auditable(cls)


integration_utils.INTEGRATION_TO_CALLBACK.setdefault(REPORT_TO, AuditCallback)
when_built(attach_builder)
