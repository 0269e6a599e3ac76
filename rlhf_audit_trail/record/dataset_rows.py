"""Datasets of any library as rows, and which annotations a row was made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Final

from rlhf_audit_trail.capture import WrongArgument
from rlhf_audit_trail.ledger.writer import Receipt
from rlhf_audit_trail.record.row_commitments import TableKey, row_bytes

__all__ = ["Annotated", "DatasetRecord", "Decode", "committed", "rows_of"]

ANNOTATIONS_KEPT_MAX: Final = 1_000_000  # for linking; texts are referred to, not copied
_RESPONSES: Final = ("chosen", "rejected", "completion", "response")
_READ_ROWS: Final = 1_000

Decode = Callable[[Sequence[int]], str]


@dataclass
class Annotated:
    """Annotations of this process by their text, so that training rows find theirs.

    Columns are only referred to until somebody asks: recording stays as cheap as it is.
    """

    _waiting: list[tuple[Sequence[str], Sequence[str], Sequence[Receipt]]] = field(
        default_factory=list
    )
    _known: dict[tuple[str, str], Receipt] = field(default_factory=dict)
    _count: int = 0

    def remember(
        self, prompts: Sequence[str], responses: Sequence[str], receipts: Sequence[Receipt]
    ) -> None:
        """Keep what was annotated, up to a million rows."""
        if self._count + len(receipts) <= ANNOTATIONS_KEPT_MAX:
            self._count += len(receipts)
            self._waiting.append((prompts, responses, receipts))

    def of(self, row: Any, ending: str = "", decode: Decode | None = None) -> list[Receipt]:
        """Return the annotations of a row: of its prompt with each response it holds.

        Args:
            row: of a dataset.
            ending: what a trainer appended to responses, such as an end token's text.
            decode: reads a response of which the trainer has left nothing but tokens.
        """
        for prompts, responses, receipts in self._waiting:
            pairs = zip(prompts, responses, strict=True)
            self._known.update(zip(pairs, receipts, strict=True))
        self._waiting.clear()
        if not self._known or not isinstance(row, Mapping):
            return []
        prompt = row.get("prompt")
        if not isinstance(prompt, str):
            return []
        answers = [row.get(name) for name in _RESPONSES]
        if decode is not None and not any(isinstance(text, str) for text in answers):
            tokens = [row.get(f"{name}_input_ids") for name in _RESPONSES]
            answers = [decode(ids) for ids in tokens if ids is not None]
        plain = [text.removesuffix(ending) for text in answers if isinstance(text, str)]
        found = [self._known.get((prompt, text)) for text in plain]
        return [receipt for receipt in found if receipt is not None]


@dataclass(frozen=True)
class DatasetRecord:
    """What was recorded of a dataset; needed to prove that a row was in it.

    Attributes:
        role: for example train.
        rows: how many; None for a stream, of which only consumed rows are known.
        root: of the salted row commitments, hex; None for a stream.
        ids: per row the value of the id column; empty without one.
        annotations: row number to the annotations that it was made of.
        receipt: of the entry.
    """

    role: str
    rows: int | None
    root: str | None
    ids: Sequence[Any]
    annotations: Mapping[int, Sequence[Receipt]]
    receipt: Receipt = field(repr=False)

    def link(self, row: int) -> Any:
        """Return where a row came from: leaf indices of annotations, else its id, else None."""
        if row in self.annotations:
            # an index is known once the entry is durable; nobody waits for it here
            known = [item.result(0) if item.done() else None for item in self.annotations[row]]
            return [index for index in known if index is not None] or None
        return self.ids[row] if self.ids else None


@dataclass(frozen=True)
class Committed:
    """A dataset's root and what is known of its rows."""

    key: TableKey
    rows: int
    root: bytes
    ids: list[Any]
    annotations: dict[int, list[Receipt]]


def committed(
    dataset: Any,
    annotated: Annotated,
    id_column: str | None,
    ending: str = "",
    decode: Decode | None = None,
) -> Committed:
    """Read a dataset once; commit to each row, and look for its annotations.

    Raises:
        WrongArgument: no row has the id column, or this is no dataset.
        InvalidColumn: a value cannot be committed to.
    """
    key, ids, annotations = TableKey(), [], {}
    count = 0

    def each() -> Iterator[bytes]:
        nonlocal count
        for row in rows_of(dataset):
            if id_column is not None:
                ids.append(_id_of(row, id_column))
            if found := annotated.of(row, ending, decode):
                annotations[count] = found
            count += 1
            yield row_bytes(row)

    root = key.root(each())
    return Committed(key, count, root, ids, annotations)


def rows_of(dataset: Any) -> Iterator[Any]:
    """Yield the rows of a dataset: of HF datasets, columns by name, or any sequence.

    Raises:
        WrongArgument: this is none of them.
    """
    if isinstance(dataset, Mapping):
        columns = [x.tolist() if hasattr(x, "tolist") else list(x) for x in dataset.values()]
        for values in zip(*columns, strict=True):
            yield dict(zip(dataset, values, strict=True))
    elif hasattr(dataset, "column_names") and hasattr(dataset, "with_format"):
        for batch in dataset.with_format(None).iter(_READ_ROWS):
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(batch, values, strict=True))
    elif isinstance(dataset, Sized) and hasattr(dataset, "__getitem__"):
        for row in range(len(dataset)):
            yield dataset[row]
    else:
        raise WrongArgument(
            f"a {type(dataset).__name__} is no dataset with rows",
            next_step="pass a sequence of rows, columns by name, or a dataset",
        )


def _id_of(row: Any, id_column: str) -> Any:
    if not isinstance(row, Mapping) or id_column not in row:
        raise WrongArgument(
            f"a row of the dataset has no column {id_column!r:.80}",
            next_step="name the column that holds the rows' ids, or leave id_column out",
        )
    value = row[id_column]
    return value if isinstance(value, str | int) or value is None else str(value)
