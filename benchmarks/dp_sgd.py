"""What does a private step cost, beside a plain one and beside Opacus alone?

A reward model with LoRA, all three in turns in one process, on one thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from benchmarks import Result

__all__ = ["run"]

_ROWS: Final = 16
_LENGTH: Final = 64
_TURNS: Final = 60
_OF_OPACUS_MAX: Final = 102.0  # percent
_OF_PLAIN_MAX: Final = 125.0


def run() -> Sequence[Result]:
    """Measure."""
    import torch  # noqa: PLC0415 - takes seconds, and only this benchmark needs it

    torch.set_num_threads(1)
    steps = {"plain": _plain(), "opacus": _opacus(), "private": _private()}
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(_TURNS + 3):
        for name, step in steps.items():
            begun = time.perf_counter()
            step()
            if turn >= 3:  # the first ones make the optimizers' state
                taken[name].append(time.perf_counter() - begun)
    # each turn is its own comparison: what else the machine does falls on all three
    over = {
        other: statistics.median(
            mine / its for mine, its in zip(taken["private"], taken[other], strict=True)
        )
        for other in ("opacus", "plain")
    }
    one = {name: statistics.median(values) for name, values in taken.items()}
    opacus, plain = round(100 * over["opacus"], 1), round(100 * over["plain"], 1)
    ours, theirs = round(1e6 * one["private"]), round(1e6 * one["opacus"])
    return [
        Result("private step", ours, "us", theirs),
        Result("private step, of Opacus alone", opacus, "%", None, _OF_OPACUS_MAX),
        Result("private step, of a plain one", plain, "%", None, _OF_PLAIN_MAX),
    ]


def _model() -> Any:
    import torch  # noqa: PLC0415
    from peft import LoraConfig, TaskType, get_peft_model  # noqa: PLC0415
    from transformers import LlamaConfig, LlamaForSequenceClassification  # noqa: PLC0415

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000, hidden_size=128, intermediate_size=344, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, num_labels=1, pad_token_id=0,
    )  # fmt: skip
    lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type=TaskType.SEQ_CLS)
    return get_peft_model(LlamaForSequenceClassification(config), lora)


def _parts() -> tuple[Any, Any, Callable[[], Any]]:
    """Return a model, its optimizer, and what computes a loss."""
    import torch  # noqa: PLC0415

    model = _model()
    ids = torch.randint(1, 1000, (_ROWS, _LENGTH))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def loss() -> Any:
        return torch.nn.functional.softplus(-model(input_ids=ids).logits.squeeze(-1)).mean()

    return model, torch.optim.AdamW(trained, lr=1e-4), loss


def _plain() -> Callable[[], None]:
    _, optimizer, loss = _parts()

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def _opacus() -> Callable[[], None]:
    from opacus.grad_sample import GradSampleHooks  # noqa: PLC0415
    from opacus.optimizers import DPOptimizer  # noqa: PLC0415

    model, inner, loss = _parts()
    GradSampleHooks(model, strict=False)
    optimizer = DPOptimizer(
        inner, noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=_ROWS
    )

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def _private() -> Callable[[], None]:
    from rlhf_audit_trail.privacy.dp_sgd import PrivateTraining  # noqa: PLC0415
    from rlhf_audit_trail.privacy.sampling_accounts import SgdPlan  # noqa: PLC0415

    model, optimizer, loss = _parts()
    plan = SgdPlan(
        noise_multiplier=1.0, clip_norm=1.0, sample_rate=1.0, normaliser=float(_ROWS),
        dp_delta=1e-5, steps_max=10 * _TURNS,
    )  # fmt: skip
    private = PrivateTraining(model, optimizer, range(_ROWS), plan, collate=list)

    def step() -> None:
        private.draw()
        private.backward(loss(), examples=_ROWS)
        private.step()

    return step
