"""Sealing as it is done by the thousand, against the kernel's own commitments."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_audit_trail.ledger.proof.commitment import commit
from rlhf_audit_trail.ledger.sealing import Randomness, Sealer, UnknownPlaintext, unpack

PATHS = st.lists(st.text("abc_é", min_size=1), min_size=1, max_size=6, unique=True).map(tuple)


@given(PATHS, st.data())
def test_commitments_are_those_of_the_kernel_and_the_plaintext_opens_them(paths, data):
    sealer = Sealer(paths)
    values = data.draw(st.lists(st.binary(max_size=200), min_size=len(paths), max_size=len(paths)))
    randomness = Randomness(3 * sealer.random_bytes)
    seen = set()
    for _ in range(3):
        commitments, nonce, plain = sealer.seal(values, randomness)
        openings = unpack(plain)
        assert [(item.path, item.value) for item in openings] == list(
            zip(paths, values, strict=True)
        )
        assert [commit(item).hex() for item in openings] == list(commitments)
        seen |= {nonce, *(item.salt for item in openings)}
    assert len(seen) == 3 * (1 + len(paths))  # nothing random is used twice
    assert randomness.position == len(randomness.data)


@given(PATHS, st.data())
def test_a_plaintext_that_was_cut_or_lengthened_is_refused(paths, data):
    values = [b"value"] * len(paths)
    sealer = Sealer(paths)
    _, _, plain = sealer.seal(values, Randomness(sealer.random_bytes))
    end = data.draw(st.integers(0, len(plain) - 1))
    for changed in (plain[:end], plain + b"x", b"\x02" + plain[1:]):
        with pytest.raises((UnknownPlaintext, ValueError)):
            unpack(changed)
