"""Importing: a file's annotations become entries of a run's log, once each.

An import is named by the file's digest and the settings it was read with. Interrupted, the
same call goes on behind what is durable; finished, it records nothing more. The same file
read with other settings is refused, because its annotations would count twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from rlhf_audit_trail.importers.formats import (
    FORMATS,
    PREFIXES,
)
from rlhf_audit_trail.importers.pairs import columns
from rlhf_audit_trail.importers.preference import (
    AI_FEEDBACK,
    BAD,
    BEFORE,
    BadRow,
    LeftOut,
    Preference,
)
from rlhf_audit_trail.importers.reading import (
    Reading,
    digest,
    is_before,
    numbered,
    time_of,
    with_format,
)
from rlhf_audit_trail.importers.rows import Row, digest_of
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.guard import PeersUnreachable
from rlhf_audit_trail.ledger.log import Ledger, Log
from rlhf_audit_trail.ledger.progress import progress_of
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.privacy.recorded_settings import refuse_raw_values
from rlhf_audit_trail.run_events import check_source

__all__ = ["AnnotationImport", "ImportedBefore", "Reading", "import_annotations"]

_logger = logging.getLogger(__name__)
_CHUNK: Final = 500  # entries that are made durable before the next are read
_LEFT_OUT_ROWS_MAX: Final = 1_000  # named in the log; all of them are counted
_ID_DIGITS: Final = 32


class ImportedBefore(AuditTrailError):
    """The same file was imported into this run, read in another way."""


@dataclass
class AnnotationImport:
    """What an import did.

    Attributes:
        import_id: of the file and the way it was read, 32 hex digits.
        format: by which it was read.
        file_digest: SHA-256 of the file, hex.
        size_bytes: of the file.
        rows: rows or items in the file.
        annotations: opinions found in them.
        recorded: of these, entries made by this call.
        already: of these, entries that an earlier call had made.
        unattributed: opinions of people of whom the file does not say who.
        sources: who gave them, and how many.
        judge_models: models that judged, and how often.
        left_out: why something was not recorded, and how often.
        left_out_rows: the first thousand of them.
    """

    import_id: str
    format: str
    file_digest: str
    size_bytes: int
    rows: int = 0
    annotations: int = 0
    recorded: int = 0
    already: int = 0
    unattributed: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    judge_models: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    left_out_rows: list[LeftOut] = field(default_factory=list)

    @property
    def is_repeated(self) -> bool:
        """Whether an earlier call had imported all of it."""
        return self.annotations == self.already > 0

    def leave_out(self, item: LeftOut) -> None:
        """Count something that is not recorded."""
        self.left_out[item.kind] += 1
        if len(self.left_out_rows) < _LEFT_OUT_ROWS_MAX:
            self.left_out_rows.append(item)


def import_annotations(
    ledger: Ledger,
    run_id: str,
    data: Path | str | Iterable[Mapping[str, Any]],
    reading: Reading,
    *,
    guideline: Path | None = None,
    revision: str = "",
    is_dry: bool = False,
    is_again: bool = False,
    on_progress: Callable[[AnnotationImport], None] | None = None,
) -> AnnotationImport:
    """Record the annotations of a file, or of a dataset in memory, in a run's log.

    Args:
        ledger: an open one.
        run_id: of the run; it is opened if there is none.
        data: a file with a suffix of `rows.SUFFIXES`, a Hugging Face dataset, or rows.
        reading: how it is read.
        guideline: what the annotators were told; its digest is recorded.
        revision: of a dataset, for example its commit.
        is_dry: read and report, and record nothing.
        is_again: import a file that was imported before in another way.
        on_progress: called after each chunk.

    Raises:
        UnreadableExport, UnknownFormat: nothing was recorded.
        UnknownSource: an opinion of a model that nobody names.
        ImportedBefore: the same file was read in another way; nothing was recorded.
        RawValueRefused: the run's mode is strong; nothing was recorded.
        AppendFailed: the store did not take the entries; call again to go on.
    """
    file_digest, size_bytes = digest(data)
    rows, name = with_format(numbered(data), reading)
    settings = asdict(reading) | {"format": name, "columns": dict(reading.columns)}
    named = json.dumps([file_digest, settings], sort_keys=True, separators=(",", ":"))
    import_id = hashlib.sha256(named.encode()).hexdigest()[:_ID_DIGITS]
    done = AnnotationImport(import_id, name, file_digest, size_bytes)
    fields: dict[str, Any] = {"settings": settings}
    if guideline is not None:
        fields["guideline_digest"] = digest_of(guideline)[0]
    if revision:
        fields["revision"] = revision
    if isinstance(fingerprint := getattr(data, "_fingerprint", None), str):
        fields["fingerprint"] = fingerprint
    found = _preferences(rows, reading, done)
    if is_dry:
        for preference in found:
            _count(preference, reading, done)
        return done
    log = ledger.open_run(run_id)
    refuse_raw_values(log)
    earlier = _Earlier.look(log, import_id)
    earlier.require_one_reading(log, done, is_again=is_again)
    _record(log, found, reading, done, earlier, on_progress)
    if not earlier.is_finished:
        _finish(log, done, fields)
    return done


@dataclass
class _Earlier:
    """What earlier calls recorded of the same import."""

    batch: int
    of_row: Counter[int]
    is_finished: bool

    @classmethod
    def look(cls, log: Log, import_id: str) -> _Earlier:
        of_row: Counter[int] = Counter()
        batch = 0
        for entry in log.entries(kind="annotation.recorded"):
            event = entry.event
            if event.get("import") == import_id:
                of_row[event["row"]] += 1
                batch = event["batch"]
        told = log.entries(kind="annotations.imported")
        is_finished = any(entry.event["import"] == import_id for entry in told)
        return cls(batch or progress_of(log).batch + 1, of_row, is_finished)

    def require_one_reading(self, log: Log, done: AnnotationImport, *, is_again: bool) -> None:
        """Refuse a file whose annotations would count twice; raises ImportedBefore."""
        if is_again or self.of_row or self.is_finished:
            return
        for entry in log.entries(kind="annotations.imported"):
            if entry.event["file_digest"] == done.file_digest:
                raise ImportedBefore(
                    "this file was imported into the run before, and read in another way "
                    f"(entry {entry.leaf_index:,} says how)",
                    next_step="repeat those settings, or import it --again, to count twice",
                )


def _record(
    log: Log,
    found: Iterable[Preference],
    reading: Reading,
    done: AnnotationImport,
    earlier: _Earlier,
    on_progress: Callable[[AnnotationImport], None] | None,
) -> None:
    """Record what earlier calls have not; each chunk is durable before the next is read."""
    known = earlier.of_row.copy()
    chunk: list[Event] = []

    def hand_over() -> None:
        if chunk:
            log.record_many(chunk)[-1].result()
            done.recorded += len(chunk)
            chunk.clear()
        if on_progress:
            on_progress(done)

    for preference in found:
        source = _count(preference, reading, done)
        if known[preference.row]:
            known[preference.row] -= 1
            done.already += 1
            continue
        chunk.append(_event(preference, source, reading, done, earlier.batch))
        if len(chunk) >= _CHUNK:
            hand_over()
    hand_over()


def _finish(log: Log, done: AnnotationImport, fields: Mapping[str, Any]) -> None:
    """Record that all of the file is in the log, and sign."""
    fields = {
        "import": done.import_id,
        "format": done.format,
        "file_digest": done.file_digest,
        "size_bytes": done.size_bytes,
        "rows": done.rows,
        "recorded": done.annotations,
        "unattributed": done.unattributed,
        "sources": dict(done.sources),
        "left_out": dict(done.left_out),
        **fields,
    }
    listed = [[item.row, item.kind, item.reason] for item in done.left_out_rows]
    log.record(Event("annotations.imported", fields, {"left_out_rows": listed})).result()
    with suppress(PeersUnreachable):  # then whoever signs next signs this, too
        log.publish()


def _count(preference: Preference, reading: Reading, done: AnnotationImport) -> str:
    """Count one opinion; return who gave it."""
    source, judge = reading.source, preference.judge_model
    if judge:
        source = AI_FEEDBACK
    elif source == AI_FEEDBACK:
        judge = reading.judge_model
        check_source(source, judge)
    done.annotations += 1
    done.sources[source] += 1
    if source == AI_FEEDBACK:
        done.judge_models[judge] += 1
    elif not preference.annotator:
        done.unattributed += 1
    return source


def _event(
    found: Preference, source: str, reading: Reading, done: AnnotationImport, batch: int
) -> Event:
    fields: dict[str, Any] = {"source": source, "batch": batch}
    if source == AI_FEEDBACK:
        fields["judge_model"] = found.judge_model or reading.judge_model
    fields |= {"import": done.import_id, "row": found.row}
    sealed: dict[str, Any] = {"prompt": found.prompt, "response": found.response}
    subject = ""
    if found.annotator:
        prefix = PREFIXES.get(done.format, "") if reading.prefix is None else reading.prefix
        subject = prefix + found.annotator
        sealed["annotator"] = subject  # the vault puts a pseudonym in its place
    more = {"reward": found.reward, "rejected": found.rejected, "details": dict(found.details)}
    sealed |= {name: value for name, value in more.items() if value not in (None, {})}
    return Event("annotation.recorded", fields, sealed, subject)


def _preferences(
    rows: Iterable[Row | LeftOut], reading: Reading, done: AnnotationImport
) -> Iterator[Preference]:
    """Yield the opinions of all rows; count the rows, and what is left out."""
    read = FORMATS.get(done.format) or partial(columns, mapping=reading.columns)
    since = time_of(reading.since) if reading.since else None
    for row in rows:
        done.rows += 1
        if isinstance(row, LeftOut):
            done.leave_out(row)
            continue
        try:
            items = list(read(*row))
        except BadRow as error:
            done.leave_out(LeftOut(row[0], BAD, error.message))
            continue
        for item in items:
            if isinstance(item, LeftOut):
                done.leave_out(item)
            elif since is not None and is_before(item, since):
                done.leave_out(LeftOut(item.row, BEFORE, "last changed before --since"))
            else:
                yield item
