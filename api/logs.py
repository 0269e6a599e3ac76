"""Logs, their entries and their anchors, for people and programs that page through."""

# ruff: noqa: FAST003 - the dependency `LogOfPath` reads `run`; ruff cannot see into another file

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from rlhf_audit_trail.api.asking import (
    PAGE_DEFAULT,
    PAGE_MAX,
    LeafIndex,
    LedgerOfApp,
    LogOfPath,
    covering,
)
from rlhf_audit_trail.api.models import (
    Anchor,
    AnchorPage,
    Entry,
    EntryPage,
    LogItem,
    LogList,
    TreeHead,
)
from rlhf_audit_trail.api.problems import describe
from rlhf_audit_trail.ledger.log import Log
from rlhf_audit_trail.ledger.proof.bundle import MAX_INDEX
from rlhf_audit_trail.ledger.proof.merkle import leaf_hash
from rlhf_audit_trail.ledger.proof.note import encode_base64
from rlhf_audit_trail.ledger.proof.tree_head import SignedTreeHead
from rlhf_audit_trail.ledger.reading import AnchorView, NotPublished, StoredEntry

__all__ = ["router", "tree_head"]

router = APIRouter(prefix="/api/v1/logs", tags=["logs"])

Limit = Annotated[int, Query(ge=1, le=PAGE_MAX, description="Items on one page.")]
After = Annotated[
    int | None,
    Query(ge=0, le=MAX_INDEX, description="Begin after this one; from the previous page."),
]


def tree_head(signed: SignedTreeHead) -> TreeHead:
    """Show a signed tree head."""
    head = signed.head
    return TreeHead(size=head.size, root=head.root.hex(), note=str(signed.note))


@router.get("", summary="All logs")
def list_logs(ledger: LedgerOfApp) -> LogList:
    """Return the registry log and every run's log."""
    return LogList(logs=[_item(ledger.find(run)) for run in ("registry", *ledger.runs())])


@router.get("/{run}", summary="One log", responses=describe(404))
def show_log(log: LogOfPath) -> LogItem:
    """Return origin, keys, size, newest signed tree head and anchor lag."""
    return _item(log)


@router.get("/{run}/entries", summary="Entries, page by page", responses=describe(404, 410))
def list_entries(log: LogOfPath, after: After = None, limit: Limit = PAGE_DEFAULT) -> EntryPage:
    """Return entries that the newest signed tree head covers."""
    signed = log.published()
    size = signed.head.size if signed else 0
    start = 0 if after is None else after + 1
    found = list(log.entries(start, min(size, start + limit)))
    more = bool(found) and found[-1].leaf_index + 1 < size
    return EntryPage(
        origin=log.origin,
        tree_size=size,
        entries=[_entry(item) for item in found],
        next_after=found[-1].leaf_index if more else None,
    )


@router.get(
    "/{run}/entries/{index}", summary="One entry", responses=describe(404, NotPublished, 410)
)
def show_entry(log: LogOfPath, index: LeafIndex) -> Entry:
    """Return an entry's exact bytes and what they say; 409 while no signed head covers it."""
    covering(log, index)
    return _entry(log.read(index))


@router.get("/{run}/anchors", summary="Anchors, page by page", responses=describe(404))
def list_anchors(log: LogOfPath, after: After = None, limit: Limit = PAGE_DEFAULT) -> AnchorPage:
    """Return anchors with a tree size above `after`."""
    found = [item for item in log.anchors() if after is None or item.tree_size > after]
    page = found[:limit]
    rest = found[limit:]
    while rest and rest[0].tree_size == page[-1].tree_size:  # one size may be anchored twice
        page.append(rest.pop(0))
    return AnchorPage(
        origin=log.origin,
        anchors=[_anchor(item) for item in page],
        next_after=page[-1].tree_size if rest else None,
    )


def _item(log: Log) -> LogItem:
    signed, size = log.published(), log.size
    anchored = max(log.anchored_sizes(), default=None)
    return LogItem(
        run=log.run_id,
        origin=log.origin,
        path="/" + log.origin.split("/", 1)[1],
        log_id=log.log_id.hex(),
        vkeys=[str(key) for key in log.verifier_keys],
        size=size,
        tree_head=tree_head(signed) if signed else None,
        anchored_size=anchored,
        anchor_lag=size - (anchored or 0),
    )


def _entry(item: StoredEntry) -> Entry:
    return Entry(
        index=item.leaf_index,
        entry=encode_base64(item.data),
        leaf_hash=leaf_hash(item.data).hex(),
        event=item.event,
    )


def _anchor(item: AnchorView) -> Anchor:
    return Anchor(
        tree_size=item.tree_size,
        root=item.root.hex(),
        state=item.state,
        chain_id=item.chain_id,
        contract=item.contract,
        publisher=item.publisher,
        tx_hash=item.tx_hash.hex(),
        block_number=item.block_number,
        block_hash=item.block_hash.hex() if item.block_hash else None,
        block_timestamp=item.block_timestamp,
    )
