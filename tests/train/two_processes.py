"""Starting `rank_script.py` twice, as a launcher would, or by torch's own launcher."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from rlhf_audit_trail.ledger.fsck import fsck
from rlhf_audit_trail.ledger.log import Ledger

SCRIPT = Path(__file__).parent / "rank_script.py"
TIMEOUT_S = 120
_OFFLINE = {
    "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONPATH": str(Path(__file__).parents[2]),
    "PYTHONWARNINGS": "ignore",
}  # fmt: skip


def run_two(scenarios: str, folder: Path) -> list[subprocess.CompletedProcess[str]]:
    """Run scenarios, one after another, in two processes; the ledger is made before in FOLDER/ledger."""
    Ledger.create(folder / "ledger", organisation="acme.example").close()
    command = [sys.executable, str(SCRIPT), scenarios, str(folder)]
    started = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | _OFFLINE
            | {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"},
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=TIMEOUT_S)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        subprocess.CompletedProcess(command, process.returncode, text)
        for process, text in zip(started, said, strict=True)
    ]


def launch_two(script: Path, scenario: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a scenario by torchrun."""
    Ledger.create(folder / "ledger", organisation="acme.example").close()
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        str(script), scenario, str(folder),
    ]  # fmt: skip
    return subprocess.run(
        command, env=os.environ | _OFFLINE, capture_output=True, text=True, check=False,
        timeout=TIMEOUT_S,
    )  # fmt: skip


def record(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return the run's entries, each with its sealed values under `sealed`; the store is sound."""
    with Ledger.open(folder / "ledger") as ledger:
        assert list(fsck(ledger)) == []
        log = ledger.find(name)
        return [entry.event | {"sealed": log.opened(entry.leaf_index)} for entry in log.entries()]


def of(entries: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [entry for entry in entries if entry["kind"] == kind]


def counts(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{name}-counts-{rank}.json").read_bytes()) for rank in range(2)]
