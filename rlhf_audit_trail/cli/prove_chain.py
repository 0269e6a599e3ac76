"""Chain evidence for `rlhf-audit prove`: which anchor to show, and what to say without one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_audit_trail.cli.prove_command import AUTO, RECEIPT, Shown
from rlhf_audit_trail.ledger.chain.contract.compiled import load_artifact
from rlhf_audit_trail.ledger.chain.errors import ChainError, RpcError
from rlhf_audit_trail.ledger.chain.evidence.making import (
    FINALIZED,
    NoEvidence,
    receipt_evidence,
    storage_evidence,
)
from rlhf_audit_trail.ledger.chain.evidence.own_evidence import (
    own_publisher,
    own_reader,
    require_own,
)
from rlhf_audit_trail.ledger.chain.node.confirming import newest_final

if TYPE_CHECKING:
    from rlhf_audit_trail.ledger.chain.contract.abi import AnchoredEvent
    from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader
    from rlhf_audit_trail.ledger.log import Ledger, Log
    from rlhf_audit_trail.ledger.proof.evm.evidence import ChainEvidence, ChainHead

__all__ = ["show_anchor"]


def show_anchor(ledger: Ledger, log: Log, last_index: int, *, kind: str, block: str) -> Shown:
    """Return evidence of an anchor that covers an entry.

    Args:
        ledger: whose settings name the chain.
        log: the entry's log.
        last_index: the entry.
        kind: `auto` takes what the node can give, and does without if it can give nothing;
            `receipt` shows the first anchor, and needs no state of old blocks; or `storage`.
        block: tag of the block to take it at.

    Raises:
        ChainError: what was asked for by name cannot be made.
    """
    try:
        with own_reader(ledger) as reader:
            evidence, head = _make(reader, own_publisher(ledger), log, last_index, kind, block)
            require_own(log, head, last_index)
    except ChainError as error:
        if kind != AUTO:
            raise
        return Shown(sentence=f"no chain evidence: {error.message}")
    where = f"{evidence.chain_id}:{head.block.number}:0x{head.block.hash.hex()}"
    place = f"--publisher 0x{evidence.publisher.hex()} --trusted-block-hash {where}"
    if evidence.contract.hex() != load_artifact().address[2:]:
        place = f"--contract 0x{evidence.contract.hex()} {place}"
    sentence = f"against the chain, offline, with the block's hash from elsewhere: {place}"
    return Shown(bytes(evidence), head.tree_size, sentence)


def _make(
    reader: AnchorReader, publisher: str, log: Log, last_index: int, kind: str, block: str
) -> tuple[ChainEvidence, ChainHead]:
    if kind != RECEIPT:
        try:
            return storage_evidence(reader, publisher, log.log_id, block=block)
        except RpcError:  # some nodes give no proofs, or only of the newest blocks
            if kind != AUTO:
                raise
    newest = newest_final(reader.rpc, reader.chain_id) if block == FINALIZED else None
    return receipt_evidence(reader, _first_covering(reader, publisher, log, last_index, newest))


def _first_covering(
    reader: AnchorReader, publisher: str, log: Log, last_index: int, newest_block: int | None
) -> AnchoredEvent:
    """Return the first anchor that covers the entry: it bounds its time best."""
    for event in reader.events(publisher, log.log_id):
        if newest_block is not None and event.block_number > newest_block:
            break
        if event.tree_size > last_index and log.published(event.tree_size):
            return event
    raise NoEvidence(
        "no final anchor covers these entries yet",
        next_step="anchor the log, or wait until its anchor is final",
    )
