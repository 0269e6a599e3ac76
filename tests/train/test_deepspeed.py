"""DeepSpeed engines: real ones where DeepSpeed is installed, else one that follows its calls."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.capture import WrongArgument
from rlhf_audit_trail.trainers.deepspeed_engine import engine_records, watch_engine
from rlhf_audit_trail.weights.model_weights import digest_model
from tests.train import rank_script
from tests.train.running import events
from tests.train.two_processes import SCRIPT, counts, launch_two, of, record

pytestmark = pytest.mark.train


class Engine:
    """As much of DeepSpeed's engine as is asked: it steps at the last of two micro-batches."""

    def __init__(self, module: torch.nn.Module, *, skips: int = -1) -> None:
        self.module = module
        self.optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
        self.global_steps = self.skipped_steps = self.micro_steps = 0
        self._skips, self._norm = skips, 0.0

    def backward(self, loss: torch.Tensor) -> None:
        (loss / 2).backward()

    def step(self) -> None:
        self.micro_steps += 1
        if self.micro_steps % 2:
            return
        if self.global_steps == self._skips:
            self.skipped_steps += 1
        else:
            self._norm = float(torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0))
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.global_steps += 1

    def get_global_grad_norm(self) -> float:
        return self._norm

    def get_lr(self) -> list[float]:
        return [0.5]

    def zero_optimization_stage(self) -> int:
        return 0


def test_an_engine_records_its_steps_by_itself(auditor: AuditableRLHF) -> None:
    module = torch.nn.Linear(4, 2, bias=False)
    engine = Engine(module, skips=1)
    with auditor.run("run-1") as run:
        watch_engine(run, engine, algorithm="plain")
        for _ in range(6):
            engine.backward(module(torch.ones(1, 4)).sum())
            engine.step()
        run.checkpoint(epoch=0, model=engine_records(run, engine))
    assert "step" not in vars(engine) or engine.step.__func__ is Engine.step
    found = events(run.log, "policy.update")
    assert [public["updates"] for public, _ in found] == [1, 0, 1]
    assert [public["trainer_step"] for public, _ in found] == [1, 2, 3]
    for public, sealed in (found[0], found[2]):
        assert public["delta_norm_kind"] == "exact"
        assert sealed["grad_norm_preclip"] == pytest.approx(math.sqrt(8), rel=1e-6)
        assert sealed["grad_norm_applied"] == pytest.approx(1.0, rel=1e-5)
        assert sealed["parameter_delta_norm"] == pytest.approx(0.5, rel=1e-5)
    skipped = found[1]
    assert skipped[0]["delta_norm_kind"] == "absent"
    assert "parameter_delta_norm" not in skipped[1]
    ((saved, _),) = events(run.log, "checkpoint.saved")
    assert saved["weights_digest"] == digest_model(module).digest.hex()


def test_something_else_is_refused(auditor: AuditableRLHF) -> None:
    with auditor.run("run-1") as run, pytest.raises(WrongArgument, match="Linear"):
        watch_engine(run, torch.nn.Linear(1, 1))


def norms_of(stage: int) -> tuple[list[dict[str, float]], torch.nn.Module]:
    """Train in one process and float64, with the same clipping."""
    del stage
    net = rank_script.model().double()
    found = []
    for step in range(3):
        losses: list[Any] = [
            rank_script.loss_of(net(rank_script.rows()[rank_script.share(rank)[step]].double()))
            for rank in range(2)
        ]
        net.zero_grad()
        (sum(losses) / 2).backward()
        before = float(torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0))
        found.append({"preclip": before, "applied": min(before, 1.0)})
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.sub_(rank_script.RATE * parameter.grad)  # type: ignore[operator]
    return found, net


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed")
def test_real_engines_in_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    done = launch_two(SCRIPT.with_name("deepspeed_script.py"), "0,2,3", tmp_path)
    assert done.returncode == 0, done.stderr
    for stage in (0, 2, 3):
        name = f"zero-{stage}"
        entries, told = record(tmp_path, name), counts(tmp_path, name)
        rows = sum(x["rows"] for x in told)
        assert sum(x["rows"] for x in of(entries, "batch.consumed")) == rows
        updates = of(entries, "policy.update")
        assert sum(x["updates"] for x in updates) == told[0]["updates"] == 3
        wanted, net = norms_of(stage)
        for entry, norms in zip(updates, wanted, strict=True):
            sealed = entry["sealed"]
            if "grad_norm_preclip" in sealed:  # stage 0 without mixed precision tells none
                assert sealed["grad_norm_preclip"] == pytest.approx(norms["preclip"], rel=1e-5)
            assert sealed["grad_norm_applied"] == pytest.approx(norms["applied"], rel=1e-4)
            delta = rank_script.RATE * norms["applied"]
            assert sealed["parameter_delta_norm"] == pytest.approx(delta, rel=1e-4)
        size = math.sqrt(sum(x.square().sum().item() for x in net.parameters()))
        last = updates[-1]["sealed"]["statistics"]
        assert (last["zero_stage"], last["weights_norm"]) == (stage, pytest.approx(size, rel=1e-5))
        (saved,) = of(entries, "checkpoint.saved")
        assert saved["tensors"] == 4
        assert saved["parameters"] == sum(x.numel() for x in net.parameters())
        assert entries[-1]["outcome"] == "completed"
