"""Anchors as the store has them, against signed tree heads and the transactions they went in.

A row is a copy of what its transaction says. The transaction is signed, so everything in it
is compared: chain, contract, publisher, nonce, fees, logs, sizes and roots. Where it stands
on the chain only the chain can confirm; here is checked that the row says so or does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from sqlalchemy import Connection, func, select

from rlhf_audit_trail.ledger.findings import Finding, Summary
from rlhf_audit_trail.ledger.fsck.columns import raw, table, text_bytes, word
from rlhf_audit_trail.ledger.fsck.secp256k1 import is_spelled
from rlhf_audit_trail.ledger.fsck.transactions import MAX_TX_BYTES, AnchorCall, read_transaction
from rlhf_audit_trail.ledger.proof.errors import MalformedBundle
from rlhf_audit_trail.ledger.proof.evm.keccak import keccak256
from rlhf_audit_trail.ledger.proof.merkle import HASH_BYTES
from rlhf_audit_trail.ledger.store import models

__all__ = ["anchor_findings"]

_HEADS = table(models.TreeHeadRow)
_ANCHORS = table(models.AnchorRow)
_PAGE_ROWS: Final = 256
_IN_BLOCK: Final = frozenset({"mined", "safe", "finalized"})
_ELSEWHERE: Final = frozenset({"pending", "dropped"})
_PLACE: Final = ("sequence", "block_number", "block_timestamp")
_FEES: Final = {"max_fee_wei": "max_fee_wei", "tip_wei": "tip_wei"}


def anchor_findings(
    connection: Connection, log_ids: Mapping[int, bytes], summary: Summary
) -> Iterator[Finding]:
    """Yield every anchor that is not of a signed tree head, or not what its transaction says.

    Args:
        connection: to the ledger's database.
        log_ids: log number to the id under which the contract knows that log.
        summary: counted into.
    """
    last: AnchorCall | MalformedBundle | None = None
    last_hash: bytes | None = None
    for row in connection.execute(_query(connection)).yield_per(_PAGE_ROWS):
        summary.anchors += 1
        tx_hash, where = raw(row.tx_hash), f"row {row.id}"
        # the rows of one transaction follow one another, the one with its bytes first
        if tx_hash != last_hash or raw(row.raw_tx):
            last, last_hash = _call_of(tx_hash, raw(row.raw_tx)), tx_hash
        details = (*_against_head(row), *_against_call(row, last, log_ids), *_place_of(row))
        yield from (Finding("", "anchor", where, detail) for detail in details)


def _query(connection: Connection) -> Any:
    anchor, head = _ANCHORS.c, _HEADS.c
    texts = (anchor.contract, anchor.publisher, anchor.state)
    plain = (anchor.id, anchor.log_number, anchor.tree_size, anchor.chain_id, anchor.nonce)
    return (
        select(
            *plain,
            *(text_bytes(connection, column).label(column.name) for column in texts),
            *(anchor[name] for name in (*_FEES, *_PLACE)),
            func.substr(anchor.root, 1).label("root"),
            func.substr(anchor.tx_hash, 1, HASH_BYTES + 1).label("tx_hash"),
            func.substr(anchor.raw_tx, 1, MAX_TX_BYTES + 1).label("raw_tx"),
            func.substr(anchor.block_hash, 1, HASH_BYTES + 1).label("block_hash"),
            func.substr(head.root, 1).label("signed_root"),
        )
        .outerjoin(
            _HEADS,
            (head.log_number == anchor.log_number) & (head.tree_size == anchor.tree_size),
        )
        .order_by(anchor.tx_hash, anchor.id)
    )


def _call_of(tx_hash: bytes | None, data: bytes | None) -> AnchorCall | MalformedBundle:
    """Read a transaction; what is wrong with it is said of each of its rows."""
    if not data:
        return MalformedBundle("raw_tx: no row has the bytes of its transaction")
    if len(data) > MAX_TX_BYTES or keccak256(data) != tx_hash:
        return MalformedBundle("raw_tx: its hash is not the one in tx_hash")
    try:
        return read_transaction(data)
    except MalformedBundle as error:
        return MalformedBundle(f"raw_tx: {error.message}")


def _against_head(row: Any) -> Iterator[str]:
    if row.signed_root is None:
        yield f"no tree head of size {row.tree_size!r:.40} was signed in log {row.log_number!r:.40}"
    elif raw(row.root) != raw(row.signed_root):
        yield f"its root is not the one signed at size {row.tree_size}"


def _against_call(
    row: Any, call: AnchorCall | MalformedBundle | None, log_ids: Mapping[int, bytes]
) -> Iterator[str]:
    if not isinstance(call, AnchorCall):
        yield call.message if call else "raw_tx: there is none"
        return
    for name in ("chain_id", "nonce"):
        if getattr(row, name) != getattr(call, name):
            yield _differs(name, getattr(row, name), getattr(call, name))
    for name in _FEES:
        said = getattr(row, name)
        if said is not None and said != getattr(call, name):
            yield _differs(name, said, getattr(call, name))
    for name in ("contract", "publisher"):
        said = word(getattr(row, name)) or ""
        if not is_spelled(said) or said.lower() != f"0x{getattr(call, name).hex()}":
            yield _differs(name, said, f"0x{getattr(call, name).hex()}")
    mine = [x for x in call.members if x.log_id == log_ids.get(row.log_number)]
    if not mine:
        yield f"log_number: the transaction anchors nothing of log {row.log_number!r:.40}"
    elif (row.tree_size, raw(row.root)) not in {(x.tree_size, x.root) for x in mine}:
        yield "tree_size or root: the transaction anchors another tree head of this log"


def _place_of(row: Any) -> Iterator[str]:
    """Compare an anchor's state with whether the row says where it stands."""
    state, block = word(row.state), raw(row.block_hash)
    if state not in _IN_BLOCK | _ELSEWHERE:
        yield f"state: {state!r:.40} is none"
    elif state in _IN_BLOCK:
        wrong = [x for x in _PLACE if type(getattr(row, x)) is not int or getattr(row, x) < 0]
        wrong += ["block_hash"] if block is None or len(block) != HASH_BYTES else []
        if wrong:
            yield f"it is {state}, and {', '.join(wrong)} cannot be right"
    elif row.block_number is not None or row.block_hash is not None:
        yield f"it is {state}, and yet names a block"


def _differs(name: str, said: object, signed: object) -> str:
    return f"{name}: the row says {said!r:.80}, its signed transaction {signed!r:.80}"
