"""What optimizers did, against float64 references; and nothing changed by watching."""

from __future__ import annotations

import gc
import hashlib
import math
from typing import Any

import pytest
import torch
from torch.optim import optimizer as torch_optimizer

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.capture import Movement
from rlhf_audit_trail.movement.optimizer_watch import OptimizerWatch, coordinates, total_norm
from rlhf_audit_trail.weights.model_weights import digest_model

HEAD = "acme.example/rlhf/run\n0\n"


def make_model(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(5)
    layers = [torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)]
    return torch.nn.Sequential(*layers).to(dtype)


def take_steps(
    model: torch.nn.Module, optimizer: Any, count: int, clip: float = 1e9
) -> list[float]:
    norms = []
    for step in range(count):
        optimizer.zero_grad()
        rows = torch.linspace(-1, 1 + step, 32).reshape(4, 8).to(next(model.parameters()).dtype)
        model(rows).square().sum().backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), clip).item())
        optimizer.step()
    return norms


def reference_norm(tensors: list[torch.Tensor]) -> float:
    return math.sqrt(sum(x.double().square().sum().item() for x in tensors))


def copies(model: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@pytest.fixture
def watch() -> Any:
    made = OptimizerWatch(lambda: HEAD)
    made.install()
    yield made
    made.remove()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [1, 4])
