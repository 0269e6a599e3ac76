"""Copies of our own logs, as exports and mirrors hold them: found, and verified by our own keys.

A copy proves itself: its tree head bears our signatures, and every tile and entry leads to the
signed root. What it cannot bring is the vault, which no public log holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from rlhf_audit_trail.ledger.keys import LogKeys, OperatorSecrets
from rlhf_audit_trail.ledger.mirror import Mirror
from rlhf_audit_trail.ledger.proof.bundle import parse_json
from rlhf_audit_trail.ledger.proof.errors import (
    AuditTrailError,
    BadSignature,
    MalformedBundle,
    PolicyUnmet,
)
from rlhf_audit_trail.ledger.proof.note import Note, VerifierKey, parse_note
from rlhf_audit_trail.ledger.proof.tree_head import SignedTreeHead, parse_tree_head
from rlhf_audit_trail.ledger.public_log import PublicLog, open_source
from rlhf_audit_trail.ledger.succession import REGISTRY, Succession
from rlhf_audit_trail.ledger.tiles import TILE_WIDTH
from rlhf_audit_trail.ledger.verified_log import VerifiedLog, open_pinned

__all__ = [
    "CopiedEntry",
    "Copy",
    "ForeignCopy",
    "FoundCopy",
    "NoCopies",
    "find_copies",
    "look_at",
    "open_registry",
]

_WRITER_ID: Final = re.compile(r"[0-9a-f]{32}")
_SEQ_END: Final = 1 << 63


class ForeignCopy(AuditTrailError):
    """The copy is of a log that is not this ledger's."""


class NoCopies(AuditTrailError):
    """There is no copy of a log at this place."""


@dataclass(frozen=True)
class CopiedEntry:
    """An entry's exact bytes and what its columns say, taken from the bytes."""

    writer_id: str
    seq: int
    kind: str
    data: bytes
    is_sealed: bool
    recorded_at: str


