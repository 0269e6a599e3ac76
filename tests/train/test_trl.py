"""Trainers of TRL record themselves, completely; each trap of theirs on a real tiny training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from transformers import Trainer

import rlhf_audit_trail
from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.ledger.log import Log
from rlhf_audit_trail.movement import host_fetch
from rlhf_audit_trail.trl import NotATrainer, auditable
from rlhf_audit_trail.weights.model_weights import digest_model
from tests.train.running import events
from tests.train.tiny_trainers import (
    Counted,
    asked,
    policy,
    settings,
    texts,
    tokenizer,
)
from tests.train.trl_runs import alerts, make, public, total, train, words

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    # of transformers 4: its checkpoints in one second, and activations recomputed from tokens
    pytest.mark.filterwarnings("ignore:mtime may not be reliable:UserWarning"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning"),
]

KINDS = ("DPO", "Reward", "KTO", "SFT", "GRPO", "RLOO")


# --- complete -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_holds_all_that_was_counted_inside_the_run(
    kind: str, auditor: AuditableRLHF, tmp_path: Path
) -> None:
    counts = Counted()
    trainer = make(kind, tmp_path / "out", counts)
    with auditor.track_training(experiment_name="run-1") as run:
        auditor.attach(trainer)
        trainer.train()
        trainer.save_model()
    log = run.log
    assert (counts.updates, counts.checkpoints) == (4, 3)
    assert counts.rows == 16
    assert total(log, "policy.update", "updates") == counts.updates
    assert total(log, "policy.update", "rows") == counts.rows
    assert total(log, "batch.consumed", "rows") == counts.rows
    assert total(log, "batch.consumed", "unmatched") == 0
    assert [event["saved_for"] for event in public(log, "checkpoint.saved")] == [
        "resume", "resume", "use",
    ]  # fmt: skip
    assert [event["trainer_step"] for event in public(log, "policy.update")] == [1, 2, 3, 4]
    assert {event["algorithm"] for event in public(log, "policy.update")} == {kind.lower()}
    (config,) = [x for x in public(log, "run.config") if "trainer" in x["config"]]
    assert config["config"]["arguments"]["learning_rate"] == 1e-3
    assert "seed" not in config["config"]["arguments"]
    assert str(tmp_path) not in json.dumps(config)
    (dataset,) = public(log, "dataset.registered")
    assert (dataset["role"], dataset["rows"]) == ("train", 12)
    first_step = next(e.leaf_index for e in log.entries(kind="policy.update"))
    assert all(e.leaf_index < first_step for e in log.entries(kind="dataset.registered"))
    roles = {x["role"]: x["weights_digest"] for x in public(log, "model.registered")}
    assert roles["policy_final"] == digest_model(trainer.model).digest.hex()
    assert roles["policy_final"] == public(log, "checkpoint.saved")[-1]["weights_digest"]
    assert alerts(log) == []
    assert public(log, "gap") == []
    if kind in ("DPO", "KTO"):
        require_same_rows(log, trainer, counts, "chosen" if kind == "DPO" else "completion")


def sequence(row: dict[str, Any], answers: str) -> list[int]:
    """Return prompt and answer as tokens, under the names of TRL 1 and of TRL 0.24."""
    if "prompt_ids" in row:
        return row["prompt_ids"] + row[f"{answers}_ids"]
    prompt, whole = row["prompt_input_ids"], row[f"{answers}_input_ids"]
    return whole if whole[: len(prompt)] == prompt else prompt + whole


def require_same_rows(log: Log, trainer: Any, counts: Counted, answers: str) -> None:
    """Check that consumed rows are those that the loss was computed of."""
    wanted = trainer.train_dataset
    known = {tuple(sequence(row, answers)): number for number, row in enumerate(wanted)}
    pad = trainer.processing_class.pad_token_id
    seen = [tuple(token for token in ids if token != pad) for ids in counts.tokens]
    rows = [row for _, sealed in events(log, "batch.consumed") for row in sealed["rows"]]
    assert rows == [known[ids] for ids in seen if ids in known]


@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
def test_every_completion_is_there_with_rewards_and_advantages(
    kind: str, auditor: AuditableRLHF, tmp_path: Path
) -> None:
    """TRL's own table of completions is emptied only when it logs, and keeps the last ones."""
    scored: list[list[float]] = []

    def told(completions: list[str], **named: Any) -> list[float]:
        scored.append(words(completions, **named))
        return scored[-1]

    trainer = make(
        kind, tmp_path / "out", Counted(), reward_funcs=[told], logging_steps=50, max_steps=5
    )
    log = train(auditor, trainer)
    sealed = [opened for _, opened in events(log, "rollout.scored")]
    assert [[row["rewards"]["told"] for row in item["rows"]] for item in sealed] == scored
    assert total(log, "rollout.scored", "completions") == 20
    for item in sealed:
        for row in item["rows"]:
            assert len(row["tokens"]) == row["length"] > 0
            assert row["finish_reason"] in {"stop", "length"}
            assert (
                trainer.processing_class.decode(row["tokens"], skip_special_tokens=True).split()
                == row["completion"].split()
            )
        assert sum(row["advantage"] for row in item["rows"]) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
