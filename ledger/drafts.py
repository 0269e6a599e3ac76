"""Drafts: events checked and encoded as far as they can be before they have a place in a log.

Who records pays for the check and for a copy of the values; hashes, commitments and
ciphertexts are made by the thread that writes. An entry is compact UTF-8 JSON, written
once and never re-encoded (`FORMAT.md`, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

from rlhf_audit_trail.ledger.events import (
    ENTRY_VERSION,
    KINDS,
    MAX_ENTRY_BYTES,
    EntryTooLarge,
    Event,
    InvalidEvent,
    Kind,
    encode_text,
    encode_value,
)

__all__ = [
    "ANNOTATOR",
    "Draft",
    "DraftColumns",
    "EventColumns",
    "check_size",
    "draft",
    "encode_draft",
    "encode_entry",
]

ANNOTATOR: Final = "annotator"  # the sealed field that holds a person's pseudonym

_HEX_DIGITS: Final = 64  # of a commitment
_SEQ_DIGITS_MAX: Final = 19
_COPIED_TYPES: Final = {str, int, bool, type(None)}  # immutable, and always JSON


class Draft(NamedTuple):
    """An event without its place.

    Attributes:
        kind: a key of `KINDS`.
        public: the public fields as JSON members, each after a comma.
        paths: the sealed fields, in the kind's order.
        values: of each the JSON; empty for `annotator`, which the vault fills.
        subject: stable id of the person the sealed values are about, or empty.
    """

    kind: str
    public: str
    paths: tuple[str, ...]
    values: tuple[bytes, ...]
    subject: str


def draft(event: Event) -> Draft:
    """Check an event against its kind, and encode its values.

    Raises:
        InvalidEvent: unknown kind, a field missing, surplus or of the wrong type, or a value
            that JSON has not.
    """
    sealed = event.sealed
    public = _public(event.kind, event.fields, sealed)
    if not sealed:
        return Draft(event.kind, public, (), (), event.subject)
    _check_subject(event.subject)
    paths = tuple([path for path in KINDS[event.kind].sealed if path in sealed])
    values = [encode_value(sealed[path]) if path != ANNOTATOR else b"" for path in paths]
    return Draft(event.kind, public, paths, tuple(values), event.subject)


def _check_subject(subject: Any) -> None:
    if not isinstance(subject, str):
        raise InvalidEvent(f"a subject is text, not {type(subject).__name__}")
    if not subject.isascii():
        encode_value(subject)  # refuses what UTF-8 has not


@dataclass(frozen=True)
class EventColumns:
    """Many events of one kind with the same public fields, given as columns of sealed values.

    For rows by the thousand: values of types that cannot change are checked column by
    column and encoded later; only lists and mappings are encoded at once.

    Attributes:
        kind: a key of `KINDS`.
        fields: the public fields of every row.
        sealed: sealed field name to its column, as long as `subjects`.
        subjects: for each row the stable id of the person it is about, or empty. Where the
            kind has a field `annotator`, a row with a subject gets it; the vault fills it.
    """

    kind: str
    fields: Mapping[str, Any]
    sealed: Mapping[str, Sequence[Any]]
    subjects: Sequence[str]

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.subjects)

    def drafts(self) -> DraftColumns:
        """Check and copy the columns.

        Raises:
            InvalidEvent: as `draft` does, or columns of unequal length.
        """
        if any(len(column) != len(self.subjects) for column in self.sealed.values()):
            raise InvalidEvent(f"{self.kind}: columns of unequal length")
        public = _public(self.kind, self.fields, self.sealed)
        order = KINDS[self.kind].sealed
        columns = {path: _copied(self.sealed[path]) for path in order if path in self.sealed}
        if not set(map(type, self.subjects)) <= {str}:
            raise InvalidEvent(f"{self.kind}: a subject is text, or empty")
        encode_value("".join(self.subjects))
        return DraftColumns(self.kind, public, columns, tuple(self.subjects))


@dataclass(frozen=True)
class DraftColumns:
    """Checked columns; iterating makes the drafts."""

    kind: str
    public: str
    columns: Mapping[str, Sequence[Any]]
    subjects: tuple[str, ...]

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.subjects)

    def longest(self) -> Draft:
        """Return a draft without values, of which no row makes a longer entry."""
        paths = [x for x in KINDS[self.kind].sealed if x in self.columns or x == ANNOTATOR]
        return Draft(self.kind, self.public, tuple(paths), (b"",) * len(paths), "")

    def __iter__(self) -> Iterator[Draft]:
        """Encode row by row."""
        without = tuple(self.columns)
        paths = tuple(x for x in KINDS[self.kind].sealed if x in self.columns or x == ANNOTATOR)
        columns = [_encoded(self.columns[x]) if x in self.columns else None for x in paths]
        blank = [b""] * len(self)
        filled = [blank if column is None else column for column in columns]
        rows: Iterable[tuple[bytes, ...]] = zip(*filled, strict=True)
        place = paths.index(ANNOTATOR) if len(paths) > len(without) else None
        kind, public = self.kind, self.public
        if not paths:
            rows = [()] * len(self)
        for values, subject in zip(rows, self.subjects, strict=True):
            if place is None or subject:
                yield Draft(kind, public, paths, values, subject)
            else:
                yield Draft(kind, public, without, values[:place] + values[place + 1 :], subject)


class _Encoded(bytes):
    """A value that had to be encoded at once, since it might change."""

    __slots__ = ()


def _copied(column: Sequence[Any]) -> Sequence[Any]:
    types = set(map(type, column))
    if types == {str}:
        encode_value("".join(column))  # refuses what UTF-8 has not
    elif types == {float}:
        if not all(map(math.isfinite, column)):
            encode_value(math.nan)
    elif not types <= _COPIED_TYPES or str in types:
        return [_Encoded(encode_value(value)) for value in column]
    return list(column)


def _encoded(column: Sequence[Any]) -> Iterable[bytes]:
    if column and type(column[0]) is _Encoded:
        return column
    return [encode_text(value).encode() for value in column]


@lru_cache(maxsize=256)
def _head(kind: str, run_id: str, writer_id: str) -> str:
    return (
        f'{{"v":{ENTRY_VERSION},"kind":{encode_text(kind)},"run_id":{encode_text(run_id)},'
        f'"writer_id":{encode_text(writer_id)},"seq":'
    )


@lru_cache(maxsize=256)
def _commitments(paths: tuple[str, ...]) -> str:
    members = ",".join(f"{encode_text(path)}:%s" for path in paths).replace("%s", '"%s"')
    return f',"c":{{{members}}}'


def encode_draft(
    item: Draft,
    run_id: str,
    writer_id: str,
    seq: int,
    recorded_at: str,
    commitments: tuple[str, ...],
) -> bytes:
    """Write a draft as the bytes of an entry; `commitments` in hex, ordered as `sealed` is."""
    if commitments:
        return (
            f'{_head(item.kind, run_id, writer_id)}{seq},"recorded_at":"{recorded_at}"'
            f"{item.public}{_commitments(item.paths) % commitments}}}"
        ).encode()
    return (
        f'{_head(item.kind, run_id, writer_id)}{seq},"recorded_at":"{recorded_at}"{item.public}}}'
    ).encode()


def check_size(item: Draft, run_id: str, writer_id: str, seq: int, recorded_at: str) -> None:
    """Raise EntryTooLarge if a draft would be an entry of more than 65,535 bytes."""
    # four bytes are the most that UTF-8 has for a character: mostly no need to encode
    rest = len(run_id) + len(item.paths) * (_HEX_DIGITS + _PATH_CHARACTERS_MAX) + _FRAME_MAX
    if 4 * len(item.public) + rest <= MAX_ENTRY_BYTES:
        return
    commitments = ("0" * _HEX_DIGITS,) * len(item.paths)
    size = len(encode_draft(item, run_id, writer_id, seq, recorded_at, commitments))
    if size > MAX_ENTRY_BYTES:
        raise EntryTooLarge(
            f"an entry of kind {item.kind} would be {size:,} bytes; "
            f"{MAX_ENTRY_BYTES:,} is the most",
            next_step="move the large value to a sealed field or a blob, and refer to its digest",
        )


_PATH_CHARACTERS_MAX: Final = 6 + max(len(path) for kind in KINDS.values() for path in kind.sealed)
_FRAME_MAX: Final = 200 + max(map(len, KINDS))  # names, version, writer, number and time


def encode_entry(
    event: Event,
    *,
    run_id: str,
    writer_id: str,
    seq: int,
    recorded_at: str,
    commitments: Mapping[str, str],
) -> bytes:
    """Write an event as the exact bytes of an entry.

    Args:
        event: checked against its kind.
        run_id: the run's id, or `registry`.
        writer_id: 32 hex digits, new for each process start.
        seq: the writer's own count, from 0, without holes.
        recorded_at: the writer's clock, `2026-11-20T10:15:00.123456Z`; a claim only.
        commitments: sealed field name to commitment in hex.

    Raises:
        InvalidEvent: as `draft`.
        EntryTooLarge: more than 65,535 bytes.
    """
    item = draft(event)
    if commitments.keys() != event.sealed.keys():
        raise InvalidEvent(f"{event.kind}: every sealed field needs exactly one commitment")
    check_size(item, run_id, writer_id, seq, recorded_at)
    ordered = tuple(commitments[path] for path in item.paths)
    return encode_draft(item, run_id, writer_id, seq, recorded_at, ordered)


# --- public fields against the kind -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Field:
    """A public field's rule, prepared once: this is looked up for every event."""

    name: str
    is_optional: bool
    types: tuple[type, ...]


