"""Private PPO on tiny real models: one row moves the sum by the clipping norm, no row another."""

from __future__ import annotations

import json
from typing import Any

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.demo.models import make_tokenizer
from rlhf_audit_trail.ppo.args import PPOArgs
from rlhf_audit_trail.ppo.private import PrivatePPOTrainer, _OsChoice
from rlhf_audit_trail.ppo.prompts import MissingDataset
from rlhf_audit_trail.ppo.record import completions_of
from rlhf_audit_trail.ppo.rollout import sample
from rlhf_audit_trail.ppo.trainer import MissingReward
from rlhf_audit_trail.privacy.dp_sgd import UnsupportedModel
from rlhf_audit_trail.privacy.errors import UnsafeAccounting
from rlhf_audit_trail.privacy.sampling_accounts import StepsExhausted

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is dep:FutureWarning"),  # peft
]

PROMPTS = [f"how do i fix my {thing} ?" for thing in ("lamp", "bike", "radio", "door")] * 4
ARGS = PPOArgs(epochs=1, learning_rate=1e-2, max_new_tokens=5, kl_coef=0.01)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


def make_llama(tokenizer: Any, *, lora: bool = True, dropout: float = 0.0) -> Any:
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
        attention_dropout=dropout, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    if not lora:
        return model
    adapters = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "lm_head"])
    return peft.get_peft_model(model, adapters)


def count_help(prompts: list[str], completions: list[str]) -> list[float]:
    assert len(prompts) == len(completions) == 1  # never a batch
    return [float(completions[0].split().count("help"))]


def made(tokenizer: Any, plan: Any, **change: Any) -> PrivatePPOTrainer:
    given = {"args": ARGS, "reward_fn": count_help, "train_dataset": PROMPTS} | change
    model = given.pop("model", None) or make_llama(tokenizer)
    return PrivatePPOTrainer(model, None, tokenizer, plan, **given)


class Fixed:
    """The same tokens for the same row, whatever else is in the batch."""

    device = torch.device("cpu")

    def choose(self, chances: torch.Tensor) -> torch.Tensor:
        return chances.double().argmax(dim=1)


def summed(trainer: PrivatePPOTrainer, rows: list[int], parts: int = 8) -> torch.Tensor:
    """Clipped gradients of some rows, without noise."""
    private = trainer.private
    private._sums.clear()
    private._drawn = rows
    for start in range(0, len(rows), parts):
        part = [private._rows[row] for row in rows[start : start + parts]]
        private.backward(trainer._loss(part), examples=len(part))
    found = torch.cat([x.flatten() for x in private._sums.sums if x is not None])
    private._sums.clear()
    private._drawn = None
    return found


@pytest.mark.parametrize("trained", ["lora", "all"])
def test_one_row_moves_the_sum_by_the_clipping_norm_at_most(
    tokenizer: Any, change_plan: Any, trained: str
):
    model = make_llama(tokenizer, lora=trained == "lora")
    trainer = made(tokenizer, change_plan(clip_norm=1e-3), model=model)
    trainer._choice = Fixed()  # type: ignore[assignment]
    torch.nn.init.normal_(trainer.value_head.linear.weight)
    everybody = list(range(8))
    whole = summed(trainer, everybody)
    assert float(whole.norm()) > 1e-3
    for row in (0, 3, 7):
        moved = whole - summed(trainer, [x for x in everybody if x != row])
        assert float(moved.norm()) <= 1e-3 * (1 + 1e-3)


def test_no_row_changes_what_another_adds(tokenizer: Any, change_plan: Any):
    """The sum of all is the sum of each alone: no whitening, no mean over tokens of others."""
    rows = ["how do i fix my lamp ?", "help", "my bike is broken , what now ?", "can you help ?"]
    trainer = made(tokenizer, change_plan(clip_norm=1e-3), train_dataset=rows)
    trainer._choice = Fixed()  # type: ignore[assignment]
    together = summed(trainer, [0, 1, 2, 3])
    alone = sum(summed(trainer, [row]) for row in range(4))
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(
        summed(trainer, [0, 1, 2, 3], parts=3), together, rtol=1e-3, atol=1e-7
    )


def test_value_head_and_policy_are_clipped_as_one(tokenizer: Any, change_plan: Any):
    trainer = made(tokenizer, change_plan(clip_norm=1e-3), reward_fn=lambda *_: [1e6])
    names = {name for name, p in trainer.actor.named_parameters() if p.requires_grad}
    assert any(name.startswith("value_head") for name in names)
    assert any("lora" in name for name in names)
    assert len(trainer.private._sums.parameters) == len(names)
    assert float(summed(trainer, [0]).norm()) <= 1e-3


