"""Whatever a stranger hands us: it is read, or refused with a typed error; nothing else happens."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import hostile
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_audit_trail.api.c2sp import parse_tile_path
from rlhf_audit_trail.api.problems import TileMissing
from rlhf_audit_trail.ledger.cbor import decode
from rlhf_audit_trail.ledger.cose import verify_consistency_receipt, verify_inclusion_receipt
from rlhf_audit_trail.ledger.cosignature import (
    CosignerKey,
    find_cosignatures,
    open_cosigned_head,
    parse_cosigned_head,
)
from rlhf_audit_trail.ledger.monitor import Monitor
from rlhf_audit_trail.ledger.proof.bundle import parse_bundle, parse_json
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.proof.evm.evidence import ChainEvidence, verify_evidence
from rlhf_audit_trail.ledger.proof.note import VerifierKey, parse_note
from rlhf_audit_trail.ledger.proof.tree_head import open_tree_head, parse_tree_head
from rlhf_audit_trail.ledger.proof.verify import TrustPolicy, examine_bundle, verify_bundle
from rlhf_audit_trail.ledger.public_log import PublicLog
from rlhf_audit_trail.ledger.tiles import encode_entry_tile, tile_path
from rlhf_audit_trail.ledger.tlog_policy import check_policy, parse_policy
from rlhf_audit_trail.ledger.tlog_proof import parse_tlog_proof, verify_tlog_proof
from rlhf_audit_trail.ledger.trust import parse_trust, read_keys
from rlhf_audit_trail.ledger.witness import Witness
from rlhf_audit_trail.ledger.witness_request import parse_reply, parse_request, parse_size

LOG_KEYS = hostile.KEYS.verifier_keys
COSIGNER_KEYS = [key for cosigner in hostile.COSIGNERS for key in cosigner.keys]
TRUST = TrustPolicy(keys=LOG_KEYS)


def of_text(read):
    """Bytes that are no UTF-8 reach a reader of text as lone surrogates."""
    return lambda data: read(data.decode("utf-8", "surrogateescape"))


def as_file(read):
    """Read from a file, as the command line does."""

    def tried(data):
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            read(file.name)

    return tried


def by_either_key(data):
    with contextlib.suppress(AuditTrailError):
        return verify_inclusion_receipt(data, hostile.ENTRIES[5], LOG_KEYS[0])
    return verify_inclusion_receipt(data, hostile.ENTRIES[5], LOG_KEYS[1])


def find_all(data):
    parsed = parse_note(data.decode("utf-8", "replace"))
    find_cosignatures(parsed, hostile.head(9), COSIGNER_KEYS)


READERS = {
    "note": (("note",), of_text(parse_note)),
    "signed tree head": (("note",), of_text(lambda x: open_tree_head(x, LOG_KEYS))),
    "cosigned head": (("note",), of_text(lambda x: open_cosigned_head(x, LOG_KEYS))),
    "cosignatures": (("note",), find_all),
    "policy met": (("note",), of_text(lambda x: check_policy(hostile.POLICY, x, pinned=LOG_KEYS))),
    "vkey": (("vkey",), of_text(VerifierKey.parse)),
    "cosigner's vkey": (("vkey",), of_text(CosignerKey.parse)),
    "key file": (("vkey",), as_file(read_keys)),
    "tree head": (("head",), of_text(parse_tree_head)),
    "tree head with extensions": (("head",), of_text(parse_cosigned_head)),
    "policy": (("policy",), parse_policy),
    "proof": (("tlog-proof",), parse_tlog_proof),
    "proof verified": (
        ("tlog-proof",),
        lambda x: verify_tlog_proof(x, hostile.ENTRIES[5], hostile.POLICY, pinned=LOG_KEYS),
    ),
    "request": (("request",), parse_request),
    "reply": (("cosignatures", "note"), parse_reply),
    "size": (("size",), parse_size),
    "CBOR": (("receipt", "growth receipt"), decode),
    "receipt": (("receipt",), by_either_key),
    "growth receipt": (
        ("growth receipt",),
        lambda x: verify_consistency_receipt(x, hostile.head(4), hostile.head(9), LOG_KEYS[0]),
    ),
    "bundle": (("bundle",), parse_bundle),
    "bundle examined": (("bundle",), lambda x: examine_bundle(x, TRUST)),
    "bundle verified": (("bundle",), lambda x: verify_bundle(x, TRUST)),
    "chain evidence": (
        ("chain evidence",),
        lambda x: verify_evidence(ChainEvidence.parse(x), hostile.CHAIN_TRUST),
    ),
    "entry": (("entry",), parse_json),
    "trust policy": (("trust",), parse_trust),
}


def refusal(read, data):
    try:
        read(data)
    except AuditTrailError as error:
        return str(error)
    return ""


def test_the_samples_are_valid():
    for names, read in READERS.values():
        read_one = 0
        for sample in (sample for name in names for sample in hostile.SAMPLES[name]):
            try:
                read(sample)
            except AuditTrailError:
                continue
            read_one += 1
        assert read_one, names


@pytest.mark.parametrize("name", READERS)
def test_any_bytes_are_read_or_refused_with_a_typed_error(name):
    names, read = READERS[name]

    @settings(max_examples=150, deadline=None)
    @given(hostile.edited(*names))
    def refuses_or_reads(data):
        message = refusal(read, data)
        assert len(message.encode()) < 4_000  # and can be printed

    refuses_or_reads()


@settings(max_examples=400, deadline=None)
@given(
    st.one_of(
        st.text(max_size=60),
        st.lists(
            st.sampled_from(
                ["0", "1", "63", "64", "entries", "/", "x", "x001", "000", "001", ".p", ".p/", "256",
                 "1", "00", "..", "%2e", "\u0660", "\n", "\0", "-", "+", " ", "x999/" * 9, "9" * 400]
            ),
            max_size=12,
        ).map("".join),
        st.lists(st.sampled_from(["entries/", "0/", "x001/", "000", "007.p/", "255"])).map("".join),
    )
)  # fmt: skip
def test_a_tile_path_has_one_spelling_or_none(path):
    try:
        level, tile_index, width = parse_tile_path(path)
    except TileMissing:
        return
    assert tile_path(level, tile_index, width) == f"tile/{path}"
    assert tile_index < 2**63


def public_files():
    """The public files of a log of nine entries."""
    return {
        "checkpoint": hostile.SAMPLES["note"][0],
        tile_path(0, 0, 9): b"".join(hostile.LEAVES),
        tile_path("entries", 0, 9): encode_entry_tile(hostile.ENTRIES),
    }


class Served:
    """A source that serves what it is told to, and cuts nothing off."""

    def __init__(self, files):
        self.files = files

    def read(self, path, _bytes_max):
        return self.files.get(path)


FILES = public_files()
SPOILT_FILE = st.sampled_from(sorted(FILES)).flatmap(
    lambda name: st.tuples(st.just(name), hostile.edited_of(FILES[name]))
)


@settings(max_examples=200, deadline=None)
@given(st.lists(SPOILT_FILE, min_size=1, max_size=3))
def test_a_monitor_takes_any_files_for_the_same_log_or_for_none(spoilt):
    monitor = Monitor(PublicLog(Served(FILES | dict(spoilt))), LOG_KEYS)
    try:
        seen = monitor.look()
    except AuditTrailError:
        return
    assert (seen.head.size, seen.head.root) == (9, hostile.head(9).root)


@pytest.fixture(scope="module")
def witness(tmp_path_factory):
    database = tmp_path_factory.mktemp("witness") / "w.db"
    with Witness(hostile.COSIGNERS[0], LOG_KEYS, database) as opened:
        opened.add_checkpoint(hostile.request(0, 4))
        yield opened


@settings(max_examples=150, deadline=None)
@given(hostile.edited("request"))
def test_a_witness_cosigns_the_one_history_or_refuses(witness, data):
    with contextlib.suppress(AuditTrailError):
        witness.add_checkpoint(data)
    assert witness._seen(hostile.ORIGIN).root in {hostile.head(size).root for size in (4, 9)}


def test_the_largest_inputs_cost_little_time_and_memory():
    """In a process that the kernel ends if it takes more than that."""
    script = Path(__file__).parent / "swallow.py"

    def limit():
        resource.setrlimit(resource.RLIMIT_CPU, (120, 120))

    child = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, preexec_fn=limit
    )
    assert (child.returncode, child.stderr) == (0, "")
    assert "all refused or read" in child.stdout
