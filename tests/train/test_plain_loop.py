"""A plain PyTorch loop: what the record holds equals what the loop counted by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.weights.model_files import read_model
from tests.train.running import events

pytestmark = pytest.mark.train


class Rows(Dataset[tuple[int, torch.Tensor]]):
    """Ten rows, each with its number: loaders shuffle, and workers are other processes."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, row: int) -> tuple[int, torch.Tensor]:
        return row, torch.linspace(-1, 1, 4) * row


class Counts:
    def __init__(self) -> None:
        self.updates = self.checkpoints = 0
        self.rows: list[list[int]] = []


def loop(run: Any, folder: Path, *, workers: int, by_itself: bool) -> Counts:
    torch.manual_seed(2)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader = DataLoader(Rows(), batch_size=4, shuffle=True, num_workers=workers)
    counts = Counts()
    optimizer.register_step_post_hook(lambda *_: setattr(counts, "updates", counts.updates + 1))
    dataset = run.dataset([{"row": row} for row in range(10)])
    if by_itself:
        run.watch(model, optimizer, algorithm="plain")
    for epoch in range(2):
        for step, (rows, features) in enumerate(loader):
            counts.rows.append(rows.tolist())
            run.on_batch_consumed(3 * epoch + step, rows.tolist(), dataset=dataset)
            optimizer.zero_grad()
            model(features).square().mean().backward()
            optimizer.step()
            if not by_itself:
                run.track_policy_update(
                    model=model, optimizer=optimizer, batch=rows, algorithm="plain"
                )
        path = folder / f"{epoch}.pt"
        torch.save(model.state_dict(), path)
        run.checkpoint(epoch=epoch, model=model, path=path)
        counts.checkpoints += 1
    return counts


@pytest.mark.parametrize("by_itself", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_updates_rows_and_checkpoints_are_those_that_were_counted(
    *, workers: int, by_itself: bool, auditor: AuditableRLHF, tmp_path: Path
) -> None:
    with auditor.track_training(experiment_name="run-1") as run:
        counts = loop(run, tmp_path, workers=workers, by_itself=by_itself)
    log = run.log
    assert [len(rows) for rows in counts.rows] == [4, 4, 2, 4, 4, 2]
    assert [sealed["rows"] for _, sealed in events(log, "batch.consumed")] == counts.rows
    updates = [public for public, _ in events(log, "policy.update")]
    assert sum(public["updates"] for public in updates) == counts.updates == 6
    assert [public["policy_step"] for public in updates] == [1, 2, 3, 4, 5, 6]
    saved = [public for public, _ in events(log, "checkpoint.saved")]
    assert len(saved) == counts.checkpoints == 2
    for public in saved:
        digest = read_model(tmp_path / f"{public['epoch']}.pt").digest().hex()
        assert public["weights_digest"] == digest
    assert events(log, "gap") == events(log, "alert.raised") == []


def test_an_optimizer_that_nobody_named_is_measured_from_its_first_step(
    auditor: AuditableRLHF,
) -> None:
    with auditor.track_training(experiment_name="run-1") as run:
        model = torch.nn.Linear(2, 1, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        found = run.track_policy_update(model=model, optimizer=optimizer)
    assert found.updates == 1
    assert found.parameter_delta_norm == pytest.approx(0.5 * 2**0.5)
