"""What an answer in an annotation tool means: a rating, a choice between texts, a ranking.

No tool says in an export which text a choice is about, so names are matched: of the answers
`response1` and `response2`, the choice `response-2` or `2` is the second one. What matches
nothing stays a label.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from rlhf_audit_trail.importers.preference import (
    BadRow,
    LeftOut,
    Preference,
    as_text,
    finite,
    text_in,
)

__all__ = ["answers_in", "chosen_of", "opinions", "prompt_in", "ranked"]

_PROMPTS: Final = ("prompt", "instruction", "question", "input", "context", "text")
_ANSWERS: Final = re.compile(
    r"(?:response|answer|completion|output|generation|chosen|rejected|left|right|option|text)"
    r"[-_ ]?(?:\d+|[a-z])?",
    re.IGNORECASE,
)
_SIDES: Final = {"left": 0, "right": 1, "a": 0, "b": 1}


def prompt_in(fields: Mapping[str, Any]) -> str:
    """Return what was asked; raises BadRow when no field has a name like it."""
    return text_in(fields, *_PROMPTS, what="prompt")


def answers_in(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts that were judged, by field name, in the order of the file."""
    asked = next((name for name in _PROMPTS if fields.get(name) is not None), None)
    return {
        name: as_text(value, "answer")
        for name, value in fields.items()
        if name != asked and value is not None and _ANSWERS.fullmatch(name)
    }


def chosen_of(choice: str, answers: Mapping[str, str]) -> str | None:
    """Return the name of the answer that a choice stands for; None if it stands for none."""
    names = list(answers)
    plain = {_plain(name): name for name in names}
    wanted = _plain(choice)
    if wanted in plain:
        return plain[wanted]
    if wanted.isdecimal() and len(wanted) < 4 and 1 <= int(wanted) <= len(names):  # noqa: PLR2004
        return names[int(wanted) - 1]
    side = _SIDES.get(wanted)
    return names[side] if side is not None and side < len(names) else None


def opinions(
    row: int,
    fields: Mapping[str, Any],
    value: Any,
    *,
    annotator: str = "",
    judge_model: str = "",
    details: Mapping[str, Any],
) -> Iterator[Preference | LeftOut]:
    """Yield what one answer to one question says about the texts of a record.

    A number is a reward, a name one of the texts, a list of names with ranks a ranking;
    anything else is kept as a label.
    """
    prompt, answers = prompt_in(fields), answers_in(fields)
    if not answers:
        raise BadRow("no field with an answer")
    who: dict[str, Any] = {
        "row": row,
        "prompt": prompt,
        "annotator": annotator,
        "judge_model": judge_model,
    }
    ranks = _ranks(value)
    if ranks is not None:
        yield from ranked(ranks, answers, who, details)
        return
    name = chosen_of(value, answers) if isinstance(value, str) and len(answers) > 1 else None
    if name is not None:
        for other, text in answers.items():
            if other != name:
                yield Preference(**who, response=answers[name], rejected=text, details=details)
        return
    number, label = finite(value), {}
    if number is None:
        label = {"label": _label(value)}
    if len(answers) > 1:  # about all of them together: none of them alone was judged
        label["answers"] = list(answers.values())
    first = next(iter(answers.values()))
    yield Preference(**who, response=first, reward=number, details={**details, **label})


def ranked(
    ranks: Mapping[str, int],
    answers: Mapping[str, str],
    who: Mapping[str, Any],
    details: Mapping[str, Any],
) -> Iterator[Preference]:
    """Yield one opinion for each ranked answer; 1 is the best."""
    for choice, rank in sorted(ranks.items(), key=lambda pair: pair[1]):
        name = chosen_of(choice, answers)
        if name is None:
            raise BadRow("a ranking names an answer that is not there")
        more = {**details, "rank": rank, "of": len(ranks)}
        yield Preference(**who, response=answers[name], details=more)


def _ranks(value: Any) -> dict[str, int] | None:
    """Read Argilla's `[{value, rank}]`; None for anything else."""
    if not isinstance(value, list) or not value:
        return None
    if not all(isinstance(x, Mapping) and {"value", "rank"} <= x.keys() for x in value):
        return None
    if not all(type(x["rank"]) is int for x in value):
        raise BadRow("a rank is no whole number")
    return {str(x["value"]): x["rank"] for x in value}


def _label(value: Any) -> Any:
    """Return a label as it may be recorded."""
    if isinstance(value, list):
        return [as_text(item, "label") for item in value]
    if value is None:
        raise BadRow("an answer is empty")
    return as_text(value, "label")


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).lower()
