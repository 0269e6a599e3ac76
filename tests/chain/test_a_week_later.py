"""A bundle made at a final block, judged a week of blocks later by what a full node still knows.

Anvil takes longer for each block the more there are, so the week has a block every five minutes
instead of twelve seconds. What counts is the same: the node has forgotten the bundle's state, the
contract holds newer heads, and the header is still where it was.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_audit_trail.ledger.chain.anchoring.publishing import Publisher
from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader
from rlhf_audit_trail.ledger.chain.errors import RpcError
from rlhf_audit_trail.ledger.chain.evidence.making import (
    NoEvidence,
    receipt_evidence,
    storage_evidence,
)
from rlhf_audit_trail.ledger.chain.evidence.trusting import chain_trust
from rlhf_audit_trail.ledger.chain.node.anvil import Anvil
from rlhf_audit_trail.ledger.chain.node.anvil_settings import (
    AnvilConfig,
    NodeSettings,
    StateSettings,
)
from rlhf_audit_trail.ledger.chain.node.confirming import ask_nodes, confirm_block
from rlhf_audit_trail.ledger.chain.node.rpc import RpcClient
from rlhf_audit_trail.ledger.chain.signing.signer import KeySigner
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Ledger, Log
from rlhf_audit_trail.ledger.proof.verify import TrustPolicy, verify_bundle
from rlhf_audit_trail.ledger.trust import AnchorTrust

pytestmark = pytest.mark.chain

CHAIN_ID = 31337
WEEK_S, BLOCK_S = 7 * 24 * 3600, 300
FULL_NODE = AnvilConfig(
    anvil=NodeSettings(port=0, preserve_historical_states=False, prune_history=128),
    state=StateSettings(snapshot=False),
)


def grow(log: Log, count: int) -> None:
    log.record_many(
        Event("alert.raised", {"name": "x", "severity": "low", "step": step, "detail": ""})
        for step in range(count)
    )[-1].result()


def test_a_bundle_holds_a_week_later_and_after_newer_anchors(tmp_path: Path) -> None:
    with (
        Anvil(FULL_NODE) as chain,
        RpcClient(chain.url, timeout_s=60.0) as rpc,
        Ledger.create(tmp_path / "audit", organisation="week.example") as ledger,
    ):
        ledger.chain = replace(ledger.chain, rpc_url=chain.url, chain_id=CHAIN_ID)
        log, signer = ledger.open_run("run"), KeySigner(chain.accounts[0].key)
        with Publisher(ledger, signer) as publisher:
            where = AnchorTrust(CHAIN_ID, publisher.deploy(), signer.address)
            reader = AnchorReader(rpc, chain_id=CHAIN_ID, contract=where.contract)
            grow(log, 40)
            publisher.anchor(log)
            chain.mine(3)
            evidence, head = storage_evidence(reader, signer.address, log.log_id)
            bundle = log.bundle([7], anchored_sizes=[head.tree_size], chain=bytes(evidence))
            for _ in range(2):
                rpc.call("anvil_mine", hex(WEEK_S // BLOCK_S // 2), hex(BLOCK_S))
                grow(log, 30)
                publisher.anchor(log)
            chain.mine(3)

        with ask_nodes([chain.url], needed=1) as node:
            block = confirm_block(node, chain_id=CHAIN_ID, number=head.block.number, by="a node")
        newest, newer = storage_evidence(reader, signer.address, log.log_id)
        assert (newer.tree_size, newest.chain_id) == (100, CHAIN_ID)
        assert newer.block.time_s - head.block.time_s >= WEEK_S
        with pytest.raises((NoEvidence, RpcError)):  # nobody could make that evidence now
            storage_evidence(reader, signer.address, log.log_id, block=hex(head.block.number))
        first, *_ = reader.events(signer.address, log.log_id)
        assert receipt_evidence(reader, first)[1].tree_size == 40, "but a receipt, for ever"

    # offline from here on
    assert block.hash == head.block.hash
    trust = TrustPolicy(
        log.verifier_keys, chain=chain_trust(where, log.log_id, (block,)), need_anchor=True
    )
    assert list(verify_bundle(bundle, trust).entries) == [7]
