"""export, import, prune and prove on the command line: what they say, and their exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from rlhf_audit_trail.cli.main import main
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Ledger


def annotation(number):
    person = f"person-{number % 3}"
    sealed = {"prompt": f"p{number}", "response": "r", "annotator": person, "reward": 0.5}
    return Event("annotation.recorded", {"source": "simulated", "batch": number}, sealed, person)


def grow(run_id, size):
    with Ledger.open("audit") as ledger:
        log = ledger.open_run(run_id)
        log.record_many(annotation(number) for number in range(log.size, size))
        log.publish()
        ledger.registry.publish()


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLHF_AUDIT_LEDGER", "audit")
    Ledger.create("audit", organisation="acme.example").close()
    grow("run42", 300)

    def invoke(*arguments):
        result = CliRunner().invoke(main, list(map(str, arguments)))
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return invoke


def test_export_of_one_run_of_all_and_of_what_is_new(run):
    assert run("export", "run42", "out").exit_code == 0
    assert run("export", "run42", "out").exit_code == 2
    assert run("export", "run42").exit_code == 2
    assert run("export", "--all", "run42", "out").exit_code == 2
    grow("run42", 600)
    result = run("export", "run42", "out", "--update")
    assert (result.exit_code, "300 new entries, 600 in all" in result.output) == (0, True)
    assert run("monitor", "out", "--key", "audit/keys/run42.vkey", "--once").exit_code == 0
    assert run("export", "--all", "every").exit_code == 0
    assert sorted(x.name for x in Path("every").iterdir()) == ["registry", "run42"]
    assert run("export", "--all", "every").exit_code == 2
    with Ledger.open("audit") as ledger:
        ledger.open_run("unsigned").record(annotation(0)).result()
    result = run("export", "--all", "every", "--update")
    assert (result.exit_code, "no signed tree head: unsigned" in result.output) == (3, True)
    assert run("export", "other", "x").exit_code == 4


def test_import_into_what_is_behind_and_into_what_is_lost(run):
    shutil.copytree("audit", "backup")
    grow("run42", 600)
    assert run("export", "--all", "copies").exit_code == 0
    result = run("import", "copies", "--ledger", "backup")
    assert result.exit_code == 0
    assert "run42: put back 300 entries, 300 to 599; 600 in all" in result.output
    assert "300 entries have sealed fields that nobody can open" in result.output
    result = run("import", "copies", "--ledger", "backup", "--vault", "audit/ledger.db", "--json")
    last = json.loads(result.output)[-1]
    assert (result.exit_code, last["entries"], last["vault"]["rows"]) == (0, 0, 300)
    assert run("fsck", "--ledger", "backup").exit_code == 0
    Path("lost").mkdir()
    for name in ("operator.key", "rlhf-audit.toml"):
        shutil.copy(f"audit/{name}", f"lost/{name}")
    assert run("import", "copies/run42", "--ledger", "lost").exit_code == 3
    assert run("import", "copies", "--ledger", "lost").exit_code == 0
    assert run("fsck", "--ledger", "lost").exit_code == 0
    assert run("import", "nowhere", "--ledger", "lost").exit_code == 2
    assert run("import", "http://127.0.0.1:9", "--ledger", "lost").exit_code == 5
    assert run("import", "copies", "--ledger", "nowhere").exit_code == 4


def test_prune_prove_and_import_again(run):
    assert run("prune", "run42", "--archive", "arch", "--reason", "r").exit_code == 3
    with Ledger.open("audit") as ledger:
        ledger.find("run42").close()
    Path("policy.toml").write_text('[prune]\nreason = "r"\nkeep_days = 30\n', "utf-8")
    result = run("prune", "run42", "--archive", "arch", "--policy", "policy.toml")
    assert (result.exit_code, "keeps the run run42 until" in result.output) == (3, True)
    assert run("prune", "run42", "--archive", "arch").exit_code == 2
    Path("bad.toml").write_text('[prune]\nreasons = "r"\n', "utf-8")
    assert run("prune", "run42", "--archive", "arch", "--policy", "bad.toml").exit_code == 2
    result = run("prune", "run42", "--archive", "arch", "--reason", "r", "--json")
    assert (result.exit_code, json.loads(result.output)["entries"]) == (0, 300)
    assert run("fsck").exit_code == 0
    verify = ("verify", "run42.bundle", "--key", "audit/keys/run42.vkey", "--accept-unanchored")
    assert run("prove", "run42", 7, 299, "--open", "prompt").exit_code == 0
    assert run(*verify).exit_code == 0
    Path("arch").rename("moved")
    result = run("prove", "run42", 7)
    assert (result.exit_code, "pruned" in result.output) == (3, True)
    assert run("prove", "run42", 7, "--archive", "moved").exit_code == 0
    assert run(*verify).exit_code == 0
    assert run("prune", "run42", "--archive", "arch", "--reason", "r").exit_code == 1
    result = run("import", "moved")
    assert (result.exit_code, "put back 300 entries, 0 to 299" in result.output) == (0, True)
    assert run("prove", "run42", 7).exit_code == 0
    assert run("fsck").exit_code == 0
