"""Disclosing: chosen values of one entry go to a named reader, and the registry log says so.

What is handed over is a bundle (`FORMAT.md`, section 6) with the openings of the chosen fields.
The entry in the registry log is durable before the file is there: rather one that speaks of a
file nobody got than a file of which nobody knows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.files import write_whole
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = ["Disclosure", "DisclosureRefused", "disclose"]

_READER_CHARACTERS_MAX: Final = 200


class DisclosureRefused(AuditTrailError):
    """Nobody, nothing or no place is named for a disclosure; nothing was disclosed."""


@dataclass(frozen=True)
class Disclosure:
    """What was handed over.

    Attributes:
        registry_index: of the entry that says so.
        digest: SHA-256 of the file in hex.
        size_bytes: of the file.
    """

    registry_index: int
    digest: str
    size_bytes: int


def disclose(
    ledger: Ledger,
    run_id: str,
    leaf_index: int,
    *,
    fields: Sequence[str],
    reader: str,
    target: Path,
) -> Disclosure:
    """Write a new file that opens sealed fields of an entry, and record who gets it.

    Args:
        ledger: open.
        run_id: of a run whose newest tree head covers the entry.
        leaf_index: the entry.
        fields: names of its sealed fields.
        reader: who gets the values; the name stands in the public registry log.
        target: a new file, which only who runs this may read.

    Raises:
        DisclosureRefused: no field, no reader, or the file is there already.
        NotSealed: the entry has no such sealed field.
        LedgerMissing, EntryMissing, Erased, VaultDamaged, NotPublished: as reading and proving.
    """
    name, chosen = reader.strip(), sorted(set(fields))
    if not chosen or not 0 < len(name) <= _READER_CHARACTERS_MAX or not name.isprintable():
        raise DisclosureRefused(
            "a disclosure needs fields, and a reader's name on one line",
            next_step="say which fields, and to whom",
        )
    if target.exists() or target.is_symlink():
        raise DisclosureRefused(f"{target} is there already", next_step="name a new file")
    log = ledger.find(run_id)
    heads = [size for size in log.anchored_sizes() if size > leaf_index]
    data = log.bundle([leaf_index], opened=chosen, anchored_sizes={*heads[:1], *heads[-1:]})
    digest = hashlib.sha256(data).hexdigest()
    given: dict[str, Any] = {"run": run_id, "index": leaf_index, "fields": chosen}
    given |= {"reader": name, "digest": digest, "size_bytes": len(data)}
    index = ledger.registry.record(Event("access.read", given)).result()
    write_whole(target, data, mode=0o600)
    return Disclosure(index, digest, len(data))
