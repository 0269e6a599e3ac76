"""What was recorded between two checkpoints is checked again, from the stored bytes."""

from __future__ import annotations

import pytest

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.ledger.proof.verify import OnChain
from rlhf_audit_trail.record.provenance import EmptyRange, UnknownCheckpoint
from tests.train.running import record_run


def test_provenance_of_an_honest_run(auditor: AuditableRLHF) -> None:
    log = record_run(auditor)
    found = auditor.verify_provenance(start_checkpoint="epoch_0", end_checkpoint="epoch_3")
    assert found.is_valid
    assert bool(found) is True
    assert found.failure == ""
    assert found.merkle_root == log.root_at(log.size).hex()
    assert (found.start_index, found.end_index, found.entries_checked) == (3, 10, 12)
    assert found.updates == 3
    assert found.chain_verification == "not checked"


def test_provenance_inside_the_block_signs_what_it_checks(auditor: AuditableRLHF) -> None:
    with auditor.track_training(experiment_name="run-1"):
        auditor.checkpoint(epoch=0)
        auditor.checkpoint(epoch=1)
        assert auditor.verify_provenance(start_checkpoint="epoch_0", end_checkpoint="epoch_1")
        auditor.checkpoint(epoch=2)
        found = auditor.verify_provenance(start_checkpoint="epoch_0", end_checkpoint="epoch_2")
    assert found.entries_checked == 6


def test_provenance_of_what_was_never_recorded_raises(auditor: AuditableRLHF) -> None:
    record_run(auditor)
    with pytest.raises(UnknownCheckpoint, match="epoch_9"):
        auditor.verify_provenance(start_checkpoint="epoch_0", end_checkpoint="epoch_9")
    with pytest.raises(EmptyRange):
        auditor.verify_provenance(start_checkpoint="epoch_3", end_checkpoint="epoch_0")


TAMPERING = {
    "an altered value": "UPDATE entry SET data = CAST(replace(CAST(data AS TEXT), "
    "'\"rows\":4', '\"rows\":5') AS BLOB) WHERE leaf_index = 5 AND kind = 'policy.update'",
    "a deleted entry": "DELETE FROM entry WHERE leaf_index = 6 AND kind = 'policy.update'",
    "another leaf hash": "UPDATE entry SET leaf_hash = zeroblob(32) WHERE leaf_index = 4 "
    "AND kind = 'policy.update'",
}


@pytest.mark.parametrize("statement", TAMPERING.values(), ids=TAMPERING.keys())
def test_tampering_with_the_database_is_found(auditor: AuditableRLHF, statement: str) -> None:
    log = record_run(auditor)
    with auditor.ledger.engine.begin() as connection:
        assert connection.exec_driver_sql(statement).rowcount == 1
    found = auditor.verify_provenance(start_checkpoint="epoch_0", end_checkpoint="epoch_3")
    assert not found
    assert found.failure
    assert log.size == 12


def test_the_altered_entry_is_named(auditor: AuditableRLHF) -> None:
    record_run(auditor)
    statement = TAMPERING["an altered value"]
    with auditor.ledger.engine.begin() as connection:
        connection.exec_driver_sql(statement)
    found = auditor.verify_provenance(start_checkpoint="epoch_0", end_checkpoint="epoch_3")
    assert found.failure == "Inconsistent: entry 5 is not the one that was signed"


def test_what_the_chain_says_is_compared_with_the_recomputed_root(auditor: AuditableRLHF) -> None:
    log = record_run(auditor)
    names = {"start_checkpoint": "epoch_0", "end_checkpoint": "epoch_3"}
    said = OnChain(log.size, log.root_at(log.size), "block 7 of chain 31337, finalized")
    found = auditor.verify_provenance(**names, on_chain=[said])
    assert found.is_valid
    assert found.chain_verification == "on chain: block 7 of chain 31337, finalized"
    early = OnChain(5, log.root_at(5), "block 3")
    assert auditor.verify_provenance(**names, on_chain=[early]).chain_verification == "not checked"
    forked = OnChain(5, bytes(32), "block 3")
    found = auditor.verify_provenance(**names, on_chain=[forked])
    assert not found
    assert "size 5" in found.failure
