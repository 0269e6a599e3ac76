"""Runs with annotations, and chains that were seen to hold their tree heads."""

from __future__ import annotations

from sqlalchemy import insert

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.ledger.store.database import writing
from rlhf_audit_trail.ledger.store.models import AnchorRow
from rlhf_audit_trail.privacy.config import PrivacyConfig

NONCE = bytes(range(32))


def auditor(directory, **config):
    given = {"reward_bounds": (0.0, 1.0), "beacon": "local", **config}
    return AuditableRLHF(
        "policy", ledger=directory, source="simulated", watch_optimizers=False,
        privacy_config=PrivacyConfig(**given),
    )  # fmt: skip


def annotate(run, people=30, *, each=1, reward=0.75):
    """Log `each` annotations of every annotator, by turns."""
    names = [f"annotator-{number}@example.org" for number in range(people)] * each
    rewards = [reward if isinstance(reward, float) else reward[x % len(reward)] for x in
               range(len(names))]  # fmt: skip
    run.log_annotations(
        prompts=["p"] * len(names), responses=["r"] * len(names), rewards=rewards,
        annotator_ids=names,
    )[-1].result()  # fmt: skip


def anchored(ledger, log, *, state="finalized", chain_id=1, block=100):
    """Sign the log, and have the journal say that its head is on a chain."""
    head = log.publish().head
    row = {
        "log_number": log.number, "tree_size": head.size, "root": head.root,
        "chain_id": chain_id, "contract": "0x" + "11" * 20, "publisher": "0x" + "22" * 20,
        "nonce": head.size, "tx_hash": head.size.to_bytes(32), "raw_tx": b"", "state": state,
        "reason": "", "block_number": block, "block_hash": bytes(32),
        "block_timestamp": 1_700_000_000, "created_at": "2026-11-20T10:15:00Z",
    }  # fmt: skip
    with writing(ledger.engine) as connection:
        connection.execute(insert(AnchorRow.__table__).values(row))
    return head.size
