"""Private training in a loop of one's own: sampling, clipping, noise, refusals, the record."""

from __future__ import annotations

import copy
import json
import math
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.privacy.dp_sgd import PrivateTraining, UnsupportedModel
from rlhf_audit_trail.privacy.errors import UnsafeAccounting
from rlhf_audit_trail.privacy.os_seeded import OsSeeded
from rlhf_audit_trail.privacy.sampling_accounts import SgdPlan, StepsExhausted

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
]

ROWS = 64


def data(rows: int = ROWS) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(rows, 6, generator=generator), torch.ones(rows, 1))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))


def made(plan: SgdPlan, model: nn.Module | None = None, **more: Any) -> PrivateTraining:
    model = model or network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return PrivateTraining(model, optimizer, more.pop("rows", None) or data(), plan, **more)


def mean_loss(private: PrivateTraining, inputs: Any) -> torch.Tensor:
    values, targets = inputs
    return (private.model(values) - targets).square().mean()


def train(private: PrivateTraining, steps: int = 3) -> list[int]:
    sizes = []
    for batch in private.batches(steps):
        for part in batch:
            private.backward(mean_loss(private, part.inputs), examples=part.examples)
        private.step()
        sizes.append(len(private.last_step()[1]))
    return sizes


def weights(private: PrivateTraining) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in private.model.parameters()])


# --- randomness -------------------------------------------------------------------------


def test_equal_global_seeds_give_other_noise_and_other_batches(plan: SgdPlan):
    seen, rows = [], []
    for _ in range(2):
        torch.manual_seed(42)
        np.random.seed(42)  # noqa: NPY002 - the global one
        private = made(plan)
        train(private)
        seen.append(weights(private))
        rows.append(private.last_step()[1])
    assert not torch.equal(*seen)
    assert rows[0] != rows[1]


