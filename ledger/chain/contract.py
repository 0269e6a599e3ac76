"""Write to the contract: deploy it, anchor a tree head, and make sure that it happened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_audit_trail.ledger.chain.abi import (
    AnchoredEvent,
    decode_event,
    encode_anchor,
    explain_revert,
)
from rlhf_audit_trail.ledger.chain.compiled import CREATE2_FACTORY, CREATE2_SALT, load_artifact
from rlhf_audit_trail.ledger.chain.errors import (
    AnchorRefused,
    NoContractCode,
    RpcError,
    TransactionFailed,
)
from rlhf_audit_trail.ledger.chain.reader import AnchorReader
from rlhf_audit_trail.ledger.chain.rpc import RpcClient, parse_data
from rlhf_audit_trail.ledger.chain.signer import Signer
from rlhf_audit_trail.ledger.chain.transaction import (
    SignedTransaction,
    await_receipt,
    broadcast,
    prepare,
)

__all__ = ["anchor", "confirm", "deploy", "prepare_anchor"]


def deploy(rpc: RpcClient, signer: Signer, *, chain_id: int) -> str:
    """Put the contract at its address on this chain, unless it stands there; return the address.

    The address follows from the code alone (CREATE2), so anyone deploys it to the same place.

    Raises:
        WrongChain: the node serves another chain.
        NoContractCode: the chain lacks the deployment factory.
        TransactionFailed: the deployment failed.
    """
    artifact = load_artifact()
    reader = AnchorReader(rpc, chain_id=chain_id, contract=artifact.address)
    try:
        reader.check()  # a second deployment would fail, and cost nearly all its gas
    except NoContractCode:
        if not parse_data(rpc.call("eth_getCode", CREATE2_FACTORY, "latest")):
            raise NoContractCode(
                f"chain {chain_id} has no deployment factory at {CREATE2_FACTORY}",
                next_step="deploy that factory first; its transaction is the same everywhere",
            ) from None
        data = CREATE2_SALT + artifact.creation
        signed = prepare(rpc, signer, chain_id=chain_id, to=CREATE2_FACTORY, data=data)
        broadcast(rpc, signed.raw)
        if await_receipt(rpc, signed.tx_hash).get("status") != "0x1":
            raise TransactionFailed("the deployment of TreeHeadAnchor failed") from None
        reader.check()
    return artifact.address


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
        name, numbers = explain_revert(error.data)
        if not name:
            raise
        raise _refusal(name, numbers) from error


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
    if receipt.get("status") != "0x1":
        raise TransactionFailed("the anchor was mined and refused by the contract")
    for record in receipt.get("logs", ()):
        if str(record.get("address", "")).lower() != contract.lower():
            continue
        event = decode_event(record)
        if event is not None and (
            (event.publisher, event.log_id, event.tree_size, event.root)
            == (publisher.lower(), log_id, tree_size, root)
        ):
            return event
    raise TransactionFailed(
        "the transaction succeeded, and the contract's event is not in its receipt",
        next_step="check that the contract's code stands at the configured address",
    )


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
