"""Each trap of TRL and transformers, on a real tiny training."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from transformers import TrainerCallback

from rlhf_audit_trail.auditor import AuditableRLHF
from tests.train.running import events
from tests.train.tiny_trainers import (
    Counted,
    policy,
    preferences,
    saved_policy,
    texts,
    tokenizer,
)
from tests.train.trl_runs import TAKES_ASYNC, alerts, make, public, total, train, words

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    # of transformers 4: its checkpoints in one second, and activations recomputed from tokens
    pytest.mark.filterwarnings("ignore:mtime may not be reliable:UserWarning"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning"),
]


# --- traps ----------------------------------------------------------------------------------


def test_checkpoints_are_recorded_whole_though_rotation_deletes_them(
    auditor: AuditableRLHF, tmp_path: Path
) -> None:
    trainer = make("SFT", tmp_path / "out", Counted(), save_steps=1, save_total_limit=1)
    log = train(auditor, trainer)
    saved = public(log, "checkpoint.saved")
    assert [event["name"] for event in saved] == [f"checkpoint-{step}" for step in (1, 2, 3, 4)]
    assert all(len(event["path_digest"]) == 64 for event in saved)
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-4"]
    state = (tmp_path / "out/checkpoint-4/trainer_state.json").read_bytes()
    assert saved[-1]["trainer_state_digest"] == hashlib.sha256(state).hexdigest()
    head = json.loads(state)["stateful_callbacks"]["AuditCallback"]["attributes"]["head"]
    assert log.root_at(head["tree_size"]).hex() == head["root"]
    assert head["tree_size"] > 0


def test_the_final_policy_is_the_best_one_where_that_was_loaded_back(
    auditor: AuditableRLHF, tmp_path: Path
) -> None:
    trainer = make(
        "SFT", tmp_path / "out", Counted(), eval_dataset=texts(4), eval_strategy="steps",
        eval_steps=2, load_best_model_at_end=True, metric_for_best_model="eval_loss",
        greater_is_better=True,  # the worst one, to see the difference
    )  # fmt: skip
    log = train(auditor, trainer)
    final = public(log, "model.registered")[-1]
    assert final["role"] == "policy_final"
    digests = {x["name"]: x["weights_digest"] for x in public(log, "checkpoint.saved")}
    assert final["weights_digest"] == digests["checkpoint-2"] != digests["checkpoint-4"]


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.1])
def test_the_norm_before_clipping_is_there_at_every_step(
    max_grad_norm: float, auditor: AuditableRLHF, tmp_path: Path
) -> None:
    trainer = make(
        "DPO", tmp_path / "out", Counted(), max_grad_norm=max_grad_norm, logging_steps=50
    )
    log = train(auditor, trainer)
    found = [sealed for _, sealed in events(log, "policy.update")]
    assert len(found) == 4
    for sealed in found:
        before, after = sealed["grad_norm_preclip"], sealed["grad_norm_applied"]
        assert before > 0.1
        assert after == pytest.approx(max_grad_norm or before, rel=1e-3)


def test_optimizer_steps_inside_a_training_step_are_counted(
    auditor: AuditableRLHF, tmp_path: Path
) -> None:
    class Twice(trl.SFTTrainer):
        def training_step(self, *args: Any, **named: Any) -> Any:
            loss = super().training_step(*args, **named)
            self.optimizer.step()
            return loss

    counts = Counted()
    trainer = make("SFT", tmp_path / "out", counts, cls=Twice, gradient_accumulation_steps=1)
    log = train(auditor, trainer)
    assert [event["updates"] for event in public(log, "policy.update")] == [2] * 4
    assert counts.updates == 8


def test_what_was_only_collated_or_evaluated_was_not_consumed(
    auditor: AuditableRLHF, tmp_path: Path
) -> None:
    counts = Counted()
    trainer = make(
        "DPO", tmp_path / "out", counts, eval_dataset=preferences(6), eval_strategy="steps",
        eval_steps=1, per_device_eval_batch_size=2,
    )  # fmt: skip
    collate, collated = trainer.data_collator, []

    def collating(rows: list[Any]) -> Any:
        collated.extend(rows)
        return collate(rows)

    trainer.data_collator = collating
    log = train(auditor, trainer)
    assert total(log, "batch.consumed", "rows") == counts.rows == 16
    assert total(log, "batch.consumed", "unmatched") == 0
    assert len(collated) > 16 + 12
    assert [x["role"] for x in public(log, "dataset.registered")] == ["train", "eval"]


def test_rows_are_linked_to_the_annotations_they_are_made_of(
    auditor: AuditableRLHF, tmp_path: Path
) -> None:
    pairs = preferences()
    asked_twice = list(pairs["prompt"]) * 2
    answers = [*pairs["chosen"], *pairs["rejected"]]
    trainer = make("DPO", tmp_path / "out", Counted())
    with auditor.track_training(experiment_name="run-1") as run:
        receipts = auditor.log_annotations(
            prompts=asked_twice, responses=answers, rewards=[1.0] * 12 + [0.0] * 12
        )
        auditor.attach(trainer).train()
    indices = [receipt.result() for receipt in receipts]
    for _, sealed in events(run.log, "batch.consumed"):
        wanted = [[indices[row], indices[row + 12]] for row in sealed["rows"]]
        assert sealed["annotations"] == wanted


def test_ids_reach_the_record_though_the_collator_never_sees_them(
    auditor: AuditableRLHF, tmp_path: Path
) -> None:
    pairs = preferences().add_column("audit_id", [f"item-{row}" for row in range(12)])
    trainer = make("DPO", tmp_path / "out", Counted(), train_dataset=pairs)
    log = train(auditor, trainer)
    for _, sealed in events(log, "batch.consumed"):
        assert sealed["annotations"] == [f"item-{row}" for row in sealed["rows"]]
    assert public(log, "dataset.registered")[0]["id_column"] == "audit_id"


def test_a_reference_that_is_not_the_policy_raises_an_alert(
    auditor: AuditableRLHF, tmp_path: Path
) -> None:
    """GRPO loads its reference anew by name, so an edited policy gets another one silently."""
    tokens = tokenizer()
    path = saved_policy(tmp_path / "base", tokens)
    edited = type(policy(tokens)).from_pretrained(path)
    with torch.no_grad():
        edited.transformer.wte.weight[5] += 1
    trainer = make("GRPO", tmp_path / "out", Counted(), model=edited, beta=0.1)
    log = train(auditor, trainer)
    assert alerts(log) == ["reference_differs"]
    roles = {x["role"]: x["weights_digest"] for x in public(log, "model.registered")}
    assert roles["reference"] != roles["policy_init"]


def test_a_callback_restored_from_a_checkpoint_finds_its_trainer_again(
    auditor: AuditableRLHF, tmp_path: Path
) -> None:
    make_one: Callable[..., Any] = lambda steps: make(  # noqa: E731 - the same trainer twice
        "DPO", tmp_path / "out", Counted(), max_steps=steps,
        restore_callback_states_from_checkpoint=True,
    )  # fmt: skip
    train(auditor, make_one(2))
    log = train(auditor, make_one(4), resume_from_checkpoint=True)
    assert [x["trainer_step"] for x in public(log, "policy.update")] == [1, 2, 3, 4]
    assert [x["policy_step"] for x in public(log, "policy.update")] == [1, 2, 3, 4]
    assert alerts(log) == []
    assert total(log, "batch.consumed", "unmatched") == 0


def test_a_checkpoint_of_another_history_raises_an_alert(
    auditor: AuditableRLHF, tmp_path: Path
) -> None:
    train(auditor, make("DPO", tmp_path / "out", Counted(), max_steps=2))
    path = tmp_path / "out/checkpoint-2/trainer_state.json"
    state = json.loads(path.read_bytes())
    head = state["stateful_callbacks"]["AuditCallback"]["attributes"]["head"]
    head["root"] = "00" * 32
    path.write_text(json.dumps(state))
    resumed = make("DPO", tmp_path / "out", Counted(), max_steps=3)
    log = train(auditor, resumed, resume_from_checkpoint=True)
    assert alerts(log) == ["unknown_tree_head"]
    head["origin"] = "other.example/rlhf/x"
    path.write_text(json.dumps(state))
    with auditor.track_training(experiment_name="run-2") as run:
        again = make("DPO", tmp_path / "out", Counted(), max_steps=3)
        auditor.attach(again).train(resume_from_checkpoint=str(path.parent))
    assert alerts(run.log) == ["other_log"]


# --- rewards --------------------------------------------------------------------------------


def test_a_reward_keeps_its_name_and_none_stays_null(
    auditor: AuditableRLHF, tmp_path: Path
) -> None:
    @auditor.reward
    def sometimes(completions: list[str], **_: Any) -> list[float | None]:
        return [None if row == 0 else 1.0 for row in range(len(completions))]

    @auditor.reward
    async def later(completions: list[str], **_: Any) -> list[float]:
        await asyncio.sleep(0)
        return [float(len(text)) for text in completions]

    assert sometimes.__name__ == "sometimes"
    rewards = [sometimes, words]
    if TAKES_ASYNC:
        rewards.append(later)
    trainer = make("GRPO", tmp_path / "out", Counted(), reward_funcs=rewards)
    log = train(auditor, trainer)
    assert total(log, "rollout.scored", "completions") == 16  # once each, not once a reward
    for _, sealed in events(log, "rollout.scored"):
        rewards = [row["rewards"] for row in sealed["rows"]]
        assert [item["sometimes"] for item in rewards] == [None, 1.0, 1.0, 1.0]
        assert all(value > 0 for item in rewards for value in item.values() if value is not None)
        assert ("later" in rewards[0]) is TAKES_ASYNC
        assert sealed["figures"]["rewards"]["sometimes"]["scored"] == 3
    assert any("rewards/sometimes/mean" in str(s) for _, s in events(log, "metrics.logged"))


class Stop(TrainerCallback):
    """Ends a training as an error in it would."""

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        if state.global_step == 2:
            raise ZeroDivisionError


def test_a_training_that_fails_keeps_what_it_did(auditor: AuditableRLHF, tmp_path: Path) -> None:
    trainer = make("DPO", tmp_path / "out", Counted(), callbacks=[Stop()])
    with (
        pytest.raises(ZeroDivisionError),
        auditor.track_training(experiment_name="run-1") as run,
    ):
        auditor.attach(trainer).train()
    (end,) = public(run.log, "run.finished")
    assert (end["outcome"], end["error"]) == ("failed", "ZeroDivisionError")
    assert total(run.log, "policy.update", "updates") == 1
