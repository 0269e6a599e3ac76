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
from json.encoder import encode_basestring
from typing import Any, Final, NamedTuple

from rlhf_audit_trail.ledger.events import (
    ENTRY_VERSION,
    KINDS,
    MAX_ENTRY_BYTES,
    EntryTooLarge,
    Event,
    InvalidEvent,
    encode_text,
    encode_value,
)
from rlhf_audit_trail.ledger.public_fields import public_members

__all__ = [
    "ANNOTATOR",
    "SURELY_FITS",
    "Draft",
    "DraftColumns",
    "DraftGroup",
    "Drafts",
    "EventColumns",
    "Frame",
    "PlainDrafts",
    "check_size",
    "commitments_template",
    "draft",
    "drafts_of",
    "encode_draft",
    "encode_entry",
    "grouped",
]

ANNOTATOR: Final = "annotator"  # the sealed field that holds a person's pseudonym

# So many characters of public fields fit, in whatever entry: half of it is left for the rest,
# and four bytes are the most that UTF-8 has for a character.
SURELY_FITS: Final = MAX_ENTRY_BYTES // 8
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


@dataclass(frozen=True, slots=True)
class PlainDrafts:
    """Checked events without sealed values, column by column.

    Texts in two lists are nothing that Python's collector has to look at, as it would at one
    object for each event.

    Attributes:
        kinds: keys of `KINDS`.
        publics: as in `Draft`.
    """

    kinds: list[str]
    publics: list[str]

    def __len__(self) -> int:
        """Count the events."""
        return len(self.kinds)

    def longest(self) -> Draft:
        """Return the one with most public text."""
        place = max(range(len(self)), key=lambda number: len(self.publics[number]))
        return Draft(self.kinds[place], self.publics[place], (), (), "")


def drafts_of(events: Iterable[Event]) -> list[Draft] | PlainDrafts:
    """Check events against their kinds, and encode their values; raises as `draft`."""
    given = list(events)
    if any(event.sealed for event in given):
        return [draft(event) for event in given]
    publics = [public_members(event.kind, event.fields, event.sealed) for event in given]
    return PlainDrafts([event.kind for event in given], publics)


def draft(event: Event) -> Draft:
    """Check an event against its kind, and encode its values.

    Raises:
        InvalidEvent: unknown kind, a field missing, surplus or of the wrong type, or a value
            that JSON has not.
    """
    sealed = event.sealed
    public = public_members(event.kind, event.fields, sealed)
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
        public = public_members(self.kind, self.fields, self.sealed)
        order = KINDS[self.kind].sealed
        columns = {path: _copied(self.sealed[path]) for path in order if path in self.sealed}
        if not set(map(type, self.subjects)) <= {str}:
            raise InvalidEvent(f"{self.kind}: a subject is text, or empty")
        encode_value("".join(self.subjects))
        return DraftColumns(self.kind, public, columns, tuple(self.subjects))


@dataclass(frozen=True)
class DraftColumns:
    """Checked columns, still to be encoded."""

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

    def groups(self) -> list[DraftGroup]:
        """Encode the columns; rows without a subject have no annotator."""
        order = KINDS[self.kind].sealed
        values = {path: _encoded(column) for path, column in self.columns.items()}
        if ANNOTATOR not in order or ANNOTATOR in values:
            return [self._group(tuple(values), values, range(len(self)))]
        paths = tuple(path for path in order if path in values or path == ANNOTATOR)
        values[ANNOTATOR] = [b""] * len(self)
        if all(self.subjects):
            return [self._group(paths, values, range(len(self)))]
        chosen: dict[bool, list[int]] = {True: [], False: []}
        for position, subject in enumerate(self.subjects):
            chosen[bool(subject)].append(position)
        without = tuple(path for path in paths if path != ANNOTATOR)
        groups = [self._group(paths, values, chosen[True])] if chosen[True] else []
        return [*groups, self._group(without, values, chosen[False])]

    def _group(
        self,
        paths: tuple[str, ...],
        values: Mapping[str, Sequence[bytes]],
        positions: Sequence[int],
    ) -> DraftGroup:
        columns, subjects = [values[path] for path in paths], self.subjects
        if len(positions) != len(self):
            columns = [[column[position] for position in positions] for column in columns]
            subjects = tuple([subjects[position] for position in positions])
        count = len(positions)
        publics = [self.public] * count
        return DraftGroup(positions, [self.kind] * count, publics, paths, columns, subjects)


Drafts = list[Draft] | PlainDrafts | DraftColumns


