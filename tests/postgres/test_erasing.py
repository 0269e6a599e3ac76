"""Erasing on PostgreSQL: another process goes on, and the server's tables keep nothing."""

from __future__ import annotations

import pytest

from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.subjects import SubjectMissing, erase_subject, find_subject
from tests.ledger.annotate_on_demand import annotating

ADA = "annotator-1@example.org"


@pytest.fixture
def ledger(directory, database, new_database):
    with Ledger.create(
        directory, organisation="acme.example", database=database, keys_database=new_database()
    ) as opened:
        yield opened


@pytest.fixture
def training(ledger, directory):
    ledger.open_run("run42")
    with annotating(directory, "run42") as annotate:
        yield annotate


def files_of(server, url, *tables):
    """The bytes of tables as the server has them on disk."""
    import psycopg

    server.execute("CHECKPOINT")
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        places = [
            connection.execute("SELECT pg_relation_filepath(%s)", (name,)).fetchone()[0]
            for table in tables
            for name in (table, f"{table}_pkey")
        ]
    return b"".join((server._server.pgdata / place).read_bytes() for place in places)


def test_a_person_is_erased_beside_a_training_in_another_process(
    ledger, directory, training, annotation, sound
):
    log = ledger.open_run("run42")
    log.record_many(annotation(number) for number in range(600))
    training(ADA, 30)
    before = (log.size, log.publish().head.root)
    old = find_subject(ledger, ADA)
    assert old.entries == 150
    assert erase_subject(ledger, ADA, basis="request").entries == {"run42": 150}
    assert log.root_at(before[0]) == before[1]
    with pytest.raises(SubjectMissing):
        find_subject(ledger, ADA)
    (index,) = training(ADA, 1)
    new = find_subject(ledger, ADA)
    assert (new.entries, log.opened(index)["annotator"]) == (1, new.runs[0].pseudonym)
    assert new.runs[0].pseudonym != old.runs[0].pseudonym
    assert sound(directory).erased == 150


def test_the_servers_tables_keep_no_secret(ledger, annotation, server):
    log = ledger.open_run("run42")
    log.record_many(annotation(number) for number in range(100))[-1].result()
    tag = ledger.vault.subject_tag(ADA, "")
    secret = ledger.vault._secret(tag)
    url = ledger.vault.keys.url.render_as_string(hide_password=False)
    seen = files_of(server, url, "subject_key", "erasure")
    assert secret in seen
    assert tag in seen
    assert erase_subject(ledger, ADA, basis="request").leftovers == []
    seen = files_of(server, url, "subject_key", "erasure")
    assert secret not in seen
    assert tag not in seen
    left = ledger.vault._secret(ledger.vault.subject_tag("annotator-2@example.org", ""))
    assert left in seen
