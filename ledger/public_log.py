"""A log as the public sees it: over HTTP, or as a static directory. Nothing is believed.

Reads the paths of c2sp.org/tlog-tiles, each bounded by the bytes it can have.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from rlhf_audit_trail.ledger.proof.bundle import MAX_ENTRY_BYTES
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError, MalformedBundle
from rlhf_audit_trail.ledger.proof.merkle import HASH_BYTES
from rlhf_audit_trail.ledger.proof.note import MAX_NOTE_BYTES
from rlhf_audit_trail.ledger.tiles import TILE_HEIGHT, TILE_WIDTH, TileReader, tile_path
from rlhf_audit_trail.ledger.web import Unreachable, ask, parse_url

__all__ = ["DirectoryLog", "NotServed", "PublicLog", "ServedLog", "Source", "open_source"]

_LENGTH_BYTES: Final = 2
_OK = 200
_ABSENT: Final = (404, 410)  # never there, or pruned


class NotServed(AuditTrailError):
    """The log does not serve what its signed tree head says that it has."""


class Source(Protocol):
    """Where a log's files are read from."""

    def read(self, path: str, bytes_max: int) -> bytes | None:
        """Return a file's content, or None if there is none.

        Raises:
            Unreachable: it cannot be known, or is longer than `bytes_max`.
        """


class ServedLog:
    """A log below an http or https address."""

    def __init__(self, url: str, *, timeout_s: float = 10.0) -> None:
        """Remember the address; raises BadAddress for what is none."""
        parse_url(url)
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s

    def read(self, path: str, bytes_max: int) -> bytes | None:
        """Get one file."""
        answer = ask(f"{self._url}/{path}", timeout_s=self._timeout_s, answer_bytes_max=bytes_max)
        if answer.status != _OK and answer.status not in _ABSENT:
            raise Unreachable(f"{path}: the server answered with status {answer.status}")
        return answer.body if answer.status == _OK else None


class DirectoryLog:
    """A log in a directory, as `rlhf-audit export` writes it."""

    def __init__(self, directory: Path) -> None:
        """Remember the directory."""
        self._directory = directory

    def read(self, path: str, bytes_max: int) -> bytes | None:
        """Read one file."""
        try:
            with (self._directory / path).open("rb") as file:
                data = file.read(bytes_max + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise Unreachable(f"cannot read {path}: {error.strerror}") from error
        if len(data) > bytes_max:
            raise Unreachable(f"{path} is longer than {bytes_max:,} bytes")
        return data


def open_source(place: str, *, timeout_s: float = 10.0) -> Source:
    """Return the log at an http or https address, or in a directory.

    Raises:
        Unreachable: neither an address nor a directory.
    """
    if "://" in place:
        return ServedLog(place, timeout_s=timeout_s)
    if not Path(place).is_dir():
        raise Unreachable(
            f"{place:.200} is neither an address nor a directory",
            next_step="give the log's address, http or https, or the directory of an export",
        )
    return DirectoryLog(Path(place))


class PublicLog:
    """Reads a log's tree head and tiles from a source, and checks their shapes."""

    def __init__(self, source: Source) -> None:
        """Read from `source`."""
        self._source = source

    def tree_head(self) -> str:
        """Return the newest signed tree head as served; raises NotServed, MalformedBundle."""
        data = self._source.read("checkpoint", MAX_NOTE_BYTES)
        if data is None:
            raise NotServed("the log serves no tree head", next_step="check the log's address")
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise MalformedBundle("the served tree head is not UTF-8") from error

    def hash_tile(self, level: int, tile_index: int, width: int) -> bytes:
        """Return `width` hashes; a partial tile may have given way to the full one.

        Raises:
            NotServed: neither is there.
            MalformedBundle: it is not as long as its path says.
        """
        for path, there in _paths(level, tile_index, width):
            data = self._source.read(path, TILE_WIDTH * HASH_BYTES)
            if data is not None:
                if len(data) != there * HASH_BYTES:
                    raise MalformedBundle(f"{path} is not {there} hashes long")
                return data[: width * HASH_BYTES]
        raise _missing(level, tile_index, width)

    def entries(self, tile_index: int, width: int) -> tuple[bytes, ...]:
        """Return the first `width` entries of an entry tile; raises as `hash_tile` does."""
        for path, there in _paths("entries", tile_index, width):
            data = self._source.read(path, there * (_LENGTH_BYTES + MAX_ENTRY_BYTES))
            if data is not None:
                return _split(path, data, there)[:width]
        raise _missing("entries", tile_index, width)

    def reader(self, size: int) -> TileReader:
        """Read nodes of the tree of `size`, the size served now; each tile is fetched once."""

        def tile(level: int, tile_index: int) -> tuple[bytes, bytes]:
            there = (size >> (TILE_HEIGHT * level)) - tile_index * TILE_WIDTH
            return self.hash_tile(level, tile_index, min(TILE_WIDTH, there)), b""

        def leaves(first: int, count: int) -> bytes:
            raise NotServed(f"no tile holds the hashes from {first:,} to {first + count:,}")

        return TileReader(tile, leaves)


def _paths(level: int | str, tile_index: int, width: int) -> Iterator[tuple[str, int]]:
    yield tile_path(level, tile_index, width), width
    if width != TILE_WIDTH:
        yield tile_path(level, tile_index, TILE_WIDTH), TILE_WIDTH


def _missing(level: int | str, tile_index: int, width: int) -> NotServed:
    return NotServed(
        f"the log does not serve {tile_path(level, tile_index, width)}",
        next_step="ask again; if it stays missing, ask the operator for it",
    )


def _split(path: str, data: bytes, count: int) -> tuple[bytes, ...]:
    """Cut an entry tile at its lengths; exactly `count` entries, and nothing after them."""
    entries, at = [], 0
    for _ in range(count):
        length = int.from_bytes(data[at : at + _LENGTH_BYTES], "big")
        entry = data[at + _LENGTH_BYTES : at + _LENGTH_BYTES + length]
        if not entry or len(entry) != length:
            raise MalformedBundle(f"{path} ends within its entries")
        entries.append(entry)
        at += _LENGTH_BYTES + length
    if at != len(data):
        raise MalformedBundle(f"{path} has bytes after its last entry")
    return tuple(entries)
