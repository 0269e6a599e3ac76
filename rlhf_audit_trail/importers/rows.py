"""Files as rows: JSON Lines, JSON, CSV and parquet, none of them trusted.

A row that cannot be read is counted with its number; only a file that is no such file at all
is an error. Nothing is unpickled or run.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rlhf_audit_trail.importers.preference import BAD, LeftOut
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = ["SUFFIXES", "Row", "UnreadableExport", "digest_of", "digest_of_rows", "read_rows"]

LINE_BYTES_MAX: Final = 16 * 1024 * 1024  # a longer line is no conversation
WHOLE_FILE_BYTES_MAX: Final = 1024 * 1024 * 1024  # one JSON value is read into memory whole
_READ_BYTES: Final = 1024 * 1024
_BATCH_ROWS: Final = 1_000
_PARQUET_MAGIC: Final = b"PAR1"
_DEPTH_MAX: Final = 100
_STRINGS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_STEPS: Final = bytes.maketrans(b"[{]}", bytes([2, 2, 0, 0]))  # less one: up, up, down, down

Row = tuple[int, Mapping[str, Any]]
"""Line, or number of the row or item from 1, and the columns."""


class UnreadableExport(AuditTrailError):
    """A file is not what its name says, or larger than can be read."""


def digest_of(path: Path) -> tuple[str, int]:
    """Return SHA-256 in hex and size in bytes of a file; raises OSError."""
    digest, size_bytes = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
    return digest.hexdigest(), size_bytes


def digest_of_rows(rows: Iterable[Mapping[str, Any]]) -> tuple[str, int]:
    """Return SHA-256 and size of rows in memory, one compact JSON value a line."""
    digest, size_bytes = hashlib.sha256(), 0
    for row in rows:
        line = json.dumps(row, sort_keys=True, default=repr).encode() + b"\n"
        digest.update(line)
        size_bytes += len(line)
    return digest.hexdigest(), size_bytes


def read_rows(path: Path) -> Iterator[Row | LeftOut]:
    """Yield the rows of a file by its suffix, and what of it is no row.

    Raises:
        UnreadableExport: an unknown suffix, or not such a file.
        OSError: it cannot be opened.
    """
    reader = SUFFIXES.get(path.suffix.lower())
    if reader is None:
        raise UnreadableExport(
            f"{path.name}: the suffix {path.suffix!r:.20} tells no format",
            next_step=f"name the file with one of {', '.join(SUFFIXES)}",
        )
    yield from reader(path)


def _json_lines(path: Path) -> Iterator[Row | LeftOut]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LINE_BYTES_MAX + 1):
            number += 1
            if len(line) > LINE_BYTES_MAX:
                _skip_line(file, line)
                yield LeftOut(number, BAD, f"longer than {LINE_BYTES_MAX:,} bytes")
            elif line.strip():
                yield _parsed(number, line)


def _skip_line(file: Any, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = file.readline(LINE_BYTES_MAX)


def _parsed(number: int, line: bytes) -> Row | LeftOut:
    try:
        value = _decoded(line)
    except UnicodeDecodeError:
        return LeftOut(number, BAD, "not UTF-8")
    except _TooDeep:
        return LeftOut(number, BAD, "nested too deep")
    except ValueError:  # the error's own text quotes nothing, but says where: not needed
        return LeftOut(number, BAD, "not JSON")
    return (number, value) if isinstance(value, dict) else LeftOut(number, BAD, "no object")


class _TooDeep(ValueError):
    """Lists or objects within each other, more than any export has."""


def _decoded(data: bytes) -> Any:
    """Parse one JSON value in UTF-8.

    Python's own limit of recursion is no help: where a program has raised it, as web3 does,
    parsing overruns the stack.
    """
    if data.count(b"[") + data.count(b"{") > _DEPTH_MAX:  # mostly not, in a line
        brackets = _STRINGS.sub(b"", data).translate(None, _NO_BRACKETS)
        steps = brackets.translate(_STEPS)
        if max(itertools.accumulate(step - 1 for step in steps), default=0) > _DEPTH_MAX:
            raise _TooDeep
    return json.loads(data.decode("utf-8-sig"), parse_constant=_refuse)


def _refuse(name: str) -> Any:
    raise ValueError(f"JSON has no {name}")


def _json(path: Path) -> Iterator[Row | LeftOut]:
    if path.stat().st_size > WHOLE_FILE_BYTES_MAX:
        raise UnreadableExport(
            f"{path.name} is larger than {WHOLE_FILE_BYTES_MAX:,} bytes",
            next_step="export it as JSON Lines, which is read line by line",
        )
    try:
        value = _decoded(path.read_bytes())
    except ValueError as error:
        raise UnreadableExport(
            f"{path.name} is no JSON that can be read ({type(error).__name__})",
            next_step="export it again; for one value a line use the suffix .jsonl",
        ) from None
    items = value if isinstance(value, list) else [value]
    for number, item in enumerate(items, 1):
        yield (number, item) if isinstance(item, dict) else LeftOut(number, BAD, "no object")


def _csv(path: Path) -> Iterator[Row | LeftOut]:
    dialect = "excel-tab" if path.suffix.lower() == ".tsv" else "excel"
    with _long_fields(), path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, dialect=dialect, strict=True)
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except (csv.Error, UnicodeDecodeError) as error:
                # where the next row begins is not known any more
                raise UnreadableExport(
                    f"{path.name}, line {reader.line_num}: no CSV ({type(error).__name__})",
                    next_step="export it again in UTF-8",
                ) from None
            number = reader.line_num
            if None in row or None in row.values():
                yield LeftOut(number, BAD, "not as many fields as the header")
            else:
                yield number, row


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let a CSV field be as long as a JSON line; the limit is the whole process's."""
    before = csv.field_size_limit(LINE_BYTES_MAX)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parquet(path: Path) -> Iterator[Row | LeftOut]:
    import pyarrow as pa  # noqa: PLC0415 - an extra, and 0.2 s
    from pyarrow import parquet  # noqa: PLC0415

    with path.open("rb") as file:
        if file.read(4) != _PARQUET_MAGIC:
            raise _no_parquet(path)
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        raise _no_parquet(path, number) from None


def _no_parquet(path: Path, rows: int = 0) -> UnreadableExport:
    return UnreadableExport(
        f"{path.name} is no parquet file that can be read beyond row {rows:,}",
        next_step="export or download it again",
    )


SUFFIXES: Final = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}
"""File suffix to its reader."""
