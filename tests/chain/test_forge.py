"""Forge runs the contract's own fuzz tests, and its compiler agrees with the artifact."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path

from rlhf_audit_trail.ledger.chain.build import node_on_path
from rlhf_audit_trail.ledger.chain.compiled import load_artifact

CONTRACTS = Path(__file__).resolve().parents[2] / "contracts"
MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


def forge(*arguments):
    package = f"forge-{platform.system().lower()}-{MACHINES[platform.machine()]}"
    program = CONTRACTS / "node_modules" / "@foundry-rs" / package / "bin" / "forge"
    with node_on_path():
        return subprocess.run(
            [program, *arguments], cwd=CONTRACTS, capture_output=True, text=True, check=False
        )


def test_every_forge_test_passes():
    ran = forge("test", "--json")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (suite,) = json.loads(ran.stdout).values()
    results = suite["test_results"]
    assert len(results) == 23
    assert {result["status"] for result in results.values()} == {"Success"}


def test_forge_and_the_artifact_agree_to_the_byte():
    assert forge("build").returncode == 0
    built = json.loads(
        (CONTRACTS / "out" / "TreeHeadAnchor.sol" / "TreeHeadAnchor.json").read_text()
    )
    assert built["bytecode"]["object"] == f"0x{load_artifact().creation.hex()}"
    assert built["deployedBytecode"]["object"] == f"0x{load_artifact().runtime.hex()}"


def test_the_sources_are_formatted():
    formatted = forge("fmt", "--root", ".", "--check")
    assert formatted.returncode == 0, formatted.stdout
