"""How a file of annotations is read: its format, its rows, and which of them count."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

from rlhf_audit_trail.importers.formats import (
    AUTO,
    COLUMNS_FORMAT,
    FORMATS,
    UnknownFormat,
    detect,
)
from rlhf_audit_trail.importers.pairs import COLUMNS
from rlhf_audit_trail.importers.preference import BAD, LeftOut, Preference
from rlhf_audit_trail.importers.rows import Row, digest_of, digest_of_rows, read_rows
from rlhf_audit_trail.run_events import check_source

__all__ = ["Reading", "digest", "is_before", "numbered", "time_of", "with_format"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a file is read.

    Attributes:
        source: who gave the preferences: human, user_interaction, ai_feedback, simulated. What
            a tool's export marks as a model's is ai_feedback in any case.
        format: a name in `FORMATS`, `columns`, or `auto` to tell it from the first row.
        judge_model: of ai_feedback that does not name its model itself.
        columns: for the format `columns`, our names to the file's; see `pairs.COLUMNS`.
        prefix: put before annotators' ids, so that people of two tools stay two people; None
            for the tool's own.
        since: leave out annotations last changed before this time, RFC 3339.
    """

    source: str
    format: str = AUTO
    judge_model: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    prefix: str | None = None
    since: str = ""

    def __post_init__(self) -> None:
        """Refuse what nothing could be read by; raises UnknownSource, UnknownFormat."""
        check_source(self.source, self.judge_model or "named by the rows")
        if self.format not in (AUTO, COLUMNS_FORMAT, *FORMATS):
            raise UnknownFormat(
                f"{self.format!r:.40} is no format",
                next_step=f"use {AUTO}, {COLUMNS_FORMAT}, {', '.join(FORMATS)}",
            )
        if self.columns and self.columns.keys() - set(COLUMNS):
            raise UnknownFormat(
                "a column is mapped to a name that is not known",
                next_step=f"known: {', '.join(COLUMNS)}",
            )
        known = self.columns.keys()
        if self.columns and not (
            {"prompt", "response"} <= known or {"prompt", "chosen", "rejected"} <= known
        ):
            raise UnknownFormat(
                "the columns do not say what was asked and what was answered",
                next_step="map prompt and response, or prompt, chosen and rejected",
            )
        if self.since:
            time_of(self.since)


def with_format(
    rows: Iterator[Row | LeftOut], reading: Reading
) -> tuple[Iterable[Row | LeftOut], str]:
    """Return all rows and the name of their format, told from the first one that can be read."""
    if reading.columns:
        return rows, COLUMNS_FORMAT
    if reading.format != AUTO:
        return rows, reading.format
    seen: list[Row | LeftOut] = []
    for row in rows:
        seen.append(row)
        if not isinstance(row, LeftOut):
            return chain(seen, rows), detect(row[1])
    raise UnknownFormat("the file holds no row that can be read")


def digest(data: Any) -> tuple[str, int]:
    """Return the SHA-256 in hex, and the size in bytes, of a file or of rows in memory."""
    if isinstance(data, str | Path):
        return digest_of(Path(data))
    return digest_of_rows(_rows_of(data))


def numbered(data: Any) -> Iterator[Row | LeftOut]:
    """Yield the rows with their numbers, from 1; what is no row is left out."""
    if isinstance(data, str | Path):
        return read_rows(Path(data))
    return (
        (number, row) if isinstance(row, Mapping) else LeftOut(number, BAD, "no mapping")
        for number, row in enumerate(_rows_of(data), 1)
    )


def _rows_of(data: Any) -> Iterable[Mapping[str, Any]]:
    if iter(data) is data:
        raise UnknownFormat(
            "these rows can be read only once", next_step="pass a list, a dataset or a file"
        )
    return data  # type: ignore[no-any-return]


def is_before(item: Preference, since: datetime) -> bool:
    """Whether an opinion was last changed before `since`; one without a time was not."""
    for name in ("updated_at", "created_at", "inserted_at"):
        said = item.details.get(name)
        if isinstance(said, str):
            with suppress(UnknownFormat):
                return time_of(said) < since
    return False


def time_of(text: str) -> datetime:
    """Return a time in RFC 3339, in UTC where it names no zone; raises UnknownFormat."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise UnknownFormat(
            f"{text!r:.40} is no time", next_step="write it like 2026-11-20T10:15:00Z"
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
