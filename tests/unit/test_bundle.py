"""The bundle's one spelling; most refused spellings are vectors."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_log import SampleLog

from rlhf_audit_trail.ledger.proof.bundle import (
    MAX_BUNDLE_BYTES,
    MAX_INDEX,
    AnchoredHead,
    Bundle,
    BundledEntry,
    encode_bundle,
    parse_bundle,
    parse_json,
)
from rlhf_audit_trail.ledger.proof.commitment import Opening
from rlhf_audit_trail.ledger.proof.errors import MalformedBundle

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
PATHS = st.lists(st.binary(max_size=40), max_size=5).map(tuple)
ENTRIES = st.builds(
    BundledEntry,
    index=st.integers(0, MAX_INDEX),
    entry=st.binary(min_size=1, max_size=60),
    path=PATHS,
    openings=st.lists(st.builds(Opening, TEXTS, st.binary(), st.binary()), max_size=2).map(tuple),
)
BUNDLES = st.builds(
    Bundle,
    log_keys=st.lists(TEXTS, min_size=1, max_size=3).map(tuple),
    tree_head=TEXTS,
    entries=st.lists(ENTRIES, min_size=1, max_size=3, unique_by=lambda it: it.index).map(
        lambda items: tuple(sorted(items, key=lambda it: it.index))
    ),
    anchored=st.lists(st.builds(AnchoredHead, TEXTS, PATHS), max_size=2).map(tuple),
)


@given(BUNDLES)
def test_round_trip(bundle: Bundle) -> None:
    """Parsing believes nothing: any texts and bytes come back as they were."""
    assert parse_bundle(encode_bundle(bundle)) == bundle


@given(BUNDLES)
def test_the_last_field_is_the_digest_of_the_rest(bundle: Bundle) -> None:
    data = encode_bundle(bundle)
    body, _, digest = data.decode().rpartition(',"sha256":"')
    assert digest == hashlib.sha256((body + "}").encode()).hexdigest() + '"}\n'


@given(st.binary(max_size=200))
def test_any_bytes_are_malformed(data: bytes) -> None:
    with pytest.raises(MalformedBundle):
        parse_bundle(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.sampled_from(["log_keys", "tree_head", "entries", "anchored", "sha256"]), JSON)
def test_any_json_in_any_field_is_read_exactly_or_malformed(name: str, value: object) -> None:
    """Whatever the type and depth: the one typed error, or what the file says and no more."""
    record = json.loads(encode_bundle(SampleLog().bundle(post_quantum=False)))
    record[name] = value
    data = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    try:
        bundle = parse_bundle(data)
    except MalformedBundle:
        return
    body, _, _ = data.rpartition(b',"sha256":')
    assert encode_bundle(bundle).startswith(body + b',"sha256":')


def test_a_file_is_measured_before_it_is_read() -> None:
    with pytest.raises(MalformedBundle, match="at most"):
        parse_bundle(b" " * (MAX_BUNDLE_BYTES + 1))


def test_a_digest_that_does_not_fit_is_noted_not_raised(log: SampleLog) -> None:
    """Step 8 reports it, so that a contradiction found by an earlier step outranks it."""
    data = encode_bundle(log.bundle())
    at = len(data) - 5
    other = data[:at] + (b"0" if data[at : at + 1] != b"0" else b"1") + data[at + 1 :]
    assert parse_bundle(data).digest_matches
    assert not parse_bundle(other).digest_matches


def test_a_newer_version_says_so() -> None:
    with pytest.raises(MalformedBundle, match="newer"):
        parse_bundle(b'{"schema":"rlhf-audit/bundle/v2"}')


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":1,"a":1}', b'{"a":{"b":1,"b":2}}', b"NaN", b"-Infinity", b'["\xff"]', b"", b"01",
        b"[1,]", b"'a'", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"\xef\xbb\xbf1", b"1 1",
    ],
)  # fmt: skip
def test_json_that_two_readers_might_read_differently_is_refused(text: bytes) -> None:
    with pytest.raises(MalformedBundle):
        parse_json(text)


def test_deep_nesting_cannot_end_a_process_that_raised_the_recursion_limit() -> None:
    """The C parser recurses as deep as Python's limit says, whatever the stack holds."""
    code = (
        "import sys\n"
        "sys.setrecursionlimit(10_000_000)\n"
        "from rlhf_audit_trail.ledger.proof.bundle import MalformedBundle, parse_json\n"
        "for text in (b'[' * 1_000_000, b'{\"a\":' * 1_000_000):\n"
        "    try: parse_json(text)\n"
        "    except MalformedBundle as error: print(error.message)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count("nested deeper")) == (0, 2), done.stderr


@pytest.mark.parametrize("text", [b'"' + b'\\"' * 500_000, b'"' * 500_000, b'"\\', b"\\" * 100_000])
def test_quotes_without_end_are_refused_in_one_pass(text: bytes) -> None:
    with pytest.raises(MalformedBundle):
        parse_json(text)


def test_brackets_inside_text_are_no_nesting() -> None:
    assert parse_json(b'["' + b"[" * 1000 + b'\\"' + b"{" * 1000 + b'"]')
