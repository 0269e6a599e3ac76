"""Signed notes, vkeys and base64: one spelling each; the refused spellings are vectors."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_audit_trail.ledger.proof.errors import MalformedBundle
from rlhf_audit_trail.ledger.proof.note import (
    MAX_NOTE_BYTES,
    Algorithm,
    Note,
    SignatureLine,
    VerifierKey,
    check_name,
    decode_base64,
    encode_base64,
    parse_note,
)

NAMES = st.text(
    st.characters(
        exclude_categories=["Cc", "Cf", "Cs", "Zs", "Zl", "Zp"], exclude_characters="+\u2065"
    ),
    min_size=1,
    max_size=60,
)
TEXTS = st.text(st.characters(exclude_categories=["Cc", "Cs"], include_characters="\n"))
LINES = st.builds(
    SignatureLine, NAMES, st.binary(min_size=4, max_size=4), st.binary(min_size=1, max_size=80)
)


@pytest.mark.parametrize("sign", "\u00ad\u061c\u180e\u200b\u200f\u202a\u202e\u2066\u2069\ufeff")
def test_a_name_holds_nothing_that_hides_or_turns_round_what_is_shown(sign: str) -> None:
    check_name("acme.example/rlhf/run42")
    with pytest.raises(MalformedBundle, match="name"):
        check_name(f"acme.example/rlhf/{sign}24nur")
    with pytest.raises(MalformedBundle):
        parse_note(f"text\n\n— a{sign}b AAAAAAAA\n")


@given(st.binary(max_size=100))
def test_base64_round_trip(data: bytes) -> None:
    assert decode_base64(encode_base64(data), what="a test") == data


@given(st.text(max_size=30))
def test_base64_has_one_spelling(text: str) -> None:
    try:
        assert encode_base64(decode_base64(text, what="a test")) == text
    except MalformedBundle:
        with pytest.raises((ValueError, AssertionError)):
            assert base64.b64encode(base64.b64decode(text, validate=True)).decode() == text


@given(TEXTS, st.lists(LINES, min_size=1, max_size=5))
def test_note_round_trip(text: str, lines: list[SignatureLine]) -> None:
    note = Note(text + "\n", tuple(lines))
    assert parse_note(str(note)) == note


@given(st.text())
def test_any_text_is_a_note_or_malformed(text: str) -> None:
    try:
        note = parse_note(text)
    except MalformedBundle:
        return
    assert str(note) == text


@pytest.mark.parametrize("hostile", ["\ud800\n\n— a AQIDBHM=\n", "a\n\n— \udfff AQIDBHM=\n"])
def test_text_that_has_no_utf_8_is_refused(hostile: str) -> None:
    with pytest.raises(MalformedBundle):
        parse_note(hostile)


def test_a_note_is_measured_before_it_is_read() -> None:
    with pytest.raises(MalformedBundle, match="longer"):
        parse_note("a" * (MAX_NOTE_BYTES + 1))


@given(NAMES, st.binary(min_size=32, max_size=32))
def test_vkey_round_trip(name: str, public: bytes) -> None:
    key = VerifierKey(name, Algorithm.ED25519, public)
    assert VerifierKey.parse(str(key)) == key


@given(st.text())
def test_any_text_is_a_vkey_or_malformed(text: str) -> None:
    with pytest.raises(MalformedBundle):
        VerifierKey.parse(text)


@pytest.mark.parametrize(
    "name",
    ["", "a b", "a+b", "a\nb", "a\tb", "a\x85b", "a\x9bb", "\x7f", "\ud800", "a\u2003b", "é" * 128],
)
def test_names_that_mislead_a_reader_are_refused(name: str) -> None:
    with pytest.raises(MalformedBundle, match="name"):
        check_name(name)
    with pytest.raises(MalformedBundle, match="name"):
        VerifierKey(name, Algorithm.ED25519, bytes(32))


def test_a_message_never_repeats_control_characters() -> None:
    with pytest.raises(MalformedBundle) as caught:
        VerifierKey.parse("\x1b[2J+\x9b+\x07")
    assert str(caught.value).isprintable()
    assert (caught.value.expected + caught.value.actual).isprintable()


def test_the_key_id_is_that_of_the_specification() -> None:
    """The vkey of Go's sumdb is a published one."""
    text = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
    key = VerifierKey.parse(text)
    assert key.key_id.hex() == "033de0ae"
    assert str(key) == text
