"""The README's snippets run, and its counts and tables are those of the code."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

from rlhf_audit_trail.cli.main import main
from rlhf_audit_trail.demo import attacks
from rlhf_audit_trail.demo.models import make_policy, make_tokenizer
from rlhf_audit_trail.ledger.log import Ledger

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
NUMBERS = {14: "fourteen", 15: "fifteen", 16: "sixteen"}

pytestmark = pytest.mark.train


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in which the Python snippets were run, in their order."""
    monkeypatch.chdir(tmp_path)
    Ledger.create("audit", organisation="acme.example").close()
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = torch.randn(4, 3)

    def train() -> None:
        optimizer.zero_grad()
        model(batch).sum().backward()
        optimizer.step()

    tokens = make_tokenizer()
    rows = {"input_ids": [[5, 6, 1], [7, 8, 1]], "labels": [[5, 6, 1], [7, 8, 1]]}
    trainer = Trainer(
        make_policy(tokens),
        TrainingArguments(str(tmp_path / "out"), use_cpu=True, max_steps=1, report_to="none"),
        train_dataset=[
            dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)
        ],
    )
    names = {
        "trainer": trainer, "train": train, "model": model, "optimizer": optimizer, "batch": batch,
        "loss_of": lambda model, batch: model(batch).square().mean(),
        "prompts": ["a", "b"], "responses": ["c", "d"],
        "annotator_ids": ["ann", "bob"], "rewards": [0.5, 1.0],
    }  # fmt: skip
    for number, code in enumerate(blocks("python")):
        exec(compile(code, f"README.md, block {number}", "exec"), names)  # noqa: S102 - the point of it
    found = names["found"]
    assert found.is_valid
    names["auditor"].close()
    return tmp_path


@pytest.mark.usefixtures("tried")
def test_the_snippets_run_and_the_bundle_verifies() -> None:
    (verify,) = [
        line[2:] for block in blocks("console") for line in block.splitlines()
        if line.startswith("$ rlhf-audit verify")
    ]  # fmt: skip
    with Ledger.open("audit") as ledger:
        log = ledger.find("run-42")
        Path("run-42.bundle").write_bytes(log.bundle(range(log.size)))
        Path("run-42.vkey").write_text(ledger.key_file("run-42").read_text("utf-8"), "utf-8")
    command = [sys.executable, "-m", "rlhf_audit_trail.cli", *shlex.split(verify)[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_command_table_names_every_command_and_no_other() -> None:
    named = set(re.findall(r"^\| `rlhf-audit ([\w-]+)", README, re.MULTILINE))
    assert named == set(main.list_commands(None))


def test_the_number_of_attacks_is_told_as_it_is() -> None:
    source = Path(attacks.__file__).read_text("utf-8")
    listed = source[source.index("attacks: tuple[") : source.index("for name, attack in attacks")]
    count = len(re.findall(r'^\s+\("', listed, re.MULTILINE))
    assert f"then {NUMBERS[count]} attacks" in README
    assert f"{NUMBERS[count]} attacks are caught" in (
        Path(__file__).parents[2] / "CHANGELOG.md"
    ).read_text("utf-8")


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (Path(__file__).parents[2] / target).exists(), target
