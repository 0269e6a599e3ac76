"""Argilla 2 exports: records with the responses of people and the suggestions of models.

Responses come in three shapes: as the API gives them (`responses: [{values, status,
user_id}]`), as the client writes them (`responses: {question: [{value, user_id}]}`), and flat,
as its datasets have them (`question.responses`, `question.responses.users`, `.status`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rlhf_audit_trail.importers.answers import opinions
from rlhf_audit_trail.importers.preference import (
    DISCARDED,
    DRAFT,
    UNNAMED_MODEL,
    BadRow,
    LeftOut,
    Preference,
    one_by_one,
)

__all__ = ["argilla"]

_LEFT_OUT: Final = {"draft": DRAFT, "discarded": DISCARDED}
_STATUSES: Final = {"submitted", "draft", "discarded", "pending"}
_FLAT: Final = ".responses"


@dataclass(frozen=True)
class _Said:
    """What somebody answered to one question."""

    question: str
    value: Any
    user: str
    status: str
    times: Mapping[str, str]


def argilla(row: int, found: Mapping[str, Any]) -> Iterator[Preference | LeftOut]:
    """Read one record: every response of every person, and apart from them the suggestions."""
    fields = found.get("fields")
    if not isinstance(fields, Mapping):  # flat: the fields stand beside the responses
        fields = {name: x for name, x in found.items() if isinstance(x, str) and "." not in name}
    item = {} if found.get("id") is None else {"item": str(found["id"])}
    for said in _responses(found):
        if said.status in _LEFT_OUT:
            yield LeftOut(row, _LEFT_OUT[said.status], f"a response is {said.status}")
            continue
        details = {**item, "question": said.question, **said.times}
        if said.status:
            details["status"] = said.status
        said_here = opinions(row, fields, said.value, annotator=said.user, details=details)
        yield from one_by_one(row, said_here)
    yield from _suggestions(row, found, fields, item)


def _responses(found: Mapping[str, Any]) -> Iterator[_Said]:
    responses = found.get("responses")
    if isinstance(responses, list):
        for response in responses:
            yield from _of_api(response)
    elif isinstance(responses, Mapping):
        for question, answers in responses.items():
            yield from _of_client(str(question), answers)
    elif responses is not None:
        raise BadRow("`responses` is neither a list nor an object")
    for name in found:
        if name.endswith(_FLAT):
            yield from _flat(found, name)


def _of_api(response: Any) -> Iterator[_Said]:
    if not isinstance(response, Mapping):
        raise BadRow("a response is no object")
    values = response.get("values") or {}
    status, user = _status(response), _user(response.get("user_id"))
    if not isinstance(values, Mapping):
        raise BadRow("a response has no values")
    if not values:  # discarded without an answer
        yield _Said("", None, user, status or "discarded", {})
    for question, value in values.items():
        inner = value.get("value") if isinstance(value, Mapping) else value
        yield _Said(str(question), inner, user, status, _times(response))


def _of_client(question: str, answers: Any) -> Iterator[_Said]:
    if not isinstance(answers, list):
        raise BadRow("the responses to a question are no list")
    for answer in answers:
        if not isinstance(answer, Mapping):
            raise BadRow("a response is no object")
        user = _user(answer.get("user_id"))
        yield _Said(question, answer.get("value"), user, _status(answer), _times(answer))


def _flat(found: Mapping[str, Any], name: str) -> Iterator[_Said]:
    values = found[name]
    if values is None:
        return
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise BadRow("the responses to a question are no list")
    users = _beside(found, f"{name}.users", len(values))
    statuses = _beside(found, f"{name}.status", len(values))
    for value, user, status in zip(values, users, statuses, strict=True):
        yield _Said(name.removesuffix(_FLAT), value, _user(user), _status({"status": status}), {})


def _beside(found: Mapping[str, Any], name: str, count: int) -> Sequence[Any]:
    beside = found.get(name)
    if beside is None:
        return [None] * count
    if not isinstance(beside, list) or len(beside) != count:
        raise BadRow("users or statuses are not as many as responses")
    return beside


def _suggestions(
    row: int, found: Mapping[str, Any], fields: Mapping[str, Any], item: Mapping[str, Any]
) -> Iterator[Preference | LeftOut]:
    """Yield what models suggested; each needs the name of its model."""
    given = found.get("suggestions") or {}
    if isinstance(given, list):  # of the API: a list with the question's name inside
        pairs = [(x.get("question_name"), x) for x in given if isinstance(x, Mapping)]
    else:
        pairs = list(given.items()) if isinstance(given, Mapping) else []
    for question, suggestion in pairs:
        if not isinstance(suggestion, Mapping) or suggestion.get("value") is None:
            continue
        agent = suggestion.get("agent")
        if not isinstance(agent, str) or not agent:
            yield LeftOut(row, UNNAMED_MODEL, "a suggestion does not name its model")
            continue
        details = {**item, "question": str(question)}
        said = opinions(row, fields, suggestion["value"], judge_model=agent, details=details)
        yield from one_by_one(row, said)


def _status(answer: Mapping[str, Any]) -> str:
    status = getattr(answer.get("status"), "value", answer.get("status"))
    if status is not None and status not in _STATUSES:
        raise BadRow("a response has a status that Argilla does not know")
    return status or ""


def _user(user: Any) -> str:
    return "" if user is None else str(user)


def _times(answer: Mapping[str, Any]) -> dict[str, str]:
    names = ("inserted_at", "updated_at")
    return {name: answer[name] for name in names if isinstance(answer.get(name), str)}
