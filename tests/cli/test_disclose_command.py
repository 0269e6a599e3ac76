"""`rlhf-audit disclose`: the file opens what was asked for, and the registry log says to whom."""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rlhf_audit_trail.cli.main import main
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.proof.verify import TrustPolicy, verify_bundle

VALUES = {"prompt": "what was asked", "response": "what was said", "reward": 0.6180339}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    with Ledger.create(tmp_path / "ledger", organisation="acme.example") as ledger:
        log = ledger.open_run("run42")
        log.record(Event("annotation.recorded", {"source": "human", "batch": 0}, VALUES, "ann"))
        log.publish()
    return tmp_path / "ledger"


def call(directory: Path, *arguments: str) -> Result:
    environment = {"RLHF_AUDIT_LEDGER": str(directory), "NO_COLOR": "1"}
    return CliRunner(env=environment).invoke(main, arguments)


def test_a_disclosure_verifies_and_is_recorded_without_any_value(
    directory: Path, tmp_path: Path
) -> None:
    file = tmp_path / "given"
    some = ("--field", "reward", "--field", "prompt", "--to", "Auditor A", "--output", str(file))
    done = call(directory, "disclose", "run42", "0", *some)
    assert done.exit_code == 0, done.stderr
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    key = str(directory / "keys/run42.vkey")
    shown = call(directory, "verify", str(file), "--key", key)
    assert shown.exit_code == 0, shown.output
    with Ledger.open(directory) as ledger:
        trust = TrustPolicy(ledger.find("run42").verifier_keys)
        opened = verify_bundle(file.read_bytes(), trust).opened
        assert opened == {(0, "prompt"): b'"what was asked"', (0, "reward"): b"0.6180339"}
        (told,) = (x.event for x in ledger.registry.entries(kind="access.read"))
    assert (told["run"], told["index"], told["fields"]) == ("run42", 0, ["prompt", "reward"])
    assert told["reader"] == "Auditor A"
    assert told["digest"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert told["size_bytes"] == file.stat().st_size
    assert not any(str(value) in json.dumps(told) for value in VALUES.values())


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("run42", "0", "--field", "annotator"), 2),  # not sealed in this entry
        (("run42", "7", "--field", "reward"), 3),
        (("run43", "0", "--field", "reward"), 4),
        (("run42", "0", "--field", "reward", "--to", " "), 2),
        (("run42", "0", "--field", "reward", "--to", "a\nb"), 2),
        (("run42", "0", "--field", "reward", "--output", "taken"), 2),
    ],
)
def test_what_is_refused_is_neither_given_nor_recorded(
    directory: Path, arguments: tuple[str, ...], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory.parent)
    Path("taken").write_text("other", "utf-8")
    defaults = [] if "--to" in arguments else ["--to", "A"]
    defaults += [] if "--output" in arguments else ["--output", "new"]
    done = call(directory, "disclose", *arguments, *defaults)
    assert done.exit_code == code, done.output
    assert not Path("new").exists()
    assert Path("taken").read_text("utf-8") == "other"
    with Ledger.open(directory) as ledger:
        assert list(ledger.registry.entries(kind="access.read")) == []


def test_of_an_erased_person_nothing_is_disclosed(directory: Path, tmp_path: Path) -> None:
    assert call(directory, "subject", "erase", "ann", "--yes").exit_code == 0
    some = ("--field", "reward", "--to", "Auditor A", "--output", str(tmp_path / "given"))
    assert call(directory, "disclose", "run42", "0", *some).exit_code == 3
    assert not (tmp_path / "given").exists()
