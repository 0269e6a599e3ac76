"""A fresh ledger and an auditor per test; one thread, because the models are tiny."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.ledger.log import Ledger


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.create(tmp_path / "ledger", organisation="acme.example") as made:
        yield made


@pytest.fixture
def auditor(ledger: Ledger) -> AuditableRLHF:
    return AuditableRLHF("tiny", ledger=ledger, source="simulated", seed=11)
