"""Chain evidence made from a real Anvil, and judged offline, long after."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import rlp as foreign_rlp
from eth_utils import keccak

from rlhf_audit_trail.ledger.chain.contract.abi import encode_anchor
from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader
from rlhf_audit_trail.ledger.chain.contract.writer import anchor, deploy
from rlhf_audit_trail.ledger.chain.errors import ChainUnreachable, RpcError, WrongChain
from rlhf_audit_trail.ledger.chain.evidence.making import (
    NoEvidence,
    read_header,
    receipt_bytes,
    receipt_evidence,
    storage_evidence,
)
from rlhf_audit_trail.ledger.chain.evidence.trusting import chain_trust
from rlhf_audit_trail.ledger.chain.node.agreement import AgreeingRpc
from rlhf_audit_trail.ledger.chain.node.anvil import Anvil
from rlhf_audit_trail.ledger.chain.node.confirming import (
    BlockNotFinal,
    ask_nodes,
    confirm_block,
    final_blocks,
)
from rlhf_audit_trail.ledger.chain.node.rpc import RpcClient
from rlhf_audit_trail.ledger.chain.signing.signer import KeySigner
from rlhf_audit_trail.ledger.proof.errors import Inconsistent, PolicyUnmet
from rlhf_audit_trail.ledger.proof.evm.evidence import ChainEvidence, TrustedBlock, verify_evidence
from rlhf_audit_trail.ledger.trust import AnchorTrust
from tests.chain_fixtures import FREE_PORT

pytestmark = pytest.mark.chain

CHAIN_ID = 31337
ON, OFF = True, False
LOGS = 320
HISTORY = "0x0000F90827F1C53a10cb7A02335B175320002935"


def log_id(number):
    return hashlib.sha256(b"evidence %d" % number).digest()


def root(number, size):
    return hashlib.sha256(b"root %d %d" % (number, size)).digest()


@pytest.fixture(scope="module")
def anvil():
    """A chain of its own: how large evidence is depends on all that the chain holds."""
    with Anvil(FREE_PORT) as chain, RpcClient(chain.url) as rpc:
        deploy(rpc, KeySigner(chain.accounts[0].key), chain_id=CHAIN_ID)
        yield chain


@pytest.fixture(scope="module")
def account(anvil):
    return anvil.accounts[3].address


@pytest.fixture(scope="module")
def crowd(anvil, account):
    """An account with more than 300 logs, in blocks of some transactions each; all final."""
    with RpcClient(anvil.url) as rpc:
        address = deployed(rpc)
        for start in range(0, LOGS, 40):
            rpc.call("evm_setAutomine", OFF)
            for number in range(start, start + 40):
                send(
                    rpc,
                    account,
                    address,
                    encode_anchor(log_id(number), number + 1, root(number, number + 1), ()),
                )
            rpc.call("evm_mine")
        rpc.call("evm_setAutomine", ON)
        rpc.call("anvil_mine", "0x3")
        yield AnchorReader(rpc, chain_id=CHAIN_ID, contract=address)


def deployed(rpc):
    from rlhf_audit_trail.ledger.chain.contract.compiled import load_artifact

    address = load_artifact().address
    assert rpc.call("eth_getCode", address, "latest") != "0x"
    return address


def send(rpc, account, address, data):
    call = {"from": account, "to": address, "gas": hex(300_000), "data": f"0x{data.hex()}"}
    rpc.call("eth_sendTransaction", call)


def trusting(reader, account, number, *blocks, **changed):
    where = AnchorTrust(CHAIN_ID, reader.contract, account)
    return replace(chain_trust(where, log_id(number), tuple(blocks)), **changed)


def block_of(head, by="a test"):
    return TrustedBlock(CHAIN_ID, head.block.number, head.block.hash, by)


def test_evidence_of_each_of_some_logs_shows_its_head(crowd, account):
    for number in (0, 1, 7, 80, 200, LOGS - 1):
        evidence, head = storage_evidence(crowd, account, log_id(number))
        assert (head.tree_size, head.root) == (number + 1, root(number, number + 1))
        assert head.trusted is None
        read = ChainEvidence.parse(bytes(evidence))
        shown = verify_evidence(read, trusting(crowd, account, number, block_of(head)))
        assert shown == replace(head, trusted=block_of(head))
        assert len(bytes(evidence)) <= 3_072  # 4 KiB as a bundle spells it


def test_it_verifies_after_many_later_blocks_and_newer_heads(crowd, account):
    """By the trusted hash alone, and with what any full node still knows: the block's hash."""
    evidence, head = storage_evidence(crowd, account, log_id(5))
    for _ in range(3):
        crowd.rpc.call("anvil_mine", hex(300))
    shown = verify_evidence(evidence, trusting(crowd, account, 5, block_of(head)))
    assert shown.tree_size == 6
    confirmed = confirm_block(crowd.rpc, chain_id=CHAIN_ID, number=head.block.number, by="a node")
    assert confirmed == block_of(head, "a node")


