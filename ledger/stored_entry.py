"""What reading a stored log gives, and what it may lack."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = [
    "AnchorView",
    "EntryMissing",
    "NeverOpened",
    "NotPublished",
    "NotSealed",
    "Pruned",
    "SealedEntry",
    "StoredEntry",
]


class EntryMissing(AuditTrailError):
    """The log has no entry at this index."""


class Pruned(AuditTrailError):
    """The bytes of these entries were moved to an archive; their place in the tree stays.

    Attributes:
        archive: where they went, a directory of this machine.
    """

    def __init__(self, origin: str, archive: str) -> None:
        super().__init__(
            f"the entries of {origin} were pruned after the run was closed; "
            "the registry log has the digest of the archive that holds them",
            next_step=f"read them from {archive}, or put them back: rlhf-audit import {archive}",
        )
        self.archive = archive


class NotPublished(AuditTrailError):
    """No signed tree head covers these entries yet."""


class NeverOpened(AuditTrailError):
    """A sealed value is disclosed to nobody: more would follow from it than its entry says."""


class NotSealed(AuditTrailError):
    """There is no sealed value of this name to disclose."""


@dataclass(frozen=True)
class StoredEntry:
    """An entry as it is stored."""

    leaf_index: int
    writer_id: str
    seq: int
    data: bytes

    @property
    def event(self) -> dict[str, Any]:
        """The decoded record: public fields, and commitments under `c`."""
        record: dict[str, Any] = json.loads(self.data)
        return record


@dataclass(frozen=True)
class SealedEntry:
    """An entry with what it seals, as the operator sees it.

    Attributes:
        leaf_index: its place.
        event: the decoded record.
        subject: the tag of the person the values are about; empty where they were erased.
        values: of each sealed field; None where they were erased or are not here.
    """

    leaf_index: int
    event: dict[str, Any] = field(repr=False)
    subject: bytes = field(repr=False)
    values: dict[str, Any] | None = field(repr=False)


@dataclass(frozen=True)
class AnchorView:
    """An anchor as the store knows it: pending, or where the chain was seen to hold it."""

    tree_size: int
    root: bytes
    state: str
    chain_id: int
    contract: str
    publisher: str
    tx_hash: bytes
    block_number: int | None
    block_hash: bytes | None
    block_timestamp: int | None
