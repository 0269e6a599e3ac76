"""Tiny runs of TRL's trainers, and what their records say."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import trl

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.ledger.log import Log
from tests.train.tiny_trainers import (
    Counted,
    asked,
    counted,
    labelled,
    policy,
    preferences,
    settings,
    texts,
    tokenizer,
)

TAKES_ASYNC = "asyncio" in inspect.getsource(inspect.getmodule(trl.GRPOTrainer))


def words(completions: list[str], **_: Any) -> list[float]:
    return [float(len(set(text.split()))) for text in completions]


def make(kind: str, folder: Path, counts: Counted, **change: Any) -> Any:
    """Return a trainer that counts for itself and knows nothing of any record."""
    tokens = tokenizer()
    cls = counted(change.pop("cls", getattr(trl, f"{kind}Trainer")), counts)
    given: dict[str, Any] = {"processing_class": tokens}
    given["model"] = policy(tokens, classifier=kind == "Reward")
    if kind in ("DPO", "KTO"):
        given["ref_model"] = policy(tokens)
    if kind in ("GRPO", "RLOO"):
        change = {"num_generations": 2, "max_completion_length": 8, "beta": 0.0} | change
        given["reward_funcs"] = change.pop("reward_funcs", [words])
    data = {"SFT": texts, "KTO": labelled, "GRPO": asked, "RLOO": asked}.get(kind, preferences)
    given["train_dataset"] = change.pop("train_dataset", None) or data()
    for name in ("ref_model", "eval_dataset", "callbacks", "model"):
        if name in change:
            given[name] = change.pop(name)
    return cls(args=getattr(trl, f"{kind}Config")(**settings(folder, **change)), **given)


def train(auditor: AuditableRLHF, trainer: Any, **how: Any) -> Log:
    with auditor.track_training(experiment_name="run-1") as run:
        auditor.attach(trainer).train(**how)
    assert public(run.log, "gap") == []  # a quiet run loses nothing at all
    return run.log


def total(log: Log, kind: str, name: str) -> int:
    return sum(entry.event[name] for entry in log.entries(kind=kind))


def public(log: Log, kind: str) -> list[dict[str, Any]]:
    return [entry.event for entry in log.entries(kind=kind)]


def alerts(log: Log) -> list[str]:
    return [event["name"] for event in public(log, "alert.raised")]
