"""Each format: what is read from it, and what is left out with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from rlhf_audit_trail.importers.formats import FORMATS, UnknownFormat, detect
from rlhf_audit_trail.importers.pairs import columns
from rlhf_audit_trail.importers.preference import BadRow, LeftOut, Preference

HH = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Who?\n\nAssistant: A good one.",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Who?\n\nAssistant: Go away.",
}
ULTRA = {
    "source": "evol", "instruction": "Say it.", "models": ["m1", "m2"],
    "completions": [
        {"model": "m1", "response": "It.", "overall_score": 8.5, "principle": "honesty",
         "annotations": {"helpfulness": {"Rating": "4", "Rationale": "..."},
                         "honesty": {"Rating": "N/A"}, "odd": None}},
        {"model": "m2", "response": "No.", "annotations": {}},
    ],
}  # fmt: skip
ARGILLA_FIELDS = {"prompt": "Which?", "response1": "This.", "response2": "That."}
ARGILLA_API = {
    "id": "r1", "fields": ARGILLA_FIELDS, "metadata": {}, "status": "completed",
    "responses": [
        {"values": {"better": {"value": "response2"}}, "status": "submitted", "user_id": "u1",
         "inserted_at": "2026-01-01T00:00:00"},
        {"values": {"better": {"value": "response1"}}, "status": "draft", "user_id": "u2"},
        {"values": None, "status": "discarded", "user_id": "u3"},
        {"values": {"better": {"value": "neither"}, "score": {"value": 4}}, "status": "submitted",
         "user_id": None},
        {"values": {"better": {"value": None}}, "status": "submitted", "user_id": "u4"},
    ],
    "suggestions": {"better": {"value": "response1", "agent": "gpt-x", "score": 0.9},
                    "score": {"value": 3, "agent": None}},
}  # fmt: skip
ARGILLA_CLIENT = {
    "id": "r2", "fields": ARGILLA_FIELDS, "suggestions": {}, "vectors": {},
    "responses": {"rank": [{"user_id": "u1", "value": [{"value": "response2", "rank": 1},
                                                       {"value": "response1", "rank": 2}]}]},
}  # fmt: skip
ARGILLA_FLAT = {
    "id": "r3", "prompt": "Which?", "response": "This.",
    "score.responses": [5, 2, 1], "score.responses.users": ["u1", "u2", "u3"],
    "score.responses.status": ["submitted", "submitted", "discarded"],
    "score.suggestion": None,
}  # fmt: skip
STUDIO = {
    "id": 11, "data": {"prompt": "Which?", "answer1": "This.", "answer2": "That."},
    "annotations": [
        {"id": 5, "completed_by": 3, "was_cancelled": False, "ground_truth": True,
         "created_at": "2026-02-01T10:00:00Z", "updated_at": "2026-02-01T10:01:00Z",
         "lead_time": 12.5,
         "result": [{"from_name": "pw", "to_name": "a,b", "type": "pairwise",
                     "value": {"selected": "right"}}]},
        {"id": 6, "completed_by": {"id": 4, "email": "x@acme.example"}, "was_cancelled": True,
         "result": []},
        {"id": 7, "completed_by": {"email": "y@acme.example"}, "was_cancelled": False,
         "result": [{"from_name": "stars", "value": {"rating": 4}}]},
        {"id": 8, "was_cancelled": False, "result": []},
    ],
    "drafts": [{"id": 1}],
    "predictions": [{"model_version": "judge-2", "result": [{"value": {"selected": "left"}}]},
                    {"result": [{"value": {"selected": "left"}}]}],
}  # fmt: skip
STUDIO_RANKER = {
    "id": 12,
    "data": {"prompt": "Order", "items": [{"id": "a", "title": "A", "body": "first text"},
                                          {"id": "b", "body": "second text"}]},
    "annotations": [{"completed_by": 1, "result": [
        {"from_name": "r", "value": {"ranker": {"best": ["b", "a"]}}}]}],
}  # fmt: skip
PRODIGY = {
    "text": "Which?", "options": [{"id": 1, "text": "This."}, {"id": 2, "text": "That."}],
    "accept": [2], "answer": "accept", "_input_hash": 1, "_task_hash": 2,
    "_session_id": "d-alex", "_annotator_id": "alex", "_timestamp": 1_700_000_000,
}  # fmt: skip


def read(name: str, row: Mapping[str, Any]) -> tuple[list[Preference], list[str]]:
    found = list(FORMATS[name](7, row))
    assert {item.row for item in found} <= {7}
    kept = [item for item in found if isinstance(item, Preference)]
    return kept, [item.kind for item in found if isinstance(item, LeftOut)]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("hh-rlhf", HH), ("ultrafeedback", ULTRA), ("argilla", ARGILLA_API),
        ("argilla", ARGILLA_CLIENT), ("argilla", ARGILLA_FLAT), ("label-studio", STUDIO),
        ("label-studio", STUDIO_RANKER), ("prodigy", PRODIGY),
        ("pairs", {"prompt": "p", "chosen": "a", "rejected": "b"}),
        ("pairs", {"chosen": [{"role": "user", "content": "p"}], "rejected": []}),
    ],
)  # fmt: skip
def test_the_first_row_tells_the_format(name: str, row: dict[str, Any]) -> None:
    assert detect(row) == name


def test_an_unknown_first_row_is_refused() -> None:
    with pytest.raises(UnknownFormat, match="columns"):
        detect({"question": "a", "score": 1})


def test_hh_transcripts_are_split_where_they_part() -> None:
    ((found,), left_out) = read("hh-rlhf", HH)
    assert found.prompt == "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Who?\n\nAssistant:"
    assert (found.response, found.rejected) == ("A good one.", "Go away.")
    assert (found.annotator, found.reward, left_out) == ("", None, [])


def test_messages_share_a_prompt() -> None:
    user, good, bad = (
        {"role": role, "content": text}
        for role, text in (("user", "Q"), ("assistant", "yes"), ("assistant", "no"))
    )
    ((found,), _) = read("pairs", {"chosen": [user, good], "rejected": [user, bad]})
    assert (found.prompt, found.response, found.rejected) == ("Q", "yes", "no")


def test_binarized_scores_are_kept_and_not_made_a_reward() -> None:
    row = {"prompt": "Q", "prompt_id": "x", "chosen": "a", "rejected": "b", "score_chosen": 8.0}
    ((found,), _) = read("pairs", row)
    assert found.reward is None
    assert found.details == {"score_chosen": 8.0, "item": "x"}


def test_ultrafeedback_has_one_opinion_for_each_completion() -> None:
    (first, second), _ = read("ultrafeedback", ULTRA)
    assert (first.response, first.reward) == ("It.", 8.5)
    assert first.details["ratings"] == {"helpfulness": "4", "honesty": "N/A"}
    assert (second.response, second.reward) == ("No.", None)


def test_argilla_keeps_every_annotator_and_models_apart() -> None:
    kept, left_out = read("argilla", ARGILLA_API)
    people = [item for item in kept if not item.judge_model]
    first, label, score = people
    assert (first.annotator, first.response, first.rejected) == ("u1", "That.", "This.")
    assert first.details["inserted_at"] == "2026-01-01T00:00:00"
    assert (label.annotator, label.details["label"]) == ("", "neither")
    assert score.reward == 4.0
    assert score.details["answers"] == ["This.", "That."]
    (model,) = [item for item in kept if item.judge_model]
    assert (model.judge_model, model.response, model.annotator) == ("gpt-x", "This.", "")
    assert sorted(left_out) == ["bad", "discarded", "draft", "unnamed_model"]


def test_argilla_rankings_and_flat_datasets() -> None:
    (best, other), _ = read("argilla", ARGILLA_CLIENT)
    assert (best.response, best.details["rank"], best.details["of"]) == ("That.", 1, 2)
    assert (other.response, other.details["rank"], other.annotator) == ("This.", 2, "u1")
    kept, left_out = read("argilla", ARGILLA_FLAT)
    assert [(item.annotator, item.reward) for item in kept] == [("u1", 5.0), ("u2", 2.0)]
    assert left_out == ["discarded"]


def test_label_studio_keeps_times_and_people() -> None:
    kept, left_out = read("label-studio", STUDIO)
    first, second, model = kept
    assert (first.annotator, first.response, first.rejected) == ("3", "That.", "This.")
    assert first.details["lead_time_s"] == 12.5
    assert first.details["ground_truth"] is True
    assert first.details["updated_at"] == "2026-02-01T10:01:00Z"
    assert (second.annotator, second.reward) == ("y@acme.example", 4.0)
    assert (model.judge_model, model.response) == ("judge-2", "This.")
    assert sorted(left_out) == ["bad", "cancelled", "draft", "unnamed_model"]


def test_label_studio_rankings() -> None:
    (best, other), _ = read("label-studio", STUDIO_RANKER)
    assert (best.response, best.details["rank"]) == ("second text", 1)
    assert (other.response, other.details["rank"]) == ("first text", 2)


def test_prodigy_choices() -> None:
    ((found,), _) = read("prodigy", PRODIGY)
    assert (found.annotator, found.response, found.rejected) == ("alex", "That.", "This.")
    assert found.details["created_at"] == "2023-11-14T22:13:20+00:00"
    assert read("prodigy", PRODIGY | {"answer": "ignore"}) == ([], ["ignored"])
    several, _ = read("prodigy", PRODIGY | {"accept": [1, 2]})
    assert [item.rejected for item in several] == [None, None]
    nobody = {k: v for k, v in PRODIGY.items() if k not in {"_session_id", "_annotator_id"}}
    assert read("prodigy", nobody)[0][0].annotator == ""
    binary = {"prompt": "Q", "response": "A", "answer": "reject", "_task_hash": 1}
    ((said,), _) = read("prodigy", binary)
    assert (said.reward, said.details["label"]) == (None, "reject")


def test_columns_of_any_name() -> None:
    names = {"prompt": "q", "response": "a", "reward": "stars", "annotator": "who", "item": "id"}
    row = {"q": "Q", "a": "A", "stars": "4", "who": "", "id": "9", "more": "x"}
    (found,) = columns(1, row, names)
    assert isinstance(found, Preference)
    assert (found.reward, found.annotator, found.details) == (4.0, "", {"item": "9"})


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("hh-rlhf", {"chosen": "no turn", "rejected": "no turn"}),
        ("hh-rlhf", {"chosen": 5, "rejected": "x"}),
        ("pairs", {"chosen": "a", "rejected": "b"}),
        ("pairs", {"prompt": "p\ud800", "chosen": "a", "rejected": "b"}),
        ("pairs", {"prompt": [], "chosen": "a", "rejected": "b"}),
        ("ultrafeedback", {"instruction": "x", "completions": []}),
        ("ultrafeedback", {"instruction": "x", "completions": ["y"]}),
        ("argilla", {"fields": {}, "responses": "x"}),
        ("argilla", {"fields": {}, "responses": [{"status": "what"}]}),
        ("argilla", {"fields": {}, "responses": {"q": 1}}),
        ("argilla", {"prompt": "p", "q.responses": [1], "q.responses.users": []}),
        ("label-studio", {"annotations": []}),
        ("label-studio", {"data": {}, "annotations": ["x"]}),
        ("label-studio", {"data": {}, "annotations": "x"}),
        ("prodigy", {"answer": "maybe"}),
        ("prodigy", PRODIGY | {"accept": [9]}),
        ("prodigy", PRODIGY | {"options": "x"}),
    ],
)
def test_rows_of_another_shape_are_bad_and_quote_nothing(name: str, row: dict[str, Any]) -> None:
    with pytest.raises(BadRow) as caught:
        list(FORMATS[name](1, row))
    assert "\ud800" not in caught.value.message
