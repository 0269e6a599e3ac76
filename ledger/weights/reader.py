"""The weights of a stored checkpoint, rebuilt bit for bit from its chain of deltas."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Final, Protocol

from rlhf_audit_trail.ledger.blobs import BlobStore
from rlhf_audit_trail.ledger.weights.arithmetic import ByteArithmetic
from rlhf_audit_trail.ledger.weights.chain import ChainLink, restored_chunks
from rlhf_audit_trail.ledger.weights.chunks import EncodedChunk
from rlhf_audit_trail.ledger.weights.delta import (
    ChunkPlace,
    DeltaHeader,
    DeltaTensor,
    Layout,
    parse_segment,
)
from rlhf_audit_trail.ledger.weights.digest import (
    CHUNK_BYTES,
    Bytes,
    TensorRecord,
    chunk_hash,
    tensor_root,
)
from rlhf_audit_trail.ledger.weights.stored import (
    CheckpointDamaged,
    CheckpointMissing,
    StoredCheckpoint,
)

__all__ = ["CheckpointReader", "HeldWeights", "StoredDelta"]

_THREADS: Final = 2
_SEGMENTS_HELD: Final = 4  # parsed ones, of each delta of a chain


class _Delta(Protocol):
    """A link of a chain."""

    @property
    def header(self) -> DeltaHeader: ...
    @property
    def layout(self) -> Layout: ...
    def find(self, chunk: ChunkPlace) -> EncodedChunk: ...


class StoredDelta:
    """One delta of a chain: finds encoded chunks, holding a few segments."""

    def __init__(self, header: DeltaHeader, digests: Sequence[str], blobs: BlobStore) -> None:
        """Take the header, and the digests of the segments."""
        self.header, self._digests, self._blobs = header, digests, blobs
        self.layout = header.layout
        if len(digests) != len(self.layout.segments):
            raise CheckpointDamaged("a stored checkpoint does not have the segments it should")
        self._held: dict[int, tuple[EncodedChunk, ...]] = {}  # owned by _lock
        self._lock = threading.Lock()

    def find(self, chunk: ChunkPlace) -> EncodedChunk:
        """Return the encoded chunk at a place of the delta's layout."""
        segment, within = self.layout.where[chunk.tensor, chunk.start]
        return self._segment(segment)[within]

    def _segment(self, number: int) -> tuple[EncodedChunk, ...]:
        with self._lock:
            held = self._held.get(number)
        if held is None:
            # not hashed: the decoder is strict, and the weights that come of it are hashed
            data = self._blobs.read_whole(self._digests[number])
            held = parse_segment(self.layout, number, data)
            with self._lock:
                while len(self._held) >= _SEGMENTS_HELD:
                    self._held.pop(next(iter(self._held)))
                self._held[number] = held
        return held


class HeldWeights:
    """Weights that lie decoded somewhere, in the place of a chain's beginning."""

    def __init__(
        self, number: int, tensors: Iterable[TensorRecord], read: Callable[[ChunkPlace], Bytes]
    ) -> None:
        """Take the number of their row, their records in order of names, and their chunks."""
        self.number = number
        self.header = DeltaHeader(None, tuple(DeltaTensor(x, is_whole=True) for x in tensors))
        self.layout = self.header.layout
        self._read = read

    def find(self, chunk: ChunkPlace) -> EncodedChunk:
        """Return a chunk as one that is written as it is."""
        width = self.layout.tensors[chunk.tensor].width
        return EncodedChunk(chunk.size_bytes, width, plain=memoryview(self._read(chunk)))


class CheckpointReader:
    """The weights of a stored checkpoint, rebuilt bit for bit."""

    def __init__(
        self,
        stored: StoredCheckpoint,
        chain: Sequence[_Delta],
        arithmetic: ByteArithmetic,
    ) -> None:
        """Use `CheckpointStore.reader` instead."""
        self.stored = stored
        self._arithmetic = arithmetic
        for one, other in pairwise(chain):
            if other.header.base != one.header.result:
                raise CheckpointDamaged("a chain of stored checkpoints does not hang together")
        if chain[0].header.base is not None:
            raise CheckpointDamaged("a chain of stored checkpoints has no beginning")
        self._links = [ChainLink(part.header, part.find) for part in chain]
        self.header, self.layout = chain[-1].header, chain[-1].layout

    def tensor(self, name: str) -> bytes:
        """Return the bytes of one tensor, checked against its root.

        Raises:
            CheckpointMissing: no tensor of this name.
            CheckpointDamaged: as `restore`.
        """
        number = self.layout.number.get(name)
        if number is None:
            raise CheckpointMissing(f"{self.stored.name} has no tensor {name!r:.200}")
        own = [chunk for chunk in self.layout.chunks() if chunk.tensor == number]
        data = b"".join(restored_chunks(self._links, own, self._arithmetic))
        if tensor_root(data) != self.header.tensors[number].record.root:
            raise _damaged(self.stored.name, [name])
        return data

    def restore(
        self,
        write: Callable[[ChunkPlace, Bytes], object] | None = None,
        *,
        room: Callable[[ChunkPlace], memoryview] | None = None,
    ) -> None:
        """Rebuild all weights, and check them; each chunk is hashed while it is near.

        What was written is not yet checked: only when this method returns, all of it was right.

        Args:
            write: is handed each chunk, whose memory is used again; called from several threads,
                in no order.
            room: or where each is to be written, without another copy.

        Raises:
            CheckpointDamaged: naming the tensors that are not what the header says.
            MalformedDelta, BlobMissing, BlobDamaged: it cannot even be decoded.
        """

        def one(number: int) -> list[bytes]:
            chunks, hashes = self.layout.segments[number], []
            found = restored_chunks(self._links, chunks, self._arithmetic, room or _ROOM.of)
            for chunk, data in zip(chunks, found, strict=True):
                hashes.append(chunk_hash(data))
                if write is not None:
                    write(chunk, data)
            return hashes

        with ThreadPoolExecutor(_THREADS) as pool:
            hashes = list(pool.map(one, range(len(self.layout.segments))))
        found = self.layout.records(hashes)
        wanted = [tensor.record for tensor in self.header.tensors]
        wrong = [x.name for x, y in zip(found, wanted, strict=True) if x != y]
        if wrong:
            raise _damaged(self.stored.name, wrong)


class _Room(threading.local):
    """Room for one chunk, for each thread."""

    def __init__(self) -> None:
        self._room = memoryview(bytearray(CHUNK_BYTES))

    def of(self, chunk: ChunkPlace) -> memoryview:
        return self._room[: chunk.size_bytes]


_ROOM: Final = _Room()


def _damaged(name: str, tensors: Sequence[str]) -> CheckpointDamaged:
    shown = ", ".join(tensors[:5]) + (" …" if len(tensors) > 5 else "")  # noqa: PLR2004 - for people
    return CheckpointDamaged(
        f"the stored weights of {name} are not those of its digest: {shown}",
        next_step="restore the database and its blobs from a backup",
    )