def _drawn_in_child(generator: OsSeeded, queue: Any) -> None:
    queue.put(generator.normal((4,)).tolist())


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_processes_draw_other_noise():
    context = multiprocessing.get_context("fork")
    generator, queue = OsSeeded(), context.Queue()
    workers = [context.Process(target=_drawn_in_child, args=(generator, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    drawn = [tuple(queue.get(timeout=30)) for _ in workers] + [tuple(generator.normal((4,)))]
    for worker in workers:
        worker.join(30)
    assert len(set(drawn)) == 3


def test_generators_are_neither_copied_nor_saved():
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(UnsafeAccounting):
            copied(OsSeeded())


def test_noise_has_the_variance_that_the_plan_says(change_plan: Any):
    plan = change_plan(noise_multiplier=3.0, clip_norm=0.5, normaliser=2.0)
    model = nn.Linear(300, 300)
    private = made(plan, model, rows=TensorDataset(torch.zeros(1, 300), torch.zeros(1, 1)))
    private._allowed = []  # nobody is drawn: what the optimizer gets is noise alone
    private.draw()
    private.noise()
    values = torch.cat([p.grad.flatten() for p in model.parameters()])
    expected = 3.0 * 0.5 / 2.0
    assert float(values.std()) == pytest.approx(expected, rel=6 / math.sqrt(2 * len(values)))
    assert abs(float(values.mean())) < 6 * expected / math.sqrt(len(values))


def test_batches_are_poisson_and_some_are_empty(change_plan: Any):
    plan = change_plan(sample_rate=0.02, steps_max=400, noise_multiplier=5.0)
    sizes = train(made(plan), 400)
    mean, std = ROWS * 0.02, math.sqrt(ROWS * 0.02 * 0.98)
    assert abs(np.mean(sizes) - mean) < 6 * std / math.sqrt(400)
    assert 0.7 < np.var(sizes) / std**2 < 1.4  # a loader of fixed batches has none
    assert 0 in sizes


def test_a_rate_is_not_rounded_up_to_the_steps_of_a_float32():
    generator = OsSeeded()
    drawn = sum(len(generator.chosen(1_000_000, 1e-9)) for _ in range(20))
    assert drawn <= 3  # 0.02 expected; 2^-24 would give 1.2


# --- clipping ---------------------------------------------------------------------------


def clipped(private: PrivateTraining, rows: list[int]) -> torch.Tensor:
    private._drawn = rows
    private._sums.clear()
    inputs = private._collate([private._rows[row] for row in rows])
    private.backward(mean_loss(private, inputs), examples=len(rows))
    return torch.cat([s.flatten() for s in private._sums.sums if s is not None])


def test_one_example_moves_the_sum_by_the_clipping_norm_at_most(change_plan: Any):
    private = made(change_plan(clip_norm=0.01))
    everybody = list(range(ROWS))
    whole = clipped(private, everybody)
    for row in (0, 7, 63):
        moved = whole - clipped(private, [x for x in everybody if x != row])
        assert float(moved.norm()) <= 0.01 * (1 + 1e-4)
        assert float(clipped(private, [row]).norm()) <= 0.01


def test_clipped_sums_are_those_of_single_examples_whatever_the_parts(change_plan: Any):
    private = made(change_plan(clip_norm=1.0))
    expected = torch.zeros(len(weights(private)))
    for row in range(10):
        model = copy.deepcopy(network())
        values, target = data()[row]
        (model(values) - target).square().mean().backward()
        one = torch.cat([p.grad.flatten() for p in model.parameters()])
        expected += one * min(1.0, 1.0 / float(one.norm()))
    torch.testing.assert_close(clipped(private, list(range(10))), expected, rtol=1e-4, atol=1e-5)


def test_an_infinite_example_counts_as_none(plan: SgdPlan):
    broken = TensorDataset(
        torch.cat([data(4).tensors[0], torch.full((1, 6), math.inf)]), torch.ones(5, 1)
    )
    private = made(plan, rows=broken)
    with_it, without = clipped(private, [0, 1, 4]), clipped(private, [0, 1])
    torch.testing.assert_close(with_it, without)


def test_parts_of_a_batch_train_as_one(change_plan: Any):
    private = made(change_plan(sample_rate=1.0), part_examples_max=10)
    [batch] = [private.draw()]
    assert [part.examples for part in batch] == [10] * 6 + [4]
    for part in batch:
        private.backward(mean_loss(private, part.inputs), examples=part.examples)
    parts = torch.cat([s.flatten() for s in private._sums.sums if s is not None])
    torch.testing.assert_close(parts, clipped(private, list(range(ROWS))), rtol=1e-4, atol=1e-5)


def test_an_annotator_s_further_rows_are_never_drawn(change_plan: Any):
    plan = change_plan(sample_rate=1.0, examples_per_annotator_max=2)
    private = made(plan, annotators=[f"p{row % 4}" for row in range(ROWS)])
    assert train(private, 1) == [8]
    assert private.last_step()[1] == list(range(8))
    assert private.report().epsilon("annotator") is not None
    for wrong in (["p"] * (ROWS - 1), [None] * ROWS):
        with pytest.raises(UnsafeAccounting):
            made(plan, annotators=wrong)


# --- what is refused --------------------------------------------------------------------


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(data(), batch_size=4, shuffle=True),
        DataLoader(data(), batch_size=4),
        DataLoader(data(), batch_size=4, sampler=WeightedRandomSampler([1.0] * ROWS, ROWS)),
        iter([1, 2, 3]),
    ],
)
def test_loaders_and_streams_are_refused(loader: Any, plan: SgdPlan):
    with pytest.raises(UnsafeAccounting):
        made(plan, rows=loader)


def test_seeds_and_other_accountants_are_refused(plan: SgdPlan):
    with pytest.raises(UnsafeAccounting, match="seed"):
        made(plan, seed=42)
    with pytest.raises(UnsafeAccounting, match="gdp"):
        made(plan, accountant="gdp")


def test_a_step_without_noise_or_with_other_rows_is_refused(plan: SgdPlan):
    private = made(plan)
    before = weights(private)
    inputs = private._collate([private._rows[0]])
    with pytest.raises(UnsafeAccounting, match="no batch that was drawn"):
        private.backward(mean_loss(private, inputs), examples=1)
    mean_loss(private, inputs).backward()
    with pytest.raises(UnsafeAccounting, match="without noise"):
        private.optimizer.step()
    with pytest.raises(UnsafeAccounting, match="not the batch"):
        private.step()
    while not private.draw():
        private.noise()
    with pytest.raises(UnsafeAccounting, match="not taken"):
        private.draw()
    with pytest.raises(UnsafeAccounting, match="not the batch"):  # not all parts
        private.step()
    assert torch.equal(weights(private), before)


def test_a_noised_gradient_is_used_once(plan: SgdPlan):
    private = made(plan)
    train(private, 1)
    with pytest.raises(UnsafeAccounting):
        private.optimizer.step()


def test_spent_steps_end_the_training_and_survive_it(tmp_path: Path, change_plan: Any):
    plan, path = change_plan(steps_max=3), tmp_path / "account.json"
    train(made(plan, account_path=path), 2)
    private = made(plan, account_path=path)
    with pytest.raises(StepsExhausted):
        train(private, 2)
    assert private.account.steps == json.loads(path.read_text())["history"][0]["steps"] == 3


class Bypass(nn.Module):
    """Uses a weight outside of its module."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 1)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.layer(values) + nn.functional.linear(values, self.layer.weight)


class Positions(nn.Module):
    """Looks positions up once for all rows, as GPT-2 does."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(6, 1), nn.Linear(6, 1)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.layer(values + self.table(torch.arange(6)[None]).squeeze(-1))


@pytest.mark.parametrize("model", [Bypass, Positions])
def test_models_without_true_gradients_per_example_are_refused(model: Any, plan: SgdPlan):
    private = made(plan, model())
    with pytest.raises(UnsupportedModel) as refused:
        train(private, 20)
    assert refused.value.next_step
    assert private.account.steps <= 20


def test_mixing_layers_frozen_models_and_forgotten_passes_are_refused(plan: SgdPlan):
    with pytest.raises(UnsupportedModel, match="mixes"):
        made(plan, nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)))
    with pytest.raises(UnsupportedModel, match="drops"):
        made(plan, nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.1), nn.Linear(4, 1)))
    frozen = network().requires_grad_(requires_grad=False)
    with pytest.raises(UnsupportedModel, match="nothing"):
        PrivateTraining(frozen, None, data(), plan)
    private = made(plan)
    while not (batch := private.draw()):
        private.noise()
    private.model(torch.ones(1, 6))  # evaluated, but not under no_grad()
    with pytest.raises(UnsupportedModel):
        private.backward(mean_loss(private, batch[0].inputs), examples=batch[0].examples)


