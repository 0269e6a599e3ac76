"""Tiny real trainers of TRL: a model of 0.1 million parameters, a tokenizer made here."""

from __future__ import annotations

import os

# before anything of Hugging Face is imported: no network, no telemetry, no second thread
for _name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRL_EXPERIMENTAL_SILENCE"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import random  # noqa: E402
from dataclasses import dataclass, field  # noqa: E402
from pathlib import Path  # noqa: E402
from types import MethodType  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import GPT2Config, GPT2ForSequenceClassification  # noqa: E402

from rlhf_audit_trail.demo.language import corpus, prompts  # noqa: E402
from rlhf_audit_trail.demo.models import make_policy, make_tokenizer  # noqa: E402

ROWS = 12


@dataclass
class Counted:
    """What happened, counted inside the run by somebody else than the recorder."""

    updates: int = 0
    rows: int = 0
    completions: int = 0
    checkpoints: int = 0
    tokens: list[list[int]] = field(default_factory=list)


def tokenizer() -> Any:
    made = make_tokenizer()
    made.padding_side = "left"
    return made


def policy(tokens: Any, *, seed: int = 0, classifier: bool = False) -> Any:
    torch.manual_seed(seed)
    if not classifier:
        return make_policy(tokens)
    config = GPT2Config(
        vocab_size=len(tokens), n_positions=64, n_embd=32, n_layer=1, n_head=2, num_labels=1,
        pad_token_id=tokens.pad_token_id, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return GPT2ForSequenceClassification(config)


def saved_policy(folder: Path, tokens: Any) -> str:
    """Return the path of a policy on disk; some trainers load their reference from there."""
    made = policy(tokens)
    made.save_pretrained(folder)
    tokens.save_pretrained(folder)
    return str(folder)


def preferences(rows: int = ROWS) -> Dataset:
    rng = random.Random(5)
    drawn = {ask + text: (ask, text) for ask, text in corpus(rng, size=20 * rows)}
    chosen, rejected = list(drawn.values())[:rows], corpus(rng, size=rows)
    return Dataset.from_dict(
        {
            "prompt": [f"{ask} " for ask, _ in chosen],
            "chosen": [text for _, text in chosen],
            "rejected": [f"{text} now" for _, text in rejected],
        }
    )


def labelled(rows: int = ROWS) -> Dataset:
    pairs = preferences(rows)
    return Dataset.from_dict(
        {
            "prompt": pairs["prompt"],
            "completion": pairs["chosen"],
            "label": [row % 2 == 0 for row in range(rows)],
        }
    )


def texts(rows: int = ROWS) -> Dataset:
    pairs = preferences(rows)
    return Dataset.from_dict(
        {"text": [p + c for p, c in zip(pairs["prompt"], pairs["chosen"], strict=True)]}
    )


def asked(rows: int = ROWS) -> Dataset:
    known = prompts()
    return Dataset.from_dict({"prompt": [known[row % len(known)] for row in range(rows)]})


def settings(folder: Path, **change: Any) -> dict[str, Any]:
    """Return arguments that every trainer takes."""
    return {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none",
        "max_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
        "save_steps": 2, "logging_steps": 2, "learning_rate": 1e-3, "disable_tqdm": True,
        "seed": 3, "dataloader_pin_memory": False,
    } | change  # fmt: skip


def counted(cls: type[Any], counts: Counted) -> type[Any]:
    """Return a trainer's class that counts for itself, below whatever records it."""

    class Counting(cls):  # type: ignore[misc,valid-type]
        def create_optimizer(self, *args: Any, **named: Any) -> Any:
            optimizer = super().create_optimizer(*args, **named)
            step = optimizer.step.__func__

            def counting_step(of: Any, *step_args: Any, **step_named: Any) -> Any:
                counts.updates += 1
                return step(of, *step_args, **step_named)

            optimizer.step = MethodType(counting_step, optimizer)
            return optimizer

        def save_model(self, *args: Any, **named: Any) -> None:
            counts.checkpoints += 1
            super().save_model(*args, **named)

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **named: Any) -> Any:
            if model.training:
                names = ("input_ids", "completion_ids", "chosen_input_ids", "completion_input_ids")
                name, ids = next((x, inputs[x]) for x in names if x in inputs)
                is_double = name == "input_ids" and "chosen" in self.train_dataset.column_names
                counts.rows += len(ids) // (2 if is_double else 1)
                if name == "chosen_input_ids" and "prompt_input_ids" in inputs:  # TRL 0.24
                    ids = torch.cat([inputs["prompt_input_ids"], ids], dim=1)
                counts.tokens += ids.tolist()
            return super().compute_loss(model, inputs, *args, **named)

    Counting.__name__ = cls.__name__
    return Counting
