"""What `RemoteLog` sends: events cut into requests, and gaps in the place of what was lost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from rlhf_audit_trail.ledger.append_call import REQUEST_BYTES_MAX, REQUEST_EVENTS_MAX
from rlhf_audit_trail.ledger.bearer import require_permitted
from rlhf_audit_trail.ledger.drafts import check_size, draft
from rlhf_audit_trail.ledger.events import EntryTooLarge, Event, InvalidEvent, encode_value
from rlhf_audit_trail.ledger.writer import Ticket

__all__ = ["Part", "PartTicket", "encoded", "first_of", "gap_part", "now_text", "parts_of"]

_PART_BYTES_MAX: Final = 1024 * 1024
_GAP_BYTES: Final = 512
_ENVELOPE_BYTES_MAX: Final = 1024
_SUBJECT_CHARACTERS_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class Part:
    """Events of one call that are sent together, each as its JSON.

    Attributes:
        events: the JSON; of a gap, which is written when it is sent, an empty one.
        recorded_at: the clock at the call.
        size_bytes: of the JSON.
        lost: of a gap, how many events were lost; their numbers are left out.
        reason: of a gap, why.
    """

    events: Sequence[bytes]
    recorded_at: str
    size_bytes: int
    lost: int = 0
    reason: str = ""

    def __len__(self) -> int:
        return len(self.events)

    def request(self, writer_id: str, next_seq: int) -> tuple[int, Sequence[bytes]]:
        """Return the number of its first event, and its events."""
        if not self.lost:
            return next_seq, self.events
        fields = {"of_writer": writer_id, "first_seq": next_seq, "count": self.lost}
        fields |= {"last_seq": next_seq + self.lost - 1, "reason": self.reason}
        record = {"kind": "gap", "fields": fields, "sealed": {}, "subject": ""}
        return next_seq + self.lost, [encode_value(record)]


PartTicket = Ticket[Part]


def gap_part(lost: int, reason: str) -> Part:
    """Return what tells that so many events were lost before it."""
    return Part((b"",), now_text(), _GAP_BYTES, lost, reason)


def first_of(queued: Iterable[PartTicket]) -> list[PartTicket]:
    """Return as many tickets as one request holds: of one time, the entries have it in common.

    A gap goes alone, since numbers are left out before it.
    """
    group: list[PartTicket] = []
    count = size_bytes = 0
    for ticket in queued:
        part = ticket.items
        count, size_bytes = count + len(part), size_bytes + part.size_bytes
        is_too_much = count > REQUEST_EVENTS_MAX or size_bytes > _PART_BYTES_MAX
        if group and (is_too_much or part.lost or part.recorded_at != group[0].items.recorded_at):
            break
        group.append(ticket)
        if part.lost:
            break
    return group


def parts_of(events: Sequence[bytes], recorded_at: str) -> list[Part]:
    """Cut events into what one request each holds."""
    parts: list[Part] = []
    part: list[bytes] = []
    size_bytes = 0
    for event in events:
        is_full = len(part) == REQUEST_EVENTS_MAX or size_bytes + len(event) > _PART_BYTES_MAX
        if part and is_full:
            parts.append(Part(part, recorded_at, size_bytes))
            part, size_bytes = [], 0
        part.append(event)
        size_bytes += len(event) + 1  # the comma
    return [*parts, Part(part, recorded_at, size_bytes)] if part else parts


def encoded(
    event: Event, *, run_id: str, writer_id: str, seq_about: int, recorded_at: str
) -> bytes:
    """Return an event as the service takes it, if the service would take it.

    Args:
        event: to be sent.
        run_id: of the log.
        writer_id: 32 hex digits.
        seq_about: its number is not known yet; about as many were handed over before.
        recorded_at: the clock at the call.

    Raises:
        InvalidEvent, EntryTooLarge, NotPermitted: it would be refused.
    """
    require_permitted(event, writer_id)
    check_size(draft(event), run_id, writer_id, seq_about, recorded_at)
    if len(event.subject) > _SUBJECT_CHARACTERS_MAX:
        raise InvalidEvent(f"a subject's id has at most {_SUBJECT_CHARACTERS_MAX:,} characters")
    record = {"kind": event.kind, "fields": dict(event.fields), "sealed": dict(event.sealed)}
    data = encode_value({**record, "subject": event.subject})
    if len(data) > REQUEST_BYTES_MAX - _ENVELOPE_BYTES_MAX:
        raise EntryTooLarge(
            f"an event of {len(data):,} bytes; a request takes {REQUEST_BYTES_MAX:,} at most",
            next_step="store the large value elsewhere, and refer to its digest",
        )
    return data


def now_text() -> str:
    """Return the clock to a tenth of a second: what it has in common goes in one request."""
    now = datetime.now(UTC)
    return f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond // 100_000}Z"
