"""Stores a checkpoint for each line that comes in, and says so; or as fast as it can: `free`."""

from __future__ import annotations

import sys

import torch

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.record.recorder import RunRecorder

SIZE = 200
FREE_CHECKPOINTS = 30


def store(run: RunRecorder, model: torch.nn.Linear, epoch: int) -> None:
    record = run.checkpoint(epoch=epoch, model=model, wait=True)
    record.receipt.result()
    print(record.name, record.weights_digest, flush=True)
    with torch.no_grad():
        model.weight.mul_(1 + 2**-12)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torch.nn.Linear(SIZE, SIZE)
    with Ledger.open(sys.argv[1]) as ledger:
        auditor = AuditableRLHF("tiny", ledger=ledger, source="simulated", storage_backend="local")
        with auditor.track_training("run-1") as run:
            if sys.argv[2:] == ["free"]:
                for epoch in range(FREE_CHECKPOINTS):
                    store(run, model, epoch)
                return
            for epoch, _ in enumerate(sys.stdin):
                store(run, model, epoch)


if __name__ == "__main__":
    main()
