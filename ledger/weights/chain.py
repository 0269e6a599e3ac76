"""Chains of weight deltas: whole weights, and differences that each start from the one before.

Spec: FORMAT.md, section 19.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from rlhf_audit_trail.ledger.weights.arithmetic import PLAIN, ByteArithmetic
from rlhf_audit_trail.ledger.weights.chunks import EncodedChunk, MalformedDelta, combine
from rlhf_audit_trail.ledger.weights.delta import ChunkPlace, DeltaHeader, DeltaTensor
from rlhf_audit_trail.ledger.weights.digest import Bytes

__all__ = ["ChainLink", "restored_chunks"]


@dataclass(frozen=True)
class ChainLink:
    """A delta of a chain: its header, and what finds the encoded chunk at a place of its layout."""

    header: DeltaHeader
    find: Callable[[ChunkPlace], EncodedChunk]

    @cached_property
    def table(self) -> Mapping[str, tuple[int, DeltaTensor]]:
        """Name to number and tensor."""
        return {x.record.name: (number, x) for number, x in enumerate(self.header.tensors)}


def restored_chunks(
    chain: Sequence[ChainLink],
    chunks: Iterable[ChunkPlace],
    arithmetic: ByteArithmetic = PLAIN,
    room: Callable[[ChunkPlace], memoryview | None] | None = None,
) -> Iterator[Bytes]:
    """Yield chunks of the last result of a chain; their digests are the caller's to check.

    Args:
        chain: each starts from the result of the one before it.
        chunks: places in the layout of the last one.
        arithmetic: does the loops.
        room: where each chunk is to be written; else into memory of its own.

    Raises:
        MalformedDelta: the chain does not hang together.
    """
    last = chain[-1].header
    for chunk in chunks:
        name, parts = last.tensors[chunk.tensor].record.name, []
        wanted = last.tensors[chunk.tensor].place
        for link in reversed(chain):
            at, tensor = link.table.get(name, (0, None))
            if tensor is None or not tensor.place.fits(wanted):
                raise MalformedDelta(f"the chain does not hold {name} where it is needed")
            parts.append(link.find(ChunkPlace(at, chunk.start, chunk.size_bytes)))
            if tensor.is_whole:
                break
        else:
            raise MalformedDelta(f"no delta of the chain holds {name} whole")
        yield combine(parts, arithmetic, None if room is None else room(chunk))
