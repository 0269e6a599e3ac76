"""Which stored checkpoints may go, and letting go of them; the registry log says which went."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from rlhf_audit_trail.ledger.appending import Log
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.reading import StoredLog
from rlhf_audit_trail.ledger.weights.checkpoints import CheckpointStore
from rlhf_audit_trail.ledger.weights.stored import CheckpointMissing, StoredCheckpoint

__all__ = ["Collected", "chosen_to_go", "collect", "is_under_way", "live_bases"]

_TURNS: Final = ("run.started", "run.resumed", "run.finished")


@dataclass(frozen=True)
class Collected:
    """What went.

    Attributes:
        gone: checkpoints whose weights are no longer stored.
        kept: that were chosen, and that one which is being stored turned out to need.
        unfinished: how many went that were never stored to the end.
        freed_bytes: without blobs that others still refer to.
    """

    gone: tuple[StoredCheckpoint, ...]
    kept: tuple[StoredCheckpoint, ...]
    unfinished: int
    freed_bytes: int


def is_under_way(log: StoredLog) -> bool:
    """Whether a training of the run began and did not say that it ended; it may be dead."""
    turns = [entry for kind in _TURNS for entry in log.entries(kind=kind)]
    last = max(turns, key=lambda x: x.leaf_index, default=None)
    return last is not None and last.event["kind"] != "run.finished"


def live_bases(stored: Iterable[StoredCheckpoint]) -> set[int]:
    """Return the numbers of those that a training under way goes on from, oldest first given.

    It holds the newest whole one in memory, and the newest difference of the first degree.
    """
    found: set[int] = set()
    for item in stored:
        if item.base is None:
            found = {item.number}
        elif item.chain_length == 1:
            found = {item.base, item.number}
    return found


def chosen_to_go(
    stored: Iterable[StoredCheckpoint],
    *,
    keep_last: int,
    keep: Collection[str] = (),
    live: Collection[int] = (),
) -> list[StoredCheckpoint]:
    """Return those that are neither kept nor needed by a kept one.

    Args:
        stored: of one run, oldest first.
        keep_last: this many of the newest stay.
        keep: names that stay.
        live: numbers that a training under way goes on from, as `live_bases` returns them.

    Raises:
        CheckpointMissing: a name to keep is not there, perhaps misspelled.
    """
    known = list(stored)
    by_number = {x.number: x for x in known}
    if lost := sorted(set(keep) - {x.name for x in known}):
        raise CheckpointMissing(
            f"there is no stored checkpoint {lost[0]!r:.120} to keep",
            next_step="rlhf-audit checkpoint list shows the names",
        )
    newest = known[len(known) - keep_last :] if keep_last < len(known) else known
    kept: set[int] = set()
    for item in [*newest, *(x for x in known if x.name in keep or x.number in live)]:
        number: int | None = item.number
        while number in by_number and number not in kept:
            kept.add(number)
            number = by_number[number].base
    return [x for x in known if x.number not in kept]


def collect(
    log: Log,
    registry: Log,
    store: CheckpointStore,
    gone: Iterable[StoredCheckpoint],
    *,
    unfinished: Collection[int] = (),
) -> Collected:
    """Mark what goes, enter it in the registry log, then delete it.

    Marked first, so that a training which stores meanwhile starts from none of these, and the
    registry names none that stayed. Cut off anywhere, the next call goes on.

    Args:
        log: of the run.
        registry: the ledger's own log.
        store: with the weights.
        gone: what `chosen_to_go` returned.
        unfinished: numbers of checkpoints that were never stored to the end.
    """
    wanted = tuple(gone)
    left = store.going(log.number)
    chosen = (*left, *store.claim(wanted))
    if chosen:
        names = [x.name for x in chosen]
        fields = {"run": log.run_id, "names": names, "digests": [x.weights_digest for x in chosen]}
        registry.record(Event("checkpoint.discarded", fields)).result()
    freed = store.discard([*(x.number for x in chosen), *unfinished])
    kept = tuple(x for x in wanted if x not in chosen)
    return Collected(chosen, kept, len(unfinished), freed)
