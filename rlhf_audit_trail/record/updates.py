"""What optimizers did to a policy, recorded: by themselves, or when the training says so."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlhf_audit_trail.capture import Movement, WrongArgument, one_number, row_count
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Receipt
from rlhf_audit_trail.record.run_data import RunData
from rlhf_audit_trail.run_events import update_event

if TYPE_CHECKING:
    from rlhf_audit_trail.movement.movement_window import Pending

__all__ = ["NoStepSeen", "PolicyUpdate", "RunUpdates"]


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


class RunUpdates(RunData):
    """The part of a run's recorder that is about policy updates."""

    _warned = False

    def watch(
        self,
        model: Any,
        optimizer: Any,
        *,
        delta_norm: str = "auto",
        every: int = 1,
        algorithm: str = "unknown",
    ) -> None:
        """Record the steps of an optimizer by themselves from now on, without further calls.

        Args:
            model: names the parameters in the sealed statistics; may be None.
            optimizer: one of torch's, or a wrapper that keeps one under `optimizer`.
            delta_norm: auto, exact, sampled, or off: how displacement is measured.
            every: steps per record; it holds their number, so none is left out.
            algorithm: for example `dpo`.

        Raises:
            WrongArgument: one of them is something else, or optimizers are not watched.
        """
        if self.optimizer_watch is None:
            raise WrongArgument(
                "optimizers are not watched in this run",
                next_step="pass watch_optimizers=True, with torch installed",
            )
        _check_names(model)

        def record() -> None:
            with self.kept_alive("policy.update"):
                self.track_policy_update(model=model, optimizer=optimizer, algorithm=algorithm)

        self.optimizer_watch.follow(optimizer, delta_norm, every=every, record=record)

    def track_policy_update(
        self,
        *,
        model: Any,
        optimizer: Any,
        batch: Any = None,
        algorithm: str = "unknown",
        grad_norm_preclip: Any = None,
        metrics: Mapping[str, Any] | None = None,
        trainer_step: int | None = None,
        dp: Mapping[str, Any] | None = None,
        manifest: Sequence[int] | None = None,
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
            trainer_step: the trainer's own count, which goes back when it resumes.
            dp: public figures of a private training; then the number of rows is not public.
            manifest: the rows of its batch, sealed.

        Raises:
            WrongArgument: one of them is something else; nothing was recorded.
        """
        _check_names(model)
        norm, rows = grad_norm_preclip, row_count(batch)
        is_tensor = math.prod(getattr(norm, "shape", (0,))) == 1
        if norm is not None and not is_tensor:
            norm = one_number("grad_norm_preclip", norm)
        pending, movement = self.close_window(model, optimizer), None
        if pending is not None:  # then torch is there: what lies on its device comes in one go
            from rlhf_audit_trail.movement.host_fetch import fetched  # noqa: PLC0415 - imports torch

            (norm, *rest) = fetched([norm, *pending.tensors])
            movement = pending.finish(rest)
        return self.policy_moved(
            movement,
            rows=rows,
            algorithm=algorithm,
            grad_norm_preclip=None if norm is None else one_number("grad_norm_preclip", norm),
            metrics=metrics,
            trainer_step=trainer_step,
            dp=dp,
            manifest=manifest,
        )

    def close_window(self, model: Any, optimizer: Any) -> Pending | None:
        """Return what the optimizer did since the last time, on its device; None without a step."""
        watch = self.optimizer_watch
        if watch is None:
            return None
        return watch.close(optimizer, lambda: _parameter_names(model), model)

    def policy_moved(
        self,
        movement: Movement | None,
        *,
        rows: int,
        algorithm: str,
        grad_norm_preclip: float | None = None,
        metrics: Mapping[str, Any] | None = None,
        trainer_step: int | None = None,
        dp: Mapping[str, Any] | None = None,
        manifest: Sequence[int] | None = None,
    ) -> PolicyUpdate:
        """Record a policy update whose figures the caller measured; None if no step was seen."""
        events = self.update_events(
            movement,
            rows=rows,
            algorithm=algorithm,
            grad_norm_preclip=grad_norm_preclip,
            metrics=metrics,
            trainer_step=trainer_step,
            dp=dp,
            manifest=manifest,
        )
        receipt = self._record(events)[0]
        self._policy_step += 1
        return PolicyUpdate(
            policy_step=self._policy_step,
            updates=movement.updates if movement else 0,
            delta_norm_kind=movement.kind if movement else "absent",
            parameter_delta_norm=movement.delta_norm if movement else None,
            grad_norm_preclip=grad_norm_preclip,
            grad_norm_applied=movement.grad_norm_applied if movement else None,
            learning_rate=movement.learning_rate if movement else None,
            receipt=receipt,
        )

    def update_events(
        self, movement: Movement | None, *, rows: int, algorithm: str, **known: Any
    ) -> list[Event]:
        """Return what `policy_moved` records, which takes the same arguments."""
        given = {"grad_norm_preclip": None, "metrics": None} | known
        step = self._policy_step + 1
        events = update_event(movement, policy_step=step, algorithm=algorithm, rows=rows, **given)
        if movement is None:
            self._warn_no_step()
        elif movement.failure:
            detail = f"figures are missing: {movement.failure}"
            alert = {"name": "optimizer_watch_failed", "severity": "warning", "step": step}
            events.append(Event("alert.raised", alert | {"detail": detail}))
        return events

    def step_taken(self, events: list[Event], *, is_logged: bool) -> None:
        """Record what one step of a trainer consumed and changed, as one group.

        Args:
            events: of `consumed_events` and `update_events`.
            is_logged: whether the step's metrics come at once, and join the group.
        """
        self.hold(events)
        self._policy_step += any(event.kind == "policy.update" for event in events)
        if not is_logged:
            self._record([])

    def _warn_no_step(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                "no optimizer step was seen since the last policy update: norms are absent",
                NoStepSeen,
                stacklevel=6,
            )


def _check_names(model: Any) -> None:
    if model is not None and not callable(getattr(model, "named_parameters", None)):
        raise WrongArgument(
            f"model is of type {type(model).__name__}, and has no named_parameters()",
            next_step="pass the torch module that is trained, or None",
        )


def _parameter_names(model: Any) -> dict[int, str]:
    if model is None:
        return {}
    prefix = "module." if type(model).__name__ == "DistributedDataParallel" else ""
    return {id(x): name.removeprefix(prefix) for name, x in model.named_parameters()}
