"""What does recording cost a DPO step of TRL on a tiny model, and what do others charge for less?

Four trainers train in one process by turns, a few steps each: without a record, with ours, and
with W&B (offline) and MLflow. So whatever the machine does meanwhile meets all of them alike.
A run is more than its steps: what comes before the first and after the last is timed, too.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import random
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks import Result
from benchmarks._steps import difference, ledger_of, stopwatch
from rlhf_audit_trail import AuditableRLHF
from rlhf_audit_trail.demo.language import corpus
from rlhf_audit_trail.demo.models import make_policy, make_tokenizer

_BLOCK = 5  # steps a turn
_TURNS = 16
_PEERS = ("wandb", "mlflow")
_WAIT_S = 120.0


def run() -> Sequence[Result]:
    """Measure everything the goals name."""
    names = ["nothing", "ours", *(x for x in _PEERS if importlib.util.find_spec(x) is not None)]
    with tempfile.TemporaryDirectory() as folder, ledger_of(Path(folder)) as auditor:
        os.environ |= {
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "WANDB_MODE": "offline",
            "WANDB_DIR": folder,
            "WANDB_SILENT": "true",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        }
        turns = _Turns(names)
        with ExitStack() as clocks:
            inside = _clocks(clocks)
            made = {name: _trainer(Path(folder) / name, name, turns) for name in names}
            threads = [
                threading.Thread(target=_train, args=(trainer, name, auditor, turns))
                for name, trainer in made.items()
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        hooks = sum(sum(clock) for clock in inside) / (_BLOCK * _TURNS)
    return list(_results(names, turns, hooks))


def _results(names: Sequence[str], turns: _Turns, hooks: float) -> Iterator[Result]:
    blocks, edges, steps = turns.blocks, turns.edges, _BLOCK * _TURNS
    base = median(took for block in blocks["nothing"] for took in block)
    yield Result("DPO step of TRL, 0.1 million parameters, no record", base * 1e3, "ms")
    step = {name: 1e3 * difference(blocks[name], blocks["nothing"]) for name in names}
    run = {x: step[x] * steps + 1e3 * (edges[x] - edges["nothing"]) for x in names}
    yield Result("recording such a step, more than without", step["ours"], "ms", goal=2)
    yield Result("of it inside our hooks", hooks * 1e3, "ms")
    yield Result(f"a run of {steps} steps, more than without", run["ours"], "ms")
    for name in names[2:]:
        for what, took in (("a step", step), (f"a run of {steps} steps", run)):
            yield Result(f"{what} with {name} offline, more than without", took[name], "ms")
            yield Result(
                f"{what}, ours beside {name}", took["ours"], "ms",
                reference=took[name], goal=took[name],
            )  # fmt: skip


def _clocks(opened: ExitStack) -> list[list[float]]:
    from rlhf_audit_trail.movement.optimizer_watch import OptimizerWatch  # noqa: PLC0415 - beside its kin
    from rlhf_audit_trail.trainers.trainer_record import TrainerRecord  # noqa: PLC0415 - imports TRL

    return [
        opened.enter_context(stopwatch(OptimizerWatch, "_before_step", "_after_step")),
        opened.enter_context(stopwatch(TrainerRecord, "consumed", "step_ended", "logged")),
    ]


class _Turns:
    """Lets one trainer at a time do a block of steps, round and round."""

    def __init__(self, names: Sequence[str]) -> None:
        """Begin when all have arrived."""
        self.blocks: dict[str, list[list[float]]] = {name: [] for name in names}
        self.edges = dict.fromkeys(names, 0.0)  # seconds before the first step and after the last
        self._waiting: list[str] = list(names)
        self._arrived: set[str] = set()
        self._changed = threading.Condition()

    def wait(self, name: str) -> None:
        """Return when it is this one's turn."""
        with self._changed:
            self._arrived.add(name)
            self._changed.notify_all()
            everybody = len(self.blocks)
            is_mine = self._changed.wait_for(
                lambda: len(self._arrived) == everybody and self._waiting[0] == name, _WAIT_S
            )
        assert is_mine, f"{name} waited for {self._waiting[0]}"

    def end(self, name: str, *, is_last: bool) -> None:
        """Let the next one go on."""
        with self._changed:
            self._waiting.remove(name)
            if not is_last:
                self._waiting.append(name)
            self._changed.notify_all()


class _Taking(TrainerCallback):
    """Waits for its turn, and notes how long each step took until the next one began."""

    def __init__(self, name: str, turns: _Turns) -> None:
        self._name, self._turns, self._times = name, turns, list[float]()
        self._began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        now = perf_counter()
        if self._began:
            self._times.append(now - self._began)
        else:
            self._turns.edges[self._name] += now
        if len(self._times) == _BLOCK:
            self._turns.blocks[self._name].append(self._times)
            self._times = []
            self._turns.end(self._name, is_last=False)
            self._turns.wait(self._name)
        self._began = perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._turns.blocks[self._name].append(self._times)
        self._turns.edges[self._name] -= perf_counter()


def _trainer(folder: Path, how: str, turns: _Turns) -> Any:
    """Return one of those that take turns; made before any of them trains, for they share state."""
    import trl  # noqa: PLC0415 - after the environment is set

    torch.manual_seed(1)
    tokenizer = make_tokenizer()
    arguments = trl.DPOConfig(
        output_dir=str(folder), run_name=folder.name, use_cpu=True, bf16=False,
        max_steps=_BLOCK * _TURNS, per_device_train_batch_size=4, logging_steps=1,
        report_to="none" if how in ("nothing", "ours") else how, disable_tqdm=True,
        learning_rate=1e-3, dataloader_pin_memory=False, save_strategy="no",
    )  # fmt: skip
    return trl.DPOTrainer(
        make_policy(tokenizer), make_policy(tokenizer), args=arguments, train_dataset=_pairs(),
        processing_class=tokenizer, callbacks=[_Taking(how, turns)],
    )  # fmt: skip


def _train(trainer: Any, how: str, auditor: AuditableRLHF, turns: _Turns) -> None:
    torch.set_num_threads(1)  # each thread has its own number
    turns.wait(how)
    turns.edges[how] -= perf_counter()
    with auditor.track_training("ours") if how == "ours" else nullcontext():
        if how == "ours":
            auditor.attach(trainer)
        trainer.train()
    if how == "wandb":
        importlib.import_module("wandb").finish()
    if how == "mlflow":
        importlib.import_module("mlflow").end_run()
    turns.edges[how] += perf_counter()
    turns.end(how, is_last=True)


def _pairs() -> Any:
    from datasets import Dataset  # noqa: PLC0415 - after the environment is set

    rng = random.Random(3)
    chosen, rejected = corpus(rng, size=64), corpus(rng, size=64)
    return Dataset.from_dict(
        {
            "prompt": [ask for ask, _ in chosen],
            "chosen": [text for _, text in chosen],
            "rejected": [text for _, text in rejected],
        }
    )
