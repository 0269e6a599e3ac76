"""The sidecar: everything once, whatever it is killed in; and it says what it is."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rlhf_audit_trail.cli.main import main
from rlhf_audit_trail.ledger.log import Ledger, Log
from rlhf_audit_trail.sidecar import AlreadyWatched, Look, watching


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.create(tmp_path / "ledger", organisation="acme.example") as made:
        yield made


def verl_rows(step: int, count: int = 8) -> list[dict[str, Any]]:
    """As verl's `_dump_generations` writes them."""
    rng = random.Random(step)
    return [
        {"input": f"user\nQ{row // 4}", "output": f"A{row}", "gts": "42", "score": rng.random(),
         "step": step, "acc": row % 2 == 0, "pred": "41"}
        for row in range(count)
    ]  # fmt: skip


def nemo_rows(step: int) -> list[dict[str, Any]]:
    """As NeMo-RL's `log_batched_dict_as_jsonl` writes them: each value in a list of one."""
    return [
        {"content": [["Q", f"A{row}"]], "rewards": [float(row % 2)], "input_lengths": [12],
         "advantages": [[0.0, 0.5 - row % 2, 0.5 - row % 2]], "generation_logprobs": [[0.0, -0.1]],
         "prev_logprobs": [[0.0, -0.2]], "idx": row, "step": [step]}
        for row in range(4)
    ]  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def look(ledger: Ledger, folder: Path, form: str = "verl", settled_s: float = 0.0) -> Look:
    with watching(ledger, "run-1", [folder], form, source="human", settled_s=settled_s) as sidecar:
        return sidecar.look()


def rollouts(log: Log) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    found = log.entries(kind="rollout.scored")
    return [(entry.event, log.opened(entry.leaf_index)) for entry in found]


def test_verl_files_are_recorded_in_order_and_once(ledger: Ledger, tmp_path: Path) -> None:
    for step in (10, 2, 1):
        write(tmp_path / f"dump/{step}.jsonl", verl_rows(step))
    write(tmp_path / "dump/notes.jsonl", [{"x": 1}])
    assert look(ledger, tmp_path / "dump") == Look(files=3, completions=24)
    assert look(ledger, tmp_path / "dump") == Look()
    log = ledger.find("run-1")
    found = rollouts(log)
    assert [public["trainer_step"] for public, _ in found] == [1, 2, 10]
    public, sealed = found[0]
    assert public["observed"]["file"] == "1.jsonl"
    assert public["observed"]["lossy"] is False
    assert sealed["reward_mean"] == pytest.approx(
        sum(row["score"] for row in verl_rows(1)) / 8  # not `acc`, which is no part of the score
    )
    assert set(sealed["rows"][0]["rewards"]) == {"score", "acc"}
    assert "advantage" not in sealed["rows"][0]
    started = [entry.event for entry in log.entries(kind="run.config")]
    assert all(x["config"]["observer"]["role"].startswith("observer of files") for x in started)
    kinds = Counter(entry.event["kind"] for entry in log.entries())
    assert kinds["run.finished"] == 0  # no file says that the training has ended
    signed = log.published()
    assert signed is not None
    assert signed.head.size == log.size


def test_a_file_that_is_still_written_is_left_for_later(ledger: Ledger, tmp_path: Path) -> None:
    write(tmp_path / "1.jsonl", verl_rows(1))
    assert look(ledger, tmp_path, settled_s=60) == Look(waiting=1)
    past = time.time() - 120
    os.utime(tmp_path / "1.jsonl", (past, past))
    assert look(ledger, tmp_path, settled_s=60) == Look(files=1, completions=8)


def test_a_step_written_again_after_a_restart_is_told(ledger: Ledger, tmp_path: Path) -> None:
    write(tmp_path / "1.jsonl", verl_rows(1))
    look(ledger, tmp_path)
    write(tmp_path / "1.jsonl", verl_rows(7))
    assert look(ledger, tmp_path).files == 1
    assert look(ledger, tmp_path) == Look()
    names = [x.event["name"] for x in ledger.find("run-1").entries(kind="alert.raised")]
    assert names == ["file_rewritten"]


