"""tlog-proof files: what the log writes a stranger verifies with a policy, and nothing else."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_audit_trail.ledger.cosignature import Cosigner
from rlhf_audit_trail.ledger.proof.errors import (
    BadSignature,
    MalformedBundle,
    NotIncluded,
    PolicyUnmet,
    ProofError,
)
from rlhf_audit_trail.ledger.proof.note import Note, encode_base64
from rlhf_audit_trail.ledger.tlog_policy import PolicyLog, PolicyWitness, TlogPolicy
from rlhf_audit_trail.ledger.tlog_proof import (
    TlogProof,
    encode_tlog_proof,
    parse_tlog_proof,
    verify_tlog_proof,
)

COSIGNER = Cosigner.derive(b"\x03" * 32, "witness.example/w1")


@pytest.fixture
def made(ledger, annotation):
    """A log of 7 entries, and the proof of entry 5 with one witness's line."""
    log = ledger.open_run("run42")
    log.record_many(annotation(number) for number in range(7))
    signed = log.publish()
    line = COSIGNER.cosign(signed.head, time_s=5)[0]
    note = str(Note(signed.head.text, (*signed.note.signatures, line)))
    return log, TlogProof(5, log.prove_inclusion(5, 7), note)


def policy_of(log, quorum="none"):
    witness = PolicyWitness("w1", COSIGNER.keys[0])
    return TlogPolicy((PolicyLog(log.verifier_keys[0]),), (witness,), (), quorum)


def test_a_proof_has_the_bytes_of_the_specification(made):
    _, proof = made
    lines = ["c2sp.org/tlog-proof@v1", "index 5", *map(encode_base64, proof.path)]
    data = "\n".join(lines).encode() + b"\n\n" + proof.tree_head.encode()
    assert encode_tlog_proof(proof) == data
    assert parse_tlog_proof(data) == proof
    with_extra = TlogProof(5, proof.path, proof.tree_head, b"opening")
    assert encode_tlog_proof(with_extra).split(b"\n")[1] == b"extra b3BlbmluZw=="
    assert parse_tlog_proof(encode_tlog_proof(with_extra)) == with_extra


def test_a_proof_is_verified_with_a_policy(made):
    log, proof = made
    data, entry = encode_tlog_proof(proof), log.read(5).data
    index, found = verify_tlog_proof(data, entry, policy_of(log, "w1"), pinned=log.verifier_keys)
    assert (index, found.signed.head.size) == (5, 7)
    assert found.cosigned_at_s == {COSIGNER.keys[0]: 5}
    with pytest.raises(NotIncluded):
        verify_tlog_proof(data, log.read(4).data, policy_of(log))
    moved = encode_tlog_proof(TlogProof(4, proof.path, proof.tree_head))
    with pytest.raises(NotIncluded):
        verify_tlog_proof(moved, entry, policy_of(log))
    bare = encode_tlog_proof(TlogProof(5, proof.path, str(log.published().note)))
    assert verify_tlog_proof(bare, entry, policy_of(log))
    with pytest.raises(PolicyUnmet):
        verify_tlog_proof(bare, entry, policy_of(log, "w1"))
    with pytest.raises(BadSignature):
        verify_tlog_proof(bare.replace(b"\n7\n", b"\n8\n"), entry, policy_of(log))
    short = encode_tlog_proof(TlogProof(5, proof.path[1:], proof.tree_head))
    with pytest.raises(MalformedBundle):
        verify_tlog_proof(short, entry, policy_of(log))


def test_the_only_entry_of_a_log_needs_no_hash(ledger, annotation):
    log = ledger.open_run("run42")
    log.record(annotation(0))
    data = encode_tlog_proof(TlogProof(0, (), str(log.publish().note)))
    assert data.startswith(b"c2sp.org/tlog-proof@v1\nindex 0\n\nacme.example/rlhf/run42\n1\n")
    assert verify_tlog_proof(data, log.read(0).data, policy_of(log))[0] == 0


def spoilt(data):
    """Yield what a careless reader might take for the same proof."""
    yield "other version", data.replace(b"@v1", b"@v2")
    yield "extra after index", data.replace(b"index 5\n", b"index 5\nextra AAAA\n")
    yield "extra empty", data.replace(b"index", b"extra \nindex")
    yield "extra twice", data.replace(b"index", b"extra AAAA\nextra AAAA\nindex")
    yield "extra not canonical", data.replace(b"index", b"extra AAB=\nindex")
    yield "no index", data.replace(b"index 5\n", b"")
    yield "index 05", data.replace(b"index 5", b"index 05")
    yield "index -5", data.replace(b"index 5", b"index -5")
    yield "index + space", data.replace(b"index 5", b"index 5 ")
    yield "index two spaces", data.replace(b"index 5", b"index  5")
    yield "index too large", data.replace(b"index 5", b"index 9223372036854775807")
    yield "carriage returns", data.replace(b"\n", b"\r\n")
    yield "no empty line", data.replace(b"\n\n", b"\n")
    yield "byte order mark", b"\xef\xbb\xbf" + data
    yield "not UTF-8", data.replace(b"index", b"extra \xff\nindex")
    yield "begins with newline", b"\n" + data
    yield "65 hashes", data.replace(b"index 5\n", b"index 5\n" + (b"A" * 43 + b"=\n") * 65)
    yield "short hash", data.replace(b"index 5\n", b"index 5\nAAAA\n")
    yield "too long", data + b"\n" * 2**20
    yield "nothing", b""


def test_other_spellings_are_refused(made):
    _, proof = made
    data = encode_tlog_proof(proof)
    read = []
    for name, bad in spoilt(data):
        assert bad != data, name
        with contextlib.suppress(MalformedBundle):
            read.append((name, parse_tlog_proof(bad)))
    assert read == []


@given(
    st.lists(
        st.sampled_from(
            [
                b"c2sp.org/tlog-proof@v1",
                b"extra AAAA",
                b"index 5",
                b"A" * 43 + b"=",
                b"",
                b"x",
                b"\xff",
            ]
        ),
        max_size=9,
    )
)
def test_any_lines_are_read_back_the_same_or_a_typed_error(lines):
    data = b"\n".join(lines)
    try:
        assert encode_tlog_proof(parse_tlog_proof(data)) == data
    except ProofError:
        return


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_with_a_typed_error(data):
    with pytest.raises(MalformedBundle):
        parse_tlog_proof(b"c2sp.org/tlog-proof@v1\n" + data[:100].replace(b"index", b"") + data)
