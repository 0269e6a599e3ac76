"""Capture: what training code holds becomes plain numbers and text, once, here.

Lists, NumPy arrays and tensors come in; what leaves this module can be written as JSON.
Nothing is imported for that: arrays and tensors both have `tolist` and `item`.
Messages name columns and row numbers, never a value: values may be personal.
"""

from __future__ import annotations

import hashlib
import math
import numbers
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from decimal import Decimal
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = [
    "InvalidColumn",
    "InvalidMetric",
    "Movement",
    "NonFiniteValue",
    "UnequalLengths",
    "WrongArgument",
    "check_lengths",
    "environment",
    "file_digest",
    "loose_numbers",
    "number_column",
    "one_number",
    "person_column",
    "plain_value",
    "row_count",
    "text_column",
]

_FLOAT_BITS_MAX: Final = 1024  # an integer from here on has no float
_PLAIN_NUMBERS: Final = {float}
_PLAIN_TYPES: Final = {str, bool, type(None)}
_ROWS_NAMED_MAX: Final = 10  # a message stays readable; the count is always given
_READ_BYTES: Final = 1 << 20
_PACKAGES: Final = (
    "accelerate", "datasets", "numpy", "peft", "rlhf-audit-trail", "safetensors", "tokenizers",
    "torch", "transformers", "trl",
)  # fmt: skip


class InvalidColumn(AuditTrailError):
    """A column of rows is no sequence, or holds something of the wrong type."""


class WrongArgument(AuditTrailError):
    """An argument is of a type that has nothing to record."""


class UnequalLengths(AuditTrailError):
    """Columns that describe the same rows have different lengths."""


class NonFiniteValue(AuditTrailError):
    """A reward is NaN or infinite."""


class InvalidMetric(AuditTrailError):
    """A metric's value is no number, text, list or mapping."""


@dataclass(frozen=True)
class Movement:
    """What optimizer steps did to the weights since they were last asked for.

    Attributes:
        updates: number of steps, 1 or more.
        delta_norm: L2 norm of the displacement of all trainable parameters; estimated when
            `kind` is sampled. NaN shows that the weights are.
        kind: exact or sampled.
        grad_norm_applied: mean over the steps of the gradients' L2 norm as the optimizer
            saw it, after clipping; None when there were no gradients.
        learning_rate: of the last step; the largest of all parameter groups.
        statistics: more for the vault: largest and last gradient norm, learning rates,
            relative displacement per tensor, sampled values.
        failure: type of an error inside the watch; empty when all went well.
    """

    updates: int
    delta_norm: float | None
    kind: str
    grad_norm_applied: float | None = None
    learning_rate: float | None = None
    statistics: Mapping[str, Any] = field(default_factory=dict)
    failure: str = ""


def number_column(name: str, values: Any) -> list[float]:
    """Return a column of finite numbers as Python numbers.

    Args:
        name: of the column, for messages.
        values: sequence, array or tensor of one dimension.

    Raises:
        InvalidColumn: not one-dimensional, or not numbers.
        NonFiniteValue: NaN or infinity; the rows are named.
    """
    rows = _rows(name, values)
    if set(map(type, rows)) <= _PLAIN_NUMBERS and all(map(math.isfinite, rows)):
        return rows
    plain = [_number(value) for value in rows]
    _refuse_rows(
        name, "no number", [row for row, value in enumerate(plain) if value is None], InvalidColumn
    )
    column = [value for value in plain if value is not None]
    odd = [row for row, value in enumerate(column) if not math.isfinite(value)]
    _refuse_rows(name, "NaN or infinite", odd, NonFiniteValue)
    return column


def text_column(name: str, values: Any) -> list[str]:
    """Return a column of text; raises InvalidColumn naming the rows that are none."""
    plain = _rows(name, values)
    if set(map(type, plain)) <= {str}:
        return plain
    odd = [row for row, value in enumerate(plain) if not isinstance(value, str)]
    _refuse_rows(name, "no text", odd, InvalidColumn)
    return plain


def check_lengths(**columns: Sized) -> int:
    """Return the common length of all columns.

    Raises:
        UnequalLengths: names each column with its length, and the first row that is missing.
    """
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        shortest, longest = min(lengths.values()), max(lengths.values())
        rows = str(shortest) if longest - shortest == 1 else f"{shortest} to {longest - 1}"
        raise UnequalLengths(
            f"columns of unequal length: {listed}; row {rows} is incomplete (rows count from 0)",
            next_step="pass one value per row in every column; nothing was recorded",
        )
    return next(iter(lengths.values()), 0)


