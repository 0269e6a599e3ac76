"""`rlhf-audit subject`: the id is read in three ways, and shown in none."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rlhf_audit_trail.cli.main import main
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.fsck import fsck, open_damaged
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.proof.bundle import parse_bundle
from rlhf_audit_trail.ledger.proof.commitment import commit
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.proof.verify import TrustPolicy, verify_bundle

ADA = "ada.lovelace@engine.example"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "ledger"
    with Ledger.create(path, organisation="acme.example") as ledger:
        for run in ("first", "second"):
            ledger.open_run(run).record_many(
                Event(
                    "annotation.recorded",
                    {"source": "human", "batch": number},
                    {"prompt": f"q{number}", "annotator": person, "reward": number / 4},
                    person,
                )
                for number in range(3)
                for person in (ADA, "someone@else.example")
            )[-1].result()
    return path


def subject(directory: Path, *arguments: str, given: str | None = None) -> Result:
    environment = {"RLHF_AUDIT_LEDGER": str(directory), "NO_COLOR": "1"}
    done = CliRunner(env=environment).invoke(main, ["subject", *arguments], input=given)
    assert ADA not in done.output + done.stderr
    return done


def test_found_by_argument_file_input_and_pseudonym(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "id").write_text(ADA + "\n", "utf-8")
    results = [
        subject(directory, "find", ADA, "--json"),
        subject(directory, "find", "--id-file", str(tmp_path / "id"), "--json"),
        subject(directory, "find", "--id-file", "-", "--json", given=ADA),
    ]
    records = [json.loads(done.stdout) for done in results]
    assert records[0] == records[1] == records[2]
    assert records[0]["entries"] == 6
    name = records[0]["runs"]["second"]["pseudonym"]
    assert json.loads(subject(directory, "find", name, "--json").stdout) == records[0]
    one = json.loads(subject(directory, "find", name, "--run", "first", "--json").stdout)
    assert {run: x["entries"] for run, x in one["runs"].items()} == {"first": 3}
    assert "6 entries in 2 runs" in subject(directory, "find", ADA).stdout


def test_who_must_be_said_once_and_is_never_repeated(directory: Path) -> None:
    for arguments in ((), (ADA, "--id-file", "-")):
        assert subject(directory, "find", *arguments, given=ADA).exit_code == 2
    (directory / "bad").write_bytes(b"\xff\xfe")
    assert subject(directory, "find", "--id-file", str(directory / "bad")).exit_code == 2
    for command in (("find",), ("export", "-o", "x"), ("erase", "--yes")):
        done = subject(directory, *command, f"{ADA}x")
        assert done.exit_code == 4, done.output
        assert "nothing is stored" in done.stderr
    assert subject(directory, "find", ADA, "--run", "third").exit_code == 4


def test_an_export_is_private_whole_and_verifies(directory: Path, tmp_path: Path) -> None:
    target = tmp_path / "ada.json"
    done = subject(directory, "export", ADA, "-o", str(target))
    assert done.exit_code == 0, done.stderr
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert subject(directory, "export", ADA, "-o", str(target)).exit_code == 2
    record = json.loads(target.read_text("utf-8"))
    assert [run["run"] for run in record["runs"]] == ["first", "second"]
    for run in record["runs"]:
        (text,) = run["bundles"]
        keys = tuple(VerifierKey.parse(key) for key in run["keys"])
        verify_bundle(text.encode(), TrustPolicy(keys))
        bundle = parse_bundle(text.encode())
        assert [entry.index for entry in bundle.entries] == [0, 2, 4]
        for entry, shown in zip(bundle.entries, run["entries"], strict=True):
            assert shown["values"]["annotator"] == run["pseudonym"]
            assert {x.path: json.loads(x.value) for x in entry.openings} == shown["values"]
            assert shown["entry"]["c"] == {x.path: commit(x).hex() for x in entry.openings}
    assert "someone" not in target.read_text("utf-8")


def test_erased_after_a_question(directory: Path) -> None:
    assert subject(directory, "erase", ADA, given="n\n").exit_code == 1
    assert subject(directory, "find", ADA).exit_code == 0
    done = subject(directory, "erase", ADA, "--basis", "objection", given="y\n")
    assert done.exit_code == 0, done.stderr
    assert "6 entries in 2 runs" in done.stdout
    assert "backups" in done.stdout
    assert subject(directory, "erase", ADA, "--yes").exit_code == 4
    with open_damaged(directory) as storage:
        assert list(fsck(storage)) == []
    with Ledger.open(directory) as ledger:
        told = [x.event["basis"] for x in ledger.registry.entries(kind="subject.erased")]
    assert told == ["objection", "objection"]


def test_of_one_run_the_secret_stays(directory: Path) -> None:
    done = subject(directory, "erase", ADA, "--run", "first", "--yes", "--json")
    assert json.loads(done.stdout) == {
        "runs": {"first": 3}, "secret_destroyed": False, "leftovers": []
    }  # fmt: skip
    found = json.loads(subject(directory, "find", ADA, "--json").stdout)
    assert list(found["runs"]) == ["second"]
