"""web3 as a second opinion: what other people's tools see through the committed ABI."""

from __future__ import annotations

import json
import os

import pytest

from rlhf_audit_trail.ledger.chain.contract.compiled import ARTIFACT_PATH, load_artifact
from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader
from rlhf_audit_trail.ledger.chain.contract.writer import anchor
from rlhf_audit_trail.ledger.chain.node.anvil import Anvil
from rlhf_audit_trail.ledger.chain.signing.signer import KeySigner
from tests.chain_fixtures import GrowingLog

pytestmark = pytest.mark.chain


@pytest.fixture
def contract(anvil: Anvil):
    from web3 import HTTPProvider, Web3

    provider = HTTPProvider(anvil.url, exception_retry_configuration=None)
    web3 = Web3(provider)
    abi = json.loads(ARTIFACT_PATH.read_text("utf-8"))["abi"]
    yield web3.eth.contract(address=Web3.to_checksum_address(load_artifact().address), abi=abi)
    for session in provider._request_session_manager.session_cache._data.values():
        session.close()


def test_web3_reads_the_same_head_and_event(
    contract, reader: AnchorReader, publisher: KeySigner, log: GrowingLog
) -> None:
    log.grow(5)
    sizes = [3, 5]
    for old, size in zip([0, *sizes], sizes, strict=False):
        proof = log.consistency_proof(old, size) if old else ()
        anchor(
            reader, publisher,
            log_id=log.log_id, tree_size=size, root=log.root_at(size), proof=proof,
        )  # fmt: skip
    head = contract.functions.head(publisher.address, log.log_id).call()
    ours = reader.head(publisher.address, log.log_id)
    assert tuple(head) == (
        ours.root, ours.tree_size, ours.timestamp, ours.block_number, ours.sequence,
    )  # fmt: skip
    found = contract.events.TreeHeadAnchored.get_logs(
        from_block=0, argument_filters={"publisher": publisher.address, "logId": log.log_id}
    )
    assert [(item.args.treeSize, item.args.root) for item in found] == [
        (size, log.root_at(size)) for size in sizes
    ]


def test_web3_gets_the_same_answers_about_proofs(contract, log: GrowingLog) -> None:
    log.grow(13)
    proof = list(log.consistency_proof(5, 13))
    call = contract.functions.verifyConsistency
    assert call(5, 13, log.root_at(5), log.root_at(13), proof).call()
    assert not call(5, 13, log.root_at(4), log.root_at(13), proof).call()
    path = list(log.inclusion_proof(8, 13))
    inside = contract.functions.verifyInclusion
    assert inside(log.leaves[8], 8, 13, log.root_at(13), path).call()
    assert not inside(log.leaves[8], 9, 13, log.root_at(13), path).call()


def test_keys_are_those_of_eth_account() -> None:
    from eth_account import Account

    secret = os.urandom(32)
    assert KeySigner(secret).address == Account.from_key(secret).address
