"""Anchors that were final, and that the chain does not show any more.

That should never be: the chain was reset, its nodes serve another one, or it went back further
than it promises. It is an alarm; the anchors themselves are pending again, and sent again, or
newer heads in the place of the later ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Final

from rlhf_audit_trail.ledger.chain.anchoring.records import AnchorRecord, JournalEntry
from rlhf_audit_trail.ledger.chain.anchoring.view import hashes_at
from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader
from rlhf_audit_trail.ledger.chain.errors import AnchorVanished

__all__ = ["alarm_about", "find_vanished"]

_LOOK_BACK: Final = 100  # anchors at a time


def find_vanished(reader: AnchorReader, final: Iterable[JournalEntry]) -> list[AnchorRecord]:
    """Return the anchors whose blocks are gone, newest first.

    Args:
        reader: the pinned chain.
        final: what was seen to be final, newest first.

    Raises:
        ChainUnreachable: no answer.
    """
    gone: list[AnchorRecord] = []
    placed = ((entry.record, entry.mined.place) for entry in final if entry.mined)
    while part := list(itertools.islice(placed, _LOOK_BACK)):
        hashes = hashes_at(reader, [place.block_number for _, place in part])
        pairs = zip(part, hashes, strict=True)
        lost = [record for (record, place), found in pairs if found != place.block_hash]
        gone += lost
        if len(lost) < len(part):  # each block stands on those before it
            break
    return gone


def alarm_about(gone: Sequence[AnchorRecord]) -> AnchorVanished:
    """Say what is gone; one or more, newest first."""
    oldest = gone[-1]
    return AnchorVanished(
        f"{len(gone):,} anchors that were final are not on chain {oldest.chain_id} any more, the "
        f"oldest in transaction 0x{oldest.tx_hash.hex()}: the chain was reset, or taken back "
        "deeper than it promises",
        next_step="they are sent again, or newer heads in their place; until then ask other nodes "
        "which chain they serve, and make no bundles from this one",
    )
