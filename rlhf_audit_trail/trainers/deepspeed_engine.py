"""A DeepSpeed engine that records itself, by the engine's own public calls.

    watch_engine(run, engine, algorithm="dpo")

The engine steps by itself, inside `backward` where Accelerate drives it, and the torch optimizer
below it holds this process's fp32 partition under no names. So the partition is measured around
the inner step, the engine says what the step meant, and sums go over the processes that share it.
Every process of the training calls it. Tried with DeepSpeed 0.19.8, ZeRO stages 0, 2 and 3, two
processes on CPUs; not on a GPU, and not with optimizer states off-loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch.optim.optimizer import Optimizer

from rlhf_audit_trail.capture import Movement, WrongArgument
from rlhf_audit_trail.ledger.weights.digest import TensorRecord, tensor_record
from rlhf_audit_trail.record.recorder import RunRecorder
from rlhf_audit_trail.weights.model_weights import DTYPE_NAMES, digest_model, tensor_bytes

__all__ = ["engine_records", "watch_engine"]

_NAMES: Final = (
    "global_steps", "skipped_steps", "get_global_grad_norm", "zero_optimization_stage", "step",
)  # fmt: skip


@dataclass
class _Sums:
    """Squares over this process's partition in one engine step; ZeRO steps it part by part."""

    gradients: list[torch.Tensor] = field(default_factory=list)
    moved: list[torch.Tensor] = field(default_factory=list)
    weights: list[torch.Tensor] = field(default_factory=list)
    before: list[torch.Tensor] = field(default_factory=list)
    failure: str = ""


def watch_engine(
    run: RunRecorder, engine: Any, *, algorithm: str = "unknown", delta_norm: str = "exact"
) -> None:
    """Record each optimizer step of an engine by itself from now on.

    Args:
        run: that is being tracked.
        engine: what `deepspeed.initialize` returned first.
        algorithm: for example `dpo`.
        delta_norm: exact or off; an exact one costs a copy of the partition during a step.

    Raises:
        WrongArgument: it is no engine, or steps no torch optimizer.
    """
    inner = _inner(engine)
    if inner is None or not all(hasattr(engine, name) for name in _NAMES):
        raise WrongArgument(
            f"a {type(engine).__name__} is no DeepSpeed engine with a torch optimizer",
            next_step="pass what deepspeed.initialize(...) returned first",
        )
    if run.optimizer_watch is not None:  # what it could see here are nameless partitions
        run.optimizer_watch.measure(inner, "off")
    _EngineWatch(run, engine, inner, algorithm, is_exact=delta_norm == "exact").install()


def engine_records(run: RunRecorder, engine: Any) -> Sequence[TensorRecord]:
    """Digest an engine's weights as one model, for `checkpoint(model=...)`; every process calls it.

    Under ZeRO-3 one tensor at a time is put together. The weights are the module's, in the type
    it computes in, not the fp32 masters.

    Returns:
        Records on the recording process, nothing on the others.
    """
    if engine.zero_optimization_stage() < 3:  # noqa: PLR2004 - the stage that partitions weights
        return digest_model(engine.module).records if run.is_main else ()
    import deepspeed  # noqa: PLC0415 - only where there is an engine of it

    found, seen = [], set()
    for name, tensor in engine.module.state_dict(keep_vars=True).items():
        if id(tensor) in seen or not isinstance(tensor, torch.Tensor):
            continue
        seen.add(id(tensor))
        parts = [tensor] if hasattr(tensor, "ds_id") else []
        with deepspeed.zero.GatheredParameters(parts, modifier_rank=None):
            if run.is_main:
                shape, dtype = tuple(tensor.shape), DTYPE_NAMES[tensor.dtype]
                found.append(tensor_record(name, dtype, shape, tensor_bytes(tensor)))
    return found


