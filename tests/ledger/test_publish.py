"""Signing tree heads: once per size, and only what extends the last one."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from contextlib import closing

import pytest

from rlhf_audit_trail.ledger.log import Forked, Ledger, RolledBack
from rlhf_audit_trail.ledger.proof.merkle import (
    EMPTY_ROOT,
    leaf_hash,
    root_hash,
    verify_consistency,
    verify_inclusion,
)
from rlhf_audit_trail.ledger.proof.tree_head import open_tree_head
from rlhf_audit_trail.ledger.proof.verify import TrustPolicy, verify_bundle
from rlhf_audit_trail.ledger.reading import NotPublished


def check_log(log):
    """Judge the log as a stranger would: with the kernel, from entries and signed notes only."""
    leaves = [leaf_hash(entry.data) for entry in log.entries()]
    heads = []
    for size in log.published_sizes():
        signed = open_tree_head(str(log.published(size).note), log.verifier_keys)
        assert signed.signed_by == log.verifier_keys
        assert signed.head.origin == log.origin
        assert signed.head.root == root_hash(leaves[:size])
        heads.append(signed.head)
    for old in heads:
        for new in heads:
            if 1 <= old.size <= new.size:
                proof = log.prove_consistency(old.size, new.size)
                verify_consistency(old.size, old.root, new.size, new.root, proof)
    head = heads[-1]
    for index in {0, head.size // 2, head.size - 1} if head.size else ():
        proof = log.prove_inclusion(index, head.size)
        verify_inclusion(leaves[index], index, head.size, proof, head.root)


def test_every_head_is_right_from_the_empty_tree_on(ledger, annotation):
    log = ledger.open_run("run42")
    assert log.publish().head.root == EMPTY_ROOT
    check_log(log)
    for count in (1, 1, 2, 251, 1, 1, 255, 1, 87):
        log.record_many(annotation(number) for number in range(count))
        log.publish()
        check_log(log)
    assert log.published_sizes() == [0, 1, 2, 4, 255, 256, 257, 512, 513, 600]


def test_a_size_is_signed_once_and_the_note_is_kept(directory, annotation):
    with Ledger.create(directory, organisation="acme.example") as ledger:
        log = ledger.open_run("run42")
        log.record(annotation(0))
        first = log.publish()
        assert str(log.publish().note) == str(first.note)
    with Ledger.open(directory) as ledger:
        log = ledger.find("run42")
        assert str(log.publish().note) == str(first.note)
        assert log.published_sizes() == [1]


def test_nothing_is_proven_beyond_the_signed_head(ledger, annotation):
    log = ledger.open_run("run42")
    with pytest.raises(NotPublished):
        log.bundle([0])
    log.record(annotation(0))
    log.publish()
    log.record(annotation(1)).result()
    with pytest.raises(NotPublished):
        log.bundle([0, 1])
    proven = verify_bundle(log.bundle([0]), TrustPolicy(keys=log.verifier_keys))
    assert proven.entries == {0: log.read(0).data}


@pytest.fixture
def published(directory, annotation):
    """A ledger with a head of 300, closed."""
    with Ledger.create(directory, organisation="acme.example") as ledger:
        log = ledger.open_run("run42")
        log.record_many(annotation(number) for number in range(300))
        log.publish()
    return directory


def damage(directory, *statements):
    with closing(sqlite3.connect(directory / "ledger.db")) as connection, connection:
        for statement in statements:
            assert connection.execute(statement).rowcount


TRUNCATED = (
    "DELETE FROM entry WHERE log_number = 2 AND leaf_index >= 290",
    "DELETE FROM vault WHERE log_number = 2 AND leaf_index >= 290",
    "UPDATE log SET size = 290 WHERE number = 2",
)
LEAF = "UPDATE entry SET leaf_hash = zeroblob(32) WHERE log_number = 2 AND leaf_index = 299"
TILE = "UPDATE hash_tile SET inner_nodes = zeroblob(8160) WHERE log_number = 2"
GAP = "DELETE FROM entry WHERE log_number = 2 AND leaf_index = 280"


@pytest.mark.parametrize(
    ("statements", "finding"),
    [(TRUNCATED, RolledBack), ((LEAF,), Forked), ((TILE,), Forked), ((GAP,), Forked)],
    ids=["truncated", "leaf", "tile", "hole"],
)
def test_a_store_that_contradicts_what_was_signed_is_refused_on_opening(
    published, statements, finding
):
    damage(published, *statements)
    with Ledger.open(published) as ledger, pytest.raises(finding, match=r"300|280|256"):
        ledger.find("run42")


@pytest.mark.parametrize(
    ("statements", "finding"), [(TRUNCATED, RolledBack), ((LEAF,), Forked), ((TILE,), Forked)]
)
def test_nothing_is_signed_over_a_store_that_changed_while_open(published, statements, finding):
    with Ledger.open(published) as ledger:
        log = ledger.find("run42")
        damage(published, *statements)
        with pytest.raises(finding):
            log.publish()
        assert log.published_sizes() == [300]


def test_an_old_copy_put_back_grows_again_and_is_still_refused(published, annotation, tmp_path):
    copy = tmp_path / "old.db"
    shutil.copy(published / "ledger.db", copy)
    with Ledger.open(published) as ledger:
        log = ledger.find("run42")
        log.record(annotation(300))
        kept = log.publish()
    shutil.copy(copy, published / "ledger.db")
    with closing(sqlite3.connect(published / "ledger.db")) as connection, connection:
        row = (2, 301, kept.head.root, str(kept.note), "")  # the newest head survived elsewhere
        connection.execute("INSERT INTO tree_head VALUES (?, ?, ?, ?, ?)", row)
    with Ledger.open(published) as ledger, pytest.raises(RolledBack):
        ledger.find("run42")


def test_a_registry_that_was_damaged_is_refused_and_lets_go_of_everything(published):
    with Ledger.open(published) as ledger:
        ledger.registry.publish()
    damage(published, "UPDATE entry SET leaf_hash = zeroblob(32) WHERE log_number = 1")
    before = set(threading.enumerate())
    with pytest.raises(Forked):
        Ledger.open(published)
    assert set(threading.enumerate()) == before