def test_displacement_and_gradient_norms_match_float64(
    watch: OptimizerWatch, dtype: torch.dtype, count: int
) -> None:
    model = make_model(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    before = copies(model)
    gradients = []
    for step in range(count):
        optimizer.zero_grad()
        model(torch.full((4, 8), 0.1 * (step + 1), dtype=dtype)).square().sum().backward()
        gradients.append(reference_norm([p.grad for p in model.parameters()]))
        optimizer.step()
    found = watch.take(optimizer)
    assert isinstance(found, Movement)
    deltas = [new.double() - old.double() for new, old in zip(copies(model), before, strict=True)]
    assert found.updates == count
    assert found.kind == "exact"
    assert found.failure == ""
    assert found.delta_norm == pytest.approx(reference_norm(deltas), rel=1e-6)
    assert found.grad_norm_applied == pytest.approx(sum(gradients) / count, rel=1e-6)
    assert found.statistics["grad_norm_applied_max"] == pytest.approx(max(gradients), rel=1e-6)
    assert found.statistics["grad_norm_applied_last"] == pytest.approx(gradients[-1], rel=1e-6)


def test_half_precision_is_not_summed_in_half_precision() -> None:
    tensors = [torch.full((1000,), 0.0316, dtype=torch.bfloat16)]
    assert total_norm(tensors).item() == pytest.approx(reference_norm(tensors), rel=1e-6)


def test_norms_of_mixed_and_sparse_tensors() -> None:
    sparse = torch.sparse_coo_tensor([[0, 0, 2]], [1.0, 2.0, 4.0], (5,), check_invariants=True)
    mixed = [torch.tensor([3.0], dtype=torch.bfloat16), torch.tensor([4.0], dtype=torch.float64)]
    assert total_norm(mixed).item() == 5.0
    assert total_norm([sparse]).item() == 5.0  # coalesced: 3 and 4
    assert total_norm([]).item() == 0.0


def test_applied_gradients_are_the_clipped_ones(watch: OptimizerWatch) -> None:
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    (preclip,) = take_steps(model, optimizer, 1, clip=0.5)
    found = watch.take(optimizer)
    assert found is not None
    assert preclip > 0.6
    assert found.grad_norm_applied == pytest.approx(0.5, rel=1e-4)


def test_figures_per_tensor_bear_the_models_names(watch: OptimizerWatch) -> None:
    model = make_model()
    before = copies(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    take_steps(model, optimizer, 1)
    found = watch.take(optimizer, {id(p): name for name, p in model.named_parameters()})
    assert found is not None
    relative = found.statistics["relative_delta"]
    for (name, parameter), old in zip(model.named_parameters(), before, strict=True):
        wanted = reference_norm([parameter.detach() - old]) / reference_norm([parameter.detach()])
        assert relative[name] == pytest.approx(wanted, rel=1e-4)


def test_learning_rates_are_those_of_the_step_not_of_the_scheduler_behind_it(
    watch: OptimizerWatch,
) -> None:
    model = make_model()
    first, second = list(model.parameters())[:2], list(model.parameters())[2:]
    optimizer = torch.optim.SGD([{"params": first, "lr": 0.1}, {"params": second, "lr": 0.02}])
    take_steps(model, optimizer, 1)
    for group in optimizer.param_groups:
        group["lr"] = 9.0
    found = watch.take(optimizer)
    assert found is not None
    assert found.learning_rate == 0.1
    assert found.statistics["learning_rates"] == [0.1, 0.02]


def test_frozen_and_unused_parameters_do_not_disturb(watch: OptimizerWatch) -> None:
    model = make_model()
    next(model.parameters()).requires_grad = False
    unused = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([*model.parameters(), unused], lr=1e-2)
    before = copies(model)
    take_steps(model, optimizer, 1)
    found = watch.take(optimizer)
    assert found is not None
    deltas = [new - old for new, old in zip(copies(model), before, strict=True)]
    assert found.delta_norm == pytest.approx(reference_norm(deltas), rel=1e-5)


def test_parameters_added_later_are_measured_from_then_on(watch: OptimizerWatch) -> None:
    model, more = make_model(), make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    take_steps(model, optimizer, 1)
    watch.take(optimizer)
    optimizer.add_param_group({"params": list(more.parameters())})
    before = copies(more)
    for parameter in more.parameters():
        parameter.grad = torch.ones_like(parameter)
    for parameter in model.parameters():
        parameter.grad = None
    optimizer.step()
    found = watch.take(optimizer)
    assert found is not None
    deltas = [new - old for new, old in zip(copies(more), before, strict=True)]
    assert found.delta_norm == pytest.approx(reference_norm(deltas), rel=1e-5)


def test_weights_changed_by_something_else_are_noticed(watch: OptimizerWatch) -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    take_steps(model, optimizer, 1)
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    found = watch.take(optimizer)
    assert found is not None
    assert found.statistics["changed_after_step"] is True
    take_steps(model, optimizer, 1)
    found = watch.take(optimizer)
    assert found is not None
    assert found.statistics["changed_after_step"] is False


def test_not_a_number_is_seen_in_the_norm(watch: OptimizerWatch) -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    optimizer.step()
    found = watch.take(optimizer)
    assert found is not None
    assert math.isnan(found.delta_norm or 0.0)


def test_a_wrapped_optimizer_is_found_and_an_unknown_one_is_not(watch: OptimizerWatch) -> None:
    class Wrapper:
        def __init__(self, inner: Any) -> None:
            self.optimizer = inner

    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    take_steps(model, optimizer, 2)
    found = watch.take(Wrapper(Wrapper(optimizer)))
    assert found is not None
    assert found.updates == 2
    assert watch.take(optimizer) is None
    assert watch.take(object()) is None


def test_an_optimizer_belongs_to_the_watch_that_asked_first(watch: OptimizerWatch) -> None:
    other = OptimizerWatch(lambda: HEAD)
    other.install()
    try:
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        take_steps(model, optimizer, 1)
        assert watch.take(optimizer) is not None
        other.take(optimizer)
        take_steps(model, optimizer, 1)
        assert other.take(optimizer) is None
        assert optimizer not in other._seen
        found = watch.take(optimizer)
        assert found is not None
        assert found.updates == 1
    finally:
        other.remove()


def test_an_error_of_the_watch_does_not_end_the_training() -> None:
    def broken() -> str:
        raise OSError

    watch = OptimizerWatch(broken, exact_parameters_max=0)
    watch.install()
    try:
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        take_steps(model, optimizer, 1)
        found = watch.take(optimizer)
    finally:
        watch.remove()
    assert found is not None
    assert found.failure == "OSError"
    assert found.updates == 1


# --- sampling -----------------------------------------------------------------------------


def test_coordinates_follow_from_the_tree_head_alone() -> None:
    drawn = coordinates(HEAD, step=3, size=1_000, count=5)
    stream = hashlib.shake_256(HEAD.encode() + (3).to_bytes(8, "big")).digest(40)
    words = [int.from_bytes(stream[i : i + 8], "little") % 1_000 for i in range(0, 40, 8)]
    assert list(drawn) == sorted(words)
    assert coordinates(HEAD, step=4, size=1_000, count=5) != drawn


def test_the_sampled_norm_is_close_and_its_values_can_be_checked() -> None:
    torch.manual_seed(1)
    parameters = [torch.nn.Parameter(torch.randn(300, 400)), torch.nn.Parameter(torch.randn(777))]
    watch = OptimizerWatch(lambda: HEAD, exact_parameters_max=1_000)
    watch.install()
    try:
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        before = [p.detach().clone() for p in parameters]
        for p in parameters:
            p.grad = torch.randn_like(p)
        optimizer.step()
        found = watch.take(optimizer)
    finally:
        watch.remove()
    assert found is not None
    assert found.kind == "sampled"
    deltas = [p.detach() - old for p, old in zip(parameters, before, strict=True)]
    assert found.delta_norm == pytest.approx(reference_norm(deltas), rel=0.01)
    said = found.statistics["sample"]
    flat = torch.cat([p.detach().reshape(-1) for p in parameters])
    drawn = coordinates(said["tree_head"], step=said["step"], size=len(flat), count=said["count"])
    assert flat[list(drawn[:64])].tolist() == said["values"]


# --- hooks --------------------------------------------------------------------------------


def hook_count() -> int:
    hooks = torch_optimizer._global_optimizer_pre_hooks
    return len(hooks) + len(torch_optimizer._global_optimizer_post_hooks)


def test_hooks_are_gone_after_the_block_also_after_an_error(auditor: AuditableRLHF) -> None:
    before = hook_count()
    with auditor.track_training(experiment_name="run-1"):
        assert hook_count() == before + 2
    assert hook_count() == before
    with pytest.raises(ZeroDivisionError), auditor.track_training(experiment_name="run-1"):
        raise ZeroDivisionError
    assert hook_count() == before


def test_no_copy_of_the_weights_outlives_the_block(auditor: AuditableRLHF) -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    shape = (16, 8)
    with auditor.track_training(experiment_name="run-1"):
        take_steps(model, optimizer, 1)
        auditor.track_policy_update(model=model, optimizer=optimizer)
    optimizer.zero_grad()
    gc.collect()
    # by type: isinstance would wake torch's deprecated modules
    tensors = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
    left = [x for x in tensors if x.shape == shape]
    assert len(left) == 1


def test_weights_are_bit_equal_with_and_without_the_audit(auditor: AuditableRLHF) -> None:
    def train(*, audited: bool) -> bytes:
        model = make_model()
        model.insert(2, torch.nn.Dropout(0.3))  # type: ignore[operator]
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        torch.manual_seed(9)
        for _ in range(10):
            take_steps(model, optimizer, 1, clip=0.5)
            if audited:
                auditor.track_policy_update(model=model, optimizer=optimizer)
                auditor.checkpoint(epoch=0, model=model)
        return digest_model(model).digest

    plain = train(audited=False)
    with auditor.track_training(experiment_name="run-1"):
        assert train(audited=True) == plain


def test_the_step_after_a_checkpoint_is_measured_exactly_beside_its_sample() -> None:
    torch.manual_seed(2)
    parameters = [torch.nn.Parameter(torch.randn(300, 400)), torch.nn.Parameter(torch.randn(777))]
    watch = OptimizerWatch(lambda: HEAD, exact_parameters_max=1_000)
    watch.install()
    found = []
    try:
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        for step in range(3):
            before = [p.detach().clone() for p in parameters]
            for p in parameters:
                p.grad = torch.randn_like(p)
            optimizer.step()
            deltas = [p.detach() - old for p, old in zip(parameters, before, strict=True)]
            found.append((watch.take(optimizer), reference_norm(deltas)))
            if step == 0:
                watch.compare_next()
    finally:
        watch.remove()
    movements = [movement for movement, _ in found]
    assert [x.kind for x in movements if x] == ["sampled", "exact", "sampled"]
    exact, wanted = found[1]
    assert exact is not None
    assert exact.delta_norm == pytest.approx(wanted, rel=1e-6)
    assert exact.statistics["sample"]["delta_norm"] == pytest.approx(wanted, rel=0.01)
    assert exact.statistics["sample"]["delta_norm"] != exact.delta_norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_weights_are_compared_piece_by_piece_with_the_same_result(dtype: torch.dtype) -> None:
    """What a cache does not hold takes another way; pieces of every length, over two windows."""
    torch.manual_seed(3)
    shapes = [(2050, 2048), (70_001,), (3,), (1, 0), ()]
    parameters = [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    watch = OptimizerWatch(lambda: HEAD)
    watch.install()
    try:
        optimizer = torch.optim.SGD(parameters, lr=1e-3)
        for _ in range(2):
            before = [p.detach().clone() for p in parameters]
            for p in parameters:
                p.grad = torch.randn_like(p)
            gradients = reference_norm([p.grad for p in parameters if p.grad is not None])
            optimizer.step()
            found = watch.take(optimizer)
            assert found is not None
            assert (found.kind, found.failure) == ("exact", "")
            deltas = [p.detach() - old for p, old in zip(parameters, before, strict=True)]
            assert found.delta_norm == pytest.approx(reference_norm(deltas), rel=1e-5)
            assert found.grad_norm_applied == pytest.approx(gradients, rel=1e-5)
    finally:
        watch.remove()
