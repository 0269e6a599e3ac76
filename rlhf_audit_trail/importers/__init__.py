"""Importers: annotations from datasets and annotation tools, recorded as they were given.

reading = Reading(source="human")
done = import_annotations(ledger, "run-1", Path("export.jsonl"), reading)
"""

from __future__ import annotations

from rlhf_audit_trail.importers.formats import FORMATS, UnknownFormat
from rlhf_audit_trail.importers.preference import LeftOut
from rlhf_audit_trail.importers.recording import (
    AnnotationImport,
    ImportedBefore,
    Reading,
    import_annotations,
)
from rlhf_audit_trail.importers.rows import UnreadableExport

__all__ = [
    "FORMATS",
    "AnnotationImport",
    "ImportedBefore",
    "LeftOut",
    "Reading",
    "UnknownFormat",
    "UnreadableExport",
    "import_annotations",
]
