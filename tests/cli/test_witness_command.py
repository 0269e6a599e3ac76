"""The witness's commands, and a ledger that asks a witness running in its own process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from rlhf_audit_trail.cli.main import main
from rlhf_audit_trail.ledger.cosignature import CosignerKey
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.tlog_policy import PolicyWitness, TlogPolicy, format_policy


def run(*arguments):
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


@pytest.fixture
def origin_keys(tmp_path):
    with Ledger.create(tmp_path / "ledger", organisation="acme.example") as ledger:
        ledger.registry.publish()
        return ledger.registry.verifier_keys


@pytest.fixture
def witness(tmp_path, origin_keys):
    """A witness that follows the registry log, served by the command; its policy file."""
    result = run("witness", "init", tmp_path / "w", "--name", "witness.example/w1")
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("witness.example/w1+")]
    keys = [CosignerKey.parse(line) for line in lines]
    with (tmp_path / "w" / "logs.vkey").open("a", encoding="utf-8") as file:
        file.writelines(f"{key}\n" for key in origin_keys)
    command = [
        sys.executable,
        "-m",
        "rlhf_audit_trail.cli",
        "witness",
        "serve",
        tmp_path / "w",
        "--port",
        "0",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        said = child.stderr.readline()
        assert said.startswith("the witness witness.example/w1 serves on http://127.0.0.1:"), said
        policy = TlogPolicy((), (PolicyWitness("w1", keys[1], said.split()[-1]),), (), "w1")
        (tmp_path / "policy").write_bytes(format_policy(policy))
        yield tmp_path / "policy"
        child.terminate()
        child.communicate()


def collect(tmp_path, *more):
    return run(
        "witness",
        "collect",
        "--policy",
        tmp_path / "policy",
        "--ledger",
        tmp_path / "ledger",
        *more,
    )


def test_a_ledger_is_cosigned_and_the_monitor_sees_the_quorum(tmp_path, witness):
    result = collect(tmp_path)
    assert result.exit_code == 0, result.output
    assert "quorum" in result.output
    result = collect(tmp_path, "registry", "--json")
    (round_,) = json.loads(result.output)
    assert (round_["quorum"], round_["witnesses"][0]["state"]) == (True, "cosigned")
    assert (
        run("export", "registry", tmp_path / "public", "--ledger", tmp_path / "ledger").exit_code
        == 0
    )
    look = (
        "monitor",
        tmp_path / "public",
        "--key",
        tmp_path / "public" / "vkey",
        "--policy",
        witness,
        "--once",
    )
    assert (run(*look).exit_code, "1 witnesses" in run(*look).output) == (0, True)
    assert run("witness", "evidence", tmp_path / "w").exit_code == 0
    assert json.loads(run("witness", "evidence", tmp_path / "w", "--json").output) == []


@pytest.mark.usefixtures("origin_keys")
def test_a_quorum_that_is_not_met_is_inconclusive(tmp_path):
    key = next(
        line
        for line in run("witness", "init", tmp_path / "v", "--name", "v").output.splitlines()
        if line.startswith("v+")
    )
    (tmp_path / "policy").write_text(f"witness v {key} http://127.0.0.1:9/\nquorum v\n", "utf-8")
    result = collect(tmp_path, "--timeout", "2")
    assert (result.exit_code, "no quorum" in result.output) == (3, True)
    (tmp_path / "policy").write_text("quorum v\n", "utf-8")
    assert collect(tmp_path).exit_code == 4
    (tmp_path / "policy").unlink()
    assert collect(tmp_path).exit_code == 4


def test_refusals(tmp_path):
    assert run("witness", "init", tmp_path / "w", "--name", "a b").exit_code == 4
    assert not (tmp_path / "w").exists()
    assert run("witness", "init", tmp_path / "w", "--name", "w").exit_code == 0
    assert run("witness", "init", tmp_path / "w", "--name", "w").exit_code == 2
    assert run("witness", "serve", tmp_path / "nowhere").exit_code == 4
    result = run("witness", "serve", tmp_path / "w")  # no log is followed yet
    assert (result.exit_code, "logs.vkey" in result.output) == (4, True)
    assert Path(tmp_path / "w" / "witness.key").stat().st_mode & 0o077 == 0
