"""Events and entry bytes: what may stand in clear is decided by the kind, not by the caller."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_audit_trail.ledger.drafts import encode_entry
from rlhf_audit_trail.ledger.events import (
    KINDS,
    MAX_ENTRY_BYTES,
    EntryTooLarge,
    Event,
    InvalidEvent,
    encode_value,
)
from rlhf_audit_trail.ledger.proof.bundle import parse_json

PLACE = {
    "run_id": "run42",
    "writer_id": "0" * 32,
    "seq": 7,
    "recorded_at": "2026-11-20T10:15:00.123456Z",
}
UPDATE = Event(
    "annotation.recorded",
    {"source": "human", "batch": 3},
    {"reward": 0.5, "annotator": "anna"},
    subject="anna",
)
COMMITMENTS = {"annotator": "aa" * 32, "reward": "bb" * 32}


def test_the_exact_bytes_of_an_entry() -> None:
    assert encode_entry(UPDATE, **PLACE, commitments=COMMITMENTS) == (
        b'{"v":1,"kind":"annotation.recorded","run_id":"run42",'
        b'"writer_id":"00000000000000000000000000000000","seq":7,'
        b'"recorded_at":"2026-11-20T10:15:00.123456Z","source":"human","batch":3,'
        b'"c":{"annotator":"' + b"aa" * 32 + b'","reward":"' + b"bb" * 32 + b'"}}'
    )


def test_no_sealed_value_and_no_subject_reaches_an_entry() -> None:
    data = encode_entry(UPDATE, **PLACE, commitments=COMMITMENTS)
    assert b"anna" not in data
    assert b"0.5" not in data


def test_fields_stand_in_the_order_of_the_kind() -> None:
    event = Event("annotation.recorded", {"batch": 3, "source": "human"}, UPDATE.sealed)
    assert encode_entry(event, **PLACE, commitments=COMMITMENTS) == encode_entry(
        UPDATE, **PLACE, commitments=dict(reversed(COMMITMENTS.items()))
    )


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_can_be_written_and_is_explained(kind: str) -> None:
    sample = {str: "text", int: 1, float: 1.5, bool: True, list: [1], dict: {"a": 1}}
    fields = {}
    for name, wanted in KINDS[kind].public.items():
        first = wanted[0] if isinstance(wanted, tuple) else wanted
        fields[name.removesuffix("?")] = sample[first]
    commitments = dict.fromkeys(KINDS[kind].sealed, "cc" * 32)
    event = Event(kind, fields, dict.fromkeys(KINDS[kind].sealed, 1))
    record = parse_json(encode_entry(event, **PLACE, commitments=commitments))
    assert {name: record[name] for name in fields} == fields
    assert record.get("c", {}) == commitments
    assert KINDS[kind].meaning.endswith(".")
    place = {"v": 1, "kind": kind} | PLACE
    assert {name: record[name] for name in place} == place


@pytest.mark.parametrize(
    ("event", "says"),
    [
        (Event("no.such.kind", {}), "unknown kind"),
        (Event("annotation.recorded", {"source": "human"}), "needs the field batch"),
        (Event("annotation.recorded", {"source": "human", "batch": "3"}), "batch must be int"),
        (Event("annotation.recorded", {"source": "human", "batch": True}), "batch must be int"),
        (Event("annotation.recorded", {"source": "human", "batch": 3, "reward": 1}), "has no field reward"),
        (Event("annotation.recorded", {"source": "human", "batch": 3}, {"password": 1}), "has no field password"),
        (Event("policy.update", {"policy_step": 1, "updates": 1, "algorithm": "ppo", "delta_norm_kind": "exact", "rows": 1, "learning_rate": math.nan}), "not a finite number"),
        (Event("run.started", {"name": object(), "model_name": "m", "source": "s"}), "must be str"),
    ],
)  # fmt: skip
def test_events_that_do_not_fit_are_refused_with_the_field(event: Event, says: str) -> None:
    with pytest.raises(InvalidEvent, match=says):
        encode_entry(event, **PLACE, commitments=dict.fromkeys(event.sealed, "00" * 32))


def test_every_sealed_field_needs_its_commitment() -> None:
    for commitments in ({}, {"reward": "00" * 32}, COMMITMENTS | {"prompt": "00" * 32}):
        with pytest.raises(InvalidEvent, match="exactly one commitment"):
            encode_entry(UPDATE, **PLACE, commitments=commitments)


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, {1, 2}, b"bytes", "\ud800", [math.nan]]
)
def test_values_that_json_cannot_carry_are_refused_without_quoting_them(value: object) -> None:
    with pytest.raises(InvalidEvent) as caught:
        encode_value(value)
    assert "nan" not in str(caught.value)
    assert "bytes'" not in str(caught.value)


def test_the_largest_entry_and_one_byte_more() -> None:
    def started(length: int) -> Event:
        return Event("run.started", {"name": "a" * length, "model_name": "", "source": ""})

    room = MAX_ENTRY_BYTES - len(encode_entry(started(0), **PLACE, commitments={}))
    assert len(encode_entry(started(room), **PLACE, commitments={})) == MAX_ENTRY_BYTES
    with pytest.raises(EntryTooLarge, match="65,536") as caught:
        encode_entry(started(room + 1), **PLACE, commitments={})
    assert caught.value.next_step


FINITE = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_values_come_back_as_they_were(value: object) -> None:
    data = encode_value(value)
    assert json.loads(data) == value
    assert parse_json(data) == value
    assert encode_value(json.loads(data)) == data
