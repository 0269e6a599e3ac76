"""Chain evidence that a ledger gives about its own logs: where to ask, and what is fit to show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rlhf_audit_trail.ledger.chain.contract.compiled import load_artifact
from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader
from rlhf_audit_trail.ledger.chain.evidence.making import NoEvidence
from rlhf_audit_trail.ledger.chain.node.agreement import connect
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.proof.evm.evidence import ChainHead
from rlhf_audit_trail.ledger.reading import StoredLog

__all__ = ["own_publisher", "own_reader", "require_own"]


@contextmanager
def own_reader(ledger: Ledger, *, timeout_s: float | None = None) -> Iterator[AnchorReader]:
    """Open the contract of a ledger's settings.

    Args:
        ledger: whose settings name the chain.
        timeout_s: how long a node may take for an answer; as the settings say, if left out.

    Raises:
        NoEvidence: the settings name no chain.
        SettingsError: an address of a node is none.
    """
    chain = ledger.chain
    if not chain.rpc_url or not chain.chain_id:
        raise NoEvidence(
            "no chain is configured", next_step="set rpc_url and chain_id below [chain]"
        )
    with connect(chain, timeout_s=timeout_s) as rpc:
        contract = chain.contract or load_artifact().address
        yield AnchorReader(rpc, chain_id=chain.chain_id, contract=contract)


def own_publisher(ledger: Ledger) -> str:
    """Return who anchors: as the settings say, or as the registry log last said.

    Raises:
        NoEvidence: nobody did yet.
    """
    if ledger.chain.publisher:
        return ledger.chain.publisher
    known = [entry.event for entry in ledger.registry.entries(kind="chain.registered")]
    if not known:
        raise NoEvidence("nothing was anchored yet", next_step="run: rlhf-audit anchor")
    return str(known[-1]["publisher"])


def require_own(log: StoredLog, head: ChainHead, last_index: int) -> None:
    """Refuse evidence that would show nothing, or speak against us.

    Raises:
        NoEvidence: its head does not cover the entry, or is not one of this store.
    """
    if head.tree_size <= last_index or head.tree_size > log.size:
        raise NoEvidence(
            f"the newest anchor there is of size {head.tree_size:,}, before these entries",
            next_step="anchor the log, or wait until its anchor is final",
        )
    signed = log.published(head.tree_size)
    if signed is None or signed.head.root != head.root:
        raise NoEvidence(
            f"the chain holds another tree head of size {head.tree_size:,} than this store",
            next_step="run rlhf-audit status, and rlhf-audit fsck",
        )
    newest = log.published()
    if newest is not None and newest.signed_by != signed.signed_by:
        raise NoEvidence(  # and a bundle has one set of signers
            "the newest final anchor is from before the log's keys changed",
            next_step="anchor the log, or wait until its anchor is final",
        )
