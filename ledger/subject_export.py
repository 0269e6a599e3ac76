"""What a person gets who asks for everything that is stored about them.

One file of JSON: for each run the person's pseudonym, values as anyone reads them, and bundles
(`FORMAT.md`, section 6) that show each value with its salt, and that its entry is in the log.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rlhf_audit_trail.ledger.files import write_whole
from rlhf_audit_trail.ledger.log import Ledger, Log
from rlhf_audit_trail.ledger.proof.bundle import parse_json
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.pruning import archived_entries
from rlhf_audit_trail.ledger.subjects import SubjectRun, find_subject
from rlhf_audit_trail.ledger.vault import Erased

__all__ = ["EXPORT_SCHEMA", "ExportCounts", "SubjectFileTaken", "export_subject"]

EXPORT_SCHEMA: Final = "rlhf-audit/subject-export/v1"
_BUNDLED_ENTRIES: Final = 500  # of long prompts, too, far below what a bundle may hold


class SubjectFileTaken(AuditTrailError):
    """There is something where the file should go."""


@dataclass(frozen=True)
class ExportCounts:
    """What was written.

    Attributes:
        entries: whose values are in the file.
        bundles: that prove them.
        size_bytes: of the file.
    """

    entries: int
    bundles: int
    size_bytes: int


def export_subject(ledger: Ledger, name: str, target: Path, *, run_id: str = "") -> ExportCounts:
    """Write everything that a ledger, or one run of it, has about a person to a new file.

    Logs whose newest tree head does not cover the person's entries are signed anew. Only who
    runs the command may read the file; it is there whole or not at all.

    Raises:
        SubjectMissing, LedgerMissing: as `find_subject`.
        Erased: the person's secret is gone.
        SubjectFileTaken: there is such a file already.
        PeersUnreachable, RolledBack, Forked: a tree head was needed, and cannot be signed.
    """
    if target.exists() or target.is_symlink():
        raise SubjectFileTaken(f"{target} is there already", next_step="name a new file")
    subject = find_subject(ledger, name, run_id=run_id)
    if not subject.has_secret:
        raise Erased("these values were erased and cannot be opened any more")
    runs = [_run(ledger.find(item.run_id), item) for item in subject.runs]
    record = {
        "schema": EXPORT_SCHEMA,
        "organisation": ledger.settings.organisation,
        "runs": runs,
    }
    data = json.dumps(record, ensure_ascii=False, indent=1).encode()
    write_whole(target, data, mode=0o600)
    bundles = sum(len(run["bundles"]) for run in runs)
    return ExportCounts(subject.entries, bundles, len(data))


def _run(log: Log, item: SubjectRun) -> dict[str, Any]:
    if log.archive and Path(log.archive).is_dir():
        log.read_pruned_from(archived_entries(Path(log.archive)))
    signed = log.published()
    if signed is None or signed.head.size <= item.indices[-1]:
        log.publish()
    return {
        "run": item.run_id,
        "origin": log.origin,
        "pseudonym": item.pseudonym,
        "keys": [str(key) for key in log.keys_now()],
        "entries": [_entry(log, index) for index in item.indices],
        # as texts: a bundle is verified byte by byte
        "bundles": list(_bundles(log, item.indices)),
    }


def _entry(log: Log, index: int) -> dict[str, Any]:
    values = {x.path: json.loads(x.value) for x in log.openings(index)}
    return {"index": index, "entry": parse_json(log.read(index).data), "values": values}


def _bundles(log: Log, indices: tuple[int, ...]) -> Iterator[str]:
    anchored = log.anchored_sizes()
    for begin in range(0, len(indices), _BUNDLED_ENTRIES):
        some = indices[begin : begin + _BUNDLED_ENTRIES]
        fields = {x.path for index in some for x in log.openings(index)}
        heads = [size for size in anchored if size > some[-1]]
        data = log.bundle(some, opened=fields, anchored_sizes={*heads[:1], *heads[-1:]})
        yield data.decode()
