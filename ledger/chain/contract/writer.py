"""Write to the contract: anchor tree heads, one or many at once, and see that it happened."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from rlhf_audit_trail.ledger.chain.contract import deployment
from rlhf_audit_trail.ledger.chain.contract.abi import (
    AnchoredEvent,
    HeadUpdate,
    decode_event,
    encode_anchor,
    encode_anchor_many,
    event_texts,
    explain_revert,
    record_sequence,
    record_text,
)
from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader
from rlhf_audit_trail.ledger.chain.errors import (
    AnchorRefused,
    BatchTooLarge,
    RpcError,
    TransactionFailed,
)
from rlhf_audit_trail.ledger.chain.node.rpc import RpcClient, parse_quantity
from rlhf_audit_trail.ledger.chain.signing.signer import Signer
from rlhf_audit_trail.ledger.chain.signing.transaction import (
    SignedTransaction,
    await_receipt,
    broadcast,
    chain_nonce,
    prepare,
    sign,
    suggest_fees,
)

__all__ = [
    "TRANSACTION_GAS_MAX",
    "anchor",
    "confirm",
    "confirm_all",
    "deploy",
    "estimate_batch",
    "estimate_one",
    "prepare_anchor",
    "prepare_anchors",
    "raise_refusal",
]

_ON_BLOCK: Final = "latest"  # some nodes take what is pending for granted, and that is replaced

TRANSACTION_GAS_MAX: Final = 2**24
"""No transaction may ask for more gas (EIP-7825): enough for 764 later anchors at 10^6 entries,
or for about 340 first ones."""


def deploy(rpc: RpcClient, signer: Signer, *, chain_id: int) -> str:
    """Put the contract at its address unless it stands there, and return the address.

    Raises:
        WrongChain, WrongContractCode, FactoryMissing, InsufficientFunds, NotConfirmed,
        TransactionFailed: see `deployment.deploy`.
    """
    return deployment.deploy(rpc, signer, chain_id=chain_id).address


def prepare_anchor(
    reader: AnchorReader,
    signer: Signer,
    *,
    log_id: bytes,
    tree_size: int,
    root: bytes,
    proof: Sequence[bytes],
) -> SignedTransaction:
    """Build and sign an anchor without sending it.

    Raises:
        AnchorRefused: the contract would refuse it; says which rule.
        RpcError: the node refuses it for another reason, such as missing funds.
    """
    data = encode_anchor(log_id, tree_size, root, proof)
    try:
        return prepare(reader.rpc, signer, chain_id=reader.chain_id, to=reader.contract, data=data)
    except RpcError as error:
        raise_refusal(error)
        raise


def prepare_anchors(
    reader: AnchorReader, signer: Signer, updates: Sequence[HeadUpdate]
) -> SignedTransaction:
    """Build and sign one transaction for all these tree heads without sending it.

    Raises:
        AnchorRefused: the contract would refuse one of them, and so all; it does not say which.
        BatchTooLarge: together they need more gas than a transaction may use.
        RpcError: the node refuses it for another reason, such as missing funds.
    """
    gas = estimate_batch(reader, signer.address, updates)
    return sign(
        signer,
        chain_id=reader.chain_id,
        nonce=chain_nonce(reader.rpc, signer.address),
        fees=suggest_fees(reader.rpc),
        gas=min(gas + gas // 8, TRANSACTION_GAS_MAX),  # as `prepare`, but never above the cap
        to=reader.contract,
        data=encode_anchor_many(updates),
    )


def estimate_one(reader: AnchorReader, publisher: str, update: HeadUpdate) -> int:
    """Return the gas that `anchor` will use for this tree head.

    Raises:
        AnchorRefused: the contract would refuse it.
        RpcError: the node refuses it for another reason.
    """
    data = encode_anchor(update.log_id, update.tree_size, update.root, update.proof)
    return _estimate(reader, publisher, data)


def estimate_batch(reader: AnchorReader, publisher: str, updates: Sequence[HeadUpdate]) -> int:
    """Return the gas that `anchorMany` will use for these tree heads.

    Raises:
        AnchorRefused, BatchTooLarge, RpcError: see `prepare_anchors`.
    """
    try:
        gas = _estimate(reader, publisher, encode_anchor_many(updates))
    except RpcError as error:
        # nodes that know the cap, and all above a block's limit, find no gas that suffices
        if "exceeds allowance" not in str(error) and "gas limit" not in str(error):
            raise
        gas = TRANSACTION_GAS_MAX + 1
    if gas > TRANSACTION_GAS_MAX:
        raise BatchTooLarge(
            f"{len(updates):,} tree heads need more than the {TRANSACTION_GAS_MAX:,} gas "
            "that one transaction may use",
            next_step="anchor fewer logs at once",
        )
    return gas


def _estimate(reader: AnchorReader, publisher: str, data: bytes) -> int:
    call = {"from": publisher, "to": reader.contract, "data": f"0x{data.hex()}"}
    try:
        return parse_quantity(reader.rpc.call("eth_estimateGas", call, _ON_BLOCK))
    except RpcError as error:
        raise_refusal(error)
        raise


def anchor(
    reader: AnchorReader,
    signer: Signer,
    *,
    log_id: bytes,
    tree_size: int,
    root: bytes,
    proof: Sequence[bytes],
) -> AnchoredEvent:
    """Anchor one tree head and wait until it is mined, with no journal: for tests and tools.

    Raises:
        AnchorRefused: the contract refuses it; nothing was sent.
        NotConfirmed: it was sent, and is not mined in time.
        TransactionFailed: it was mined without effect.
    """
    signed = prepare_anchor(
        reader, signer, log_id=log_id, tree_size=tree_size, root=root, proof=proof
    )
    broadcast(reader.rpc, signed.raw)
    receipt = await_receipt(reader.rpc, signed.tx_hash)
    return confirm(
        receipt,
        contract=reader.contract,
        publisher=signer.address,
        log_id=log_id,
        tree_size=tree_size,
        root=root,
    )


def confirm(
    receipt: dict[str, Any],
    *,
    contract: str,
    publisher: str,
    log_id: bytes,
    tree_size: int,
    root: bytes,
) -> AnchoredEvent:
    """Return the contract's own event of exactly this anchor.

    A call to an address without code succeeds too, so the status alone says nothing.

    Raises:
        TransactionFailed: the transaction failed, or that event is not in the receipt.
    """
    (record,) = _records(receipt, contract, publisher, [(log_id, tree_size, root)])
    event = decode_event(record)
    assert event is not None  # noqa: S101 - its text was compared
    return event


def confirm_all(
    receipt: dict[str, Any],
    *,
    contract: str,
    publisher: str,
    members: Sequence[tuple[bytes, int, bytes]],
) -> tuple[int, ...]:
    """Return the sequence of each of these anchors from the contract's own events; see `confirm`.

    Args:
        receipt: of the transaction.
        contract: address.
        publisher: address.
        members: log id, tree size and root of each.

    Raises:
        TransactionFailed: the transaction failed, or one of the events is not in the receipt.
        ChainUnreachable: an event is malformed.
    """
    return tuple(map(record_sequence, _records(receipt, contract, publisher, members)))


def _records(
    receipt: dict[str, Any],
    contract: str,
    publisher: str,
    members: Iterable[tuple[bytes, int, bytes]],
) -> list[Any]:
    """Return the log record of each of these anchors."""
    if receipt.get("status") != "0x1":
        raise TransactionFailed("the anchor was mined and refused by the contract")
    contract = contract.lower()
    found = {
        record_text(record): record
        for record in receipt.get("logs", ())
        if str(record.get("address", "")).lower() == contract
    }
    try:
        return [found[text] for text in event_texts(publisher, members)]
    except KeyError:
        raise TransactionFailed(
            "the transaction succeeded, and the contract's event is not in its receipt",
            next_step="check that the contract's code stands at the configured address",
        ) from None


def raise_refusal(error: RpcError) -> None:
    """Raise the contract's own refusal if that is what stands behind a node's error."""
    name, numbers = explain_revert(error.data)
    if name:
        raise _refusal(name, numbers) from error


def _refusal(name: str, numbers: tuple[int, ...]) -> AnchorRefused:
    sizes = dict(zip(("anchored", "given"), numbers, strict=False))
    sentences = {
        "StaleTreeSize": "size {given:,} does not exceed the anchored size {anchored:,}",
        "InconsistentTree": "the proof does not show that size {given:,} extends size {anchored:,}",
    }
    detail = sentences.get(name, "").format(**sizes) if len(sizes) == len(numbers) else ""
    return AnchorRefused(
        f"the contract refuses the tree head: {name}" + (f", {detail}" if detail else ""),
        reason=name,
        next_step="compare the local log with the anchored head; never overwrite either",
    )
