"""Sealing as it is done by the thousand, against the kernel's own commitments."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_audit_trail.ledger.proof.commitment import commit
from rlhf_audit_trail.ledger.sealing import Sealer, UnknownPlaintext, unpack

PATHS = st.lists(st.text("abc_é", min_size=1), min_size=1, max_size=6, unique=True).map(tuple)


@given(PATHS, st.data())
def test_commitments_are_those_of_the_kernel_and_the_plaintext_opens_them(paths, data):
    values = st.lists(st.binary(max_size=200), min_size=len(paths), max_size=len(paths))
    rows = data.draw(st.lists(values, min_size=1, max_size=4))
    made = Sealer(paths).seal(list(zip(*rows, strict=True)))
    salts = set()
    for row, commitments, plain in zip(rows, *made, strict=True):
        openings = unpack(plain)
        assert [(item.path, item.value) for item in openings] == list(zip(paths, row, strict=True))
        assert [commit(item).hex() for item in openings] == list(commitments)
        salts |= {item.salt for item in openings}
    assert len(salts) == len(rows) * len(paths)  # nothing random is used twice


@given(PATHS, st.data())
def test_a_plaintext_that_was_cut_or_lengthened_is_refused(paths, data):
    _, (plain,) = Sealer(paths).seal([[b"value"]] * len(paths))
    end = data.draw(st.integers(0, len(plain) - 1))
    for changed in (plain[:end], plain + b"x", b"\x02" + plain[1:]):
        with pytest.raises((UnknownPlaintext, ValueError)):
            unpack(changed)
