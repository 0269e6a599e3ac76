"""A closed run on PostgreSQL is pruned: its proofs stay, and its entries come back."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from rlhf_audit_trail.ledger.importing import import_copies
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.proof.merkle import verify_consistency
from rlhf_audit_trail.ledger.proof.verify import TrustPolicy, verify_bundle
from rlhf_audit_trail.ledger.pruning import PrunePolicy, archived_entries, prune
from rlhf_audit_trail.ledger.reading import Pruned

POLICY = PrunePolicy(reason="kept for as long as the policy says")
SIZE = 600


@pytest.fixture
def log(ledger, annotation):
    """A closed run of 600 entries, heads at 300 and 600."""
    log = ledger.open_run("run42")
    for size in (300, SIZE):
        log.record_many(annotation(number) for number in range(log.size, size))
        log.publish()
    log.close()
    return log


def rows(ledger, log):
    query = text(f"SELECT * FROM entry WHERE log_number = {log.number} ORDER BY leaf_index")  # noqa: S608
    with ledger.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(query)]


def test_proofs_stay_fsck_is_clean_and_entries_come_back(ledger, directory, log, sound, tmp_path):
    before, archive = rows(ledger, log), tmp_path / "archive"
    proofs = [log.prove_inclusion(index, SIZE) for index in range(0, SIZE, 7)]
    bundle = log.bundle([0, 255, 599], opened=["prompt"])
    done = prune(ledger, "run42", archive, POLICY)
    assert (done.tree_size, done.entries, done.vault_rows) == (SIZE, SIZE, 0)
    assert "VACUUM FULL" in done.not_freed
    assert all(row[5] == b"" for row in rows(ledger, log))
    assert [log.prove_inclusion(index, SIZE) for index in range(0, SIZE, 7)] == proofs
    heads = log.published(300).head, log.published(600).head
    path = log.prove_consistency(300, SIZE)
    verify_consistency(300, heads[0].root, SIZE, heads[1].root, path)
    with pytest.raises(Pruned):
        log.read(3)
    summary = sound(directory)
    assert (summary.pruned, summary.vault_rows) == (SIZE, SIZE)
    log.read_pruned_from(archived_entries(archive))
    assert log.bundle([0, 255, 599], opened=["prompt"]) == bundle
    verify_bundle(bundle, TrustPolicy(log.verifier_keys))
    assert prune(ledger, "run42", archive, POLICY).entries == 0
    import_copies(directory, str(archive))
    assert rows(ledger, log) == before
    summary = sound(directory)
    assert (summary.pruned, summary.unopenable) == (0, 0)
    with Ledger.open(directory) as again:
        assert again.find("run42").opened(3)["prompt"] == "prompt 3"


def test_the_room_of_what_lay_at_a_tables_end_goes_back(ledger, annotation, sound, tmp_path):
    kept, ended = ledger.open_run("kept"), ledger.open_run("ended")
    kept.record_many(annotation(number) for number in range(100))
    kept.flush()
    ended.record_many(annotation(number) for number in range(10_000))
    ended.close()
    before = size_of(ledger, "vault")
    policy = PrunePolicy(reason="nobody may open them", drop_vault=True)
    done = prune(ledger, "ended", tmp_path / "archive", policy)
    assert (done.entries, done.vault_rows) == (10_000, 10_000)
    assert size_of(ledger, "vault") < before / 2
    assert kept.record(annotation(100)).result() == 100
    assert sound(ledger.directory).pruned == 10_000


def size_of(ledger, table):
    with ledger.engine.connect() as connection:
        return connection.exec_driver_sql(f"SELECT pg_relation_size('{table}')").scalar()
