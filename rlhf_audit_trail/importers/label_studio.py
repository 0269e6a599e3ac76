"""Label Studio exports (JSON, 1.x and 2.x): tasks with annotations, drafts and predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from rlhf_audit_trail.importers.answers import answers_in, opinions, prompt_in, ranked
from rlhf_audit_trail.importers.preference import (
    CANCELLED,
    DRAFT,
    UNNAMED_MODEL,
    BadRow,
    LeftOut,
    Preference,
    finite,
    one_by_one,
    text_in,
)

__all__ = ["label_studio"]

_TIMES: Final = ("created_at", "updated_at")
_VALUES: Final = ("rating", "number", "selected", "choices", "text")


def label_studio(row: int, found: Mapping[str, Any]) -> Iterator[Preference | LeftOut]:
    """Read one task: every annotation of every person, and apart from them the predictions."""
    data = found.get("data")
    if not isinstance(data, Mapping):
        raise BadRow("the task has no data")
    item = {} if found.get("id") is None else {"item": str(found["id"])}
    for annotation in _objects(found, "annotations", "completions"):
        if annotation.get("was_cancelled"):
            yield LeftOut(row, CANCELLED, "an annotation was cancelled")
            continue
        who = {"annotator": _person(annotation.get("completed_by"))}
        said = _results(row, data, annotation, who, item | _about(annotation))
        yield from one_by_one(row, said)
    for _ in _objects(found, "drafts"):
        yield LeftOut(row, DRAFT, "a draft was never submitted")
    for prediction in _objects(found, "predictions"):
        model = prediction.get("model_version")
        if not isinstance(model, str) or not model:
            yield LeftOut(row, UNNAMED_MODEL, "a prediction does not name its model")
            continue
        yield from one_by_one(row, _results(row, data, prediction, {"judge_model": model}, item))


def _objects(found: Mapping[str, Any], *names: str) -> list[Mapping[str, Any]]:
    items: Any = next((found[name] for name in names if found.get(name) is not None), [])
    if not isinstance(items, list):
        raise BadRow(f"`{names[0]}` is no list")
    kept = [item for item in items if isinstance(item, Mapping)]
    if len(kept) < len(items) and names[0] == "annotations":
        raise BadRow("an annotation is no object")
    return kept


def _results(
    row: int,
    data: Mapping[str, Any],
    annotation: Mapping[str, Any],
    who: Mapping[str, str],
    details: Mapping[str, Any],
) -> Iterator[Preference | LeftOut]:
    results = annotation.get("result")
    if not isinstance(results, list) or not results:
        raise BadRow("an annotation has no result")
    for result in results:
        value = result.get("value") if isinstance(result, Mapping) else None
        if not isinstance(value, Mapping):
            raise BadRow("a result has no value")
        more = {**details, "question": str(result.get("from_name", ""))}
        if isinstance(value.get("ranker"), Mapping):
            yield from _ranker(row, data, value["ranker"], who, more)
            continue
        name = next((name for name in _VALUES if value.get(name) is not None), None)
        if name is None:
            raise BadRow("a result is of a kind that is not known here")
        said = value[name]
        if isinstance(said, list) and len(said) == 1:
            (said,) = said
        yield from opinions(row, data, said, **who, details=more)


def _ranker(
    row: int,
    data: Mapping[str, Any],
    buckets: Mapping[str, Any],
    who: Mapping[str, str],
    details: Mapping[str, Any],
) -> Iterator[Preference]:
    """Read lists of ids, the best first; the texts are the items of the task's own list."""
    texts = _listed(data) or answers_in(data)
    about = {"row": row, "prompt": prompt_in(data), **who}
    for bucket, ids in buckets.items():
        if not isinstance(ids, list):
            raise BadRow("a ranking is no list")
        ranks = {str(identity): rank for rank, identity in enumerate(ids, 1)}
        if not ranks.keys() <= texts.keys():
            raise BadRow("a ranking names an answer that is not there")
        yield from ranked(ranks, texts, about, {**details, "bucket": str(bucket)})


def _listed(data: Mapping[str, Any]) -> dict[str, str]:
    for value in data.values():
        if isinstance(value, list) and value and all(isinstance(x, Mapping) for x in value):
            return {
                str(x.get("id")): text_in(x, "body", "text", "html", "title", what="answer")
                for x in value
            }
    return {}


def _person(completed_by: Any) -> str:
    """Return who annotated: an id, or an object with one; nobody is made up."""
    if isinstance(completed_by, Mapping):
        completed_by = completed_by.get("id", completed_by.get("email"))
    is_id = isinstance(completed_by, str | int) and not isinstance(completed_by, bool)
    return str(completed_by) if is_id else ""


def _about(annotation: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: annotation[name] for name in _TIMES if isinstance(annotation.get(name), str)
    }
    if (lead_time_s := finite(annotation.get("lead_time"))) is not None:
        found["lead_time_s"] = lead_time_s
    if annotation.get("ground_truth") is True:
        found["ground_truth"] = True
    if isinstance(annotation.get("id"), int):
        found["annotation"] = annotation["id"]
    return found
