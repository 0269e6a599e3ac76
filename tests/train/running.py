"""A short real run for the tests of the facade, wherever the ledger is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.ledger.log import Log
from rlhf_audit_trail.record.recorder import RunRecorder

ROWS: dict[str, Any] = {
    "prompts": ["p0", "p1", "p2"],
    "responses": ["r0", "r1", "r2"],
    "annotator_ids": ["anna", "ben", "anna"],
    "rewards": [0.25, 0.5, 1.0],
}


def kinds(log: Log) -> list[str]:
    return [entry.event["kind"] for entry in log.entries()]


def events(log: Log, kind: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return (public, sealed) of the entries of one kind."""
    return [(entry.event, log.opened(entry.leaf_index)) for entry in log.entries(kind=kind)]


def train(auditor: AuditableRLHF, name: str = "run-1", *, path: Path | None = None) -> RunRecorder:
    """Train: two checkpoints around three steps of a real optimizer; save to `path`, if given."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with auditor.track_training(experiment_name=name) as run:
        auditor.checkpoint(epoch=0, model=model)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(4, 3)).square().sum().backward()
            optimizer.step()
            auditor.track_policy_update(model=model, optimizer=optimizer, batch=torch.ones(4, 3))
        auditor.log_annotations(**ROWS)
        if path is not None:
            torch.save(model.state_dict(), path)
        auditor.checkpoint(epoch=3, metrics={"reward": 0.5}, model=model, path=path)
    return run


def record_run(auditor: AuditableRLHF, name: str = "run-1") -> Log:
    """Train, and return the run's log."""
    return train(auditor, name).log
