"""Preference datasets: pairs, hh-rlhf transcripts, UltraFeedback, and columns of any name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rlhf_audit_trail.importers.preference import (
    BadRow,
    LeftOut,
    Preference,
    as_text,
    finite,
    text_in,
)

__all__ = ["COLUMNS", "columns", "hh_rlhf", "pairs", "ultrafeedback"]

TURN: Final = "\n\nAssistant:"
# What `--column ours=theirs` may name; the annotation itself is one of the last four.
COLUMNS: Final = (
    "prompt", "annotator", "item", "created_at", "updated_at", "status", "judge_model",
    "response", "reward", "chosen", "rejected",
)  # fmt: skip
_DETAILS: Final = ("item", "created_at", "updated_at", "status")


def pairs(row: int, found: Mapping[str, Any]) -> Iterator[Preference | LeftOut]:
    """Read prompt, chosen and rejected; each text or a list of messages.

    Without a prompt it is what both conversations have in common. Scores of both answers are
    kept as they are.
    """
    chosen = text_in(found, "chosen", what="preferred answer")
    rejected = text_in(found, "rejected", what="other answer")
    details: dict[str, Any] = {
        name: score
        for name in ("score_chosen", "score_rejected")
        if (score := finite(found.get(name))) is not None
    }
    prompt = _shared_messages(found)
    if prompt is None:
        prompt = text_in(found, "prompt", "instruction", "question", "input", what="prompt")
    item = found.get("prompt_id", found.get("id"))
    if isinstance(item, str | int) and not isinstance(item, bool):
        details["item"] = item
    yield Preference(
        row=row,
        prompt=prompt,
        response=chosen,
        rejected=rejected,
        judge_model=_text_or_nothing(found.get("judge_model")),
        annotator=_text_or_nothing(found.get("annotator_id", found.get("annotator"))),
        details=details,
    )


def hh_rlhf(row: int, found: Mapping[str, Any]) -> Iterator[Preference | LeftOut]:
    """Read two transcripts; the prompt is what they share, to the last turn of the assistant."""
    chosen = text_in(found, "chosen", what="preferred transcript")
    rejected = text_in(found, "rejected", what="other transcript")
    end = chosen[: _shared(chosen, rejected)].rfind(TURN)
    if end < 0:
        raise BadRow("the transcripts share no turn of the assistant")
    end += len(TURN)
    yield Preference(
        row=row,
        prompt=chosen[:end],
        response=chosen[end:].strip(),
        rejected=rejected[end:].strip(),
    )


def ultrafeedback(row: int, found: Mapping[str, Any]) -> Iterator[Preference | LeftOut]:
    """Read an instruction and its completions, each rated by a model under several aspects."""
    prompt = text_in(found, "instruction", "prompt", what="prompt")
    completions = found.get("completions")
    if not isinstance(completions, list) or not completions:
        raise BadRow("no list of completions")
    for place, completion in enumerate(completions):
        if not isinstance(completion, Mapping):
            raise BadRow("a completion is no object")
        details: dict[str, Any] = {"item": place, "ratings": _ratings(completion)}
        details |= {
            name: completion[name]
            for name in ("model", "fine-grained_score", "principle")
            if isinstance(completion.get(name), str | int | float)
        }
        yield Preference(
            row=row,
            prompt=prompt,
            response=text_in(completion, "response", what="completion"),
            reward=finite(completion.get("overall_score")),
            details=details,
        )


def columns(
    row: int, found: Mapping[str, Any], mapping: Mapping[str, str]
) -> Iterator[Preference | LeftOut]:
    """Read columns by the names that the caller gave; see `COLUMNS`."""
    missing = [theirs for theirs in mapping.values() if theirs not in found]
    if missing:
        raise BadRow(f"no column {', '.join(missing)}")
    value = {ours: found[theirs] for ours, theirs in mapping.items()}
    reward = None
    if "reward" in value:
        reward = _number(value["reward"])
        if reward is None:
            raise BadRow("the reward is no finite number")
    best = "chosen" if "chosen" in value else "response"
    yield Preference(
        row=row,
        prompt=as_text(value.get("prompt"), "prompt"),
        response=as_text(value.get(best), "answer"),
        rejected=as_text(value["rejected"], "other answer") if "rejected" in value else None,
        reward=reward,
        annotator=_text_or_nothing(value.get("annotator")),
        judge_model=_text_or_nothing(value.get("judge_model")),
        details={name: str(value[name]) for name in _DETAILS if value.get(name) not in (None, "")},
    )


def _ratings(completion: Mapping[str, Any]) -> dict[str, Any]:
    """Return aspect to rating, as the model gave it: mostly text such as `4`, or `N/A`."""
    aspects = completion.get("annotations")
    if not isinstance(aspects, Mapping):
        return {}
    return {
        str(name): aspect["Rating"]
        for name, aspect in aspects.items()
        if isinstance(aspect, Mapping) and isinstance(aspect.get("Rating"), str | int | float)
    }


def _shared_messages(found: Mapping[str, Any]) -> str | None:
    """Return what two lists of messages have in common, as text; None where that is nothing."""
    chosen, rejected = found.get("chosen"), found.get("rejected")
    if found.get("prompt") is not None or not isinstance(chosen, list):
        return None
    if not isinstance(rejected, list):
        return None
    shared = chosen[: _shared(chosen[:-1], rejected[:-1])]
    return "\n\n".join(as_text([message], "prompt") for message in shared) or None


def _shared(left: Sequence[Any], right: Sequence[Any]) -> int:
    """Return how many items both begin with."""
    pairs_of = enumerate(zip(left, right, strict=False))
    return next((i for i, (x, y) in pairs_of if x != y), min(len(left), len(right)))


def _number(value: Any) -> float | None:
    if isinstance(value, str):  # of CSV
        try:
            return finite(float(value))
        except ValueError:
            return None
    return finite(value)


def _text_or_nothing(value: Any) -> str:
    """Return an id as text; nobody is made up where there is none."""
    is_id = isinstance(value, str | int) and not isinstance(value, bool)
    return as_text(str(value), "annotator").strip() if is_id else ""