class _EngineWatch:
    """Hooks around one engine's steps; owned by the thread that trains."""

    def __init__(
        self, run: RunRecorder, engine: Any, inner: Optimizer, algorithm: str, *, is_exact: bool
    ) -> None:
        self._run, self._engine, self._inner = run, engine, inner
        self._algorithm, self._is_exact = algorithm, is_exact
        self._sums = _Sums()

    def install(self) -> None:
        """Hook the inner optimizer, and see where the engine's own step ends."""
        handles = [
            self._inner.register_step_pre_hook(self._before),
            self._inner.register_step_post_hook(self._after),
        ]
        engine, step = self._engine, self._engine.step
        engine.step = self._stepping(step)

        def remove() -> None:
            engine.step = step
            for handle in handles:
                handle.remove()

        self._run.ends_with().callback(remove)

    def _stepping(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*args: Any, **named: Any) -> Any:
            steps, skipped = self._engine.global_steps, self._engine.skipped_steps
            result = step(*args, **named)
            if self._engine.global_steps != steps:  # the last micro-batch of a step
                self._record(self._engine.skipped_steps == skipped)
            return result

        return stepping

    @torch.no_grad()
    def _before(self, *_: Any) -> None:
        try:
            parameters = _parameters(self._inner)
            self._sums.gradients += _squares([x.grad for x in parameters if x.grad is not None])
            self._sums.before = [x.clone() for x in parameters] if self._is_exact else []
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end a training run
            self._sums.failure = type(error).__name__

    @torch.no_grad()
    def _after(self, *_: Any) -> None:
        try:
            before, self._sums.before = self._sums.before, []
            if before:
                parameters = _parameters(self._inner)
                pairs = zip(parameters, before, strict=True)
                self._sums.moved += _squares([new - old for new, old in pairs])
                self._sums.weights += _squares(parameters)
        except Exception as error:  # noqa: BLE001 - as above
            self._sums.failure = type(error).__name__

    def _record(self, is_taken: bool) -> None:  # noqa: FBT001 - one of two outcomes
        sums, self._sums = self._sums, _Sums()
        gradient, moved, weights = self._summed(sums)
        preclip = self._engine.get_global_grad_norm()
        rates = tuple(float(x) for x in self._engine.get_lr())
        statistics: dict[str, Any] = {
            "learning_rates": list(rates),
            "zero_stage": self._engine.zero_optimization_stage(),
        }
        is_exact = self._is_exact and is_taken and not sums.failure
        if is_exact:
            statistics["weights_norm"] = weights
        movement = Movement(
            updates=int(is_taken),
            delta_norm=moved if is_exact else None,
            kind="exact" if is_exact else "absent",
            grad_norm_applied=gradient if is_taken and not sums.failure else None,
            learning_rate=max(rates, default=None),
            statistics=statistics,
            failure=sums.failure,
        )
        with self._run.kept_alive("policy.update"):
            self._run.policy_moved(
                movement,
                rows=0,
                algorithm=self._algorithm,
                grad_norm_preclip=None if preclip is None else float(preclip),
                trainer_step=int(self._engine.global_steps),
            )

    def _summed(self, sums: _Sums) -> list[float]:
        """Return norms of gradients, displacement and weights over all partitions."""
        device = next(iter(self._engine.module.parameters())).device
        parts = (sums.gradients, sums.moved, sums.weights)
        local = [torch.stack([y.to(device) for y in x]).sum() if x else None for x in parts]
        none = torch.zeros((), dtype=torch.float64, device=device)
        table = torch.stack([none if x is None else x for x in local])
        if sums.failure:
            table.fill_(math.nan)
        group = getattr(self._engine.optimizer, "dp_process_group", None)
        if self._engine.zero_optimization_stage() and group is not None:
            torch.distributed.all_reduce(table, group=group)
        found: list[float] = table.sqrt().tolist()
        return found


def _inner(engine: Any) -> Optimizer | None:
    """Return the torch optimizer at the bottom of an engine."""
    optimizer = getattr(engine, "optimizer", None)
    for _ in range(8):  # deeper nesting is a cycle
        below = getattr(optimizer, "optimizer", None)
        if below is None:
            break
        optimizer = below
    return optimizer if isinstance(optimizer, Optimizer) else None


def _parameters(optimizer: Optimizer) -> list[torch.Tensor]:
    return [x for group in optimizer.param_groups for x in group["params"]]


def _squares(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.linalg.vector_norm(x.float()).double().square() for x in tensors]
