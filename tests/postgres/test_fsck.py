"""fsck by several processes on PostgreSQL: all of them see the one state of the first."""

from __future__ import annotations

import pytest

from rlhf_audit_trail.ledger.fsck import Summary, fsck, open_damaged, ranges
from rlhf_audit_trail.ledger.pruning import PrunePolicy, prune
from rlhf_audit_trail.ledger.tiles import TILE_WIDTH


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """Ranges of one tile each, so that a small log is divided, too."""
    monkeypatch.setattr(ranges, "RANGE_ENTRIES", TILE_WIDTH)


def found_by(directory, jobs, progress=None):
    summary = Summary()
    with open_damaged(directory) as storage:
        return list(fsck(storage, jobs=jobs, progress=progress, summary=summary)), summary


def test_workers_see_the_state_that_the_first_one_saw(ledger, directory, annotation, tmp_path):
    ended = ledger.open_run("ended")
    ended.record_many(annotation(number) for number in range(600))
    ended.close()
    log = ledger.open_run("run42")
    log.record_many(annotation(number) for number in range(1_000))
    log.publish()
    pruned = []

    def change(_):
        log.record_many(annotation(number) for number in range(300))
        log.publish()
        if not pruned:  # empties entries that are yet to be looked at
            pruned.append(prune(ledger, "ended", tmp_path / "archive", PrunePolicy("test")))

    findings, summary = found_by(directory, 2, change)
    assert findings == []
    assert pruned[0].entries == 600
    assert (summary.pruned, summary.entries) == (0, 600 + 1_000 + 4)
    findings, summary = found_by(directory, 2)
    assert findings == []
    assert summary.pruned == 600


def test_several_processes_find_what_one_finds(ledger, directory, annotation):
    log = ledger.open_run("run42")
    log.record_many(annotation(number) for number in range(600))
    log.publish()
    for statement in (
        "UPDATE entry SET kind = 'gap' WHERE leaf_index = 5",
        "UPDATE entry SET data = '\\x7b7d' WHERE leaf_index = 300",
        "DELETE FROM entry WHERE leaf_index IN (511, 512)",
        "UPDATE hash_tile SET hashes = '\\x00' WHERE tile_index = 1",
        "UPDATE vault SET ciphertext = '\\x00' WHERE leaf_index = 599",
    ):
        with ledger.engine.begin() as connection:
            assert connection.exec_driver_sql(f"{statement} AND log_number = 2").rowcount
    alone, several = found_by(directory, 1), found_by(directory, 3)
    assert alone == several
    found = {(x.what, x.where) for x in alone[0] if x.log == "run42"}
    assert {
        ("entry", "index 5"),
        ("entry", "index 300"),
        ("entry", "index 511"),
        ("hash_tile", "level 0, tile 1"),
        ("vault", "index 599"),
    } <= found
