"""Rows of anchors as the anchorer leaves them, each with a transaction that is really signed."""

from __future__ import annotations

from rlhf_audit_trail.ledger.chain.contract.abi import HeadUpdate, encode_anchor_many
from rlhf_audit_trail.ledger.chain.signing.signer import KeySigner
from rlhf_audit_trail.ledger.chain.signing.transaction import Fees, sign
from rlhf_audit_trail.ledger.reading import StoredLog

CONTRACT = "0x" + "c0" * 20
_SIGNER = KeySigner(b"\x11" * 32)


def anchor_rows(*logs: StoredLog, nonce: int, state: str = "mined") -> list[dict[str, object]]:
    """Return the rows of one transaction that anchors the newest tree heads of logs."""
    heads = [log.published().head for log in logs]
    updates = [
        HeadUpdate(log.log_id, head.size, head.root, (b"\x05" * 32,) * 3)
        for log, head in zip(logs, heads, strict=True)
    ]
    fees = Fees(max_fee_wei=2_000_000_000, tip_wei=1_000_000_000)
    signed = sign(
        _SIGNER, chain_id=31337, nonce=nonce, fees=fees, gas=90_000, to=CONTRACT,
        data=encode_anchor_many(updates),
    )  # fmt: skip
    row = {"chain_id": 31337, "contract": CONTRACT, "publisher": _SIGNER.address, "nonce": nonce}
    row |= {"tx_hash": signed.tx_hash, "max_fee_wei": fees.max_fee_wei, "tip_wei": fees.tip_wei}
    row |= {"state": state, "reason": "", "created_at": "2026-11-20T10:15:00.123456Z"}
    if state != "pending":
        row |= {"sequence": 1, "block_number": 7, "block_hash": b"\xbb" * 32}
        row |= {"block_timestamp": 1_800_000_000}
    return [
        row | {"log_number": log.number, "tree_size": head.size, "root": head.root,
               "raw_tx": signed.raw if number == 0 else b""}
        for number, (log, head) in enumerate(zip(logs, heads, strict=True))
    ]  # fmt: skip
