"""fsck, one log's entries: bytes against columns, indices, sequences, sealed values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, func, select

from rlhf_audit_trail.ledger.events import ENTRY_VERSION, MAX_ENTRY_BYTES
from rlhf_audit_trail.ledger.fsck_store import Finding, Summary, raw, text_bytes
from rlhf_audit_trail.ledger.fsck_tree import TreeCheck
from rlhf_audit_trail.ledger.proof.bundle import parse_json
from rlhf_audit_trail.ledger.proof.commitment import commit
from rlhf_audit_trail.ledger.proof.errors import MalformedBundle
from rlhf_audit_trail.ledger.proof.merkle import HASH_BYTES, leaf_hash
from rlhf_audit_trail.ledger.reading import place_of
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.vault import Erased, Vault, VaultDamaged

__all__ = ["LogCheck", "Sequences"]

_ENTRIES = models.EntryRow.__table__  # type: ignore[attr-defined]
_VAULT = models.VaultRow.__table__  # type: ignore[attr-defined]
_PAGE_ROWS: Final = 256  # of at most 64 kB, and their sealed values
_PROGRESS_ROWS: Final = 1_000
_HOLES_MAX: Final = 1_000

Record = dict[str, Any]


class Sequences:
    """Each writer counts its entries from 0: holes must be covered by `gap` events."""

    def __init__(self) -> None:
        """No writer was seen yet."""
        self._next: dict[str, int] = defaultdict(int)
        self._holes: list[tuple[str, int, int]] = []

    def see(self, writer_id: str, seq: int) -> bool:
        """Take the next entry of a writer; return False when its number goes backwards."""
        expected = self._next[writer_id]
        if seq > expected:
            self._holes.append((writer_id, expected, seq - 1))
        self._next[writer_id] = max(expected, seq + 1)
        return seq >= expected

    def cover(self, writer_id: str, first: int, last: int) -> None:
        """Take note of a `gap` event: these numbers are known not to have been recorded."""
        left: list[tuple[str, int, int]] = []
        for writer, low, high in self._holes:
            if writer != writer_id or last < low or high < first:
                left.append((writer, low, high))
                continue
            left += [(writer, *rest) for rest in ((low, first - 1), (last + 1, high))
                     if rest[0] <= rest[1]]  # fmt: skip
        self._holes = left

    def holes(self, *, beyond: int = 0) -> Iterator[tuple[str, int, int]]:
        """Take out the oldest holes (writer, first, last) until `beyond` are left."""
        while len(self._holes) > beyond:
            yield self._holes.pop(0)


@dataclass
class LogCheck:
    """One log, one pass.

    Attributes:
        connection: reads one state of the store.
        vault: opens sealed values; None leaves them unchecked.
        log: the run id.
        number: of the log's rows.
        size: what the log's own row says.
        origin: bound into every sealed value.
        tree: fed with the leaves.
        summary: counted into.
        seen: told of each entry (index, record) that could be read.
        progress: told (origin, entries done, size).
    """

    connection: Connection
    vault: Vault | None
    log: str
    number: int
    size: int
    origin: str
    tree: TreeCheck
    summary: Summary
    seen: Callable[[int, Record], None]
    progress: Callable[[str, int, int], None] | None = None

    def findings(self) -> Iterator[Finding]:
        """Check entries, indices, sequences, sealed values, tiles and tree heads."""
        sequences, expected = Sequences(), 0
        self.tree.begin()
        for row in self._rows():
            index = row["leaf_index"]
            if not isinstance(index, int) or index < expected:
                detail = "a surplus row: indices are whole numbers from 0"
                yield self._found("entry", index, detail)
                continue
            if index > expected:
                yield from self._missing(expected, index)
            expected = index + 1
            yield from self._entry(row, index, sequences)
            if expected % _PROGRESS_ROWS == 0 and self.progress:
                self.progress(self.origin, expected, self.size)
        for hole in sequences.holes():
            yield self._unrecorded(*hole)
        yield from self._end(expected)

    def _end(self, stored_size: int) -> Iterator[Finding]:
        if stored_size != self.size:
            detail = f"the log's row says {self.size!r:.40} entries, {stored_size:,} are stored"
            yield Finding(self.log, "log", "size", detail)
        yield from self.tree.finish(stored_size)
        if self.progress:
            self.progress(self.origin, stored_size, self.size)
        yield from self._surplus_vault_rows()

    def _rows(self) -> Iterator[RowMapping]:
        entry, sealed = _ENTRIES.c, _VAULT.c
        # substr bounds what is read
        query = (
            select(
                entry.leaf_index,
                text_bytes(self.connection, entry.writer_id).label("writer_id"),
                entry.seq,
                text_bytes(self.connection, entry.kind).label("kind"),
                func.substr(entry.data, 1, MAX_ENTRY_BYTES + 1).label("data"),
                func.substr(entry.leaf_hash, 1, HASH_BYTES + 1).label("leaf_hash"),
                sealed.leaf_index.label("vault_index"),
                func.substr(sealed.subject, 1).label("subject"),
                func.substr(sealed.ciphertext, 1).label("ciphertext"),
            )
            .outerjoin(
                _VAULT,
                (sealed.log_number == entry.log_number) & (sealed.leaf_index == entry.leaf_index),
            )
            .where(entry.log_number == self.number)
            .order_by(entry.leaf_index)
        )
        yield from self.connection.execute(query).yield_per(_PAGE_ROWS).mappings()

    def _missing(self, first: int, end: int) -> Iterator[Finding]:
        """Entries [first, end) are not there; a level 0 tile may still have their leaves."""
        detail = f"{end - first:,} entries are missing, {first} to {end - 1}"
        yield self._found("entry", first, detail)
        for index in range(first, end):
            leaf = None if self.tree.is_lost else self.tree.leaf_in_tile(index)
            if leaf is None:
                self.tree.lose()
                return
            yield from self.tree.add(leaf)

    def _entry(self, row: RowMapping, index: int, sequences: Sequences) -> Iterator[Finding]:
        self.summary.entries += 1
        data, stored_leaf = raw(row["data"]) or b"", raw(row["leaf_hash"])
        leaf = leaf_hash(data)
        if leaf != stored_leaf:
            detail = "the entry's bytes do not have the stored leaf hash"
            yield self._found("entry", index, detail)
            # of two copies that disagree, the tree is grown from the one a tile confirms
            in_tile = self.tree.leaf_in_tile(index)
            leaf = in_tile if in_tile in {leaf, stored_leaf} and in_tile else leaf
        yield from self.tree.add(leaf)
        record: Record = {}
        try:
            record = _parse(data)
        except MalformedBundle as error:
            yield self._found("entry", index, error.message)
        yield from self._columns(row, index, record)
        yield from self._sequence(row, index, record, sequences)
        yield from self._sealed(row, index, record)
        if record:
            self.seen(index, record)

    def _columns(self, row: RowMapping, index: int, record: Record) -> Iterator[Finding]:
        if not record:
            return
        columns = {"writer_id": _word(row["writer_id"]), "seq": row["seq"]}
        columns |= {"kind": _word(row["kind"]), "run_id": self.log, "v": ENTRY_VERSION}
        for name, value in columns.items():
            if record.get(name) != value:
                what = "the store files it under" if name in {"run_id", "v"} else "its column says"
                detail = f"{name}: {what} {value!r:.80}, its bytes say {record.get(name)!r:.80}"
                yield self._found("entry", index, detail)

    def _sequence(
        self, row: RowMapping, index: int, record: Record, sequences: Sequences
    ) -> Iterator[Finding]:
        writer = record.get("writer_id", _word(row["writer_id"]))
        seq = record.get("seq", row["seq"])
        if not (isinstance(writer, str) and type(seq) is int):
            return
        if not sequences.see(writer, seq):
            detail = f"writer {writer:.40} numbers it {seq}, after a higher number"
            yield self._found("sequence", index, detail)
        if record.get("kind") == "gap":
            first, last = record.get("first_seq"), record.get("last_seq")
            whose = record.get("of_writer")
            if type(first) is int and type(last) is int and isinstance(whose, str):
                sequences.cover(whose, first, last)
        for hole in sequences.holes(beyond=_HOLES_MAX):
            yield self._unrecorded(*hole)

    def _unrecorded(self, writer: str, first: int, last: int) -> Finding:
        detail = f"numbers {first} to {last} are missing, and no gap event covers them"
        return Finding(self.log, "sequence", f"writer {writer:.40}", detail)

    def _sealed(self, row: RowMapping, index: int, record: Record) -> Iterator[Finding]:
        commitments = record.get("c") or {}
        has_row = row["vault_index"] is not None
        self.summary.vault_rows += has_row
        if bool(commitments) != has_row and record:
            detail = (
                "an entry without sealed fields has a vault row"
                if has_row
                else "the entry's sealed values are missing from the vault"
            )
            yield self._found("vault", index, detail)
        elif has_row and record and self.vault is not None:
            try:
                yield from self._openings(self.vault, row, index, record)
            except Erased:
                self.summary.erased += 1

    def _openings(
        self, vault: Vault, row: RowMapping, index: int, record: Record
    ) -> Iterator[Finding]:
        subject, ciphertext = raw(row["subject"]) or b"", raw(row["ciphertext"]) or b""
        commitments = record["c"]
        try:
            place = place_of(record["writer_id"], record["seq"])
            openings = vault.unseal(subject, ciphertext, self.origin, place)
            wrong = {opening.path for opening in openings}.symmetric_difference(commitments)
            wrong |= {x.path for x in openings if commitments.get(x.path) != commit(x).hex()}
        except VaultDamaged as error:
            yield self._found("vault", index, error.message)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            yield self._found("vault", index, "the entry's own fields do not lead to its values")
        else:
            for path in sorted(wrong):
                detail = f"the sealed {path!r:.80} is not what the entry committed to"
                yield self._found("vault", index, detail)

    def _surplus_vault_rows(self) -> Iterator[Finding]:
        entry, sealed = _ENTRIES.c, _VAULT.c
        has_entry = select(entry.leaf_index).where(
            entry.log_number == sealed.log_number, entry.leaf_index == sealed.leaf_index
        )
        query = select(sealed.leaf_index).where(
            sealed.log_number == self.number, ~has_entry.exists()
        )
        for (index,) in self.connection.execute(query).yield_per(_PAGE_ROWS):
            yield self._found("vault", index, "a vault row without an entry")

    def _found(self, what: str, index: Any, detail: str) -> Finding:
        return Finding(self.log, what, f"index {index!r:.40}", detail)


def _parse(data: bytes) -> Record:
    if not 1 <= len(data) <= MAX_ENTRY_BYTES:
        raise MalformedBundle(f"an entry is 1 to {MAX_ENTRY_BYTES:,} bytes")
    try:
        record = parse_json(data)
    except MalformedBundle as error:
        raise MalformedBundle(f"the entry's bytes do not parse: {error.message}") from error
    if not isinstance(record, dict):
        raise MalformedBundle("the entry's bytes are not a JSON object")
    return record


def _word(value: Any) -> str | None:
    data = raw(value)
    return None if data is None else data.decode("utf-8", "backslashreplace")
