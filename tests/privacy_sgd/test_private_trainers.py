"""Reward models and DPO of TRL, trained privately with LoRA through our integration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.private_trainers import UnsupportedTrainer, make_private
from tests.train import tiny_trainers as tiny  # before TRL: no network

from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer  # isort: skip

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore:mtime may not be reliable:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:peft"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
]

KINDS = ("reward", "dpo")
ROWS = 12


def lora(kind: str) -> LoraConfig:
    task = TaskType.SEQ_CLS if kind == "reward" else TaskType.CAUSAL_LM
    return LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type=task)


def make(kind: str, folder: Path, *, adapter: bool = True, **change: Any) -> Any:
    tokens = tiny.tokenizer()
    cls, config = (RewardTrainer, RewardConfig) if kind == "reward" else (DPOTrainer, DPOConfig)
    settings = tiny.settings(
        folder, gradient_accumulation_steps=1, activation_checkpointing=False,
        **({"max_steps": 3, "save_strategy": "no", "logging_steps": 1} | change),
    )  # fmt: skip
    more = {} if adapter or kind == "reward" else {"ref_model": tiny.policy(tokens)}
    return cls(
        model=tiny.policy(tokens, classifier=kind == "reward"),
        args=config(**settings),
        train_dataset=tiny.preferences(ROWS),
        processing_class=tokens,
        peft_config=lora(kind) if adapter else None,
        **more,
    )


def summed(trainer: Any, rows: list[int]) -> torch.Tensor:
    """Return the clipped sum of some pairs' gradients, by the trainer's own loss."""
    private, dataset = trainer.private, trainer.train_dataset
    private._drawn = rows
    private._sums.clear()
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    for start in range(0, len(rows), 4):
        part = rows[start : start + 4]
        inputs = trainer.data_collator([dataset[row] for row in part])
        loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(inputs))
        loss.backward()
        private.absorb(len(part))
    parts = zip(private._sums.sums, private._sums.parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if s is None else s).flatten() for s, p in parts])


@pytest.mark.parametrize("kind", KINDS)
def test_a_private_training_is_recorded_and_says_what_it_may(
    kind: str, tmp_path: Path, auditor: AuditableRLHF, change_plan: Any
):
    plan = change_plan(examples_per_annotator_max=2)
    names = [f"person-{row // 3}" for row in range(ROWS)]
    trainer = make_private(make(kind, tmp_path / "out"), plan, annotators=names)
    base = {n: p.clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    with auditor.track_training(experiment_name=kind) as run:
        auditor.attach(trainer)
        trainer.train()
    assert all(torch.equal(p, base[n]) for n, p in trainer.model.named_parameters() if n in base)
    events = [entry.event for entry in run.log.entries()]
    updates = [x for x in events if x["kind"] == "policy.update"]
    assert [x["rows"] for x in updates] == [None] * 3
    assert [x["updates"] for x in updates] == [1] * 3
    assert [x["dp"]["history"][0]["steps"] for x in updates] == [1, 2, 3]
    assert not [x for x in events if x["kind"] == "batch.consumed"]
    final = next(x for x in events if x.get("role") == "policy_final")
    said = {(x["unit"], x["relation"]): x["epsilon"] for x in final["dp"]["statements"]}
    report = trainer.private.report()
    assert said["example", "add_remove"] == pytest.approx(report.epsilon())
    assert report.epsilon() < report.epsilon("annotator") < report.epsilon("annotator", "replace")
    logged = [run.log.opened(x.leaf_index) for x in run.log.entries(kind="metrics.logged")]
    assert logged  # and no loss among them, not even sealed
    assert all(set(x["metrics"]) <= {"learning_rate", "epoch"} for x in logged)
    account = json.loads((tmp_path / "out" / "dp_account.json").read_text())
    assert account["history"][0]["steps"] == 3


@pytest.mark.parametrize("kind", KINDS)
def test_one_preference_moves_the_sum_by_the_clipping_norm_at_most(
    kind: str, tmp_path: Path, change_plan: Any
):
    plan = change_plan(clip_norm=1e-3)  # so small that every pair is clipped
    trainer = make_private(make(kind, tmp_path / "out"), plan)
    everybody = list(range(ROWS))
    whole = summed(trainer, everybody)
    moved = [
        float((whole - summed(trainer, [row for row in everybody if row != left_out])).norm())
        for left_out in (0, 5, 11)
    ]
    assert max(moved) <= plan.clip_norm * (1 + 1e-3)
    # and the bound is used: two clipped rows would come to nearly twice as much
    assert min(moved) >= plan.clip_norm * 0.9


def test_a_pair_s_gradient_is_the_one_that_its_loss_alone_gives(tmp_path: Path, change_plan: Any):
    trainer = make_private(make("reward", tmp_path / "out"), change_plan(clip_norm=1e6))
    together = summed(trainer, [3, 4, 5])
    apart = sum(summed(trainer, [row]) for row in (3, 4, 5))
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-6)


def test_all_weights_with_learned_positions_get_a_row_of_positions_each(
    tmp_path: Path, change_plan: Any
):
    trainer = make_private(make("reward", tmp_path / "out", adapter=False), change_plan())
    trainer.train()
    assert trainer.private.account.steps == 3


def test_a_resumed_trainer_goes_on_where_its_checkpoint_ends(tmp_path: Path, change_plan: Any):
    for steps, resumed in ((2, None), (4, True)):
        trainer = make("reward", tmp_path / "out", max_steps=steps, save_strategy="steps")
        make_private(trainer, change_plan())
        trainer.train(resume_from_checkpoint=resumed)
        assert trainer.state.global_step == trainer.private.account.steps == steps


def test_starting_over_draws_anew_and_gives_nothing_back(tmp_path: Path, change_plan: Any):
    for expected in (3, 6):
        trainer = make_private(make("reward", tmp_path / "out"), change_plan(steps_max=6))
        trainer.train()
        assert trainer.private.account.steps == expected


@pytest.mark.parametrize(
    "change",
    [
        {"gradient_accumulation_steps": 2},
        {"gradient_checkpointing": True},
        {"max_steps": 41},
        {"max_steps": -1},
        {"bf16": True},
    ],
)
def test_settings_that_break_the_guarantee_are_refused(
    change: dict[str, Any], tmp_path: Path, change_plan: Any
):
    trainer = make("reward", tmp_path / "out")
    for name, value in change.items():
        setattr(trainer.args, name, value)
    with pytest.raises(UnsupportedTrainer) as refused:
        make_private(trainer, change_plan())
    assert refused.value.next_step


def test_a_loss_that_couples_pairs_and_other_trainers_are_refused(tmp_path: Path, change_plan: Any):
    with pytest.raises(UnsupportedTrainer, match="couple"):
        make_private(make("dpo", tmp_path / "out", loss_type="bco_pair"), change_plan())
    with pytest.raises(UnsupportedTrainer, match="cannot train privately"):
        make_private(object(), change_plan())
