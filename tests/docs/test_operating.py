"""What OPERATING.md shows: its settings are all of them, and its commands do what it says."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from click.testing import CliRunner

from rlhf_audit_trail.cli.main import main
from rlhf_audit_trail.ledger.chain.node.anvil import Anvil
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.settings import LEDGER_TABLES, read_tables
from tests.chain_fixtures import FREE_PORT

TEXT = (Path(__file__).parents[2] / "ledger/OPERATING.md").read_text("utf-8")


def blocks(language: str, section: str = "") -> list[str]:
    part = TEXT.split(f"## {section}\n", 1)[1].split("\n## ", 1)[0] if section else TEXT
    return re.findall(rf"^```{language}\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)


def test_the_settings_are_read_and_none_is_left_out(tmp_path: Path) -> None:
    (block,) = blocks("toml")
    path = tmp_path / "rlhf-audit.toml"
    path.write_text(block, "utf-8")
    read_tables(path, dict(LEDGER_TABLES))
    shown = {(table, name) for table, values in tomllib.loads(block).items() for name in values}
    known = {(table, item.name) for table, cls in LEDGER_TABLES.items() for item in fields(cls)}
    assert known - shown == {("chain", "contract"), ("chain", "publisher")}  # found by themselves


def run(section: str) -> None:
    for line in "".join(blocks("console", section)).splitlines():
        name, *arguments = shlex.split(line.removeprefix("$ "))
        assert name == "rlhf-audit"
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, f"{line}\n{done.output}"


@pytest.fixture(autouse=True)
def _ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLHF_AUDIT_LEDGER", "audit")
    with Ledger.create("audit", organisation="acme.example") as ledger:
        log = ledger.open_run("run42")
        log.record_many(
            Event("annotation.recorded", {"source": "simulated", "batch": x}, {"reward": x / 2})
            for x in range(300)
        )
        log.publish()
        ledger.registry.publish()


def test_annotations_and_trainings_from_elsewhere() -> None:
    pair = {"prompt": "Q", "chosen": "a", "rejected": "b", "annotator": "ann"}
    Path("export.jsonl").write_text(json.dumps(pair), "utf-8")
    Path("guideline.md").write_text("be kind", "utf-8")
    Path("rollouts").mkdir()
    row = {"input": "Q", "output": "A", "score": 1.0, "step": 1}
    Path("rollouts/1.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    run("Annotations and trainings from elsewhere")
    with Ledger.open("audit") as ledger:
        assert ledger.find("run42").size == 302
        assert len(list(ledger.find("run44").entries(kind="rollout.scored"))) == 1


def test_copies_bring_back_what_was_lost() -> None:
    run("Who else remembers")
    for path in Path("audit").glob("ledger.db*"):
        path.unlink()
    run("After a loss")
    with Ledger.open("audit") as ledger:
        assert ledger.find("run42").size == 300


def test_a_training_on_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    section = "A training on another machine"
    add, serve = (shlex.split(x[2:])[1:] for x in blocks("console", section)[0].splitlines())
    done = CliRunner().invoke(main, add)
    assert done.exit_code == 0, done.output
    (token,) = re.findall(r"rlhfw_\S+", done.output)
    monkeypatch.setenv("RLHF_AUDIT_WRITER_TOKEN", token)
    command = [sys.executable, "-m", "rlhf_audit_trail.cli", *serve[:-1], "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as service:
        try:
            assert service.stderr is not None
            (address,) = re.findall(r"http://\S+:\d+", service.stderr.readline())[:1]
            (code,) = blocks("python", section)
            trained: list[int] = []
            exec(  # noqa: S102 - the page's own code
                code.replace("https://audit.acme.example", address),
                {"train": lambda: trained.append(1)},
            )
        finally:
            service.kill()
    assert trained
    with Ledger.open("audit") as ledger:
        log = ledger.find("run43")
        assert [x.event["kind"] for x in log.entries()][-1] == "run.finished"
        assert log.published() is not None


def test_weights_and_what_they_were_made_from() -> None:
    import torch

    from rlhf_audit_trail.auditor import AuditableRLHF

    run("Weights of checkpoints")
    (code,) = blocks("python", "Weights of checkpoints")
    with AuditableRLHF("tiny", ledger="audit", source="simulated") as auditor:
        exec(code, {"auditor": auditor, "model": torch.nn.Linear(2, 2)})  # noqa: S102 - the page's own code
    with Ledger.open("audit") as ledger:
        (first, cast) = ledger.find("run45").entries(kind="checkpoint.saved")
        assert cast.event["derived_from"][0]["weights_digest"] == first.event["weights_digest"]


@pytest.mark.chain
def test_anchoring(monkeypatch: pytest.MonkeyPatch) -> None:
    with Anvil(FREE_PORT) as chain:
        monkeypatch.setenv("RLHF_AUDIT_PUBLISHER_KEY", chain.accounts[0].key.hex())
        with Path("audit/rlhf-audit.toml").open("a") as file:
            file.write(f'[chain]\nrpc_url = "{chain.url}"\nchain_id = 31337\n')
        run("Anchoring")
    with Ledger.open("audit") as ledger:
        assert ledger.find("run42").anchored_sizes() == [300]


def test_a_persons_data() -> None:
    person = "ann@acme.example"
    with Ledger.open("audit") as ledger:
        sealed = {"prompt": "asked", "annotator": person, "reward": 0.5}
        fields = {"source": "human", "batch": 0}
        ledger.open_run("run42").record(Event("annotation.recorded", fields, sealed, person))
    run("A person's data")
    assert json.loads(Path("ann.json").read_text("utf-8"))["runs"][0]["run"] == "run42"
    with Ledger.open("audit") as ledger:
        (told,) = ledger.registry.entries(kind="subject.erased")
        assert told.event["entries"] == 1


def test_new_keys_and_an_old_run() -> None:
    run("New keys")
    with Ledger.open("audit") as ledger:
        ledger.find("run42").close()
    run("Old runs")