def plain_value(name: str, value: Any, odd: list[str] | None = None) -> Any:
    """Return a metric as JSON types; numbers that are not finite become text.

    Args:
        name: where the value stands, for messages.
        value: number, text, None, list, mapping, array or tensor.
        odd: gets the names of numbers that became NaN, Infinity or -Infinity as text,
            because JSON has no such numbers.

    Raises:
        InvalidMetric: no number, text, list or mapping.
    """
    kind = type(value)
    if kind in _PLAIN_TYPES or (kind is float and math.isfinite(value)) or isinstance(value, str):
        return value  # most are: asking abstract types of number takes ten times as long
    if isinstance(value, Mapping):
        if kind is dict and _are_plain_numbers(value):  # a figure for every tensor
            return {str(key): item for key, item in value.items()}
        # keys stay out of names: they reach messages, and may name people
        return {str(key): plain_value(name, item, odd) for key, item in value.items()}
    number = None if getattr(value, "shape", ()) else _number(value)
    if number is not None:
        if math.isfinite(number):
            return number
        if odd is not None:
            odd.append(name)
        return _non_finite_text(number)
    plain = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(plain, list | tuple):
        return [plain_value(f"{name}[{row}]", item, odd) for row, item in enumerate(plain)]
    raise InvalidMetric(
        f"a value of {name} is of type {type(value).__name__}",
        next_step="pass numbers, text, lists or mappings of these",
    )


def loose_numbers(name: str, values: Any) -> list[float]:
    """Return numbers that may be NaN or infinite: what a policy made is recorded as it was."""
    plain = [_number(value) for value in _rows(name, values)]
    odd = [row for row, value in enumerate(plain) if value is None]
    _refuse_rows(name, "no number", odd, InvalidColumn)
    return [float(value) for value in plain if value is not None]


def person_column(name: str, values: Any) -> list[str]:
    """Return ids of people as text; None or empty text is nobody in particular."""
    people = _rows(name, values)
    if set(map(type, people)) <= {str}:
        return people
    return ["" if person is None else str(person) for person in people]


def row_count(batch: Any) -> int:
    """Return how many rows a batch has: its own length, or that of its first column.

    Raises:
        WrongArgument: a tensor without rows.
    """
    if not isinstance(batch, Sized):
        return 0
    columns: list[Sized] = [batch]
    if isinstance(batch, Mapping):
        columns = [column for column in batch.values() if isinstance(column, Sized)]
    try:
        return len(columns[0]) if columns else 0
    except TypeError:
        raise WrongArgument(
            f"batch is of type {type(batch).__name__}, and has no rows",
            next_step="pass the rows of the update: a list, a tensor of rows, or columns by name",
        ) from None


def one_number(name: str, value: Any) -> float:
    """Return a scalar of any library as a float; it may be NaN.

    Raises:
        WrongArgument: no number.
    """
    number = _number(value)
    if number is None:
        raise WrongArgument(
            f"{name} is of type {type(value).__name__}, not a number",
            next_step="pass a number, or a tensor of one element",
        )
    return float(number)


def environment() -> dict[str, Any]:
    """Return the fields of an `env.snapshot` event: versions, and the main script's digest."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.machine()}",
        "packages": _versions(),
    }
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    if script and Path(script).is_file():
        found["code_digest"] = file_digest(Path(script))
    return found


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's sorted (name, digest) lines, in hex.

    For transport only: equal weights can lie in unequal files (`ledger/weights/digest.py`).
    Raises OSError when it cannot be read.
    """
    digest = hashlib.sha256()
    if path.is_dir():
        for item in sorted(item for item in path.rglob("*") if item.is_file()):
            line = f"{file_digest(item)}  {item.relative_to(path).as_posix()}\n"
            digest.update(line.encode())
        return digest.hexdigest()
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _rows(name: str, values: Any) -> list[Any]:
    plain = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(plain, str | bytes) or not isinstance(plain, Iterable):
        raise InvalidColumn(
            f"{name} must be a sequence with one value per row, not {type(values).__name__}",
            next_step="wrap a single value in a list",
        )
    return list(plain)


def _number(value: Any) -> float | None:
    """Return a scalar of any library as a Python number; None when it is no number."""
    if not isinstance(value, numbers.Real) and hasattr(value, "item"):
        if math.prod(getattr(value, "shape", ())) != 1:
            return None
        value = value.item()
    if isinstance(value, numbers.Integral):
        whole = int(value)
        if whole.bit_length() < _FLOAT_BITS_MAX:
            return whole
        return math.inf if whole > 0 else -math.inf  # as every float operation would have it
    return float(value) if isinstance(value, numbers.Real | Decimal) else None


def _are_plain_numbers(found: Mapping[Any, Any]) -> bool:
    values = found.values()
    return set(map(type, values)) == _PLAIN_NUMBERS and all(map(math.isfinite, values))


def _non_finite_text(number: float) -> str:
    if math.isnan(number):
        return "NaN"
    return "Infinity" if number > 0 else "-Infinity"


def _refuse_rows(name: str, what: str, rows: Sequence[int], error: type[AuditTrailError]) -> None:
    if not rows:
        return
    listed = ", ".join(map(str, rows[:_ROWS_NAMED_MAX]))
    more = "" if len(rows) <= _ROWS_NAMED_MAX else f" and {len(rows) - _ROWS_NAMED_MAX} more"
    raise error(
        f"{name} is {what} in row {listed}{more} (rows count from 0)",
        next_step="correct or leave out these rows; nothing was recorded",
    )


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
