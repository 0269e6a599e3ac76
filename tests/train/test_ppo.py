"""The trainer on tiny real models: padding, masks, the first ratio, and a reward that rises."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rlhf_audit_trail.auditor import AuditableRLHF, NotTracking
from rlhf_audit_trail.capture import UnequalLengths
from rlhf_audit_trail.demo.models import make_tokenizer
from rlhf_audit_trail.ppo.args import InvalidPPOArgs, PPOArgs
from rlhf_audit_trail.ppo.rollout import forward, join, sample
from rlhf_audit_trail.ppo.trainer import (
    AuditablePPOTrainer,
    MissingDataset,
    MissingReward,
    NonFiniteLoss,
    WrongCheckpoint,
)
from rlhf_audit_trail.weights.model_weights import digest_model

PROMPTS = [
    "how do i fix my lamp ?",
    "my bike is broken , what now ?",
    "can you help with my radio ?",
]
SMALL = PPOArgs(
    batch_size=8, mini_batch_size=4, epochs=2, learning_rate=1e-2, max_new_tokens=6, seed=3
)


def make_gpt2(tokenizer: Any, *, dropout: float = 0.0) -> Any:
    torch.manual_seed(2)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=32, n_embd=16, n_layer=2, n_head=2,
        resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def make_llama(tokenizer: Any) -> Any:
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


def count_help(prompts: list[str], completions: list[str]) -> list[float]:
    assert len(prompts) == len(completions)
    return [float(text.split().count("help")) for text in completions]


def make_trainer(tokenizer: Any, auditor: Any, **change: Any) -> AuditablePPOTrainer:
    given = {"args": SMALL, "reward_fn": count_help, "train_dataset": PROMPTS} | change
    model = given.pop("model", None) or make_gpt2(tokenizer)
    return AuditablePPOTrainer(model, given.pop("ref_model", None), tokenizer, auditor, **given)


def draw(model: Any, tokenizer: Any, prompts: list[str], seed: int = 1) -> Any:
    return sample(
        model.eval(),
        [tokenizer(prompt)["input_ids"] for prompt in prompts],
        max_new_tokens=6,
        temperature=1.0,
        pad_id=tokenizer.pad_token_id,
        eos_id=tokenizer.eos_token_id,
        generator=torch.Generator().manual_seed(seed),
    )


# --- padding and masks ----------------------------------------------------------------------


@pytest.mark.parametrize("make", [make_gpt2, make_llama])
def test_a_padded_prompt_is_read_as_if_it_stood_alone(tokenizer: Any, make: Any) -> None:
    model = make(tokenizer)
    batch = draw(model, tokenizer, PROMPTS)
    with torch.no_grad():
        together = forward(model, batch, temperature=0.7).of(batch.responses)
        for row, prompt in enumerate(PROMPTS):
            length = int(batch.live[row].sum())
            alone = join(
                [tokenizer(prompt)["input_ids"]],
                [batch.responses[row, :length].tolist()],
                pad_id=tokenizer.pad_token_id,
                eos_id=tokenizer.eos_token_id,
                device=torch.device("cpu"),
            )
            assert alone.prompt_length < batch.prompt_length or row == 1
            single = forward(model, alone, temperature=0.7).of(alone.responses)
            assert torch.allclose(single[0], together[row, :length], atol=1e-5)


@pytest.mark.parametrize("make", [make_gpt2, make_llama])
def test_the_cached_sampler_draws_from_the_models_own_distribution(
    tokenizer: Any, make: Any
) -> None:
    """Teacher forcing without a cache gives the same draws from the same random numbers."""
    model = make(tokenizer)
    batch = draw(model, tokenizer, PROMPTS, seed=5)
    generator = torch.Generator().manual_seed(5)
    ended = torch.zeros(3, dtype=torch.bool)
    with torch.no_grad():
        log_probs = forward(model, batch, temperature=1.0).log_probs
    for step in range(batch.responses.shape[1]):
        chosen = torch.multinomial(log_probs[:, step].exp(), 1, generator=generator).squeeze(1)
        assert torch.equal(chosen[~ended], batch.responses[~ended, step])
        ended |= batch.responses[:, step] == tokenizer.eos_token_id


def test_completions_end_at_their_first_end_token(tokenizer: Any) -> None:
    model = make_gpt2(tokenizer)
    with torch.no_grad():
        model.transformer.wte.weight[tokenizer.eos_token_id] *= 8  # ends early, now and then
    batch = draw(model, tokenizer, PROMPTS * 20)
    eos = tokenizer.eos_token_id
    lengths = batch.live.sum(dim=1)
    assert len(set(lengths.tolist())) > 1
    for ids, live, length in zip(batch.responses, batch.live, lengths.tolist(), strict=True):
        assert live.tolist() == [True] * length + [False] * (len(live) - length)
        assert eos not in ids[: length - 1]
        assert length == len(live) or ids[length - 1] == eos
        assert (ids[length:] == tokenizer.pad_token_id).all()


def test_given_completions_are_cut_at_the_end_token_also_when_it_is_the_pad_token() -> None:
    batch = join([[5, 6], [7]], [[4, 9, 3], [4]], pad_id=9, eos_id=9, device=torch.device("cpu"))
    assert batch.tokens.tolist() == [[5, 6, 4, 9, 9], [9, 7, 4, 9, 9]]
    assert batch.attention.int().tolist() == [[1, 1, 1, 1, 0], [0, 1, 1, 0, 0]]


# --- the update -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [make_gpt2, make_llama])
def test_the_first_ratio_is_one_and_the_first_kl_zero(tokenizer: Any, make: Any) -> None:
    trainer = make_trainer(tokenizer, None, model=make(tokenizer))
    first, second = trainer.train(2)
    assert first.first_ratio_deviation < 1e-5
    assert second.first_ratio_deviation < 1e-5
    assert first.kl_mean == pytest.approx(0, abs=1e-5)
    assert second.kl_mean > 1e-3
    assert first.approx_kl > 0  # the later mini-batches did move


def test_dropout_stays_off_while_training_and_the_mode_is_put_back(tokenizer: Any) -> None:
    model = make_gpt2(tokenizer, dropout=0.5).train()
    trainer = make_trainer(tokenizer, None, model=model)
    (report,) = trainer.train(1)
    assert report.first_ratio_deviation < 1e-5
    assert model.training


def test_values_start_at_zero_and_then_learn(tokenizer: Any) -> None:
    trainer = make_trainer(tokenizer, None)
    assert all(not p.any() for p in trainer.value_head.parameters())
    trainer.train(2)
    assert all(p.any() for p in trainer.value_head.parameters())


def test_the_reference_is_a_frozen_copy(tokenizer: Any) -> None:
    model = make_gpt2(tokenizer)
    trainer = make_trainer(tokenizer, None, model=model, ref_model=model)
    before = digest_model(model).digest
    trainer.train(1)
    assert digest_model(trainer.ref_model).digest == before
    assert digest_model(model).digest != before
    assert not any(p.requires_grad for p in trainer.ref_model.parameters())


def test_a_reward_rises(tokenizer: Any) -> None:
    args = PPOArgs(
        batch_size=32, mini_batch_size=16, epochs=2, learning_rate=1e-2, max_new_tokens=6,
        kl_coef=0.01, seed=1,
    )  # fmt: skip
    trainer = make_trainer(tokenizer, None, args=args)
    reports = trainer.train(25)
    start = sum(report.score_mean for report in reports[:3]) / 3
    end = sum(report.score_mean for report in reports[-3:]) / 3
    assert end > 2 * start + 0.5
    assert all(math.isfinite(report.policy_loss) for report in reports)


def test_the_kl_penalty_holds_the_policy_back(tokenizer: Any) -> None:
    settings = {"batch_size": 16, "mini_batch_size": 8, "learning_rate": 1e-2, "max_new_tokens": 6}
    free, held = (
        make_trainer(tokenizer, None, args=PPOArgs(**settings, kl_coef=coef)).train(15)[-1].kl_mean
        for coef in (0.0, 1.0)
    )
    assert held < free / 2


def test_a_reward_model_is_read_like_a_classifier(tokenizer: Any) -> None:
    wanted = tokenizer.convert_tokens_to_ids("help")

    class Counter(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            assert input_ids.shape == attention_mask.shape
            return ((input_ids == wanted) * attention_mask).sum(dim=1, keepdim=True).float()

    by_model = make_trainer(tokenizer, None, reward_fn=None, reward_model=Counter())
    # the third prompt contains the word itself, which the text reward does not see
    plain = PROMPTS[:2]
    by_model.train_dataset = plain
    by_text = make_trainer(tokenizer, None, train_dataset=plain)
    assert [r.score_mean for r in by_model.train(3)] == [r.score_mean for r in by_text.train(3)]


def test_prompts_come_as_text_mappings_or_ids(tokenizer: Any) -> None:
    ids = [{"input_ids": torch.tensor(tokenizer(prompt)["input_ids"])} for prompt in PROMPTS]
    rows = [{"prompt": prompt} for prompt in PROMPTS]
    found = [
        make_trainer(tokenizer, None, train_dataset=dataset).train(1)[0]
        for dataset in (PROMPTS, rows, ids)
    ]
    assert found[0] == found[1] == found[2]


def test_completions_sampled_elsewhere_make_one_step(tokenizer: Any) -> None:
    trainer = make_trainer(tokenizer, None, reward_fn=None, train_dataset=None)
    queries = [torch.tensor(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    responses = [torch.tensor([5, 6, 1]), torch.tensor([7]), torch.tensor([8, 9])]
    report = trainer.step(queries, responses, [0.1, 0.2, torch.tensor(0.6)])
    assert report.score_mean == pytest.approx(0.3)
    assert report.length_mean == 2.0
    assert report.first_ratio_deviation < 1e-5
    with pytest.raises(UnequalLengths):
        trainer.step(queries, responses, [0.1])


def test_a_given_optimizer_also_trains_the_value_head(tokenizer: Any) -> None:
    model = make_gpt2(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    trainer = make_trainer(tokenizer, None, model=model, optimizer=optimizer)
    trainer.train(1)
    assert trainer.optimizer is optimizer
    assert any(p.any() for p in trainer.value_head.parameters())


def test_an_answer_that_does_not_end_is_fined(tokenizer: Any) -> None:
    args = PPOArgs(batch_size=8, mini_batch_size=8, max_new_tokens=2, missing_eos_penalty=5.0)
    trainer = make_trainer(tokenizer, None, args=args, reward_fn=lambda p, _: [0.0] * len(p))
    (report,) = trainer.train(1)
    assert -5.0 <= report.score_mean < -3.0


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"reward_fn": None}, MissingReward),
        ({"train_dataset": None}, MissingDataset),
        ({"train_dataset": []}, MissingDataset),
    ],
)
def test_what_is_missing_is_found_before_training(
    tokenizer: Any, auditor: AuditableRLHF, change: dict[str, Any], error: type[Exception]
) -> None:
    trainer = make_trainer(tokenizer, auditor, **change)
    before = digest_model(trainer.model).digest
    with auditor.track_training(experiment_name="run-1") as run:
        run.log.flush()
        size = run.log.size
        with pytest.raises(error):
            trainer.train(1)
        run.log.flush()
        assert run.log.size == size
    assert digest_model(trainer.model).digest == before


def test_two_rewards_are_one_too_many(tokenizer: Any) -> None:
    with pytest.raises(MissingReward, match="both"):
        make_trainer(tokenizer, None, reward_model=torch.nn.Linear(1, 1))


def test_training_outside_a_run_is_refused(tokenizer: Any, auditor: AuditableRLHF) -> None:
    with pytest.raises(NotTracking):
        make_trainer(tokenizer, auditor).train(1)


def test_a_reward_of_the_wrong_length_is_refused(tokenizer: Any) -> None:
    trainer = make_trainer(tokenizer, None, reward_fn=lambda _p, _c: [1.0])
    with pytest.raises(UnequalLengths):
        trainer.train(1)


def test_a_loss_that_is_not_finite_never_reaches_the_weights(
    tokenizer: Any, auditor: AuditableRLHF
) -> None:
    trainer = make_trainer(tokenizer, auditor, reward_fn=lambda p, _: [math.nan] * len(p))
    before = digest_model(trainer.model).digest
    with (
        pytest.raises(NonFiniteLoss, match="PPO step 1"),
        auditor.track_training(experiment_name="run-1") as run,
    ):
        trainer.train(1)
    assert digest_model(trainer.model).digest == before
    alerts = [entry.event["detail"] for entry in run.log.entries(kind="alert.raised")]
    assert "reward_mean" in alerts[0]
    last = list(run.log.entries(kind="run.finished"))[-1].event
    assert (last["outcome"], last["error"]) == ("failed", "NonFiniteLoss")


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 0},
        {"mini_batch_size": 64},
        {"learning_rate": 0.0},
        {"temperature": -1.0},
        {"gamma": 1.1},
        {"kl_coef": -0.1},
        {"clip_range": math.nan},
        {"epochs": True},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidPPOArgs):
        PPOArgs(**settings)


# --- the record -----------------------------------------------------------------------------


def test_every_step_is_recorded_with_real_figures(tokenizer: Any, auditor: AuditableRLHF) -> None:
    args = PPOArgs(
        batch_size=8, mini_batch_size=4, epochs=2, learning_rate=1e-2, max_new_tokens=6,
        checkpoint_every=2, seed=3,
    )  # fmt: skip
    trainer = make_trainer(tokenizer, auditor, args=args)
    with auditor.track_training(experiment_name="run-1") as run:
        reports = trainer.train(4)
    log = run.log
    rollouts = [log.opened(entry.leaf_index) for entry in log.entries(kind="rollout.scored")]
    updates = list(log.entries(kind="policy.update"))
    assert len(rollouts) == len(updates) == 4
    for report, rollout, update in zip(reports, rollouts, updates, strict=True):
        assert rollout["reward_mean"] == pytest.approx(report.score_mean, abs=1e-6)
        assert rollout["kl_mean"] == pytest.approx(report.kl_mean, abs=1e-6)
        assert len(rollout["rows"]) == 8
        assert count_help([""], [rollout["rows"][0]["completion"]]) == [
            rollout["rows"][0]["rewards"]["score"]
        ]
        sealed = log.opened(update.leaf_index)
        public = update.event
        assert (public["updates"], public["rows"], public["algorithm"]) == (4, 8, "ppo")
        assert public["learning_rate"] == 1e-2
        assert sealed["parameter_delta_norm"] == report.parameter_delta_norm > 0
        assert sealed["grad_norm_preclip"] == pytest.approx(report.grad_norm_preclip)
        assert sealed["grad_norm_applied"] <= 1.0001
        assert "policy.transformer.wte.weight" in sealed["statistics"]["relative_delta"]
        assert b"reward" not in update.data.replace(b"reward_", b"")
    names = [entry.event["name"] for entry in log.entries(kind="checkpoint.saved")]
    assert names == ["epoch_0", "epoch_1", "epoch_2"]
    roles = {
        e.event["role"]: e.event["weights_digest"] for e in log.entries(kind="model.registered")
    }
    assert roles["policy_init"] == roles["reference"] != roles["policy_final"]
    assert roles["policy_final"] == digest_model(trainer.model).digest.hex()
    assert (
        roles["policy_final"]
        == list(log.entries(kind="checkpoint.saved"))[-1].event["weights_digest"]
    )
    config = [log.opened(entry.leaf_index) for entry in log.entries(kind="run.config")]
    assert config[-1] == {"seed": 3}
    assert (
        auditor.verify_provenance(start_checkpoint="epoch_0", end_checkpoint="epoch_2").updates
        == 16
    )


def test_weights_are_bit_equal_with_and_without_the_record(
    tokenizer: Any, auditor: AuditableRLHF
) -> None:
    silent = make_trainer(tokenizer, None)
    plain = silent.train(4)
    audited = make_trainer(tokenizer, auditor)
    with auditor.track_training(experiment_name="run-1"):
        recorded = audited.train(4)
    assert digest_model(audited.model).digest == digest_model(silent.model).digest
    assert digest_model(audited.value_head).digest == digest_model(silent.value_head).digest
    assert [r.score_mean for r in recorded] == [r.score_mean for r in plain]


# --- in parts, adapters, checkpoints ----------------------------------------------------------


def test_reading_in_parts_gives_the_same_update(tokenizer: Any) -> None:
    queries = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    responses = [[5, 6, 1], [7], [8, 9]]
    whole, parts = (
        make_trainer(tokenizer, None, args=replace(SMALL, generation_batch_size=size))
        for size in (0, 2)
    )
    one, two = (x.step(queries, responses, [0.1, 0.2, 0.6]) for x in (whole, parts))
    assert two.policy_loss == pytest.approx(one.policy_loss, abs=1e-6)
    assert two.kl_mean == pytest.approx(one.kl_mean, abs=1e-6)
    (report,) = parts.train(1)
    assert report.first_ratio_deviation < 1e-5
    assert report.length_mean > 0


def test_the_price_of_kl_follows_its_target(tokenizer: Any) -> None:
    args = PPOArgs(kl_coef=0.1, kl_target=2.0, kl_horizon=100)
    assert args.next_kl_coef(0.1, 20.0, completions=50) == pytest.approx(0.11)
    assert args.next_kl_coef(0.1, 2.2, completions=50) == pytest.approx(0.105)
    assert args.next_kl_coef(0.1, 0.0, completions=50) == pytest.approx(0.09)
    assert PPOArgs(kl_coef=0.1).next_kl_coef(0.1, 20.0, completions=50) == 0.1
    trainer = make_trainer(tokenizer, None, args=replace(SMALL, kl_target=1e-6, kl_horizon=8))
    coefs = [report.kl_coef for report in trainer.train(3)]
    assert coefs[0] == 0.05
    assert coefs[2] > coefs[1] * 1.1


def test_a_resumed_training_goes_on_bit_for_bit(
    tokenizer: Any, auditor: AuditableRLHF, tmp_path: Path
) -> None:
    straight = make_trainer(tokenizer, None)
    reports = straight.train(4)
    first = make_trainer(tokenizer, auditor)
    with auditor.track_training(experiment_name="run-1") as run:
        first.train(2)
        first.save(tmp_path / "ppo-2")
    second = make_trainer(tokenizer, auditor)
    with auditor.track_training(experiment_name="run-1"):
        second.resume(tmp_path / "ppo-2")
        resumed = second.train(2)
    assert [report.score_mean for report in resumed] == [x.score_mean for x in reports[2:]]
    assert digest_model(second.actor).digest == digest_model(straight.actor).digest
    updates = [entry.event for entry in run.log.entries(kind="policy.update")]
    assert [event["trainer_step"] for event in updates] == [1, 2, 3, 4]
    names = [entry.event["name"] for entry in run.log.entries(kind="checkpoint.saved")]
    assert names == ["epoch_0", "epoch_1", "ppo-2", "epoch_1"]


def test_a_checkpoint_of_something_else_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tokenizer, None)
    trainer.save(tmp_path / "saved")
    with pytest.raises(WrongCheckpoint, match="no checkpoint"):
        trainer.resume(tmp_path)
    with pytest.raises(WrongCheckpoint, match="another model"):
        make_trainer(tokenizer, None, model=make_llama(tokenizer)).resume(tmp_path / "saved")
    other = make_gpt2(tokenizer)
    with torch.no_grad():
        other.transformer.wte.weight += 1
    with pytest.raises(WrongCheckpoint, match="another reference"):
        make_trainer(tokenizer, None, ref_model=other).resume(tmp_path / "saved")


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
def test_an_adapter_is_trained_against_the_model_below_it(
    tokenizer: Any, auditor: AuditableRLHF, tmp_path: Path
) -> None:
    def adapted() -> Any:
        torch.manual_seed(4)
        config = peft.LoraConfig(
            r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True
        )
        return peft.get_peft_model(make_gpt2(tokenizer), config)

    model = adapted()
    below = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    trainer = make_trainer(tokenizer, auditor, model=model)
    assert trainer.ref_model is None  # no second copy
    with auditor.track_training(experiment_name="run-1"):
        first, second = trainer.train(2)
        trainer.save(tmp_path / "adapter")
    assert first.kl_mean == pytest.approx(0, abs=1e-5)
    assert second.kl_mean > 0
    assert first.first_ratio_deviation < 1e-5
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], tensor) for name, tensor in below.items())
    again = make_trainer(tokenizer, None, model=adapted())
    again.resume(tmp_path / "adapter")
    assert digest_model(again.actor).digest == digest_model(trainer.actor).digest
    assert (tmp_path / "adapter/trained.safetensors").stat().st_size < 20_000
