"""Commitments: each opens to one name and value only."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rlhf_audit_trail.ledger.proof.commitment import Opening, commit, verify_opening
from rlhf_audit_trail.ledger.proof.errors import Inconsistent, MalformedBundle

OPENINGS = st.builds(
    Opening,
    path=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    salt=st.binary(min_size=32, max_size=32),
    value=st.binary(max_size=50),
)


@given(OPENINGS)
def test_an_opening_gives_back_its_value(opening: Opening) -> None:
    assert verify_opening(commit(opening), opening) == opening.value


@given(OPENINGS, OPENINGS)
def test_no_other_opening_fits(one: Opening, other: Opening) -> None:
    assume(one != other)
    with pytest.raises(Inconsistent):
        verify_opening(commit(one), other)


@given(OPENINGS, st.text(st.characters(codec="ascii"), min_size=1))
def test_name_and_value_cannot_be_shifted_into_each_other(opening: Opening, more: str) -> None:
    """The same bytes in a row, cut elsewhere, are another commitment."""
    in_name = Opening(opening.path + more, opening.salt, opening.value)
    in_value = Opening(opening.path, opening.salt, more.encode() + opening.value)
    assert commit(in_name) != commit(in_value)


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_salt_is_exactly_32_bytes(length: int) -> None:
    with pytest.raises(MalformedBundle, match="salt"):
        commit(Opening("reward", bytes(length), b"1"))


def test_why_a_short_salt_is_refused() -> None:
    short, padded = b"s" * 31, b"s" * 31 + b"\0"
    assert hmac.digest(short, b"x", hashlib.sha256) == hmac.digest(padded, b"x", hashlib.sha256)


def test_a_name_has_at_most_65535_bytes() -> None:
    with pytest.raises(MalformedBundle, match="name"):
        commit(Opening("a" * 65_536, bytes(32), b"1"))


def test_the_message_shows_no_value_and_no_salt() -> None:
    opening = Opening("reward", b"\xaa" * 32, b'"secret value"')
    with pytest.raises(Inconsistent) as caught:
        verify_opening(bytes(32), opening)
    said = f"{caught.value} {caught.value.expected} {caught.value.actual}"
    assert "secret" not in said
    assert "aaaa" not in said
