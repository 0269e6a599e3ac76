"""EIP-7825: one transaction may ask for 2^24 gas, which bounds how many logs one batch anchors."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import pytest

from benchmarks.gas import synthetic_growth
from rlhf_audit_trail.ledger.chain.contract.abi import HeadUpdate, encode_anchor_many
from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader
from rlhf_audit_trail.ledger.chain.contract.writer import (
    TRANSACTION_GAS_MAX,
    estimate_batch,
    prepare_anchors,
)
from rlhf_audit_trail.ledger.chain.errors import AnchorRefused, BatchTooLarge, RpcError
from rlhf_audit_trail.ledger.chain.node.anvil import Anvil
from rlhf_audit_trail.ledger.chain.node.rpc import parse_quantity
from rlhf_audit_trail.ledger.chain.signing.signer import KeySigner
from rlhf_audit_trail.ledger.chain.signing.transaction import (
    SignedTransaction,
    await_receipt,
    broadcast,
    chain_nonce,
    sign,
    suggest_fees,
)

pytestmark = pytest.mark.chain

OLD, NEW = 999_936, 1_000_192  # multiples of 256, one tile apart: about 22,000 gas a log


def logs(count: int, publisher: KeySigner) -> tuple[list[HeadUpdate], list[HeadUpdate]]:
    """First heads and grown ones."""
    rng = random.Random(publisher.address)
    grown = [synthetic_growth(OLD, NEW, rng) for _ in range(count)]
    ids = [hashlib.sha256(f"{publisher.address} {n}".encode()).digest() for n in range(count)]
    firsts = [HeadUpdate(i, OLD, x.old_root) for i, x in zip(ids, grown, strict=True)]
    nexts = [HeadUpdate(i, NEW, x.new_root, x.proof) for i, x in zip(ids, grown, strict=True)]
    return firsts, nexts


def send(reader: AnchorReader, publisher: KeySigner, updates: Sequence[HeadUpdate]) -> int:
    signed = prepare_anchors(reader, publisher, updates)
    broadcast(reader.rpc, signed.raw)
    receipt = await_receipt(reader.rpc, signed.tx_hash)
    assert receipt["status"] == "0x1"
    return parse_quantity(receipt["gasUsed"])


def with_gas(
    reader: AnchorReader, publisher: KeySigner, updates: Sequence[HeadUpdate], gas: int
) -> SignedTransaction:
    return sign(
        publisher,
        chain_id=31337,
        nonce=chain_nonce(reader.rpc, publisher.address),
        fees=suggest_fees(reader.rpc),
        gas=gas,
        to=reader.contract,
        data=encode_anchor_many(updates),
    )


def test_a_batch_just_below_the_cap_is_accepted_and_one_above_refused(
    reader: AnchorReader, publisher: KeySigner
) -> None:
    firsts, nexts = logs(900, publisher)
    for start in range(0, len(firsts), 300):
        send(reader, publisher, firsts[start : start + 300])
    each = estimate_batch(reader, publisher.address, nexts[:100]) / 100
    fitting = next(
        count
        for count in range(int(TRANSACTION_GAS_MAX / each) + 10, 0, -1)
        if fits(reader, publisher, nexts[:count])
    )
    assert 700 < fitting < 800
    print(fitting)
    with pytest.raises(BatchTooLarge, match=f"{fitting + 1} tree heads need more than the 16,777,"):
        prepare_anchors(reader, publisher, nexts[: fitting + 1])
    assert reader.head(publisher.address, nexts[0].log_id).tree_size == OLD  # nothing was sent
    used = send(reader, publisher, nexts[:fitting])
    assert TRANSACTION_GAS_MAX - 2 * each < used <= TRANSACTION_GAS_MAX
    for update in (nexts[0], nexts[fitting - 1]):
        assert reader.head(publisher.address, update.log_id).root == update.root


def fits(reader: AnchorReader, publisher: KeySigner, updates: Sequence[HeadUpdate]) -> bool:
    try:
        return estimate_batch(reader, publisher.address, updates) <= TRANSACTION_GAS_MAX
    except BatchTooLarge:
        return False


def test_more_than_a_block_holds_is_refused_alike(
    reader: AnchorReader, publisher: KeySigner
) -> None:
    firsts, _ = logs(900, publisher)  # over 30 million gas: the node finds no gas that suffices
    with pytest.raises(BatchTooLarge, match="900 tree heads") as caught:
        prepare_anchors(reader, publisher, firsts)
    assert caught.value.next_step == "anchor fewer logs at once"


def test_the_chain_itself_enforces_the_cap(
    anvil: Anvil, reader: AnchorReader, publisher: KeySigner
) -> None:
    """Else the tests above would show nothing: the rule is on, and the fork that has it pinned."""
    assert anvil.config.anvil.enable_tx_gas_limit
    assert anvil.config.anvil.hardfork == "osaka"
    assert reader.rpc.call("anvil_nodeInfo")["hardFork"] == "Osaka"
    firsts, _ = logs(2, publisher)
    with pytest.raises(RpcError, match="intrinsic gas too high"):
        broadcast(reader.rpc, with_gas(reader, publisher, firsts, gas=TRANSACTION_GAS_MAX + 1).raw)
    broadcast(reader.rpc, with_gas(reader, publisher, firsts, gas=TRANSACTION_GAS_MAX).raw)


def test_one_refused_member_refuses_the_batch(reader: AnchorReader, publisher: KeySigner) -> None:
    firsts, nexts = logs(5, publisher)
    send(reader, publisher, firsts)
    nexts[3] = HeadUpdate(nexts[3].log_id, NEW, bytes(32), nexts[3].proof)
    with pytest.raises(AnchorRefused) as caught:
        prepare_anchors(reader, publisher, nexts)
    assert caught.value.reason == "InconsistentTree"
    assert reader.head(publisher.address, nexts[0].log_id).tree_size == OLD
