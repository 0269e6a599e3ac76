"""The verifier on real bundles: nothing can be changed unseen, and trust is the caller's."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
from sample_log import ORIGIN, SampleLog, sample_openings

from rlhf_audit_trail.ledger.proof.bundle import Bundle, encode_bundle
from rlhf_audit_trail.ledger.proof.errors import (
    BadSignature,
    Inconsistent,
    MalformedBundle,
    NotAnchored,
    NotIncluded,
    PolicyUnmet,
)
from rlhf_audit_trail.ledger.proof.verify import (
    OnChain,
    TrustPolicy,
    examine_bundle,
    verify_bundle,
)
from rlhf_audit_trail.ledger.verdict import exit_code


def flipped(data: bytes, at: int, bit: int) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


def test_what_is_proven(log: SampleLog) -> None:
    bundle = log.bundle((1, 5, 6), 8, opened=("reward",), anchored=(4, 13))
    said = OnChain(13, log.head(13).root, "block 7 of a test")
    proven = verify_bundle(
        encode_bundle(bundle), TrustPolicy(keys=log.keys.verifier_keys, on_chain=(said,))
    )
    assert proven.tree_head.head == log.head(8)
    assert proven.entries == {index: log.entry(index) for index in (1, 5, 6)}
    assert proven.opened == {(index, "reward"): sample_openings(index)[1].value for index in (1, 5)}
    assert [signed.head.size for signed in proven.heads] == [4, 13]
    assert proven.on_chain == [said]


def test_every_step_is_reported_once_and_in_order(log: SampleLog) -> None:
    found = examine_bundle(encode_bundle(log.bundle()), TrustPolicy())
    assert [check.step for check in found.checks] == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("pinned", [0, 1, 2])
def test_every_flipped_byte_of_a_real_bundle_is_caught(log: SampleLog, pinned: int) -> None:
    """One bit at every position: exit 1 or 4, whether all, some or none of the keys are pinned."""
    data = encode_bundle(log.bundle((1, 5), 8, opened=("reward",)))
    trust = TrustPolicy(keys=log.keys.verifier_keys[:pinned])
    assert exit_code(examine_bundle(data, trust)) == (0 if pinned else 3)
    codes = Counter(
        exit_code(examine_bundle(flipped(data, at, (at + pinned) % 8), trust))
        for at in range(len(data))
    )
    assert set(codes) == {1, 4}
    assert codes.total() == len(data)


def test_every_single_bit_of_a_small_bundle_is_caught(log: SampleLog) -> None:
    data = encode_bundle(log.bundle((5,), 8, anchored=(4,), post_quantum=False))
    trust = TrustPolicy(keys=(log.ed25519,))
    for at, bit in product(range(len(data)), range(8)):
        assert exit_code(examine_bundle(flipped(data, at, bit), trust)) in (1, 4), (at, bit)


def test_every_truncation_is_unreadable(log: SampleLog) -> None:
    data = encode_bundle(log.bundle((5,), 8, anchored=(4,), post_quantum=False))
    trust = TrustPolicy(keys=(log.ed25519,))
    for length in range(len(data) - 1):  # without its newline alone it is still whole
        with pytest.raises(MalformedBundle) as caught:
            verify_bundle(data[:length], trust)
        assert caught.value.step == 1
    assert verify_bundle(data[:-1], trust)


def test_every_removed_and_every_doubled_byte_is_caught(log: SampleLog) -> None:
    data = encode_bundle(log.bundle(post_quantum=False))
    trust = TrustPolicy(keys=(log.ed25519,))
    for at in range(len(data) - 1):  # a newline more or less at the end is no change
        for changed in (data[:at] + data[at + 1 :], data[: at + 1] + data[at:]):
            assert exit_code(examine_bundle(changed, trust)) in (1, 4), at


# --- trust ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "pinned", "signer", "error"),
    [
        (ORIGIN, slice(0), "not_pinned", PolicyUnmet),
        (ORIGIN, slice(2), "partly_pinned", PolicyUnmet),
        (ORIGIN, slice(1, 2), "contradicted", BadSignature),
        ("example.com/rlhf/run43", slice(2), "contradicted", BadSignature),
    ],
)
def test_who_signed_is_answered_by_pinned_keys_only(
    log: SampleLog, origin: str, pinned: slice, signer: str, error: type
) -> None:
    """The bundle carries the Ed25519 signature only."""
    trust = TrustPolicy(keys=SampleLog(origin=origin).keys.verifier_keys[pinned])
    data = encode_bundle(log.bundle(post_quantum=False))
    assert examine_bundle(data, trust).signer == signer
    with pytest.raises(error) as caught:
        verify_bundle(data, trust)
    assert caught.value.step == 3
    assert caught.value.next_step


def test_acceptance_forgives_a_missing_key_and_nothing_else(log: SampleLog) -> None:
    data = encode_bundle(log.bundle())
    assert verify_bundle(data, TrustPolicy(accept_unpinned=True)).entries
    stranger = SampleLog(origin="example.com/other").ed25519
    other = TrustPolicy(keys=(stranger,), accept_unpinned=True)
    with pytest.raises(BadSignature):
        verify_bundle(data, other)


def test_a_key_that_travels_in_the_file_proves_nobody(log: SampleLog) -> None:
    forged = SampleLog(secret=bytes(32), fork_at=5).bundle()
    found = examine_bundle(encode_bundle(forged), TrustPolicy())
    assert (found.signer, exit_code(found)) == ("not_pinned", 3)
    with pytest.raises(BadSignature):
        verify_bundle(encode_bundle(forged), TrustPolicy(keys=(log.ed25519,)))


def test_anchor_policy(log: SampleLog) -> None:
    keys = (log.ed25519,)
    data = encode_bundle(log.bundle((2, 3), anchored=(4,), post_quantum=False))
    right = OnChain(4, log.head(4).root, "a test")
    wrong = OnChain(4, bytes(32), "a test")
    elsewhere = OnChain(6, log.head(6).root, "a test")
    assert verify_bundle(data, TrustPolicy(keys=keys, on_chain=(right,), need_anchor=True)).on_chain
    assert not verify_bundle(data, TrustPolicy(keys=keys)).on_chain
    for asked in ((), (elsewhere,)):
        with pytest.raises(NotAnchored):
            verify_bundle(data, TrustPolicy(keys=keys, on_chain=asked))
        verify_bundle(data, TrustPolicy(keys=keys, on_chain=asked, accept_unanchored=True))
    with pytest.raises(NotAnchored):
        verify_bundle(data, TrustPolicy(keys=keys, need_anchor=True))
    for answers in ((wrong,), (wrong, right), (right, wrong)):
        with pytest.raises(Inconsistent) as caught:
            verify_bundle(data, TrustPolicy(keys=keys, on_chain=answers, accept_unanchored=True))
        assert caught.value.step == 7


def test_an_anchored_head_says_nothing_about_later_entries(log: SampleLog) -> None:
    """Else a fork that shares its beginning with the anchored history would pass as anchored."""
    fork = SampleLog(fork_at=6)
    keys = (log.ed25519,)
    before = OnChain(4, log.head(4).root, "a test")
    for indices in ((6,), (2, 6), (4,)):
        data = encode_bundle(fork.bundle(indices, anchored=(4,), post_quantum=False))
        with pytest.raises(NotAnchored):
            verify_bundle(data, TrustPolicy(keys=keys, on_chain=(before,), need_anchor=True))


# --- what decides -----------------------------------------------------------------------


def test_a_contradiction_outranks_damage_and_damage_outranks_what_is_missing(
    log: SampleLog,
) -> None:
    good = log.bundle((4, 5), 8, post_quantum=False)
    short = replace(good.entries[1], path=good.entries[1].path[1:])
    other = replace(good, entries=(good.entries[0], short))
    with pytest.raises(MalformedBundle) as caught:  # and no key is pinned
        verify_bundle(encode_bundle(other), TrustPolicy())
    assert caught.value.step == 4
    bent = replace(good.entries[0], entry=b"another entry")
    with pytest.raises(NotIncluded):
        verify_bundle(encode_bundle(replace(good, entries=(bent, short))), TrustPolicy())
    stale = encode_bundle(good).replace(b'"sha256":"', b'"sha256":"x')
    with pytest.raises(MalformedBundle) as caught:
        verify_bundle(stale, TrustPolicy())
    assert caught.value.step == 8


def test_errors_carry_what_was_expected_and_found(log: SampleLog) -> None:
    fork = SampleLog(fork_at=5)
    good = log.bundle(post_quantum=False)
    mixed = Bundle(good.log_keys, good.tree_head, (fork.bundled(5, 8),))
    with pytest.raises(NotIncluded) as caught:
        verify_bundle(encode_bundle(mixed), TrustPolicy(keys=(log.ed25519,)))
    assert caught.value.expected == log.head(8).root.hex()
    assert caught.value.actual == fork.head(8).root.hex()
    assert caught.value.message.startswith("entry 5: ")


def test_nothing_after_an_unsigned_tree_head_is_shown(log: SampleLog) -> None:
    good = log.bundle(post_quantum=False)
    unsigned = Bundle(good.log_keys, log.head(8).text + "\n", good.entries)
    found = examine_bundle(encode_bundle(unsigned), TrustPolicy(accept_unpinned=True))
    assert found.proven is None
    assert [check.step for check in found.checks] == [1, 2]
