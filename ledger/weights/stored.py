"""A checkpoint whose weights are in the store, and which ones the next may be a difference from.

Every sixteenth is whole. Of those between, every fourth is a difference from the whole one, and
the others from the nearest of these before them. So weights are never more than two differences
away from whole ones, whichever is asked for, and differences stay nearly as small as in a chain in
which each starts from the one before, where it would be fifteen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rlhf_audit_trail.ledger.weights.delta import (
    ChunkPlace,
    ChunkSource,
    DeltaHeader,
    Layout,
    TensorPlace,
)
from rlhf_audit_trail.ledger.weights.digest import Bytes
from rlhf_audit_trail.ledger.weights.errors import CheckpointDamaged, CheckpointMissing

__all__ = [
    "CHAIN_LENGTH_MAX",
    "CheckpointDamaged",
    "CheckpointMissing",
    "Lineage",
    "Predecessor",
    "SavedWeights",
    "StoredCheckpoint",
]

CHAIN_LENGTH_MAX: Final = 2
_DIFFERENCES_MAX: Final = 15  # so every sixteenth is whole
_BRANCH: Final = 4
_WHOLES_MAX: Final = 2  # differences that take more than this many whole ones: begin anew


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint whose weights are in the store; digests are hex.

    Attributes:
        number: of its row.
        base: number of the one it is a difference from; None if it is whole.
        chain_length: differences down to whole weights.
        chain_bytes: that they take, this one included.
        size_bytes: of the weights.
        stored_bytes: that this one takes.
    """

    number: int
    log_number: int
    name: str
    weights_digest: str
    header_digest: str
    base: int | None
    chain_length: int
    chain_bytes: int
    size_bytes: int
    stored_bytes: int
    created_at: str


@dataclass(frozen=True)
class SavedWeights:
    """What was stored of a checkpoint.

    Attributes:
        stored: its row.
        header: of the delta.
        segments: digests, hex, of the delta's segments.
        hashes: leaf hashes of the chunks of each segment.
    """

    stored: StoredCheckpoint
    header: DeltaHeader
    segments: tuple[str, ...]
    hashes: tuple[tuple[bytes, ...], ...]


@dataclass(frozen=True)
class Predecessor:
    """An earlier checkpoint, and where its bytes can be read without decoding them.

    Attributes:
        saved: what was stored.
        layout: its tensors.
        read: its chunks, by place in `layout`.
    """

    saved: SavedWeights
    layout: Layout
    read: ChunkSource

    def number_of(self, place: TensorPlace) -> int | None:
        """Return the number of a tensor in it, None where it is new, reshaped or cast."""
        number = self.layout.number.get(place.name)
        same = number is not None and self.layout.tensors[number].fits(place)
        return number if same else None

    def known(self, chunk: ChunkPlace) -> tuple[Bytes, bytes]:
        """Return the bytes at a place of its layout, and their leaf hash."""
        segment, within = self.layout.where[chunk.tensor, chunk.start]
        return self.read(chunk), self.saved.hashes[segment][within]


class Lineage:
    """The checkpoints of one run that the next one may be a difference from: two at most."""

    def __init__(self) -> None:
        """Begin with none: then the next one is whole."""
        self._whole: Predecessor | None = None
        self._branch: Predecessor | None = None
        self._count = 0  # of differences since the whole one
        self._bytes = 0  # that they take

    @property
    def held(self) -> list[Predecessor]:
        """Those whose bytes are still needed."""
        return [x for x in (self._whole, self._branch) if x is not None]

    def next_base(self) -> Predecessor | None:
        """Return what the next one starts from, None if it is to be whole."""
        whole = self._whole
        if whole is None or self._count >= _DIFFERENCES_MAX:
            return None
        if self._bytes > _WHOLES_MAX * whole.saved.stored.stored_bytes:
            return None
        is_branch = (self._count + 1) % _BRANCH == 0
        return whole if self._branch is None or is_branch else self._branch

    def add(self, new: Predecessor) -> None:
        """Note the one that was stored last."""
        if new.saved.stored.base is None:
            self._whole, self._branch, self._count, self._bytes = new, None, 0, 0
            return
        self._count += 1
        self._bytes += new.saved.stored.stored_bytes
        if self._count % _BRANCH == 0:
            self._branch = new
