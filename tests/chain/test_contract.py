"""The contract takes honest growth and refuses everything else; seen through our own Python."""

from __future__ import annotations

import pytest

from rlhf_audit_trail.ledger.chain.contract.abi import encode_anchor
from rlhf_audit_trail.ledger.chain.contract.compiled import CREATE2_FACTORY, load_artifact
from rlhf_audit_trail.ledger.chain.contract.reader import (
    AnchorReader,
    AnchorState,
    read_anchored,
    read_head,
)
from rlhf_audit_trail.ledger.chain.contract.writer import anchor, confirm, deploy
from rlhf_audit_trail.ledger.chain.errors import (
    AnchorRefused,
    NoContractCode,
    TransactionFailed,
    WrongChain,
    WrongContractCode,
)
from rlhf_audit_trail.ledger.chain.node.rpc import parse_quantity
from rlhf_audit_trail.ledger.chain.signing.signer import KeySigner
from rlhf_audit_trail.ledger.chain.signing.transaction import (
    await_receipt,
    broadcast,
    chain_nonce,
    keccak256,
    prepare,
    sign,
    suggest_fees,
)
from tests.chain_fixtures import GrowingLog

pytestmark = pytest.mark.chain

WITHOUT_BODIES = False
NOWHERE = "0x00000000000000000000000000000000000000aa"


def anchor_size(reader, publisher, log, size, *, root=None, proof=None):
    held = reader.head(publisher.address, log.log_id).tree_size
    if proof is None:
        proof = log.consistency_proof(held, size) if 0 < held <= size else ()
    return anchor(
        reader,
        publisher,
        log_id=log.log_id,
        tree_size=size,
        root=root or log.root_at(size),
        proof=proof,
    )


def refusal(reader, publisher, log, size, **changes):
    before = reader.head(publisher.address, log.log_id)
    nonce = chain_nonce(reader.rpc, publisher.address)
    with pytest.raises(AnchorRefused) as caught:
        anchor_size(reader, publisher, log, size, **changes)
    assert reader.head(publisher.address, log.log_id) == before
    assert chain_nonce(reader.rpc, publisher.address) == nonce  # nothing was sent
    return caught.value.reason


def test_honest_growth_is_accepted(reader, publisher, log):
    log.grow(300)
    for count, size in enumerate((1, 2, 3, 7, 8, 255, 256, 300), start=1):
        event = anchor_size(reader, publisher, log, size)
        head = reader.head(publisher.address, log.log_id)
        assert (head.tree_size, head.root, head.sequence) == (size, log.root_at(size), count)
        assert (event.tree_size, event.root, event.sequence) == (size, log.root_at(size), count)
        assert head.block_number == event.block_number


def test_refusals(reader, publisher, log):
    log.grow(100)
    fork = GrowingLog(log.origin, log.leaves[:39]).grow(1)
    fork.leaves[-1] = bytes(32)
    fork.grow(60)
    proof = log.consistency_proof(40, 90)
    assert refusal(reader, publisher, log, 40, proof=proof) == "InconsistentTree"  # first, with one
    assert refusal(reader, publisher, log, 0, root=bytes(32)) == "StaleTreeSize"
    anchor_size(reader, publisher, log, 40)
    assert refusal(reader, publisher, log, 39) == "StaleTreeSize"
    assert refusal(reader, publisher, log, 40) == "StaleTreeSize"
    assert refusal(reader, publisher, log, 40, root=fork.root_at(40)) == "StaleTreeSize"
    assert refusal(reader, publisher, fork, 90) == "InconsistentTree"
    assert refusal(reader, publisher, log, 90, root=fork.root_at(90)) == "InconsistentTree"
    for index in range(len(proof)):
        bad = [*proof]
        bad[index] = bytes(32)
        assert refusal(reader, publisher, log, 90, proof=bad) == "InconsistentTree"
    for bad in (proof[:-1], proof[1:], (*proof, bytes(32)), proof[::-1], ()):
        assert refusal(reader, publisher, log, 90, proof=bad) == "InconsistentTree"
    assert refusal(reader, publisher, log, 91, proof=proof) == "InconsistentTree"
    anchor_size(reader, publisher, log, 90)


def test_a_refused_anchor_that_is_sent_anyway_changes_nothing(reader, publisher, log):
    log.grow(10)
    anchor_size(reader, publisher, log, 10)
    before = reader.head(publisher.address, log.log_id)
    signed = sign(
        publisher,
        chain_id=31337,
        nonce=chain_nonce(reader.rpc, publisher.address),
        fees=suggest_fees(reader.rpc),
        gas=200_000,
        to=reader.contract,
        data=encode_anchor(log.log_id, 9, log.root_at(9), ()),
    )
    broadcast(reader.rpc, signed.raw)
    receipt = await_receipt(reader.rpc, signed.tx_hash)
    assert receipt["status"] == "0x0"
    assert reader.head(publisher.address, log.log_id) == before
    with pytest.raises(TransactionFailed):
        confirm(
            receipt,
            contract=reader.contract,
            publisher=publisher.address,
            log_id=log.log_id,
            tree_size=9,
            root=log.root_at(9),
        )


def test_publishers_and_logs_do_not_touch(reader, anvil, publisher, log):
    log.grow(5)
    anchor_size(reader, publisher, log, 5)
    other = KeySigner(anvil.accounts[3].key)
    assert reader.head(other.address, log.log_id).tree_size == 0
    anchor_size(reader, other, log, 2)
    assert reader.head(publisher.address, log.log_id).tree_size == 5
    assert reader.head(publisher.address, bytes(32)).tree_size == 0


