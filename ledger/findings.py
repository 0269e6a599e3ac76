"""What a check of stored or copied logs says: findings, counts, and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

__all__ = ["UNCHECKED", "Finding", "Progress", "Summary"]

UNCHECKED: Final = "unchecked"


@dataclass(frozen=True)
class Finding:
    """One thing that is broken, or could not be checked.

    Attributes:
        log: the run id, `registry`, or empty for what belongs to no log.
        what: database, ledger, log, entry, sequence, hash_tile, tree_head, cosignature,
            vault, registry, anchor, writer_token, remote_writer, blob, vkey or file;
            `unchecked` for what is not known to be broken.
        where: the index, tile, size, row or path, for example `index 5`.
        detail: one sentence; never a sealed value.
    """

    log: str
    what: str
    where: str
    detail: str

    @property
    def is_damage(self) -> bool:
        """Whether something is broken; otherwise something could not be checked."""
        return self.what != UNCHECKED

    def __str__(self) -> str:
        """One line, for people."""
        return f"{self.log or 'ledger'}: {self.what} {self.where}: {self.detail}"


@dataclass
class Summary:
    """How much was checked; `findings` is 0 for a sound ledger.

    `erased` counts vault rows whose values or subject's secret are gone, `pruned` entries whose
    bytes are in an archive, `unopenable` restored entries without sealed values.
    """

    logs: int = 0
    entries: int = 0
    pruned: int = 0
    hash_tiles: int = 0
    tree_heads: int = 0
    cosignatures: int = 0
    vault_rows: int = 0
    erased: int = 0
    unopenable: int = 0
    anchors: int = 0
    blobs: int = 0
    key_files: int = 0
    findings: int = 0

    def add(self, other: Summary) -> None:
        """Count in what was counted elsewhere."""
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))


@dataclass(frozen=True)
class Progress:
    """How far a check has come, in entries.

    Attributes:
        origin: the log that is being checked.
        done: of this log, from 0.
        size: of this log in all.
        all_done: of all logs.
        all_size: of all logs in all.
    """

    origin: str
    done: int
    size: int
    all_done: int
    all_size: int