def test_after_the_contract_moved_on_old_and_new_evidence_both_hold(reader, publisher, log):
    log.grow(5)
    step = {"log_id": log.log_id, "tree_size": 5, "root": log.root_at(5), "proof": ()}
    anchor(reader, publisher, **step)
    reader.rpc.call("anvil_mine", "0x3")
    old, head = storage_evidence(reader, publisher.address, log.log_id)
    log.grow(8)
    step |= {"tree_size": 13, "root": log.root_at(13), "proof": log.consistency_proof(5, 13)}
    anchor(reader, publisher, **step)
    assert storage_evidence(reader, publisher.address, log.log_id)[1].tree_size == 5, "not final"
    latest = storage_evidence(reader, publisher.address, log.log_id, block="latest")[1]
    assert latest.tree_size == 13
    reader.rpc.call("anvil_mine", "0x40")
    new, newer = storage_evidence(reader, publisher.address, log.log_id)
    where = AnchorTrust(CHAIN_ID, reader.contract, publisher.address)
    trust = chain_trust(where, log.log_id, (block_of(head), block_of(newer)))
    assert verify_evidence(old, trust).tree_size == 5
    assert verify_evidence(new, trust).tree_size == 13
    events = reader.events(publisher.address, log.log_id)
    for event in events:
        evidence, shown = receipt_evidence(reader, event)
        assert (shown.tree_size, shown.root) == (event.tree_size, event.root)
        trust = chain_trust(where, log.log_id, (block_of(shown),))
        assert verify_evidence(ChainEvidence.parse(bytes(evidence)), trust).trusted


def test_receipts_of_a_full_block(crowd, account):
    for number in (0, 1, 39, 40, 77):
        (event,) = crowd.events(account, log_id(number))
        evidence, head = receipt_evidence(crowd, event)
        assert (head.tree_size, head.root) == (number + 1, root(number, number + 1))
        trust = trusting(crowd, account, number, block_of(head))
        assert verify_evidence(evidence, trust).block.number == event.block_number
        with pytest.raises(PolicyUnmet, match="which code"):
            verify_evidence(evidence, replace(trust, address_binds_code=False))


def test_another_contract_with_the_same_storage_is_another_code(crowd, account):
    """Whoever controls code can write any storage: the code's hash decides."""
    evidence, head = storage_evidence(crowd, account, log_id(3))
    trust = trusting(crowd, account, 3, block_of(head), code_hash=keccak(b"other code"))
    with pytest.raises(Inconsistent, match=r"7\.5 code"):
        verify_evidence(evidence, trust)


def test_rebuilt_headers_and_receipts_are_those_of_the_chain(crowd):
    """Each block's hash is over the header built from JSON; genesis has its own state root."""
    newest = int(crowd.rpc.call("eth_blockNumber"), 16)
    for number in (0, 1, 2, newest // 2, newest):
        block = crowd.rpc.call("eth_getBlockByNumber", hex(number), OFF)
        read_header(block)
        with pytest.raises(NoEvidence, match="another hash than the block"):
            read_header(block | {"timestamp": hex(int(block["timestamp"], 16) + 1)})
    receipt = crowd.rpc.call("eth_getBlockReceipts", hex(newest))
    assert receipt == []
    (event,) = crowd.events(crowd.rpc.call("eth_accounts")[3], log_id(9))
    found = crowd.rpc.call("eth_getTransactionReceipt", f"0x{event.tx_hash.hex()}")
    status, gas, bloom, events = foreign_rlp.decode(receipt_bytes(found)[1:])
    assert (status, int.from_bytes(gas)) == (b"\1", int(found["cumulativeGasUsed"], 16))
    assert bloom.hex() == found["logsBloom"][2:]
    assert len(events) == 1


def test_what_was_never_anchored_has_no_evidence(crowd, account):
    with pytest.raises(NoEvidence, match="holds nothing there"):
        storage_evidence(crowd, account, log_id(10_000))
    with pytest.raises(NoEvidence, match="not show an anchor"):
        storage_evidence(
            AnchorReader(crowd.rpc, chain_id=CHAIN_ID, contract=HISTORY), account, log_id(1)
        )
    (event,) = crowd.events(account, log_id(1))
    with pytest.raises(NoEvidence, match="not in block"):
        receipt_evidence(crowd, replace(event, tx_hash=bytes(32)))
    with pytest.raises((NoEvidence, RpcError)):
        storage_evidence(crowd, account, log_id(1), block="0xffffffff")


def test_nodes_confirm_final_blocks_only(crowd, anvil):
    newest = int(crowd.rpc.call("eth_blockNumber"), 16)
    with pytest.raises(BlockNotFinal):
        confirm_block(crowd.rpc, chain_id=CHAIN_ID, number=newest, by="a node")
    with pytest.raises(WrongChain):
        confirm_block(crowd.rpc, chain_id=1, number=1, by="a node")
    blocks = list(final_blocks(crowd.rpc, chain_id=CHAIN_ID, first=1, last=3))
    assert [block.number for block in blocks] == [1, 2, 3]
    with ask_nodes([anvil.url, anvil.url.replace("127.0.0.1", "localhost")], needed=2) as rpc:
        assert isinstance(rpc, AgreeingRpc)
        assert confirm_block(rpc, chain_id=CHAIN_ID, number=1, by="").hash == blocks[0].hash
    with (
        ask_nodes([anvil.url, "http://127.0.0.1:1"], needed=2) as rpc,
        pytest.raises(ChainUnreachable),
    ):
        confirm_block(rpc, chain_id=CHAIN_ID, number=1, by="")
