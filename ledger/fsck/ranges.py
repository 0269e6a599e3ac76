"""How a log is divided: ranges of entries that any process can check on its own.

A range begins at a multiple of 256, so that it holds whole tiles. What is found out about it
is a report; the reports of all ranges, in order, give the whole tree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, func, select

from rlhf_audit_trail.ledger.blobs import BlobStore
from rlhf_audit_trail.ledger.findings import Finding, Summary
from rlhf_audit_trail.ledger.fsck.columns import is_whole, table
from rlhf_audit_trail.ledger.fsck.sequences import Step
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.succession import KeyHistory
from rlhf_audit_trail.ledger.tiles import TILE_WIDTH
from rlhf_audit_trail.ledger.vault import Vault

__all__ = [
    "RANGE_ENTRIES",
    "Bench",
    "CheckedLog",
    "EntryRange",
    "RangeReport",
    "Record",
    "SignedSize",
    "last_index",
    "ranges_of",
]

RANGE_ENTRIES: Final = 64 * TILE_WIDTH  # a tenth of a second's work
_INDEX_END: Final = (1 << 63) - 1  # the largest number a database has; no tree is so large

_ENTRIES = table(models.EntryRow)
_TILES = table(models.HashTileRow)
_HEADS = table(models.TreeHeadRow)
_VAULT = table(models.VaultRow)

Record = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """What a range is checked with; each process has its own."""

    connection: Connection
    vault: Vault | None
    blobs: BlobStore


@dataclass(frozen=True)
class CheckedLog:
    """What must be known of a log to check a range of it.

    Attributes:
        run_id: as the entries say.
        number: of the log's rows.
        origin: bound into every sealed value.
        keys: who must have signed which tree head.
        told_kinds: of these kinds of event, the records are reported.
        is_pruned: the registry log says that entries' bytes were moved to an archive.
        restored: entries [first, end) that the registry log says were put back from a copy,
            which holds no sealed values.
    """

    run_id: str
    number: int
    origin: str
    keys: KeyHistory
    told_kinds: frozenset[str] = frozenset()
    is_pruned: bool = False
    restored: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class EntryRange:
    """Entries [first, end) of a log, of which every one should be there."""

    log: CheckedLog
    first: int
    end: int

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"entries {self.first} to {max(self.first, self.end - 1)} of {self.log.run_id}"


class SignedSize(NamedTuple):
    """A sound signature over a tree size, whose root is yet to be compared.

    Attributes:
        size: entries.
        root: as signed.
        rest: root over the entries after the last full tile, empty if there are none;
            None when one of them is lost.
    """

    size: int
    root: bytes
    rest: bytes | None


@dataclass
class RangeReport:
    """What was found out about a range.

    Attributes:
        findings: what is broken in it.
        summary: how much was looked at.
        roots: the root over each tile of the range, the last perhaps not full; None where a
            leaf is lost.
        lost: the first lost leaf.
        missing: stretches [first, end) of entries that are not there.
        unfiled: stretches of entries that no span of their writer has.
        signed: tree heads with a size in (first, end], growing.
        steps: of the writers' numbers.
        told: index and record of entries of the kinds asked for.
        emptied: entries whose sealed values were erased from the vault.
        keyless: entries whose sealed values nobody can open, since the secret is gone.
    """

    findings: list[Finding] = field(default_factory=list)
    summary: Summary = field(default_factory=Summary)
    roots: list[bytes | None] = field(default_factory=list)
    lost: int | None = None
    missing: list[tuple[int, int]] = field(default_factory=list)
    unfiled: list[tuple[int, int]] = field(default_factory=list)
    signed: list[SignedSize] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    told: list[tuple[int, Record]] = field(default_factory=list)
    emptied: int = 0
    keyless: int = 0


def last_index(connection: Connection, number: int) -> int:
    """Return the largest leaf index that is stored, -1 for none."""
    column = _ENTRIES.c.leaf_index
    query = select(func.max(column)).where(
        _ENTRIES.c.log_number == number, is_whole(column, 0, _INDEX_END)
    )
    found = connection.scalar(query)
    return -1 if found is None else int(found)


def ranges_of(connection: Connection, log: CheckedLog, end: int) -> Iterator[EntryRange]:
    """Divide a log of `end` entries; where no row of any kind is, there is no range.

    So a row with an index of 2**60 costs one range more. There is always one at least.
    """
    first = 0
    while first < end:
        place = _next_place(connection, log.number, first)
        if place >= end:
            break
        if place >= first + RANGE_ENTRIES:
            first = place - place % TILE_WIDTH
        yield EntryRange(log, first, min(first + RANGE_ENTRIES, end))
        first += RANGE_ENTRIES
    if first == 0:
        yield EntryRange(log, 0, 0)


def _next_place(connection: Connection, number: int, first: int) -> int:
    """Return the smallest leaf index from `first` on of which anything is stored."""

    def lowest(column: Any, begin: int) -> int | None:
        query = select(func.min(column)).where(
            column.table.c.log_number == number, is_whole(column, begin, _INDEX_END)
        )
        if column is _TILES.c.tile_index:
            query = query.where(_TILES.c.level == 0)
        found = connection.scalar(query)
        return None if found is None else int(found)

    entry = lowest(_ENTRIES.c.leaf_index, first)
    if entry is not None and entry < first + RANGE_ENTRIES:
        return entry
    tile = lowest(_TILES.c.tile_index, first // TILE_WIDTH)
    head = lowest(_HEADS.c.tree_size, first + 1)
    places = [
        entry,
        lowest(_VAULT.c.leaf_index, first),
        None if tile is None else tile * TILE_WIDTH,
        None if head is None else head - 1,
    ]
    return min((place for place in places if place is not None), default=_INDEX_END)