def test_completions_of_an_evaluation_are_marked_as_such(
    kind: str, auditor: AuditableRLHF, tmp_path: Path
) -> None:
    """More at once than the trainer keeps of them for its own table."""
    scored: list[float] = []

    @auditor.reward
    def told(completions: list[str], **named: Any) -> list[float]:
        scored.extend(words(completions, **named))
        return words(completions, **named)

    trainer = make(
        kind, tmp_path / "out", Counted(), reward_funcs=[told], max_steps=2,
        eval_dataset=asked(), eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=12,
    )  # fmt: skip
    log = train(auditor, trainer)
    found = events(log, "rollout.scored")
    purposes = [event.get("purpose", "") for event, _ in found]
    assert set(purposes) == {"", "evaluation"}
    rows = [row for _, sealed in found for row in sealed["rows"]]
    assert [row["rewards"]["told"] for row in rows] == scored
    trained = sum(event["completions"] for event, _ in found if "purpose" not in event)
    assert total(log, "batch.consumed", "rows") == trained
    assert total(log, "batch.consumed", "unmatched") == 0
    texts_of = {row["prompt"] for row in asked()}
    for event, sealed in found:
        if "purpose" in event:
            assert event["completions"] > 4
            assert {row["prompt"] for row in sealed["rows"]} <= texts_of
            assert all("advantage" not in row for row in sealed["rows"])
            assert all(len(row["completion"]) > 0 for row in sealed["rows"])


def test_one_set_of_completions_may_serve_several_steps(
    auditor: AuditableRLHF, tmp_path: Path
) -> None:
    trainer = make("GRPO", tmp_path / "out", Counted(), num_iterations=2)
    log = train(auditor, trainer)
    roots = [event["rows_root"] for event in public(log, "rollout.scored")]
    assert len(roots) == 2
    used = [sealed["completions"] for _, sealed in events(log, "batch.consumed")]
    assert [{link[0] for link in links} for links in used] == [
        {roots[0]}, {roots[0]}, {roots[1]}, {roots[1]},
    ]  # fmt: skip
    assert all(sorted(link[1] for link in links) == [0, 1, 2, 3] for links in used)


def test_recording_changes_no_weight(auditor: AuditableRLHF, tmp_path: Path) -> None:
    for kind in ("DPO", "GRPO"):
        plain = make(kind, tmp_path / "plain", Counted())
        plain.train()
        audited = make(kind, tmp_path / "audited", Counted())
        train(auditor, audited)
        assert digest_model(audited.model).digest == digest_model(plain.model).digest


def test_a_step_waits_for_its_device_once_and_is_handed_over_as_one_group(
    auditor: AuditableRLHF, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[int] = []
    groups: list[list[str]] = []
    fetch, record_many = host_fetch.fetch, Log.record_many

    def fetching(tensors: Any) -> Any:
        waits.append(len(tensors))
        return fetch(tensors)

    def recording(log: Log, given: Any) -> Any:
        groups.append([event.kind for event in given])
        return record_many(log, given)

    trainer = make("DPO", tmp_path / "out", Counted(), logging_steps=1, save_strategy="no")
    with auditor.track_training(experiment_name="run-1") as run:
        auditor.attach(trainer)
        monkeypatch.setattr(host_fetch, "fetch", fetching)
        monkeypatch.setattr(Log, "record_many", recording)
        trainer.train()
        monkeypatch.undo()
    steps = [kinds for kinds in groups if "policy.update" in kinds]
    assert steps == [["batch.consumed", "policy.update", "metrics.logged"]] * 4
    assert len(waits) == 4
    assert public(run.log, "gap") == []


# --- ways in --------------------------------------------------------------------------------


def test_ready_classes_take_the_auditor_and_the_old_name_of_the_tokenizer(
    auditor: AuditableRLHF, tmp_path: Path
) -> None:
    for kind in KINDS:
        cls = getattr(rlhf_audit_trail, f"Auditable{kind}Trainer")
        assert issubclass(cls, getattr(trl, f"{kind}Trainer"))
        assert cls is auditable(getattr(trl, f"{kind}Trainer")) is auditable(cls)
    tokens = tokenizer()
    trainer = rlhf_audit_trail.AuditableSFTTrainer(
        policy(tokens), args=trl.SFTConfig(**settings(tmp_path / "out")), train_dataset=texts(),
        tokenizer=tokens, auditor=auditor,
    )  # fmt: skip
    with auditor.track_training(experiment_name="run-1") as run:
        trainer.train()
    assert total(run.log, "policy.update", "updates") == 4


def test_a_trainer_reports_by_name(
    auditor: AuditableRLHF, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf_audit_trail.trl._auditor_of_environment", lambda: auditor)
    trainer = make("DPO", tmp_path / "out", Counted(), report_to="rlhf_audit")
    assert type(trainer).__name__ == "AuditableDPOTrainer"
    with auditor.track_training(experiment_name="run-1") as run:
        trainer.train()
    assert total(run.log, "batch.consumed", "rows") == 16


def test_a_plain_trainer_of_transformers_is_recorded_alike(
    auditor: AuditableRLHF, tmp_path: Path
) -> None:
    tokens = tokenizer()
    rows = tokens(list(texts()["text"]), padding=True)
    dataset = Dataset.from_dict(dict(rows) | {"labels": [row % 1 * 1.0 for row in range(12)]})
    from transformers import TrainingArguments

    trainer = Trainer(
        policy(tokens, classifier=True), TrainingArguments(**settings(tmp_path / "out")),
        train_dataset=dataset,
    )  # fmt: skip
    log = train(auditor, trainer)
    assert total(log, "batch.consumed", "rows") == 16
    assert total(log, "batch.consumed", "unmatched") == 0
    assert {event["algorithm"] for event in public(log, "policy.update")} == {"trainer"}


def test_something_else_is_refused(auditor: AuditableRLHF) -> None:
    with pytest.raises(NotATrainer):
        auditor.attach(torch.nn.Linear(1, 1))
    with pytest.raises(NotATrainer):
        auditable(dict)
