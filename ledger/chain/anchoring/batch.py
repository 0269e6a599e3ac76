"""What to anchor now: all heads read at one block, satisfied logs left out, gas kept below the cap.

One transaction takes many logs (`anchorMany`), and all of them or none: what contradicts the
chain, or what the contract refuses, is found out before and left out, so that it stops no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from rlhf_audit_trail.ledger.chain.anchoring.records import AnchorableLog, ComparableLog
from rlhf_audit_trail.ledger.chain.anchoring.view import BlockView, read_block
from rlhf_audit_trail.ledger.chain.contract.abi import (
    Head,
    HeadUpdate,
    decode_head,
    encode_anchor,
    encode_anchor_many,
    encode_head_call,
)
from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader
from rlhf_audit_trail.ledger.chain.contract.writer import (
    TRANSACTION_GAS_MAX,
    estimate_batch,
    estimate_one,
    raise_refusal,
)
from rlhf_audit_trail.ledger.chain.errors import (
    AnchorRefused,
    BatchTooLarge,
    Forked,
    RolledBack,
    RpcError,
)
from rlhf_audit_trail.ledger.contradictions import (
    WAY_OUT_OF_FORK,
    WAY_OUT_OF_ROLLBACK,
    WAY_OUT_OF_THEFT,
)
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = [
    "Batch",
    "Wishes",
    "check_against_chain",
    "counted",
    "counts_alike",
    "estimated",
    "grown_since",
    "latest_block",
    "read_wishes",
    "refused_alone",
]

_WITHOUT_BODIES: Final = False

# Measured: 49,600 gas for a first anchor beside the transaction's own 21,000, 29,000 for a later
# one in a batch of 50 at 10^6 entries, of which about 1,000 for each node of the proof.
_BASE_GAS: Final = 21_000
_FIRST_GAS: Final = 52_000
_NEXT_GAS: Final = 16_000
_NODE_GAS: Final = 1_200
_BATCH_GAS: Final = TRANSACTION_GAS_MAX * 8 // 9  # since the limit is an eighth more


@dataclass
class Wishes:
    """Which heads are to be anchored, and which logs may not be.

    Attributes:
        updates: the heads that the chain lacks, with proofs from the anchored ones.
        heads: what the chain holds, by log id.
        findings: what contradicts the chain, or is refused, by log id.
    """

    updates: list[HeadUpdate] = field(default_factory=list)
    heads: dict[bytes, Head] = field(default_factory=dict)
    findings: dict[bytes, AuditTrailError] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """One transaction's worth of heads.

    Attributes:
        updates: one or more.
        data: the call.
        gas: what it will use, by the node's estimate.
    """

    updates: tuple[HeadUpdate, ...]
    data: bytes
    gas: int

    @property
    def gas_limit(self) -> int:
        """What it may use: the block's state may differ a little from the estimate's."""
        return min(self.gas + self.gas // 8, TRANSACTION_GAS_MAX)


def latest_block(reader: AnchorReader) -> BlockView:
    """Return the newest block."""
    return read_block(reader.rpc.call("eth_getBlockByNumber", "latest", _WITHOUT_BODIES))


def read_wishes(
    reader: AnchorReader, publisher: str, logs: Iterable[AnchorableLog], block: BlockView
) -> Wishes:
    """Compare logs with what the chain holds of them at one block.

    Raises:
        ChainUnreachable, RpcError: no answer, or the node's refusal.
    """
    found, asked = Wishes(), list({log.log_id: log for log in logs}.values())
    calls = [
        ({"to": reader.contract, "data": f"0x{encode_head_call(publisher, log.log_id).hex()}"},
         hex(block.number))
        for log in asked
    ]  # fmt: skip
    for log, answer in zip(asked, reader.rpc.call_many("eth_call", calls), strict=True):
        head = found.heads[log.log_id] = decode_head(answer)
        try:
            update = _update(log, head)
        except (Forked, RolledBack) as finding:
            found.findings[log.log_id] = finding
            continue
        if update is not None:
            found.updates.append(update)
    return found


def _update(log: AnchorableLog, head: Head) -> HeadUpdate | None:
    check_against_chain(log, head)
    wanted = log.latest_head()
    if wanted is None or wanted[0] <= head.tree_size:
        return None
    size, root = wanted
    proof = tuple(log.consistency_proof(head.tree_size, size)) if head.tree_size else ()
    return HeadUpdate(log.log_id, size, root, proof)


def check_against_chain(log: ComparableLog, head: Head) -> None:
    """Make sure that the local log extends the anchored tree head.

    Raises:
        RolledBack: the log is shorter.
        Forked: it has another root at the anchored size.
    """
    if head.tree_size == 0:
        return
    if log.size < head.tree_size:
        raise RolledBack(
            f"{log.origin} has {log.size:,} entries, and {head.tree_size:,} are anchored",
            next_step=WAY_OUT_OF_ROLLBACK + WAY_OUT_OF_THEFT,
        )
    if log.root_at(head.tree_size) != head.root:
        raise Forked(
            f"{log.origin} has another root at the anchored size {head.tree_size:,}",
            next_step=WAY_OUT_OF_FORK + WAY_OUT_OF_THEFT,
        )


def grown_since(
    logs: Iterable[AnchorableLog], known: Mapping[bytes, int]
) -> tuple[list[HeadUpdate], list[AnchorableLog]]:
    """Make updates from the sizes that the chain was last seen to hold, without reading it.

    The contract itself refuses what does not extend the very head that it holds; where it
    refuses one of these, the heads have to be read.

    Returns:
        The updates, and the logs for which there is none.
    """
    updates, others = [], []
    for log in logs:
        size, wanted = known.get(log.log_id, 0), log.latest_head()
        if 0 < size < log.size and wanted is not None and wanted[0] > size:
            proof = tuple(log.consistency_proof(size, wanted[0]))
            updates.append(HeadUpdate(log.log_id, *wanted, proof))
        else:
            others.append(log)
    return updates, others


def counted(reader: AnchorReader, publisher: str, updates: Sequence[HeadUpdate]) -> Batch | None:
    """Return the first of these heads, as many as one transaction takes, with our count of gas.

    A node estimates by trying one limit after another, which takes it half a second for 300
    logs. Here the whole is tried once, with our own limit. Only for a chain of which
    `counts_alike` holds.

    Returns:
        None if our count does not suffice, or the node refuses for another reason.

    Raises:
        AnchorRefused: the contract would refuse one of them; it does not say which.
    """
    part = _fitting(updates)
    batch = Batch(tuple(part), _encode(part), _count(part))
    call = {
        "from": publisher,
        "to": reader.contract,
        "data": f"0x{batch.data.hex()}",
        "gas": hex(batch.gas_limit),
    }
    try:
        reader.rpc.call("eth_call", call, "latest")
    except RpcError as error:
        raise_refusal(error)
        return None
    return batch


def counts_alike(reader: AnchorReader, publisher: str, update: HeadUpdate) -> bool:
    """Whether the chain counts gas as Ethereum does: some charge for data besides.

    Raises:
        AnchorRefused: the contract would refuse this head.
    """
    try:
        return estimate_one(reader, publisher, update) <= _count([update])
    except RpcError:
        return False


def estimated(reader: AnchorReader, publisher: str, updates: Sequence[HeadUpdate]) -> Batch:
    """Return the first of these heads, as many as one transaction takes, with the node's estimate.

    Raises:
        AnchorRefused: the contract would refuse one of them; it does not say which.
        RpcError: the node refuses it for another reason, such as missing funds.
    """
    part = _fitting(updates)
    while True:
        try:
            gas = _estimate(reader, publisher, part)
        except BatchTooLarge:
            if len(part) == 1:
                raise
            part = part[: len(part) // 2]
            continue
        return Batch(tuple(part), _encode(part), gas)


def _count(part: Sequence[HeadUpdate]) -> int:
    return _BASE_GAS + sum(map(_gas, part))


def _fitting(updates: Sequence[HeadUpdate]) -> Sequence[HeadUpdate]:
    total = _BASE_GAS
    for number, update in enumerate(updates):
        total += _gas(update)
        if total > _BATCH_GAS and number:
            return updates[:number]
    return updates


def _gas(update: HeadUpdate) -> int:
    """Count the gas of one head in a batch, a little above what was measured."""
    return _NEXT_GAS + _NODE_GAS * len(update.proof) if update.proof else _FIRST_GAS


def _estimate(reader: AnchorReader, publisher: str, part: Sequence[HeadUpdate]) -> int:
    if len(part) == 1:
        return estimate_one(reader, publisher, part[0])
    return estimate_batch(reader, publisher, part)


def _encode(part: Sequence[HeadUpdate]) -> bytes:
    if len(part) == 1:  # the plain call costs less
        only = part[0]
        return encode_anchor(only.log_id, only.tree_size, only.root, only.proof)
    return encode_anchor_many(part)


def refused_alone(
    reader: AnchorReader, publisher: str, updates: Sequence[HeadUpdate]
) -> dict[bytes, AnchorRefused]:
    """Try each head by itself, and return those that the contract refuses."""
    found = {}
    for update in updates:
        try:
            estimate_one(reader, publisher, update)
        except AnchorRefused as error:
            found[update.log_id] = error
    return found
