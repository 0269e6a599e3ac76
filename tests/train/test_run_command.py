"""A script that knows nothing of any record: recorded, killed in the middle, resumed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_audit_trail.ledger.fsck import fsck
from rlhf_audit_trail.ledger.log import Ledger

pytestmark = pytest.mark.train

SCRIPT = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from tests.train.tiny_trainers import policy, preferences, settings, tokenizer
from trl import DPOConfig, DPOTrainer
from transformers import TrainerCallback

steps, counts = [], sys.argv[3]

class Count(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        with open(counts, "a") as file:
            print(state.global_step, file=file)
        if not resuming and state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

tokens = tokenizer()
resuming = sys.argv[4] == "resume"
trainer = DPOTrainer(
    policy(tokens), policy(tokens), args=DPOConfig(**settings(sys.argv[2], max_steps=6)),
    train_dataset=preferences(), processing_class=tokens, callbacks=[Count()],
)
trainer.train(resume_from_checkpoint=resuming)
trainer.save_model()
"""


def test_a_killed_training_is_resumed_as_one_record(tmp_path: Path) -> None:
    Ledger.create(tmp_path / "ledger", organisation="acme.example").close()
    (tmp_path / "train.py").write_text(SCRIPT, "utf-8")
    root, out, counts = Path(__file__).parents[2], tmp_path / "out", tmp_path / "counts"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def run(how: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable, "-m", "rlhf_audit_trail.cli", "run", "--source", "simulated",
            "--ledger", str(tmp_path / "ledger"), "--name", "killed", "--",
            sys.executable, str(tmp_path / "train.py"), str(root), str(out), str(counts), how,
        ]  # fmt: skip
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, timeout=300
        )

    first = run("start")
    assert first.returncode == 128 + 9, first.stderr
    second = run("resume")
    assert second.returncode == 0, second.stderr
    with Ledger.open(tmp_path / "ledger") as ledger:
        log = ledger.find("killed")
        entries = [entry.event for entry in log.entries()]
        gaps = sum(entry["count"] for entry in entries if entry["kind"] == "gap")
        trained = [int(line) for line in counts.read_text().split()]
        assert trained == [1, 2, 3, 4, 5, 5, 6]
        updates = [entry for entry in entries if entry["kind"] == "policy.update"]
        steps = [entry["trainer_step"] for entry in updates]
        # what the killed process had handed over last may be missing, and then it is declared
        assert steps == trained or gaps
        assert steps.count(5) == 2 or gaps  # trained twice, and visible as such
        assert len({entry["policy_step"] for entry in updates}) == len(updates)
        kinds = [entry["kind"] for entry in entries]
        assert kinds.count("run.started") == kinds.count("run.resumed") == 1
        assert kinds.count("run.finished") == 1
        assert not [entry for entry in entries if entry["kind"] == "alert.raised"]
        saved = [entry["name"] for entry in entries if entry["kind"] == "checkpoint.saved"]
        assert saved == ["checkpoint-2", "checkpoint-4", "checkpoint-6", "saved-6"]
        head = json.loads((out / "checkpoint-6/trainer_state.json").read_bytes())
        head = head["stateful_callbacks"]["AuditCallback"]["attributes"]["head"]
        assert log.root_at(head["tree_size"]).hex() == head["root"]
        assert list(fsck(ledger)) == []


def test_a_command_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rlhf_audit_trail.cli", "run", "--ledger", str(tmp_path)]
    done = subprocess.run(
        [*command, "--", "no-such-command"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    done = subprocess.run(
        [*command, "--", sys.executable, "-c", "raise SystemExit(7)"], check=False
    )
    assert done.returncode == 7


LOOP = """
import torch

model = torch.nn.Linear(3, 2)
for lr, kind in ((0.1, torch.optim.SGD), (0.01, torch.optim.AdamW)):
    optimizer = kind(model.parameters(), lr=lr)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
import late_part  # after the first step, as trainers do
"""


def test_a_loop_without_a_trainer_is_recorded_by_its_optimizers(tmp_path: Path) -> None:
    Ledger.create(tmp_path / "ledger", organisation="acme.example").close()
    (tmp_path / "my_loop.py").write_text(LOOP, "utf-8")
    (tmp_path / "late_part.py").write_text("PART = 1\n", "utf-8")
    command = [
        sys.executable, "-m", "rlhf_audit_trail.cli", "run", "--source", "simulated", "--ledger",
        str(tmp_path / "ledger"), "--", sys.executable, str(tmp_path / "my_loop.py"),
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    with Ledger.open(tmp_path / "ledger") as ledger:
        log = ledger.find("my_loop")
        entries = [entry.event for entry in log.entries()]
        updates = [entry for entry in entries if entry["kind"] == "policy.update"]
        assert [(x["updates"], x["learning_rate"]) for x in updates] == [(1, 0.1)] * 3 + [
            (1, 0.01)
        ] * 3
        told = [x["config"] for x in entries if x["kind"] == "run.config"]
        assert "rows" in told[-1]["not_seen"]
        assert entries[-1]["kind"] == "run.finished"
        assert not [x for x in entries if x["kind"] in ("gap", "alert.raised")]
        first, last = [x for x in entries if x["kind"] == "env.snapshot"]
        script = f"{first['code_digest']}  my_loop.py\n"
        part = f"{hashlib.sha256(b'PART = 1' + bytes([10])).hexdigest()}  late_part.py\n"
        assert ledger.blobs.get(first["sources_digest"]).decode() == script
        assert ledger.blobs.get(last["sources_digest"]).decode() == part + script
        assert (first["sources"], last["sources"]) == (1, 2)
