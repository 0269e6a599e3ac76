"""The auditor's machine: the wheel, its two dependencies, and nothing else."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.export import export_log
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.weights.digest import tensor_record, weights_digest

PROJECT = Path(__file__).parents[2]
TIMEOUT_S = 600

pytestmark = pytest.mark.slow


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run away from the checkout, whose packages Python would find first."""
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        cwd="/",
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the base install; returns its bin directory."""
    folder = tmp_path_factory.mktemp("base")
    source = folder / "source"  # building leaves files beside the source
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:
        path = PROJECT / name
        if not (path.is_file() or path.is_symlink()):
            continue
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, source / name, follow_symlinks=False)
    made = run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, source)
    assert made.returncode == 0, made.stderr
    venv.create(folder / "venv", with_pip=True)
    binaries = folder / "venv" / "bin"
    wheel = next(folder.glob("*.whl"))
    constraints = PROJECT / "constraints.txt"
    done = run(binaries / "python", "-m", "pip", "install", "-q", "-c", constraints, wheel)
    assert done.returncode == 0, done.stderr
    return binaries


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle and the file with the log's keys."""
    folder = tmp_path_factory.mktemp("ledger")
    with Ledger.create(folder / "audit", organisation="acme.example") as ledger:
        log = ledger.open_run("run")
        for i in range(40):
            event = Event(
                "annotation.recorded",
                {"source": "simulated", "batch": i},
                {"prompt": "p", "response": "r", "annotator": "ann", "reward": i},
                subject="ann",
            )
            log.record(event)
        log.publish()
        (folder / "run.bundle").write_bytes(log.bundle([3, 30], opened=["reward"]))
        return folder / "run.bundle", ledger.key_file("run")


def test_only_the_two_dependencies_come_along(installed: Path) -> None:
    listed = run(installed / "python", "-m", "pip", "list", "--format", "json")
    names = {item["name"].lower() for item in json.loads(listed.stdout)}
    assert names - {"pip", "setuptools"} == {
        "cffi", "click", "cryptography", "pycparser", "rlhf-audit-trail",
    }  # fmt: skip


def test_verify_says_verified_with_the_key(installed: Path, bundle: tuple[Path, Path]) -> None:
    done = run(installed / "rlhf-audit", "verify", bundle[0], "--key", bundle[1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "VERIFIED" in done.stdout


def test_verify_is_inconclusive_without_a_key(installed: Path, bundle: tuple[Path, Path]) -> None:
    done = run(installed / "rlhf-audit", "verify", bundle[0])
    assert done.returncode == 3, done.stdout + done.stderr


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.8, 0.9, 0.995])
def test_a_flipped_byte_is_refused(
    installed: Path, bundle: tuple[Path, Path], tmp_path: Path, share: float
) -> None:
    data = bytearray(bundle[0].read_bytes())
    data[int(len(data) * share)] ^= 0x01
    (tmp_path / "flipped.bundle").write_bytes(data)
    command = (installed / "rlhf-audit", "verify", tmp_path / "flipped.bundle", "--key", bundle[1])
    done = run(*command, "--json")
    result = json.loads(done.stdout)
    assert done.returncode in {1, 4}, done.stdout
    assert any(check["state"] in {"failed", "unreadable"} for check in result["checks"])


def test_a_model_is_recognised_in_an_exported_log(installed: Path, tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "audit", organisation="acme.example") as ledger:
        log = ledger.open_run("run")
        record = tensor_record("w", "U8", [4], b"abcd")
        fields = {"role": "policy_final", "weights_digest": weights_digest([record]).hex()}
        log.record(Event("model.registered", fields | {"tensors": 1, "parameters": 4}))
        log.publish()
        export_log(log, tmp_path / "export")
        key = ledger.key_file("run")
    header = json.dumps({"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    for name, data, code in (("own", b"abcd", 0), ("other", b"abce", 3)):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header + data)
        done = run(
            installed / "rlhf-audit", "verify-model", path, "--log", tmp_path / "export",
            "--key", key,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr


def test_other_commands_name_the_extra(installed: Path, tmp_path: Path) -> None:
    done = run(installed / "rlhf-audit", "status", "--ledger", tmp_path)
    assert done.returncode == 5
    assert "pip install 'rlhf-audit-trail[ledger]'" in done.stderr


def test_the_format_travels_with_the_verifier(installed: Path) -> None:
    code = (
        "import importlib.resources as r;"
        "print(r.files('rlhf_audit_trail.ledger').joinpath('FORMAT.md').read_text()[:1])"
    )
    done = run(installed / "python", "-c", code)
    assert done.stdout == "#\n", done.stderr
