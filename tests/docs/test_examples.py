"""Every example runs as its first line says, and what it records is sound."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_audit_trail.ledger.fsck import fsck, open_damaged
from rlhf_audit_trail.ledger.log import Ledger

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.train


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_example(example: Path, tmp_path: Path) -> None:
    if example.stem == "ray_train" and importlib.util.find_spec("ray") is None:
        pytest.skip("needs Ray, which is no dependency")
    Ledger.create(tmp_path / "audit", organisation="acme.example").close()
    done = subprocess.run(
        [sys.executable, "-W", "error", str(example), str(tmp_path / "audit")],
        capture_output=True, text=True, check=False, timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "provenance valid: True" in done.stdout
    with open_damaged(tmp_path / "audit") as storage:
        assert list(fsck(storage)) == []
