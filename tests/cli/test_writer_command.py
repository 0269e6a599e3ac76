"""`rlhf-audit writer`: tokens are shown once, listed without, and revoked for good."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rlhf_audit_trail.cli.main import main
from rlhf_audit_trail.ledger.bearer import TOKEN_VARIABLE, token_digest
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.fsck import fsck, open_damaged
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.refusals import BadToken
from rlhf_audit_trail.ledger.remote import RemoteLog
from tests.ledger.http_service import serving


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    Ledger.create(tmp_path / "ledger", organisation="acme.example").close()
    return tmp_path / "ledger"


def writer(directory: Path, *arguments: str) -> Result:
    environment = {"RLHF_AUDIT_LEDGER": str(directory), "NO_COLOR": "1"}
    return CliRunner(env=environment).invoke(main, ["writer", *arguments])


def added(directory: Path, *arguments: str) -> str:
    done = writer(directory, "add", *arguments, "--json")
    assert done.exit_code == 0, done.stderr
    token: str = json.loads(done.stdout)["token"]
    return token


def test_a_token_from_its_making_to_its_end(directory: Path) -> None:
    done = writer(directory, "add", "gpu-1", "--run", "run-42")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "opened the run run-42, which was new" in done.stdout
    (token,) = re.findall(r"^  (rlhfw_[\w-]{43})$", done.stdout, re.MULTILINE)
    for file in directory.rglob("*"):
        assert not file.is_file() or token.encode() not in file.read_bytes(), file
    with serving(directory) as service:
        with RemoteLog(service.url, "run-42", token) as log:
            log.record(Event("metrics.logged", {"step": 1})).result(timeout_s=60)
        listed = json.loads(writer(directory, "list", "--json").stdout)
        done = writer(directory, "revoke", "gpu-1")
        assert (done.exit_code, done.stderr) == (0, "")
        assert re.fullmatch(r"gpu-1 is refused since \S+Z\n", done.stdout)
        late = RemoteLog(service.url, "run-42", token)
        with pytest.raises(BadToken):
            late.record(Event("metrics.logged", {"step": 2})).result(timeout_s=60)
        with pytest.raises(BadToken):
            late.close()
    (item,) = listed
    assert (item["writer"], item["run"], item["state"]) == ("gpu-1", "run-42", "in force")
    assert item["token_digest"] == token_digest(token).hex()
    assert [x["writer_id"] for x in item["processes"]] == [log.writer_id]
    table = writer(directory, "list").stdout
    assert re.search(r"^gpu-1 +run-42 +revoked +1  \S+Z$", table, re.MULTILINE)
    assert token not in table + str(listed)
    with open_damaged(directory) as storage:
        assert list(fsck(storage)) == []


def test_a_token_for_every_run(directory: Path) -> None:
    token = added(directory, "mover", "--all-runs")
    assert token.startswith("rlhfw_")
    (item,) = json.loads(writer(directory, "list", "--json").stdout)
    assert item["run"] is None
    assert "(every run)" in writer(directory, "list").stdout


def test_what_goes_wrong_says_what_to_do(directory: Path) -> None:
    added(directory, "gpu-1", "--run", "run-42")
    for arguments, code, said in (
        (("add", "gpu-1", "--run", "run-42"), 2, "was used before"),
        (("add", "gpu-2"), 2, "--run RUN, or --all-runs"),
        (("add", "gpu-2", "--run", "run-42", "--all-runs"), 2, "--run RUN, or --all-runs"),
        (("add", "gpu 2", "--run", "run-42"), 2, "cannot name a writer"),
        (("add", "gpu-2", "--run", "../x"), 2, "cannot name a run"),
        (("add", "gpu-2", "--run", "registry"), 2, "cannot name a run"),
        (("revoke", "gpu-9"), 4, "rlhf-audit writer list"),
    ):
        done = writer(directory, *arguments)
        assert (done.exit_code, done.stdout) == (code, ""), arguments
        assert said in done.stderr
    assert len(json.loads(writer(directory, "list", "--json").stdout)) == 1


def test_the_help_names_the_variable_and_the_danger(directory: Path) -> None:
    assert "TLS" in writer(directory, "--help").stdout
    assert TOKEN_VARIABLE in writer(directory, "add", "gpu-1", "--run", "run-42").stdout
