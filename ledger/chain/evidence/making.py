"""Make chain evidence: ask a node for a block and its proofs, and check them before they travel.

Nodes speak JSON, hashes are over RLP: header and receipts are rebuilt and must give the hash, or
nothing is made. What evidence is, and how it is judged: `proof/evm/evidence.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rlhf_audit_trail.ledger.chain.contract.abi import AnchoredEvent
from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader
from rlhf_audit_trail.ledger.chain.errors import ChainError, ChainUnreachable
from rlhf_audit_trail.ledger.chain.evidence.trie import Trie, cut_down
from rlhf_audit_trail.ledger.chain.evidence.trusting import chain_trust
from rlhf_audit_trail.ledger.chain.node.rpc import parse_data, parse_quantity
from rlhf_audit_trail.ledger.proof.errors import MalformedBundle, ProofError
from rlhf_audit_trail.ledger.proof.evm.evidence import (
    NO_BLOOM,
    ChainEvidence,
    ChainHead,
    ChainTrust,
    head_slot,
    verify_evidence,
)
from rlhf_audit_trail.ledger.proof.evm.keccak import keccak256
from rlhf_audit_trail.ledger.proof.evm.rlp import Encodable, Item, encode, write_number
from rlhf_audit_trail.ledger.trust import AnchorTrust

__all__ = ["FINALIZED", "NoEvidence", "receipt_evidence", "storage_evidence"]

FINALIZED: Final = "finalized"
_SLOTS: Final = 2  # of a head
_WORD_BYTES: Final = 32
_EMPTY_TRIE: Final = encode(b"")  # some nodes give it as the only node, others give none

# In the order of the header. Forks have only ever appended; what a node leaves out ends the list.
_HEADER: Final = (
    ("parentHash", parse_data), ("sha3Uncles", parse_data), ("miner", parse_data),
    ("stateRoot", parse_data), ("transactionsRoot", parse_data), ("receiptsRoot", parse_data),
    ("logsBloom", parse_data), ("difficulty", parse_quantity), ("number", parse_quantity),
    ("gasLimit", parse_quantity), ("gasUsed", parse_quantity), ("timestamp", parse_quantity),
    ("extraData", parse_data), ("mixHash", parse_data), ("nonce", parse_data),
    ("baseFeePerGas", parse_quantity), ("withdrawalsRoot", parse_data),
    ("blobGasUsed", parse_quantity), ("excessBlobGas", parse_quantity),
    ("parentBeaconBlockRoot", parse_data), ("requestsHash", parse_data),
    ("blockAccessListHash", parse_data), ("slotNumber", parse_quantity),
)  # fmt: skip


class NoEvidence(ChainError):
    """The node has no such block or proof, or what it gives does not prove anything."""


def storage_evidence(
    reader: AnchorReader, publisher: str, log_id: bytes, *, block: str = FINALIZED
) -> tuple[ChainEvidence, ChainHead]:
    """Prove the newest head that the contract holds as of a block.

    Args:
        reader: the contract on its chain.
        publisher: whose heads.
        log_id: 32 bytes.
        block: tag, or number in hex. A block that is not final may be taken back, and its
            evidence with it. Nodes keep the state of few old blocks.

    Raises:
        NoEvidence: nothing was anchored as of that block, or the node's proofs do not fit.
        ChainUnreachable, RpcError: no usable answer.
    """
    trust = _trust(reader, publisher, log_id)
    found = _block(reader, block)
    slot = head_slot(trust.publisher, log_id)
    slots = [((slot + n) % 2**256).to_bytes(_WORD_BYTES) for n in range(_SLOTS)]
    asked = [f"0x{key.hex()}" for key in slots]
    answer = reader.rpc.call("eth_getProof", reader.contract, asked, found["number"])
    try:
        paths = [answer["accountProof"], [n for x in answer["storageProof"] for n in x["proof"]]]
        account, storage = ([parse_data(node) for node in path] for path in paths)
        if account and set(storage) <= {_EMPTY_TRIE}:  # nobody has ever anchored there
            raise NoEvidence("the contract holds nothing yet as of this block")
        tries = (
            cut_down(account, [keccak256(trust.contract)]),
            cut_down(storage, [keccak256(key) for key in slots]),
        )
    except (KeyError, TypeError, MalformedBundle):
        raise ChainUnreachable("the node answered something that is not a proof") from None
    return _checked(trust, found, *tries)


def receipt_evidence(reader: AnchorReader, event: AnchoredEvent) -> tuple[ChainEvidence, ChainHead]:
    """Prove that an anchor's event is in its block; full nodes can do so for ever.

    Raises:
        NoEvidence: the block is gone, or its receipts do not fit its header.
        ChainUnreachable, RpcError: no usable answer.
    """
    trust = _trust(reader, event.publisher, event.log_id)
    number = hex(event.block_number)
    found = _block(reader, number)
    receipts = reader.rpc.call("eth_getBlockReceipts", number)
    if not isinstance(receipts, list) or not all(isinstance(x, dict) for x in receipts):
        raise ChainUnreachable("the node answered something that is not a list of receipts")
    index = next(
        (
            n
            for n, x in enumerate(receipts)
            if x.get("transactionHash") == f"0x{event.tx_hash.hex()}"
        ),
        None,
    )
    if index is None:
        raise NoEvidence(
            f"the anchor's transaction is not in block {event.block_number:,} any more"
        )
    keys = [encode(write_number(n)) for n in range(len(receipts))]
    trie = Trie(dict(zip(keys, map(receipt_bytes, receipts), strict=True)))
    if trie.root != parse_data(found.get("receiptsRoot")):
        raise NoEvidence(f"the receipts of block {event.block_number:,} do not fit its header")
    return _checked(trust, found, write_number(index), trie.prove([keys[index]]))


def read_header(block: Mapping[str, Any]) -> Item:
    """Rebuild a header from a node's JSON.

    Raises:
        NoEvidence: the result has another hash than the block: a fork added a field that this
            release does not know, or the node is wrong.
    """
    fields: list[Item] = []
    for name, parse in _HEADER:
        if block.get(name) is None:
            break
        value = parse(block[name])
        fields.append(write_number(value) if isinstance(value, int) else value)
    if keccak256(encode(fields)) != parse_data(block.get("hash"), size_bytes=32):
        raise NoEvidence(
            "the block's header, built from the node's answer, has another hash than the block",
            next_step="use a newer release, which may know the chain's newest fields",
        )
    bloom = [name for name, _ in _HEADER].index("logsBloom")
    if fields[bloom] == NO_BLOOM:
        fields[bloom] = b""  # as evidence has it
    return fields


def receipt_bytes(receipt: Mapping[str, Any]) -> bytes:
    """Rebuild a receipt from a node's JSON: EIP-2718, and before it a plain list."""
    kind = parse_quantity(receipt.get("type", "0x0"))
    events: list[Encodable] = [
        [parse_data(x["address"]), [parse_data(t) for t in x["topics"]], parse_data(x["data"])]
        for x in receipt.get("logs", ())
    ]
    outcome = parse_data(receipt["root"]) if "root" in receipt else b""  # before Byzantium
    if "status" in receipt:
        outcome = write_number(parse_quantity(receipt["status"]))
    gas = write_number(parse_quantity(receipt.get("cumulativeGasUsed")))
    body = encode([outcome, gas, parse_data(receipt.get("logsBloom")), events])
    return (bytes([kind]) if kind else b"") + body


def _trust(reader: AnchorReader, publisher: str, log_id: bytes) -> ChainTrust:
    return chain_trust(AnchorTrust(reader.chain_id, reader.contract, publisher), log_id)


def _checked(
    trust: ChainTrust, block: Mapping[str, Any], account: Item, storage: Item
) -> tuple[ChainEvidence, ChainHead]:
    """Put the evidence together, and judge it as its receiver will."""
    place = trust.chain_id, trust.contract, trust.publisher, trust.log_id
    evidence = ChainEvidence(*place, read_header(block), account, storage)
    try:
        return evidence, verify_evidence(ChainEvidence.parse(bytes(evidence)), trust)
    except ProofError as error:
        raise NoEvidence(
            f"the node's proof does not show an anchor of this log: {error.message}",
            next_step="anchor the log, wait until its block is final, and try again",
        ) from error


def _block(reader: AnchorReader, number_or_tag: str) -> dict[str, Any]:
    block = reader.rpc.call("eth_getBlockByNumber", number_or_tag, False)  # noqa: FBT003 - no bodies
    if not isinstance(block, dict):
        raise NoEvidence(f"the node has no {number_or_tag} block")
    return block