@dataclass(frozen=True)
class Copy:
    """A copy of one of our logs, its tree head signed by all of the log's own keys."""

    run_id: str
    place: str
    keys: tuple[VerifierKey, ...]
    signed: SignedTreeHead
    log: VerifiedLog

    @property
    def origin(self) -> str:
        """The log's name."""
        return self.signed.head.origin

    @property
    def size(self) -> int:
        """How many entries the copy has."""
        return self.signed.head.size

    @property
    def own_note(self) -> str:
        """The tree head as our log signed it, without the lines of witnesses."""
        own = {(key.name, key.key_id) for key in self.keys}
        note = self.signed.note
        lines = tuple(x for x in note.signatures if (x.name, x.key_id) in own)
        return str(Note(note.text, lines))

    @property
    def shown_place(self) -> str:
        """Where it came from, fit for a public log: no user, no path of this machine."""
        if "://" not in self.place:
            return f"directory {Path(self.place).resolve().name}"
        parts = urlsplit(self.place)
        return f"{parts.scheme}://{parts.hostname}{parts.path}"

    def entries(self, start: int, stop: int | None = None) -> Iterator[tuple[int, CopiedEntry]]:
        """Yield index and entry from `start` on, each confirmed by the signed root.

        Raises:
            Inconsistent, NotServed, Unreachable: not what was signed, or not readable.
            MalformedBundle: not an entry of this run.
        """
        stop = self.size if stop is None else stop
        for tile_index in range(start // TILE_WIDTH, -(-stop // TILE_WIDTH)):
            first = tile_index * TILE_WIDTH
            width = min(TILE_WIDTH, self.size - first)
            for index, data in enumerate(self.log.entries(tile_index, width), first):
                if start <= index < stop:
                    yield index, self._entry(index, data)

    def _entry(self, index: int, data: bytes) -> CopiedEntry:
        try:
            record: Any = parse_json(data)
        except MalformedBundle as error:
            raise self._unusable(index) from error
        wanted = {"writer_id": str, "seq": int, "kind": str, "run_id": str, "recorded_at": str}
        if not isinstance(record, dict) or any(
            type(record.get(name)) is not kind for name, kind in wanted.items()
        ):
            raise self._unusable(index)
        fits = _WRITER_ID.fullmatch(record["writer_id"]) and 0 <= record["seq"] < _SEQ_END
        if not fits or record["run_id"] != self.run_id:
            raise self._unusable(index)
        return CopiedEntry(
            record["writer_id"],
            record["seq"],
            record["kind"],
            data,
            bool(record.get("c")),
            record["recorded_at"],
        )

    def _unusable(self, index: int) -> MalformedBundle:
        return MalformedBundle(f"entry {index:,} of {self.origin} is no entry of this ledger")


def find_copies(place: str) -> list[str]:
    """Return the places of single copies: an address, a directory, or the directories below it.

    Raises:
        NoCopies: there is none.
    """
    if "://" in place or (Path(place) / "checkpoint").is_file():
        return [place]
    found = sorted(x.parent for x in Path(place).glob("*/checkpoint") if x.is_file())
    if not found:
        raise NoCopies(
            f"{place:.200} holds no export or mirror of a log",
            next_step="give the directory that has the file `checkpoint`, or the one above it",
        )
    return [str(path) for path in found]


@dataclass(frozen=True)
class FoundCopy:
    """A copy that says whose it is; nothing of it is believed yet."""

    run_id: str
    place: str
    note: str
    _public: PublicLog

    def open(self, keys: tuple[VerifierKey, ...], cache: Path) -> Copy:
        """Check the tree head and the right edge of the tree.

        Args:
            keys: all of which must have signed.
            cache: directory into which what an address serves is mirrored first; the caller
                removes it.

        Raises:
            BadSignature, PolicyUnmet: not all of `keys` signed it.
            Inconsistent, MalformedBundle, NotServed, Unreachable: not sound, or not readable.
        """
        public, note = self._public, self.note
        open_pinned(note, keys)  # before anything is fetched for a log that is not ours
        if "://" in self.place:
            Mirror(public, cache / self.run_id, keys).sync()
            public = PublicLog(open_source(str(cache / self.run_id)))
            note = public.tree_head()
        signed = open_pinned(note, keys)
        return Copy(self.run_id, self.place, keys, signed, VerifiedLog(public, signed.head))


def look_at(place: str, organisation: str) -> FoundCopy:
    """Return which of our logs a place says that it has a copy of.

    Raises:
        ForeignCopy: none of them.
        MalformedBundle, NotServed, Unreachable: not readable.
    """
    public = PublicLog(open_source(place))
    note = public.tree_head()
    origin = parse_tree_head(parse_note(note).text).origin
    prefix = f"{organisation}/rlhf/"
    run_id = origin.removeprefix(prefix)
    if not origin.startswith(prefix) or not run_id or "/" in run_id:
        raise ForeignCopy(
            f"{place:.200} is a copy of {origin!r:.200}, which is no log of {organisation}",
            next_step="choose a copy of a log of this ledger",
        )
    return FoundCopy(run_id, place, note, public)


def open_registry(
    found: FoundCopy, secrets: OperatorSecrets, origin: str, cache: Path
) -> tuple[Copy, Succession]:
    """Open a copy of the registry log, which itself says by which keys it must be signed.

    One generation of our own keys must have signed it; read under that head, its entries say
    which keys were to sign it, and all of those must have done so.

    Raises:
        BadSignature: none of our generations signed it.
        PolicyUnmet, Inconsistent, MalformedBundle, NotServed, Unreachable: as `FoundCopy.open`.
    """
    generation, failure = 1, None
    while generation == 1 or secrets.path(generation).exists():
        keys = LogKeys.derive(secrets.of(generation), origin).verifier_keys
        try:
            copy = found.open(keys, cache)
            break
        except (BadSignature, PolicyUnmet) as error:
            generation, failure = generation + 1, error
    else:
        raise BadSignature(
            f"{found.place:.200} is not signed by this ledger's keys",
            next_step="check the operator keys; else treat the copy as forged",
        ) from failure
    first = LogKeys.derive(secrets.first, origin).verifier_keys
    succession = Succession.begin(origin, first)
    for index, entry in copy.entries(0):
        succession.see(index, parse_json(entry.data))
    wanted = succession.histories[REGISTRY].at(copy.size)
    open_pinned(str(copy.signed.note), wanted)
    return replace(copy, keys=wanted), succession
