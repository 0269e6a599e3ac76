"""Two workers of Ray Train, one record: `python examples/ray_train.py LEDGER`.

LEDGER was made by `rlhf-audit init LEDGER --organisation acme.example`; on several machines it is
the address of `rlhf-audit serve`. Needs `pip install "ray[train]"`. Each worker runs the same
lines: rank 0 records, the others tell it what they trained on. A worker that fails is known to
Ray's controller, whose callback enters it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import ray
import ray.train.torch
import torch
from ray.train import RunConfig, ScalingConfig, UserCallback

from rlhf_audit_trail import AuditableRLHF

RUN = "ray-train"


class AuditCallback(UserCallback):
    """Enters workers' failures, from the process that sees them end."""

    def __init__(self, ledger: str) -> None:
        self.ledger = ledger

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Record which ranks failed and by which type of error; messages may hold data."""
        del run_context
        with AuditableRLHF("tiny", ledger=self.ledger, source="simulated") as auditor:
            run = auditor.run(RUN)
            for rank, error in sorted(worker_exceptions.items()):
                run.alert("worker_failed", f"rank {rank}: {type(error).__name__}")
            run.finish("failed", "WorkerFailed")
            run.ends_with().close()


def train(settings: dict) -> None:
    """Train on every second row, in each of two workers."""
    rank = ray.train.get_context().get_world_rank()
    rows = torch.arange(32)[rank::2]
    features = torch.linspace(-1, 1, 32 * 4).reshape(32, 4).sin()
    model = ray.train.torch.prepare_model(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    auditor = AuditableRLHF("tiny", ledger=settings["ledger"], source="simulated", seed=7)
    with auditor, auditor.track_training(experiment_name=RUN) as run:
        run.watch(model, optimizer, algorithm="sgd")
        for epoch in range(2):
            for step, batch in enumerate(rows.split(4)):
                run.on_batch_consumed(epoch * 4 + step, batch.tolist())
                loss = model(features[batch]).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            run.checkpoint(epoch=epoch, model=model)
            ray.train.report({"loss": loss.item()})


if __name__ == "__main__":
    ledger = str(Path(sys.argv[1]).absolute())
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        ray.train.torch.TorchTrainer(
            train,
            train_loop_config={"ledger": ledger},
            scaling_config=ScalingConfig(num_workers=2),
            run_config=RunConfig(
                storage_path=str(Path(ledger).parent / "ray"), callbacks=[AuditCallback(ledger)]
            ),
        ).fit()
    finally:
        ray.shutdown()
    with AuditableRLHF("tiny", ledger=ledger, source="simulated") as auditor:
        log = auditor.ledger.find(RUN)
        rows = sum(entry.event["rows"] for entry in log.entries(kind="batch.consumed"))
        found = auditor.verify_provenance(
            start_checkpoint="epoch_0", end_checkpoint="epoch_1", experiment_name=RUN
        )
        print(f"rows of both workers: {rows}")
        print(f"provenance valid: {found.is_valid}, root {found.merkle_root[:16]}")
