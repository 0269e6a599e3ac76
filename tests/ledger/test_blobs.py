"""Blobs: named by digest, checked on the way out."""

from __future__ import annotations

import hashlib

import pytest

from rlhf_audit_trail.ledger.blobs import INLINE_BYTES_MAX, BlobDamaged, BlobMissing

SMALL = b"s" * INLINE_BYTES_MAX
LARGE = b"l" * (INLINE_BYTES_MAX + 1)


@pytest.mark.parametrize("data", [b"", b"x", SMALL, LARGE, LARGE * 100])
def test_what_goes_in_comes_out_under_its_digest(ledger, data):
    digest = ledger.blobs.put(data)
    assert digest == hashlib.sha256(data).hexdigest()
    assert ledger.blobs.put(data) == digest
    assert ledger.blobs.get(digest) == data
    assert ledger.blobs.check(digest) == len(data)
    assert ledger.blobs.digests() == [digest]


def test_only_large_ones_are_files(ledger):
    ledger.blobs.put(SMALL)
    digest = ledger.blobs.put(LARGE)
    assert [path.name for path in (ledger.directory / "blobs").iterdir()] == [digest]


@pytest.mark.parametrize("ask", ["get", "check"])
def test_a_large_one_damaged_or_gone(ledger, ask):
    digest = ledger.blobs.put(LARGE)
    path = ledger.directory / "blobs" / digest
    path.write_bytes(LARGE[:-1])
    with pytest.raises(BlobDamaged, match=digest):
        getattr(ledger.blobs, ask)(digest)
    path.unlink()
    with pytest.raises(BlobMissing, match=digest):
        getattr(ledger.blobs, ask)(digest)


@pytest.mark.parametrize("ask", ["get", "check"])
def test_a_small_one_damaged_or_never_stored(ledger, ask):
    digest = ledger.blobs.put(b"small")
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE blob SET data = x'00'")
    with pytest.raises(BlobDamaged, match=digest):
        getattr(ledger.blobs, ask)(digest)
    with pytest.raises(BlobMissing):
        getattr(ledger.blobs, ask)(hashlib.sha256(b"never").hexdigest())


def test_an_interrupted_put_is_finished_by_the_next_one(ledger):
    digest = hashlib.sha256(LARGE).hexdigest()
    (ledger.directory / "blobs" / digest).write_bytes(LARGE)  # the object, and no row
    assert ledger.blobs.digests() == []
    assert ledger.blobs.put(LARGE) == digest
    assert ledger.blobs.get(digest) == LARGE


def test_a_damaged_leftover_is_not_taken_for_the_blob(ledger):
    digest = hashlib.sha256(LARGE).hexdigest()
    (ledger.directory / "blobs" / digest).write_bytes(b"half")
    with pytest.raises(BlobDamaged):
        ledger.blobs.put(LARGE)
    assert ledger.blobs.digests() == []
