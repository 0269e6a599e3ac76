"""Events of a training run, built from plain values; what is public and what is sealed.

Nothing here records anything: each function checks its input and returns events, so that
a bad row is found before the first one is handed to the log.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rlhf_audit_trail.capture import (
    InvalidColumn,
    Movement,
    check_lengths,
    file_digest,
    loose_numbers,
    number_column,
    person_column,
    plain_value,
    text_column,
)
from rlhf_audit_trail.ledger.drafts import EventColumns, encode_entry
from rlhf_audit_trail.ledger.events import Event, encode_value
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.weights.digest import TensorRecord, weights_digest

__all__ = [
    "SOURCES",
    "UnknownSource",
    "annotation_columns",
    "check_source",
    "checkpoint_event",
    "config_event",
    "model_event",
    "rehearse",
    "rollout_event",
    "sealed_event",
    "update_event",
]

# Who gave a preference; demo data says simulated and never counts as human.
SOURCES: Final = ("human", "user_interaction", "ai_feedback", "simulated")


class UnknownSource(AuditTrailError):
    """Nobody can tell from this word who gave the preferences."""


def check_source(source: str, judge_model: str = "") -> str:
    """Return `source`, or raise UnknownSource: it must be known who gave the preferences."""
    if source not in SOURCES:
        raise UnknownSource(
            f"{source!r:.40} does not say who gave the preferences",
            next_step=f"use one of {', '.join(SOURCES)}",
        )
    if source == "ai_feedback" and not judge_model:
        raise UnknownSource(
            "AI feedback needs the name of the model that judged",
            next_step="pass judge_model, for example with its revision",
        )
    return source


def annotation_columns(
    *, prompts: Any, responses: Any, rewards: Any, annotator_ids: Any, public: Mapping[str, Any]
) -> EventColumns:
    """Return one event per row, sealed under the person it came from.

    Raises:
        UnequalLengths, NonFiniteValue, InvalidColumn: the rows are named.
    """
    asked = text_column("prompts", prompts)
    answered = text_column("responses", responses)
    scored = number_column("rewards", rewards)
    people = [""] * len(asked)
    if annotator_ids is not None:
        people = person_column("annotator_ids", annotator_ids)
    check_lengths(prompts=asked, responses=answered, rewards=scored, annotator_ids=people)
    values: dict[str, Sequence[Any]] = {"prompt": asked, "response": answered, "reward": scored}
    # the vault puts each person's pseudonym into the entry, never the id
    return EventColumns("annotation.recorded", public, values, people)


def config_event(config: Mapping[str, Any], seed: Any = None) -> Event:
    """Return the settings in clear, and the seed sealed: it would give away batches and noise."""
    sealed = {} if seed is None else {"seed": plain_value("seed", seed)}
    return Event("run.config", {"config": plain_value("config", config)}, sealed)


def model_event(
    records: Sequence[TensorRecord], role: str, more: Mapping[str, Any] | None = None
) -> Event:
    """Return the digest of a model that took part in `role`; `more` are further public fields."""
    counts = _counts(records)
    del counts["size_bytes"]
    fields = {"role": role, "weights_digest": weights_digest(records).hex()}
    return Event("model.registered", {**fields, **counts, **(more or {})})


def rollout_event(
    *,
    policy_step: int,
    rewards: Any,
    means: Mapping[str, Any],
) -> list[Event]:
    """Return the scores of completions; all figures are sealed.

    Args:
        policy_step: policy updates made before these completions.
        rewards: number per completion; NaN is recorded as such.
        means: sealed field name to numbers per completion, of which the mean is kept.
    """
    scored = loose_numbers("rewards", rewards)
    sealed: dict[str, Any] = _spread(scored)
    for name, values in means.items():
        if values is not None:
            sealed[name] = _mean(loose_numbers(name, values))
    fields = {"policy_step": policy_step, "completions": len(scored)}
    return sealed_event("rollout.scored", fields, sealed, step=policy_step)


def update_event(
    movement: Movement | None,
    *,
    policy_step: int,
    algorithm: str,
    rows: int,
    grad_norm_preclip: float | None,
    metrics: Mapping[str, Any] | None,
    trainer_step: int | None = None,
    dp: Mapping[str, Any] | None = None,
    manifest: Sequence[int] | None = None,
) -> list[Event]:
    """Return a policy update; figures that nobody knows are left out, never zero.

    Of a private training (`dp`) the number of rows is left out as well: a Poisson batch's
    size tells of its members. Which they were (`manifest`) is sealed.
    """
    rate = movement.learning_rate if movement else None
    fields: dict[str, Any] = {
        "policy_step": policy_step,
        "updates": movement.updates if movement else 0,
        "algorithm": algorithm,
        "delta_norm_kind": movement.kind if movement else "absent",
        "rows": rows if dp is None else None,
        "learning_rate": rate if rate is not None and math.isfinite(rate) else None,
    }
    if trainer_step is not None:
        fields["trainer_step"] = trainer_step
    if dp is not None:
        fields["dp"] = dict(dp)
    figures: dict[str, Any] = {"grad_norm_preclip": grad_norm_preclip}
    statistics: dict[str, Any] = {}
    if movement:
        figures["parameter_delta_norm"] = movement.delta_norm
        figures["grad_norm_applied"] = movement.grad_norm_applied
        statistics |= movement.statistics
    if metrics:
        statistics["metrics"] = dict(metrics)
    sealed = {name: value for name, value in figures.items() if value is not None}
    if statistics:
        sealed["statistics"] = statistics
    if manifest is not None:
        sealed["batch"] = list(manifest)
    return sealed_event("policy.update", fields, sealed, step=policy_step)


def checkpoint_event(
    *,
    epoch: int,
    records: Sequence[TensorRecord] | None,
    metrics: Mapping[str, Any] | None,
    path: Path | None,
    step: int,
    path_digest: str = "",
    manifest_digest: str = "",
    name: str | None = None,
    more: Mapping[str, Any] | None = None,
) -> list[Event]:
    """Return a model checkpoint; without weights its digest is null.

    Args:
        epoch: 0 or more.
        records: of its tensors.
        metrics: sealed.
        path: file or folder to digest now.
        step: policy updates so far.
        path_digest: hex, where it is known already.
        manifest_digest: of the stored manifest; empty if none is.
        name: by default `epoch_<n>`.
        more: further public fields.

    Raises:
        InvalidColumn: the epoch is no whole number from 0 on.
        OSError: `path` cannot be read.
    """
    if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
        raise InvalidColumn("epoch must be a whole number, 0 or more")
    digest = None if records is None else weights_digest(records).hex()
    fields: dict[str, Any] = {"name": name or f"epoch_{epoch}", "epoch": epoch}
    fields |= {"weights_digest": digest, **_counts(records or ()), **(more or {})}
    if path is not None:
        path_digest = file_digest(path)
    if path_digest:
        fields["path_digest"] = path_digest
    if manifest_digest:
        fields["manifest_digest"] = manifest_digest
    sealed = {"metrics": dict(metrics)} if metrics else {}
    return sealed_event("checkpoint.saved", fields, sealed, step=step)


def rehearse(events: Iterable[Event]) -> None:
    """Write events as entries that nobody keeps, to refuse them before anything is begun.

    Raises:
        InvalidEvent, EntryTooLarge: as recording them would.
    """
    for event in events:
        for value in event.sealed.values():
            encode_value(value)
        encode_entry(
            event,
            run_id="x" * 100,
            writer_id="0" * 32,
            seq=0,
            recorded_at="2026-01-01T00:00:00.000000Z",
            commitments=dict.fromkeys(event.sealed, "0" * 64),
        )


def sealed_event(
    kind: str,
    fields: Mapping[str, Any],
    sealed: Mapping[str, Any],
    *,
    step: int,
    plain: Mapping[str, Any] | None = None,
    odd: Iterable[str] = (),
) -> list[Event]:
    """Return an event with its sealed values made plain, and an alert if some are not finite.

    Args:
        kind: of the event.
        fields: public ones.
        sealed: numbers, text, lists and mappings of any library.
        step: policy updates so far.
        plain: further sealed values that are JSON values already.
        odd: names of their numbers that were not finite, and are text now.

    Raises:
        InvalidMetric: a value is no number, text, list or mapping.
    """
    odd = list(odd)
    found = {name: plain_value(name, value, odd) for name, value in sealed.items()}
    events = [Event(kind, fields, found | dict(plain or {}))]
    if odd:
        # no deeper than the field: the keys of a mapping may name people, and this is public
        fields_hit = ", ".join(sorted({name.split("[")[0] for name in odd}))
        detail = f"values of {kind} that are not finite: {len(odd)} in {fields_hit}"
        alert = {"name": "non_finite_value", "severity": "critical", "step": step}
        events.append(Event("alert.raised", alert | {"detail": detail}))
    return events


def _counts(records: Sequence[TensorRecord]) -> dict[str, int]:
    return {
        "tensors": len(records),
        "parameters": sum(math.prod(record.shape) for record in records),
        "size_bytes": sum(record.size_bytes for record in records),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    mean = _mean(values)
    deviation = math.sqrt(_mean([(value - mean) ** 2 for value in values]))
    found = {"reward_mean": mean, "reward_min": min(values), "reward_max": max(values)}
    return found | {"reward_std": deviation}
