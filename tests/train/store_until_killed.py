"""Stores checkpoints of a model that moves, until it is killed; a line for each that is durable."""

from __future__ import annotations

import sys

import torch

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.ledger.log import Ledger

SIZE = 2_500  # 25 MB of fp32: two segments, so that a kill comes between two


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torch.nn.Linear(SIZE, SIZE, bias=False)
    with Ledger.open(sys.argv[1]) as ledger:
        auditor = AuditableRLHF("tiny", ledger=ledger, source="simulated", storage_backend="local")
        with auditor.track_training("run-1") as run:
            for epoch in range(1_000):
                record = run.checkpoint(epoch=epoch, model=model, wait=True)
                record.receipt.result()
                print(record.name, record.weights_digest, flush=True)
                with torch.no_grad():
                    model.weight.mul_(1 + 2**-12)


if __name__ == "__main__":
    main()
