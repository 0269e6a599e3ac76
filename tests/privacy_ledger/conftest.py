"""A ledger on either database, and fsck as a stranger to the open one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rlhf_audit_trail.ledger.fsck import fsck, open_damaged
from rlhf_audit_trail.ledger.log import Ledger
from tests.chain_fixtures import anvil, rpc

__all__ = ["anvil", "rpc"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def ledger(directory: Path) -> Iterator[Ledger]:
    with Ledger.create(directory, organisation="acme.example") as opened:
        yield opened


@pytest.fixture(scope="session")
def findings() -> Callable[[Path], list[str]]:
    def check(directory: Path) -> list[str]:
        with open_damaged(directory) as storage:
            return [str(finding) for finding in fsck(storage, jobs=1)]

    return check
