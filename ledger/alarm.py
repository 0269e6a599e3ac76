"""What contradicted a log, on file: evidence that a restart must not forget.

One file for each log, `alarms/RUN.json` in the ledger's directory:

    {"schema": "rlhf-audit/alarm/v1", "origin": "acme.example/rlhf/run42",
     "peer": "witness w1", "tree_size": 301, "root": "9f86...", "note": "acme.example/rlhf...",
     "publisher": ""}

The note is the tree head with our own signature, as the peer showed it; empty where the
contract is what speaks: then `publisher` says whose anchor it is. The file goes once the store
contains what it tells of. Where the operator gave that publisher up, since its key was stolen,
the file stays as evidence under the name `alarms/settled/RUN-1.json`, and stops nothing.
"""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rlhf_audit_trail.ledger.files import sync_directory, write_whole
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.proof.merkle import HASH_BYTES
from rlhf_audit_trail.ledger.proof.note import MAX_NOTE_BYTES

__all__ = ["ALARM_SCHEMA", "AlarmFiles", "AlarmUnreadable", "PeerHead"]

ALARM_SCHEMA: Final = "rlhf-audit/alarm/v1"
SETTLED: Final = "settled"
"""Folder below the alarms for those of publishers that were given up."""

_FILE_BYTES_MAX: Final = 2 * MAX_NOTE_BYTES + 4096  # JSON writes line ends and quotes longer


class AlarmUnreadable(AuditTrailError):
    """A file tells that something contradicted a log, and cannot be read."""


@dataclass(frozen=True)
class PeerHead:
    """A tree head that is proven to be ours, and who holds it.

    Attributes:
        peer: what messages call the holder.
        size: count of entries.
        root: 32 bytes.
        note: the head with our signature, which proves it; empty if it stands in the
            contract under our publisher's address.
        publisher: that address, in small letters; empty where a note proves the head.
    """

    peer: str
    size: int
    root: bytes
    note: str = ""
    publisher: str = ""


class AlarmFiles:
    """The alarms of one ledger's logs; the last writer wins, and all of them are right."""

    def __init__(self, directory: Path) -> None:
        """Keep files in `directory`, made when the first is written."""
        self._directory = directory

    def read(self, origin: str) -> PeerHead | None:
        """Return what contradicted the log, or None.

        Raises:
            AlarmUnreadable: there is a file, and it does not parse.
        """
        path = self._path(origin)
        try:
            with path.open("rb") as file:
                return _parse(file.read(_FILE_BYTES_MAX + 1), origin)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise AlarmUnreadable(
                f"{path} tells that something contradicted {origin}, and cannot be read",
                next_step="move it away once witnesses, contract and mirrors agree with the store",
            ) from error

    def write(self, origin: str, head: PeerHead) -> None:
        """Keep what contradicts the log, durably."""
        record = {"schema": ALARM_SCHEMA, "origin": origin, "peer": head.peer}
        record |= {"root": head.root.hex(), "note": head.note, "publisher": head.publisher}
        self._directory.mkdir(exist_ok=True)
        text = json.dumps(record | {"tree_size": head.size}, indent=1, ensure_ascii=False)
        write_whole(self._path(origin), text + "\n")

    def clear(self, origin: str) -> None:
        """Forget it; there may be nothing to forget."""
        self._path(origin).unlink(missing_ok=True)

    def settle(self, origin: str) -> Path:
        """Move it to where it has no effect and stays as evidence; return where that is."""
        path, place = self._path(origin), self._directory / SETTLED
        place.mkdir(exist_ok=True)
        for number in itertools.count(1):
            target = place / f"{path.stem}-{number}.json"
            try:
                os.link(path, target)  # unlike a rename, it replaces no earlier evidence
            except FileExistsError:
                continue
            except FileNotFoundError:  # another process was first
                return place
            break
        sync_directory(place)
        path.unlink(missing_ok=True)
        sync_directory(self._directory)
        return target

    def _path(self, origin: str) -> Path:
        return self._directory / f"{origin.rpartition('/')[2]}.json"


def _parse(data: bytes, origin: str) -> PeerHead:
    record: dict[str, Any] = json.loads(data)
    head = PeerHead(
        peer=str(record["peer"]),
        size=record["tree_size"],
        root=bytes.fromhex(record["root"]),
        note=str(record["note"]),
        publisher=str(record.get("publisher", "")),
    )
    is_whole = record["schema"] == ALARM_SCHEMA and record["origin"] == origin
    if not is_whole or type(head.size) is not int or len(head.root) != HASH_BYTES:
        raise ValueError("another schema, log or kind of value")
    return head
