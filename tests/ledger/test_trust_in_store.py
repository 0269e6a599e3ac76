"""Whoever can write the store, but holds no key, must not get the operator to sign it."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from rlhf_audit_trail.ledger.announcing import Announcer
from rlhf_audit_trail.ledger.fsck import fsck
from rlhf_audit_trail.ledger.keys import LogKeys, write_secret
from rlhf_audit_trail.ledger.log import Forked, InvalidName, Ledger, WrongLedger
from rlhf_audit_trail.ledger.proof.merkle import leaf_hash, root_hash
from rlhf_audit_trail.ledger.proof.tree_head import TreeHead
from rlhf_audit_trail.ledger.store.errors import StoreError


@pytest.fixture
def written(directory, annotation):
    with Ledger.create(directory, organisation="acme.example") as ledger:
        log = ledger.open_run("run")
        log.record_many(annotation(number) for number in range(7))
        log.publish()
    return directory


def execute(directory, statement, *values):
    with closing(sqlite3.connect(directory / "ledger.db")) as database, database:
        return database.execute(statement, values).fetchall()


def test_a_tree_head_signed_by_a_stranger_is_no_tree_head_of_ours(written):
    rows = execute(written, "SELECT data FROM entry WHERE log_number = 2 ORDER BY leaf_index")
    forged = [row[0].replace(b'"simulated"', b'"human"') for row in rows]
    leaves = [leaf_hash(data) for data in forged]
    for index, (data, leaf) in enumerate(zip(forged, leaves, strict=True)):
        change = "UPDATE entry SET data = ?, leaf_hash = ? WHERE log_number = 2 AND leaf_index = ?"
        execute(written, change, data, leaf, index)
    head = TreeHead("acme.example/rlhf/run", len(leaves), root_hash(leaves))
    note = LogKeys.derive(b"t" * 32, head.origin).sign(head, time_s=1)
    execute(
        written, "UPDATE tree_head SET root = ?, note = ? WHERE log_number = 2", head.root, note
    )
    with Ledger.open(written) as ledger, pytest.raises(Forked, match="not signed by this log"):
        ledger.open_run("run")


def test_another_operator_key_is_refused_and_changes_no_published_key(written):
    before = {path.name: path.read_bytes() for path in (written / "keys").iterdir()}
    (written / "operator.key").unlink()
    write_secret(written / "operator.key")
    with pytest.raises(WrongLedger):
        Ledger.open(written)
    assert {path.name: path.read_bytes() for path in (written / "keys").iterdir()} == before


@pytest.mark.parametrize(("name", "error"), [("evil.example", WrongLedger), ("", InvalidName)])
def test_another_organisation_is_refused(written, name, error):
    settings = written / "rlhf-audit.toml"
    settings.write_text(settings.read_text().replace("acme.example", name))
    with pytest.raises(error):
        Ledger.open(written)


@pytest.mark.parametrize("name", ["ledger.db", "vault-keys.db"])
def test_a_missing_database_is_named_and_not_made_anew(written, name):
    for path in written.glob(f"{name}*"):
        path.unlink()
    with pytest.raises(StoreError, match=f"{name} is missing"):
        Ledger.open(written)
    assert not (written / name).exists()


def test_an_interrupted_creation_leaves_nothing(directory, monkeypatch):
    monkeypatch.setattr(Announcer, "announce", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        Ledger.create(directory, organisation="acme.example")
    assert list(directory.parent.iterdir()) == []
    monkeypatch.undo()
    with Ledger.create(directory, organisation="acme.example") as ledger:
        assert list(fsck(ledger)) == []
