"""Forge runs the contract's own tests, and its compiler agrees with the artifact."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path

import pytest

from rlhf_audit_trail.ledger.chain.contract.build import node_on_path
from rlhf_audit_trail.ledger.chain.contract.compiled import load_artifact

CONTRACTS = Path(__file__).resolve().parents[2] / "contracts"
MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}

SUITES = {
    "DifferentialTest": 2,
    "GasTest": 4,
    "InvariantTest": 1,
    "StolenKeyTest": 8,
    "TreeHeadAnchorTest": 23,
}


def forge(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    package = f"forge-{platform.system().lower()}-{MACHINES[platform.machine()]}"
    program = CONTRACTS / "node_modules" / "@foundry-rs" / package / "bin" / "forge"
    with node_on_path():
        return subprocess.run(
            [program, *arguments], cwd=CONTRACTS, capture_output=True, text=True, check=False,
            env=os.environ | environment,
        )  # fmt: skip


@pytest.mark.slow
def test_every_forge_test_passes() -> None:
    """Also the gas of each call kept in `contracts/snapshots` is the same to the unit."""
    ran = forge("test", "--json", FORGE_SNAPSHOT_CHECK="true")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    suites = json.loads(ran.stdout[ran.stdout.index("{") :])
    counts = {}
    for name, suite in suites.items():
        results = suite["test_results"]
        assert {result["status"] for result in results.values()} == {"Success"}
        counts[name.split(":")[1]] = len(results)
    assert counts == SUITES


def test_forge_and_the_artifact_agree_to_the_byte() -> None:
    assert forge("build").returncode == 0
    built = json.loads(
        (CONTRACTS / "out" / "TreeHeadAnchor.sol" / "TreeHeadAnchor.json").read_text()
    )
    assert built["bytecode"]["object"] == f"0x{load_artifact().creation.hex()}"
    assert built["deployedBytecode"]["object"] == f"0x{load_artifact().runtime.hex()}"


def test_the_sources_are_formatted() -> None:
    formatted = forge("fmt", "--root", ".", "--check")
    assert formatted.returncode == 0, formatted.stdout
