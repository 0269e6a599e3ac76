"""The demonstration as a newcomer runs it: a process of its own, judged from outside."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TIMEOUT_S = 400
PROJECT = Path(__file__).parents[2]

pytestmark = [pytest.mark.chain, pytest.mark.slow]


def run(*words: str, cwd: Path = PROJECT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "rlhf_audit_trail.cli", *words],
        cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The demo without torch, kept."""
    directory = tmp_path_factory.mktemp("demo") / "kept"
    done = run("demo", "--fast", "--json", "--keep", str(directory))
    assert done.returncode == 0, done.stdout + done.stderr
    return directory, json.loads(done.stdout)


def check(report: dict) -> None:
    assert report["passed"] is True
    assert len(report["attacks"]) == 15
    assert all(attack["by"] for attack in report["attacks"])
    recorded = report["training"]["on_record"]
    assert recorded["reward_end"] >= 2 * recorded["reward_start"] > 0
    assert recorded["kl_end"] > 0
    run_anchors = [item for item in report["anchors"] if item["origin"].endswith("demo-run")]
    sizes = [item["tree_size"] for item in run_anchors]
    assert len(sizes) >= 3
    assert sizes == sorted(set(sizes))


@pytest.mark.train
def test_the_whole_demo_with_torch() -> None:
    done = run("demo", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    check(json.loads(done.stdout))


def test_the_fast_demo_catches_every_attack(fast: tuple[Path, dict]) -> None:
    check(fast[1])


def test_the_fast_demo_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'numpy'): sys.modules[name] = None\n"
        "from rlhf_audit_trail.cli.main import main\n"
        "main(['demo', '--fast', '--keep', sys.argv[1]])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "kept")],
        cwd=PROJECT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "15 of 15 attacks caught" in done.stdout
    (block,) = re.findall(r"--trusted-block-hash (\S+)", done.stdout)
    assert block.startswith("31337:")
    assert "without torch, web3, database or network" in done.stdout
    assert re.search(r"passed +anchor +the head of size", done.stdout), done.stdout


def test_what_is_kept_can_be_checked_later(fast: tuple[Path, dict]) -> None:
    directory, report = fast
    bundle, key = str(directory / "demo.bundle"), str(directory / "demo.vkey")
    assert run("verify", bundle, "--key", key).returncode == 0
    assert run("verify", bundle).returncode == 3
    assert run("fsck", "--ledger", str(directory / "ledger")).returncode == 0
    policy = str(directory / "demo.trust.json")
    assert run("verify", bundle, "--trust-policy", policy).returncode == 3, "it demands an anchor"
    assert run("verify", bundle, "--trust-policy", policy, "--accept-unanchored").returncode == 0
    block = report["trusted_block"]
    trusting = ("verify", bundle, "--trust-policy", policy, "--trusted-block-hash")
    done = run(*trusting, block)
    assert done.returncode == 0, done.stdout
    assert "anchored at" in done.stdout, "since when"
    wrong = block[:-1] + ("0" if block[-1] != "0" else "1")
    assert run(*trusting, wrong).returncode == 1


def test_a_directory_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    done = run("demo", "--fast", "--keep", str(tmp_path))
    assert done.returncode == 2
    assert "is not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_without_anvil_it_says_how_to_get_it(tmp_path: Path) -> None:
    """Away from the checkout, where no node_modules holds the binary."""
    code = (
        "import sys\n"
        "from rlhf_audit_trail.ledger.chain.node import anvil_settings\n"
        "anvil_settings._PROJECT = __import__('pathlib').Path(sys.argv[1])\n"
        "from rlhf_audit_trail.cli.main import main\n"
        "main(['demo', '--fast'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 5, done.stdout + done.stderr
    assert "npm install" in done.stderr