class DraftGroup(NamedTuple):
    """Drafts with the same sealed fields, column by column: hashing rows by the thousand.

    Attributes:
        positions: of each draft in what was handed over; growing.
        kinds: of each draft.
        publics: of each draft, as in `Draft`.
        paths: the sealed fields of all of them.
        columns: for each path the values, as in `Draft`.
        subjects: of each draft.
    """

    positions: Sequence[int]
    kinds: Sequence[str]
    publics: Sequence[str]
    paths: tuple[str, ...]
    columns: Sequence[Sequence[bytes]]
    subjects: Sequence[str]


def grouped(drafts: list[Draft] | DraftColumns) -> list[DraftGroup]:
    """Put drafts with the same sealed fields together."""
    if isinstance(drafts, DraftColumns):
        return drafts.groups()
    kinds, publics, paths, values, subjects = zip(*drafts, strict=True)
    chosen: dict[tuple[str, ...], list[int]] = {}
    for position, names in enumerate(paths):
        chosen.setdefault(names, []).append(position)
    if len(chosen) == 1:
        columns = list(zip(*values, strict=True))
        return [DraftGroup(range(len(drafts)), kinds, publics, paths[0], columns, subjects)]
    return [group for some in chosen.values() for group in _regrouped(drafts, some)]


def _regrouped(drafts: list[Draft], positions: list[int]) -> Iterator[DraftGroup]:
    for group in grouped([drafts[position] for position in positions]):
        yield group._replace(positions=positions)


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


def _encoded(column: Sequence[Any]) -> Sequence[bytes]:
    types = set(map(type, column))
    if types == {_Encoded}:
        return column
    if types == {str}:
        return [encode_basestring(value).encode() for value in column]
    if types == {float}:
        return [
            float.__repr__(value).encode() for value in column
        ]  # `_copied` saw that it is finite
    return [encode_text(value).encode() for value in column]


class _Heads(dict[str, str]):
    """What entries of one writer begin with, by kind; made when first asked for."""

    def __init__(self, run_id: str, writer_id: str) -> None:
        self._place = f',"run_id":{encode_text(run_id)},"writer_id":{encode_text(writer_id)},"seq":'

    def __missing__(self, kind: str) -> str:
        head = self[kind] = f'{{"v":{ENTRY_VERSION},"kind":{encode_text(kind)}{self._place}'
        return head


_heads: Final = lru_cache(maxsize=256)(_Heads)


class Frame:
    """What the entries of one writer that were recorded together have in common."""

    def __init__(self, run_id: str, writer_id: str, recorded_at: str) -> None:
        """Prepare for entries of this run, writer and time."""
        self._heads = _heads(run_id, writer_id)
        self._time = f',"recorded_at":"{recorded_at}"'

    def entries(
        self,
        kinds: Iterable[str],
        seqs: Iterable[int],
        publics: Iterable[str],
        commitments: Iterable[str],
    ) -> list[bytes]:
        """Write entries; `commitments` as `commitments_template` filled in, or empty."""
        heads, time = self._heads, self._time
        return [
            f"{heads[kind]}{seq}{time}{public}{members}}}".encode()
            for kind, seq, public, members in zip(kinds, seqs, publics, commitments, strict=True)
        ]


@lru_cache(maxsize=256)
def commitments_template(paths: tuple[str, ...]) -> str:
    """Return an entry's member of commitments, with `%s` for each of them in hex."""
    members = ",".join(f'{encode_text(path)}:"%s"' for path in paths)
    return f',"c":{{{members}}}' if paths else ""


def encode_draft(
    item: Draft,
    run_id: str,
    writer_id: str,
    seq: int,
    recorded_at: str,
    commitments: tuple[str, ...],
) -> bytes:
    """Write a draft as the bytes of an entry; `commitments` in hex, ordered as `sealed` is."""
    frame = Frame(run_id, writer_id, recorded_at)
    members = commitments_template(item.paths) % commitments
    return frame.entries([item.kind], [seq], [item.public], [members])[0]


def check_size(item: Draft, run_id: str, writer_id: str, seq: int, recorded_at: str) -> None:
    """Raise EntryTooLarge if a draft would be an entry of more than 65,535 bytes."""
    commitments = ("0" * _HEX_DIGITS,) * len(item.paths)
    size = len(encode_draft(item, run_id, writer_id, seq, recorded_at, commitments))
    if size > MAX_ENTRY_BYTES:
        raise EntryTooLarge(
            f"an entry of kind {item.kind} would be {size:,} bytes; "
            f"{MAX_ENTRY_BYTES:,} is the most",
            next_step="move the large value to a sealed field or a blob, and refer to its digest",
        )


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