def test_a_reward_that_is_no_number_counts_as_none(tokenizer: Any, plan: Any):
    scores = iter([float("nan"), 1.0])
    trainer = made(tokenizer, plan, reward_fn=lambda *_: [next(scores)])
    assert bool(torch.isfinite(summed(trainer, [0, 1])).all())


def test_tokens_are_drawn_as_probable_as_they_are_and_never_twice_alike():
    chances = torch.tensor([[0.5, 0.0, 0.3, 0.2]]).expand(20_000, 4)
    choice = _OsChoice(torch.device("cpu"))
    torch.manual_seed(1)
    first = choice.choose(chances)
    torch.manual_seed(1)
    assert not torch.equal(first, choice.choose(chances))
    found = torch.bincount(first, minlength=4) / len(first)
    assert found[1] == 0
    torch.testing.assert_close(found, chances[0], atol=0.02, rtol=0)


def test_a_training_learns_and_says_what_it_spent(tokenizer: Any, change_plan: Any):
    plan = change_plan(clip_norm=1.0, normaliser=64.0, steps_max=40)
    rows = PROMPTS * 16  # a crowd of 256, so that the noise of one is small beside it
    trainer = made(
        tokenizer,
        plan,
        train_dataset=rows,
        part_rows_max=128,
        reward_fn=lambda _, texts: [float("help" in texts[0])],
    )

    def score() -> float:
        """The share of completions with the word, of the model as it is."""
        prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS * 16]
        found = sample(
            trainer.model.eval(),
            prompts,
            max_new_tokens=ARGS.max_new_tokens,
            temperature=1.0,
            pad_id=tokenizer.pad_token_id,
            eos_id=tokenizer.eos_token_id,
            generator=torch.Generator().manual_seed(1),
        )
        return sum("help" in text for text in completions_of(tokenizer, found)) / len(prompts)

    before = score()
    report = trainer.train(steps=40)
    assert score() > before + 0.3
    assert 5 < report.epsilon() < 20
    assert report.epsilon("annotator") is None  # nobody said whose rows they are
    with pytest.raises(StepsExhausted):
        trainer.train(steps=1)


def test_the_record_tells_the_mechanism_and_no_row(
    tokenizer: Any, auditor: AuditableRLHF, change_plan: Any
):
    annotators = [f"rater-{row % 4}" for row in range(16)]
    plan = change_plan(sample_rate=0.5, examples_per_annotator_max=2)
    trainer = made(tokenizer, plan, auditor=auditor, annotators=annotators)
    with auditor.track_training(experiment_name="private-ppo") as run:
        report = trainer.train(steps=3)
    assert report.epsilon("annotator") is not None
    updates = list(run.log.entries(kind="policy.update"))
    assert [entry.event["dp"]["history"][-1]["steps"] for entry in updates] == [1, 2, 3]
    assert all(entry.event["rows"] is None for entry in updates)
    roles = {entry.event["role"]: entry.event for entry in run.log.entries(kind="model.registered")}
    assert {"policy_init", "reference", "policy_final", "value"} <= roles.keys()
    assert roles["policy_final"]["dp"] == report.to_public_dict()
    text = json.dumps([entry.event for entry in run.log.entries()])
    secret = ("score_mean", "kl_mean", *PROMPTS[:4], *annotators[:4])
    assert [word for word in secret if word in text] == []
    assert not list(run.log.entries(kind="rollouts.scored"))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"args": PPOArgs()}, UnsafeAccounting),
        ({"args": PPOArgs(epochs=1, kl_target=0.1)}, UnsafeAccounting),
        ({"args": PPOArgs(epochs=1, seed=42)}, UnsafeAccounting),
        ({"reward_model": torch.nn.Identity()}, MissingReward),
        ({"reward_fn": None}, MissingReward),
        ({"train_dataset": []}, MissingDataset),
        ({"train_dataset": [7]}, MissingDataset),
        ({"annotators": ["a"]}, UnsafeAccounting),
    ],
)
def test_what_couples_rows_or_is_missing_is_refused(
    tokenizer: Any, plan: Any, change: dict[str, Any], error: type[Exception]
):
    with pytest.raises(error):
        made(tokenizer, plan, **change)


def test_dropout_is_refused(tokenizer: Any, plan: Any):
    with pytest.raises(UnsupportedModel):
        made(tokenizer, plan, model=make_llama(tokenizer, dropout=0.1))
