"""What nobody may read: no raw id, prompt or reward in any byte that is stored."""

from __future__ import annotations

import base64
import dataclasses
import sqlite3
from contextlib import closing

import pytest

from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.fsck import fsck
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.vault import Erased, VaultDamaged

PERSON = "grace.hopper@navy.example"
SECRETS = {
    "prompt": "Please describe the harbour at midnight",
    "response": "Lanterns over black water, and nobody awake",
    "annotator": PERSON,
    "reward": 0.7315948201,
}


def secret():
    return Event("annotation.recorded", {"source": "human", "batch": 1}, SECRETS, PERSON)


def stored_bytes(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def spellings(value):
    text = str(value)
    yield text.encode()
    yield text.encode("utf-16-le")
    yield text.encode().hex().encode()
    yield base64.b64encode(text.encode()).rstrip(b"=")[:-1]


def assert_nowhere(directory):
    files = stored_bytes(directory)
    assert directory / "ledger.db" in files
    for value in SECRETS.values():
        for spelling in spellings(value):
            found = [path.name for path, data in files.items() if spelling in data]
            assert found == [], value


def test_no_sealed_value_is_in_any_byte_of_any_file(directory):
    with Ledger.create(directory, organisation="acme.example") as ledger:
        log = ledger.open_run("run42")
        log.record_many(secret() for _ in range(50))[-1].result()
        log.publish()
        assert (directory / "ledger.db-wal").stat().st_size > 0
        assert_nowhere(directory)
        shown = log.opened(0)
        assert shown["prompt"] == SECRETS["prompt"]
        assert shown["reward"] == SECRETS["reward"]
        assert PERSON not in shown["annotator"]
        log.close()
    assert_nowhere(directory)


def test_no_sealed_value_is_in_an_error_or_a_bundle(ledger):
    log = ledger.open_run("run42")
    bad = dataclasses.replace(secret(), sealed=SECRETS | {"reward": float("nan")})
    with pytest.raises(Exception, match="cannot be written as JSON") as caught:
        log.record(bad)
    log.record(secret())
    log.publish()
    texts = [
        str(caught.value),
        log.bundle([0]).decode(),
        log.bundle([0], opened=["reward"]).decode(),
    ]
    for name in ("prompt", "response", "annotator"):
        for spelling in spellings(SECRETS[name]):
            assert not any(spelling in text.encode() for text in texts)
    assert base64.b64encode(b"0.7315948201").decode() in texts[2]


def test_two_people_cannot_open_each_other(ledger):
    log = ledger.open_run("run42")
    log.record_many([secret(), dataclasses.replace(secret(), subject="other")])[-1].result()
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE vault SET subject = (SELECT subject FROM vault WHERE log_number = 2 AND leaf_index = 1) "
            "WHERE log_number = 2 AND leaf_index = 0"
        )
    with pytest.raises(VaultDamaged):
        log.openings(0)
    assert [(finding.what, finding.where) for finding in fsck(ledger)] == [("vault", "index 0")]


def test_a_subject_whose_secret_is_lost_cannot_be_opened_and_the_proofs_stay(directory):
    with Ledger.create(directory, organisation="acme.example") as ledger:
        log = ledger.open_run("run42")
        log.record_many([secret(), dataclasses.replace(secret(), subject="other")])
        head = log.publish()
    tag = ledger.vault.subject_tag(PERSON, log.origin)
    with closing(sqlite3.connect(directory / "vault-keys.db")) as connection, connection:
        assert connection.execute("DELETE FROM subject_key WHERE subject = ?", (tag,)).rowcount
    with Ledger.open(directory) as ledger:
        log = ledger.find("run42")
        with pytest.raises(Erased):
            log.opened(0)
        assert log.opened(1)["prompt"] == SECRETS["prompt"]
        assert str(log.publish().note) == str(head.note)
        # nobody said so in the registry log: then it was lost, and not erased
        assert [(x.log, x.what, x.where) for x in fsck(ledger)] == [("run42", "vault", "erased")]
