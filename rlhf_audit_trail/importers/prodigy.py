"""Prodigy exports (JSON Lines): one line for each answer of each annotator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from rlhf_audit_trail.importers.preference import (
    IGNORED,
    BadRow,
    LeftOut,
    Preference,
    finite,
    text_in,
)

__all__ = ["prodigy"]

_PROMPTS: Final = ("prompt", "question", "text", "html")
_ANSWERS: Final = ("response", "answer_text", "completion", "output")


def prodigy(row: int, found: Mapping[str, Any]) -> Iterator[Preference | LeftOut]:
    """Read one answer: a choice between options, or accept and reject of one text."""
    answer = found.get("answer")
    if answer == "ignore":
        yield LeftOut(row, IGNORED, "the annotator ignored it")
        return
    if answer not in {"accept", "reject"}:
        raise BadRow("`answer` is none of accept, reject, ignore")
    about: dict[str, Any] = {"row": row, "prompt": text_in(found, *_PROMPTS, what="prompt")}
    about["annotator"] = _person(found)
    details = _details(found) | {"label": answer}
    options = found.get("options")
    if options is None:
        text = text_in(found, *_ANSWERS, what="answer")
        yield Preference(**about, response=text, details=details)
        return
    yield from _choices(about, _texts(options), found.get("accept"), answer, details)


def _choices(
    about: Mapping[str, Any],
    texts: Mapping[str, str],
    accept: Any,
    answer: str,
    details: Mapping[str, Any],
) -> Iterator[Preference]:
    chosen = accept if isinstance(accept, list) else [accept] if accept is not None else []
    names = [str(name) for name in chosen]
    if not set(names) <= texts.keys():
        raise BadRow("an accepted option is not there")
    others = [text for name, text in texts.items() if name not in names]
    if answer == "accept" and len(names) == 1 and others:
        for other in others:
            yield Preference(**about, response=texts[names[0]], rejected=other, details=details)
        return
    # none chosen, several or all: an opinion on each, and on no pair
    for name, text in texts.items():
        is_chosen = name in names and answer == "accept"
        yield Preference(**about, response=text, details={**details, "chosen": is_chosen})


def _texts(options: Any) -> dict[str, str]:
    is_list = isinstance(options, list) and all(isinstance(x, Mapping) for x in options)
    if not is_list or not options:
        raise BadRow("`options` is no list of objects")
    return {str(x.get("id")): text_in(x, "text", "html", what="option") for x in options}


def _person(found: Mapping[str, Any]) -> str:
    """Return the annotator; a session's name only where no annotator is named."""
    for name in ("_annotator_id", "_session_id"):
        if isinstance(found.get(name), str | int) and not isinstance(found[name], bool):
            return str(found[name])
    return ""


def _details(found: Mapping[str, Any]) -> dict[str, Any]:
    names = {"_input_hash": "item", "_task_hash": "task", "_session_id": "session"}
    details = {
        ours: found[theirs]
        for theirs, ours in names.items()
        if isinstance(found.get(theirs), str | int)
    }
    seconds = finite(found.get("_timestamp"))
    if seconds is not None and 0 <= seconds < 253_402_300_800:  # noqa: PLR2004 - the year 10000
        details["created_at"] = datetime.fromtimestamp(seconds, UTC).isoformat()
    return details