def test_hooks_can_be_taken_off_again(plan: SgdPlan):
    private = made(plan)
    with pytest.raises(UnsupportedModel):
        made(plan, private.model)
    private.close()
    train(made(plan, private.model), 1)


# --- the record -------------------------------------------------------------------------


def test_the_record_tells_the_mechanism_and_no_more(auditor: AuditableRLHF, change_plan: Any):
    plan = change_plan(sample_rate=0.1)
    with auditor.track_training(experiment_name="own-loop") as run:
        private = made(plan, run=run, algorithm="reward")
        train(private, 3)
        run.model(private.model, "policy_final", dp=private.report().to_public_dict())
    entries = list(run.log.entries(kind="policy.update"))
    assert len(entries) == 3
    for number, entry in enumerate(entries, start=1):
        public, sealed = entry.event, run.log.opened(entry.leaf_index)
        assert public["rows"] is None
        assert public["dp"]["history"][-1]["steps"] == number
        assert set(public["dp"]) == {
            "sampling", "noise_multiplier", "clip_norm", "sample_rate", "normaliser", "history",
            "noised_grad_norm",
        }  # fmt: skip
        assert public["dp"]["noised_grad_norm"] == pytest.approx(sealed["grad_norm_applied"])
    assert sealed["batch"] == private.last_step()[1]
    [final] = [x.event for x in run.log.entries(kind="model.registered")]
    assert final["dp"]["caveats"][0].endswith("not cryptographic")