def test_storage_is_where_the_design_says_and_never_grows(reader, publisher, log):
    log.grow(20)
    pad = bytes.fromhex(publisher.address[2:]).rjust(32, b"\0")
    slot = int.from_bytes(keccak256(log.log_id + keccak256(pad + bytes(32))))

    def word(offset):
        value = reader.rpc.call("eth_getStorageAt", reader.contract, hex(slot + offset), "latest")
        return bytes.fromhex(value[2:])

    for size in (5, 12, 20):
        anchor_size(reader, publisher, log, size)
        head = reader.head(publisher.address, log.log_id)
        fields = (head.sequence, head.block_number, head.timestamp, head.tree_size)
        assert word(0) == log.root_at(size) == head.root
        assert word(1) == b"".join(number.to_bytes(8) for number in fields)
        assert word(2) == word(-1) == bytes(32)


def test_deploying_again_does_nothing(reader, anvil):
    signer = KeySigner(anvil.accounts[5].key)
    before = chain_nonce(reader.rpc, signer.address)
    assert deploy(reader.rpc, signer, chain_id=31337) == load_artifact().address
    assert chain_nonce(reader.rpc, signer.address) == before


def test_the_address_follows_from_the_code():
    artifact = load_artifact()
    factory = bytes.fromhex(CREATE2_FACTORY[2:])
    digest = keccak256(b"\xff" + factory + bytes(32) + keccak256(artifact.creation))
    assert artifact.address == f"0x{digest[12:].hex()}"


def test_the_wrong_chain_is_named(reader):
    with pytest.raises(WrongChain, match="chain 31337, not the pinned chain 1"):
        AnchorReader(reader.rpc, chain_id=1, contract=reader.contract).check()
    with pytest.raises(WrongChain):
        deploy(reader.rpc, KeySigner(bytes(31) + b"\1"), chain_id=1)


def test_an_address_without_code_is_named(reader, publisher, log):
    empty = AnchorReader(reader.rpc, chain_id=31337, contract=NOWHERE)
    with pytest.raises(NoContractCode, match=NOWHERE):
        empty.check()
    log.grow(1)
    # without the check, the transaction would succeed; its receipt must not convince us
    with pytest.raises(TransactionFailed, match="event is not in its receipt"):
        anchor(empty, publisher, log_id=log.log_id, tree_size=1, root=log.root_at(1), proof=())


def test_other_code_is_named(reader):
    other = "0x00000000000000000000000000000000000000bb"
    code = bytearray(load_artifact().runtime)
    code[-60] ^= 1  # one bit, in the hash of the sources
    reader.rpc.call("anvil_setCode", other, f"0x{code.hex()}")
    with pytest.raises(WrongContractCode):
        AnchorReader(reader.rpc, chain_id=31337, contract=other).check()


def test_another_contracts_event_does_not_convince(reader, publisher, log):
    """The same event, from a copy of the contract at another address."""
    copy = "0x00000000000000000000000000000000000000cc"
    reader.rpc.call("anvil_setCode", copy, f"0x{load_artifact().runtime.hex()}")
    log.grow(1)
    data = encode_anchor(log.log_id, 1, log.root_at(1), ())
    signed = prepare(reader.rpc, publisher, chain_id=31337, to=copy, data=data)
    broadcast(reader.rpc, signed.raw)
    receipt = await_receipt(reader.rpc, signed.tx_hash)
    assert receipt["status"] == "0x1"
    assert len(receipt["logs"]) == 1
    facts = {
        "publisher": publisher.address,
        "log_id": log.log_id,
        "tree_size": 1,
        "root": log.root_at(1),
    }
    assert confirm(receipt, contract=copy, **facts)
    with pytest.raises(TransactionFailed):
        confirm(receipt, contract=reader.contract, **facts)
    with pytest.raises(TransactionFailed):
        confirm(receipt, contract=copy, **(facts | {"tree_size": 2}))


def test_reading_back_what_was_anchored(anvil, reader, publisher, log):
    log.grow(9)
    events = [anchor_size(reader, publisher, log, size) for size in (3, 6, 9)]
    where = {
        "chain_id": 31337,
        "contract": reader.contract,
        "publisher": publisher.address,
        "log_id": log.log_id,
    }
    assert read_head(anvil.url, **where).tree_size == 9
    assert read_anchored(anvil.url, **where, tree_size=5) is None
    found = read_anchored(anvil.url, **where, tree_size=3)
    assert (found.root, found.sequence) == (log.root_at(3), 1)
    assert (found.block_number, found.tx_hash) == (events[0].block_number, events[0].tx_hash)
    block = reader.rpc.call("eth_getBlockByHash", f"0x{found.block_hash.hex()}", WITHOUT_BODIES)
    assert found.timestamp == parse_quantity(block["timestamp"])
    assert reader.events(publisher.address, log.log_id) == tuple(events)


def test_an_anchor_settles_by_the_chains_own_tags(anvil, reader, publisher, log):
    log.grow(1)
    event = anchor_size(reader, publisher, log, 1)

    def state():
        return reader.state_of(event.block_number, event.block_hash)

    states = [state()]
    for _ in range(2):
        anvil.mine()
        states.append(state())
    assert states == [AnchorState.MINED, AnchorState.SAFE, AnchorState.FINALIZED]
    assert reader.state_of(event.block_number, bytes(32)) is AnchorState.PENDING