def _prepare(kind: Kind) -> tuple[_Field, ...]:
    return tuple(
        _Field(
            name.removesuffix("?"),
            name.endswith("?"),
            wanted if isinstance(wanted, tuple) else (wanted,),
        )
        for name, wanted in kind.public.items()
    )


_FIELDS: Final = {name: _prepare(kind) for name, kind in KINDS.items()}
_SEALED: Final = {name: frozenset(kind.sealed) for name, kind in KINDS.items()}


def _public(kind: str, fields: Mapping[str, Any], sealed: Mapping[str, Any]) -> str:
    """Return the public fields as JSON in the kind's order, or say which one does not fit.

    Values are never quoted in a message.
    """
    rules = _FIELDS.get(kind)
    if rules is None:
        raise InvalidEvent(f"unknown kind of event {kind!r}", next_step="see events.KINDS")
    found: dict[str, Any] = {}
    for rule in rules:
        name = rule.name
        if name in fields:
            value = found[name] = fields[name]
            if type(value) not in rule.types or type(value) is float:
                _check_value(kind, rule, value)
        elif not rule.is_optional:
            raise InvalidEvent(f"{kind} needs the field {name}")
    if len(found) != len(fields) or (sealed and not _has_all(kind, sealed)):
        surplus = (fields.keys() - found.keys()) | (sealed.keys() - set(KINDS[kind].sealed))
        raise InvalidEvent(f"{kind} has no field {', '.join(sorted(map(str, surplus)))}")
    if not found:
        return ""
    text = encode_text(found)
    if not text.isascii():
        encode_value(found)  # refuses what UTF-8 has not
    return f",{text[1:-1]}"


def _has_all(kind: str, sealed: Mapping[str, Any]) -> bool:
    return sealed.keys() <= _SEALED[kind]


def _check_value(kind: str, rule: _Field, value: Any) -> None:
    # bool passes isinstance(int) in Python, and would read as a number elsewhere
    fits = isinstance(value, rule.types) and not (
        isinstance(value, bool) and bool not in rule.types
    )
    if not fits:
        names = " or ".join(item.__name__ for item in rule.types)
        raise InvalidEvent(f"{kind}.{rule.name} must be {names}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidEvent(
            f"{kind}.{rule.name} is not a finite number",
            next_step="write it as the text NaN, Infinity or -Infinity in a sealed field",
        )
