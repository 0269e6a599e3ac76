"""Transactions of our own: built, signed, broadcast and awaited over plain JSON-RPC.

A signed transaction is bytes with a hash before anyone sees it. That is what lets the anchorer
write it down first and send it again after a crash.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from rlhf_audit_trail.ledger.chain.errors import NotConfirmed, RpcError
from rlhf_audit_trail.ledger.chain.node.rpc import RpcClient, parse_quantity
from rlhf_audit_trail.ledger.chain.signing.signer import Signature, Signer

__all__ = [
    "DEFAULT_TIP_WEI",
    "Fees",
    "SignedTransaction",
    "await_receipt",
    "broadcast",
    "broadcast_many",
    "chain_nonce",
    "keccak256",
    "prepare",
    "rlp_encode",
    "sign",
    "suggest_fees",
    "suggest_tip",
]

RECEIPT_TIMEOUT_S: Final = 30.0
_FIRST_PAUSE_S: Final = 0.002  # a development chain has mined by then
_LONGEST_PAUSE_S: Final = 1.0
DEFAULT_TIP_WEI: Final = 1_000_000_000
_WITHOUT_BODIES: Final = False
_RLP_SHORT: Final = 55  # bytes

# Answers to a broadcast that say nothing against it. What has happened is on the chain.
_ALREADY_THERE: Final = ("already known", "already imported", "nonce too low")

RlpItem: TypeAlias = "bytes | int | Sequence[RlpItem]"


@dataclass(frozen=True)
class Fees:
    """What a transaction may cost per unit of gas, in wei (EIP-1559)."""

    max_fee_wei: int
    tip_wei: int


@dataclass(frozen=True)
class SignedTransaction:
    """A transaction ready to be sent, and sent again."""

    nonce: int
    raw: bytes
    tx_hash: bytes


def keccak256(data: bytes) -> bytes:
    """Return the Keccak-256 of Ethereum, whose padding differs from that of SHA3-256."""
    from eth_utils.crypto import keccak  # noqa: PLC0415 (not needed to read a chain)

    return bytes(keccak(data))


def rlp_encode(item: RlpItem) -> bytes:
    """Encode bytes, numbers without leading zeros, and sequences of them; Yellow Paper B."""
    if isinstance(item, int):
        item = item.to_bytes((item.bit_length() + 7) // 8)
    if isinstance(item, bytes):
        if len(item) == 1 and item < b"\x80":  # stands for itself
            return item
        return _rlp_prefix(0x80, len(item)) + item
    body = b"".join(map(rlp_encode, item))
    return _rlp_prefix(0xC0, len(body)) + body


def _rlp_prefix(base: int, length: int) -> bytes:
    if length <= _RLP_SHORT:  # longer ones carry the length of their length
        return bytes([base + length])
    digits = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes([base + _RLP_SHORT + len(digits)]) + digits


def chain_nonce(rpc: RpcClient, address: str) -> int:
    """Return the account's next nonce by the chain; counting locally drifts after any fault."""
    return parse_quantity(rpc.call("eth_getTransactionCount", address, "latest"))


def suggest_fees(rpc: RpcClient) -> Fees:
    """Offer twice the present base fee, room for six full blocks of rise, and the usual tip."""
    block = rpc.call("eth_getBlockByNumber", "latest", _WITHOUT_BODIES)
    base, tip = parse_quantity(block.get("baseFeePerGas", "0x0")), suggest_tip(rpc)
    return Fees(max_fee_wei=2 * base + tip, tip_wei=tip)


def suggest_tip(rpc: RpcClient) -> int:
    """Return the usual tip per unit of gas, in wei."""
    try:
        return parse_quantity(rpc.call("eth_maxPriorityFeePerGas"))
    except RpcError:  # not every node offers the method
        return DEFAULT_TIP_WEI


def prepare(
    rpc: RpcClient, signer: Signer, *, chain_id: int, to: str, data: bytes
) -> SignedTransaction:
    """Build and sign a call with the chain's nonce, the present fees and an estimate of gas.

    Raises:
        RpcError: the call would fail; `data` holds the contract's error.
        ChainUnreachable: no usable answer.
    """
    call = {"from": signer.address, "to": to, "data": f"0x{data.hex()}"}
    gas = parse_quantity(rpc.call("eth_estimateGas", call))
    return sign(
        signer,
        chain_id=chain_id,
        nonce=chain_nonce(rpc, signer.address),
        fees=suggest_fees(rpc),
        gas=gas + gas // 8,  # the block's state may differ a little from the estimate's
        to=to,
        data=data,
    )


def sign(
    signer: Signer, *, chain_id: int, nonce: int, fees: Fees, gas: int, to: str, data: bytes
) -> SignedTransaction:
    """Sign a transaction of type 2 that sends no ether; EIP-1559, EIP-2718."""
    fields: list[RlpItem] = [
        chain_id, nonce, fees.tip_wei, fees.max_fee_wei, gas, bytes.fromhex(to[2:]), 0, data, [],
    ]  # fmt: skip
    signature: Signature = signer.sign_digest(keccak256(b"\x02" + rlp_encode(fields)))
    raw = b"\x02" + rlp_encode([*fields, signature.y_parity, signature.r, signature.s])
    return SignedTransaction(nonce, raw, keccak256(raw))


def broadcast_many(rpc: RpcClient, raws: Sequence[bytes]) -> list[RpcError | None]:
    """Hand signed transactions to the node, several in one exchange; see `broadcast`.

    Returns:
        For each the node's refusal, or None.

    Raises:
        ChainUnreachable: no usable answer; some may have arrived all the same.
    """
    calls = [("eth_sendRawTransaction", (f"0x{raw.hex()}",)) for raw in raws]
    return [
        answer if isinstance(answer, RpcError) and not _is_there(answer) else None
        for answer in rpc.call_together(calls)
    ]


def broadcast(rpc: RpcClient, raw: bytes) -> None:
    """Hand a signed transaction to the node; once more does no harm.

    Raises:
        RpcError: the node refuses it for a reason other than having seen it.
        ChainUnreachable: no usable answer; it may have arrived all the same.
    """
    try:
        rpc.call("eth_sendRawTransaction", f"0x{raw.hex()}")
    except RpcError as error:
        if not _is_there(error):
            raise


def _is_there(error: RpcError) -> bool:
    return any(words in str(error).lower() for words in _ALREADY_THERE)


def find_receipt(rpc: RpcClient, tx_hash: bytes) -> dict[str, Any] | None:
    """Return the receipt if the transaction is mined."""
    receipt = rpc.call("eth_getTransactionReceipt", f"0x{tx_hash.hex()}")
    return receipt if isinstance(receipt, dict) and receipt.get("blockHash") else None


def await_receipt(
    rpc: RpcClient, tx_hash: bytes, *, timeout_s: float = RECEIPT_TIMEOUT_S
) -> dict[str, Any]:
    """Wait until the transaction is mined, with growing pauses.

    Raises:
        NotConfirmed: it is not mined within the time.
    """
    deadline, pause = time.monotonic() + timeout_s, _FIRST_PAUSE_S
    while (receipt := find_receipt(rpc, tx_hash)) is None:
        if time.monotonic() > deadline:
            raise NotConfirmed(
                f"transaction 0x{tx_hash.hex()} is not mined after {timeout_s:g} s",
                next_step="leave it; the next run looks at it again",
            )
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)
    return receipt
