"""What does recording cost a step of a model with 97 million parameters?

One process trains one model by turns without a record, with sampled and with exact deltas, in
blocks so short that what the machine does meanwhile meets all of them. Two figures each: the
time inside our hooks as a share of a step without them, which has the goal, and the median of
the differences of whole steps, which mostly shows how noisy the machine is.

On a CUDA device nothing was measured so far: hooks that only launch kernels need another clock
than this one. The results say so.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks import Result
from rlhf_audit_trail import AuditableRLHF
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.movement.movement_window import WHOLE_WINDOWS, MovementWindow
from rlhf_audit_trail.movement.optimizer_watch import OptimizerWatch, total_norm
from rlhf_audit_trail.record.recorder import RunRecorder

_ROUNDS = 2
_BLOCK = 3  # steps; the first of them makes what later ones use again
_ROWS, _TOKENS = 8, 256  # a small batch: what recording costs does not grow with it
_GOALS = {"sampled": 0.3, "exact": 1.5}


def run() -> Sequence[Result]:
    """Measure everything the goals name."""
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=32_000, n_embd=768, n_layer=10, n_head=12))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    batch = torch.randint(32_000, (_ROWS, _TOKENS))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()

    step()
    whole: dict[str, list[list[float]]] = {"none": [], **{mode: [] for mode in _GOALS}}
    inside: dict[str, list[float]] = {mode: [] for mode in _GOALS}
    held: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder, ledger_of(Path(folder)) as auditor:
        for number in range(_ROUNDS):
            for mode, found in whole.items():
                with ExitStack() as recorded:
                    clock = recorded.enter_context(stopwatch(OptimizerWatch, *_HOOKS))
                    if mode != "none":
                        run_of_block = recorded.enter_context(auditor.run(f"{mode}-{number}"))
                        run_of_block.watch(model, optimizer, delta_norm=mode, algorithm="sft")
                    times = [_timed(step, clock) for _ in range(_BLOCK)][1:]
                    if mode != "none":
                        held[mode] = _held_bytes(run_of_block)
                        inside[mode] += [hooks for _, hooks in times]
                found.append([took for took, _ in times])
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    read = statistics.median(_timed(lambda: total_norm(gradients), [])[0] for _ in range(5))
    inside["sampled"] = [took + read / WHOLE_WINDOWS for took in inside["sampled"]]
    return [*_results(model, whole, inside, held), *_not_measured()]


def _results(
    model: torch.nn.Module,
    whole: dict[str, list[list[float]]],
    inside: dict[str, list[float]],
    held: dict[str, int],
) -> Iterator[Result]:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    base = statistics.median(took for block in whole["none"] for took in block)
    yield Result(f"step without recording, {parameters:,} parameters", base * 1e3, "ms")
    for mode, goal in _GOALS.items():
        took = statistics.median(inside[mode])
        yield Result(f"recording a step, {mode} delta", took * 1e3, "ms")
        share = 100 * took / base
        yield Result(f"recording a step, {mode} delta, share of the step", share, "%", goal=goal)
        more = difference(whole[mode], whole["none"])
        yield Result(f"whole step, {mode} delta, more than without", more * 1e3, "ms")
    size = 4 * parameters
    for mode, limit in (("sampled", 1.0), ("exact", None)):
        share = 100 * held[mode] / size
        yield Result(f"memory held, {mode} delta, share of the model", share, "%", goal=limit)


def _not_measured() -> Iterator[Result]:
    for mode, goal in _GOALS.items():
        name = f"recording a step on a CUDA device, {mode} delta, share of the step"
        yield Result(name, None, "%", goal=goal)
    yield Result("host synchronisations added to a step on a CUDA device", None, "", goal=1)


def difference(those: Sequence[Sequence[float]], these: Sequence[Sequence[float]]) -> float:
    """Return the median over blocks of the difference to the neighbouring block, in seconds."""
    pairs = zip(those, these, strict=True)
    return statistics.median(statistics.median(a) - statistics.median(b) for a, b in pairs)


_HOOKS = ("_before_step", "_after_step")  # the second records, too: the run is watched


@contextmanager
def stopwatch(cls: type[Any], *names: str) -> Iterator[list[float]]:
    """Time every call of methods, in seconds."""
    found: list[float] = []
    originals = {name: getattr(cls, name) for name in names}
    for name, inner in originals.items():

        def timed(*args: Any, inner: Any = inner, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return inner(*args, **named)
            finally:
                found.append(time.perf_counter() - start)

        setattr(cls, name, timed)
    try:
        yield found
    finally:
        for name, inner in originals.items():
            setattr(cls, name, inner)


@contextmanager
def ledger_of(folder: Path) -> Iterator[AuditableRLHF]:
    """Give an auditor with a new ledger."""
    with Ledger.create(folder / "ledger", organisation="acme.example") as ledger:
        yield AuditableRLHF("bench", ledger=ledger, source="simulated")


def _held_bytes(recorder: RunRecorder) -> int:
    """Return the bytes of all tensors that the watch keeps between steps."""
    watch = recorder.optimizer_watch
    assert watch is not None
    tensors: list[torch.Tensor] = []
    for seen in watch._seen.values():  # noqa: SLF001 - what it holds is the question
        assert isinstance(seen, MovementWindow)
        tensors += seen.before
        for sample in (seen.sample, seen.gradient_sample):
            tensors += [inside for _, inside in sample.places] if sample else []
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _timed(work: Callable[[], object], clock: list[float]) -> tuple[float, float]:
    """Return how long work took, and how much of it the clock saw, in seconds."""
    clock.clear()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start, sum(clock)