def test_files_that_are_none_are_told_once(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_bytes(b"\xff\x00{{{\n")
    write(tmp_path / "2.jsonl", verl_rows(2))
    with (tmp_path / "2.jsonl").open("a") as file:
        file.write('{"input": "cut o')
    assert look(ledger, tmp_path) == Look(files=1, completions=8, unreadable=1)
    assert look(ledger, tmp_path) == Look()
    ((public, _),) = rollouts(ledger.find("run-1"))
    assert public["observed"]["unreadable_rows"] == 1


def test_nemo_rl_with_advantages_and_whole_checkpoints(ledger: Ledger, tmp_path: Path) -> None:
    write(tmp_path / "logs/exp_001/train_data_step1.jsonl", nemo_rows(1))
    (tmp_path / "results/tmp_step_1/policy").mkdir(parents=True)
    (tmp_path / "results/tmp_step_1/policy/weights.bin").write_bytes(b"w" * 1000)
    assert look(ledger, tmp_path, "nemo-rl") == Look(files=1, completions=4)
    (tmp_path / "results/tmp_step_1").rename(tmp_path / "results/step_1")
    assert look(ledger, tmp_path, "nemo-rl") == Look(checkpoints=1)
    assert look(ledger, tmp_path, "nemo-rl") == Look()
    log = ledger.find("run-1")
    ((_, sealed),) = rollouts(log)
    row = sealed["rows"][1]
    assert (row["prompt"], row["completion"], row["advantage"]) == (["Q"], "A1", -0.5)
    (saved,) = [entry.event for entry in log.entries(kind="checkpoint.saved")]
    assert (saved["epoch"], saved["weights_digest"]) == (1, None)
    assert len(saved["path_digest"]) == 64
    shutil.rmtree(tmp_path / "results")
    assert look(ledger, tmp_path, "nemo-rl") == Look()


def test_two_cannot_watch_into_one_run(ledger: Ledger, tmp_path: Path) -> None:
    with (
        watching(ledger, "run-1", [tmp_path], "verl", source="human"),
        pytest.raises(AlreadyWatched),
        watching(ledger, "run-1", [tmp_path], "verl", source="human"),
    ):
        pass


@pytest.mark.slow
def test_killed_at_any_moment_it_doubles_nothing(tmp_path: Path) -> None:
    Ledger.create(tmp_path / "ledger", organisation="acme.example").close()
    folder = tmp_path / "dump"
    command = [sys.executable, "-m", "rlhf_audit_trail.cli", "watch", "run-1", str(folder),
               "--format", "verl", "--source", "human", "--every", "0.1", "--settled", "0.2",
               "--ledger", str(tmp_path / "ledger")]  # fmt: skip
    rng, step = random.Random(3), 0
    for _ in range(3):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(15):
                step += 1
                write(folder / f"{step}.jsonl", verl_rows(step, 64))
            process.stdout.readline()  # it has begun to record
            time.sleep(rng.uniform(0.0, 0.3))
            os.kill(process.pid, signal.SIGKILL)
    done = CliRunner().invoke(
        main, [*command[3:8], *command[8:10], "--once", "--settled", "0", "--ledger", command[-1]]
    )
    assert done.exit_code == 0, done.output
    with Ledger.open(tmp_path / "ledger") as ledger:
        seen = Counter(public["observed"]["file"] for public, _ in rollouts(ledger.find("run-1")))
    assert seen == {f"{number}.jsonl": 1 for number in range(1, step + 1)}


def test_it_ends_by_a_signal_and_signs(tmp_path: Path) -> None:
    Ledger.create(tmp_path / "ledger", organisation="acme.example").close()
    write(tmp_path / "dump/1.jsonl", verl_rows(1))
    command = [sys.executable, "-m", "rlhf_audit_trail.cli", "watch", "run-1",
               str(tmp_path / "dump"), "--format", "verl", "--source", "human", "--settled", "0",
               "--ledger", str(tmp_path / "ledger")]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert line.startswith("recorded 1 files with 8 completions")
    with Ledger.open(tmp_path / "ledger") as ledger:
        log = ledger.find("run-1")
        signed = log.published()
        assert signed is not None
        assert signed.head.size == log.size


@pytest.mark.train
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # TRL's and transformers' own
def test_what_trl_writes_itself_is_marked_as_lossy(ledger: Ledger, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="the extra trl is not installed")
    from tests.train.tiny_trainers import asked, policy, settings, tokenizer

    tokens, counted = tokenizer(), []

    def short(completions: list[str], **_: Any) -> list[float]:
        counted.extend(completions)
        return [-float(len(text)) for text in completions]

    args = trl.GRPOConfig(
        **settings(
            tmp_path / "out", max_steps=4, logging_steps=2, save_strategy="no",
            log_completions=True, num_generations=2, max_completion_length=6,
        )
    )  # fmt: skip
    trainer = trl.GRPOTrainer(
        policy(tokens), reward_funcs=short, args=args, train_dataset=asked(),
        processing_class=tokens,
    )  # fmt: skip
    trainer.train()
    found = look(ledger, tmp_path / "out", "trl-parquet")
    assert found.files == 2
    assert 0 < found.completions <= len(counted)
    public, sealed = rollouts(ledger.find("run-1"))[-1]
    assert public["observed"]["file"] == "completions/completions_00004.parquet"
    assert public["observed"]["lossy"] is True
    assert set(sealed["rows"][0]) >= {"prompt", "completion", "advantage", "rewards"}
    assert set(sealed["rows"][0]["rewards"]) == {"short"}
    assert {row["completion"] for row in sealed["rows"]} <= set(counted)
