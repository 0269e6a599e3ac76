"""Which rows of a dataset a batch holds, told by the tokens that were really trained on.

A collator prefetches and serves evaluation too, so counting what it made over-reports; and
ids do not reach it. So both sides are hashed without their padding: each dataset row as the
trainer's own collator would make it, and each row of a batch where its loss is computed.
Hashes never leave memory: entries hold row numbers.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch

__all__ = ["LABELS", "RowIndex", "row_keys"]

_KEY_BYTES: Final = 16
_COLLATED_ROWS: Final = 64
_IDS: Final = "input_ids"
_MASK: Final = "attention_mask"
LABELS: Final = ("label", "labels")


class RowIndex:
    """Finds the numbers of dataset rows again in the batches made of them."""

    def __init__(self, collate: Callable[[list[Any]], Any], dataset: Any) -> None:
        """Collate the whole dataset once; random state stays as it is.

        Args:
            collate: the trainer's collator.
            dataset: of known length, as the collator gets its rows.
        """
        self._rows: dict[bytes, list[int]] = {}
        self.sequences_per_row = 1
        with _same_randomness():
            self._fill(collate, dataset)

    def find(self, batch: Any) -> list[int | None]:
        """Return the row number of each row of a batch on the host; None for an unknown one.

        Equal rows are named in turn: which of them it was makes no difference.
        """
        found: list[int | None] = []
        for key in row_keys(batch, self.sequences_per_row):
            rows = self._rows.get(key)
            if rows is None:
                found.append(None)
                continue
            rows.append(rows.pop(0))
            found.append(rows[-1])
        return found

    def _fill(self, collate: Callable[[list[Any]], Any], dataset: Any) -> None:
        size = len(dataset)
        if not size:
            return
        first = collate([dataset[0]])
        is_flat = _is_flat(first)
        self.sequences_per_row = 1 if is_flat else max(1, len(row_keys(first, 1)))
        step = 1 if is_flat else _COLLATED_ROWS  # a flattened batch does not show where rows end
        for start in range(0, size, step):
            numbers = range(start, min(start + step, size))
            keys = row_keys(collate([dataset[row] for row in numbers]), self.sequences_per_row)
            owners = [start] * len(keys) if is_flat else numbers
            for key, row in zip(keys, owners, strict=True):
                self._rows.setdefault(key, []).append(row)


def row_keys(batch: Any, sequences_per_row: int = 1) -> list[bytes]:
    """Return 16 bytes per row of a batch, equal for equal rows whatever their padding.

    Args:
        batch: tensors by name on the host, padded with masks, flattened with positions, or
            without either.
        sequences_per_row: of `input_ids`; 2 where chosen and rejected follow as two halves.
    """
    if not isinstance(batch, Mapping):
        return []
    tensors = {
        name: np.asarray(value) if not isinstance(value, torch.Tensor) else _array(value)
        for name, value in batch.items()
        if isinstance(value, torch.Tensor | np.ndarray | list)
    }
    if _is_flat(tensors):
        return _flat_keys(tensors[_IDS][0], tensors["position_ids"][0])
    names = sorted(name for name in tensors if name.endswith(_IDS) and not name.startswith("KL_"))
    if "completion_ids" in tensors:  # of a policy's own making
        names = ["prompt_ids", "completion_ids"]
    if names:
        columns = [_sequences(tensors, name, sequences_per_row) for name in names]
    else:
        columns = [_slices(value) for name, value in sorted(tensors.items()) if value.ndim]
    rows = min((len(column) for column in columns), default=0)
    labels = [tensors[name] for name in LABELS if name in tensors and tensors[name].ndim == 1]
    columns += [_slices(label) for label in labels if names]
    return [_key([column[row] for column in columns]) for row in range(rows)]


def _sequences(tensors: Mapping[str, np.ndarray[Any, Any]], name: str, per_row: int) -> list[bytes]:
    """Return the bytes of the un-padded sequences of one tensor, joined by row."""
    ids = tensors[name].astype(np.int64, copy=False)
    mask = tensors.get(_mask_name(name))
    parts = [
        # TRL masks a truncated completion away altogether; it is still the row it is
        (row if mask is None or not mask[number].any() else row[mask[number] != 0]).tobytes()
        for number, row in enumerate(ids)
    ]
    rows = len(parts) // per_row
    if per_row == 1 or rows * per_row != len(parts):
        return parts
    return [b"|".join(parts[row::rows]) for row in range(rows)]


def _mask_name(name: str) -> str:
    if name.endswith(_IDS):
        return name[: -len(_IDS)] + _MASK
    return name.removesuffix("ids") + "mask"


def _flat_keys(ids: np.ndarray[Any, Any], positions: np.ndarray[Any, Any]) -> list[bytes]:
    starts = np.flatnonzero(positions == 0)
    # behind the last sequence, padding has positions 0 as well: one token each
    parts = np.split(ids.astype(np.int64, copy=False), starts[1:])
    return [_key([part.tobytes()]) for part in parts if len(part) > 1]


def _slices(value: np.ndarray[Any, Any]) -> list[bytes]:
    return [row.tobytes() for row in np.ascontiguousarray(value)]


def _key(parts: Sequence[bytes]) -> bytes:
    digest = hashlib.blake2b(digest_size=_KEY_BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def _is_flat(batch: Any) -> bool:
    """Whether rows stand one behind another in a single one, told apart by their positions."""
    if not isinstance(batch, Mapping) or _MASK in batch or "position_ids" not in batch:
        return False
    return _IDS in batch and len(batch[_IDS]) == 1


def _array(value: torch.Tensor) -> np.ndarray[Any, Any]:
    plain = value.detach().cpu()
    if plain.dtype == torch.bfloat16:  # NumPy has none
        plain = plain.float()
    array: np.ndarray[Any, Any] = plain.numpy()
    return array


@contextmanager
def _same_randomness() -> Iterator[None]:
    """Put random states back: a collator may draw, and training must not notice."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002 - the global one
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002 - as above
