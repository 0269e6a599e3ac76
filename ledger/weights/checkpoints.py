"""Weights of model checkpoints in the store: whole now and then, differences in between.

Each is a weight delta (`weight_delta.py`): a blob for its header, one for each segment, and
rows that say which. Whoever restores weights gets those that the header's digest names, or an
error that names the tensors that are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from sqlalchemy import Connection, Engine, delete, func, insert, select, update

from rlhf_audit_trail.ledger.blobs import BlobStore
from rlhf_audit_trail.ledger.store.database import transact
from rlhf_audit_trail.ledger.store.models import StoredCheckpointRow, WeightSegmentRow
from rlhf_audit_trail.ledger.weights.arithmetic import PLAIN, ByteArithmetic
from rlhf_audit_trail.ledger.weights.delta import (
    ChunkPlace,
    ChunkSource,
    DeltaHeader,
    DeltaTensor,
    Layout,
    encode_segment,
    parse_header,
)
from rlhf_audit_trail.ledger.weights.digest import Bytes
from rlhf_audit_trail.ledger.weights.errors import BaseDiscarded
from rlhf_audit_trail.ledger.weights.reader import CheckpointReader, HeldWeights, StoredDelta
from rlhf_audit_trail.ledger.weights.stored import (
    CHAIN_LENGTH_MAX,
    CheckpointDamaged,
    CheckpointMissing,
    Predecessor,
    SavedWeights,
    StoredCheckpoint,
)

__all__ = ["CheckpointStore"]

_THREADS: Final = 3  # two compute while a third waits for the disk
STORING, STORED, GOING = "storing", "stored", "going"

_CHECKPOINTS = StoredCheckpointRow.__table__  # type: ignore[attr-defined]
_SEGMENTS = WeightSegmentRow.__table__  # type: ignore[attr-defined]


class CheckpointStore:
    """Puts, gets and discards the weights of checkpoints."""

    def __init__(
        self, engine: Engine, blobs: BlobStore, arithmetic: ByteArithmetic = PLAIN
    ) -> None:
        """Keep rows in `engine`'s database and bytes in `blobs`."""
        self._engine, self._blobs, self._arithmetic = engine, blobs, arithmetic

    def save(
        self,
        log_number: int,
        name: str,
        layout: Layout,
        read: ChunkSource,
        *,
        created_at: str,
        base: Predecessor | None = None,
    ) -> SavedWeights:
        """Store weights, whole or as a difference.

        Args:
            log_number: of the run's log.
            name: of the checkpoint; need not be unique, since a resumed run may save it again.
            layout: the tensors.
            read: their chunks; called from several threads, once for each.
            created_at: for people.
            base: the checkpoint to start from, None to store them whole.

        Raises:
            BaseDiscarded: `base` is not stored any more; nothing was stored of this one.
            StoreError, ObjectStoreFailed: nothing refers to what was stored of it; `discard`
                of what `unfinished` returns frees its space.
        """
        start = None if base is None else base.saved.stored.number
        number = transact(self._engine, lambda c: _begin(c, log_number, name, created_at, start))
        reading = None if base is None else _base_reader(layout, base)

        def one(index: int) -> tuple[str, int, tuple[bytes, ...]]:
            encoded = encode_segment(layout, index, read, reading, self._arithmetic)
            digest = self._put_segment(number, index, encoded.data)
            return digest, len(encoded.data), encoded.hashes

        with ThreadPoolExecutor(_THREADS) as pool:
            done = list(pool.map(one, range(len(layout.segments))))
        digests, sizes, hashes = zip(*done, strict=True) if done else ((), (), ())
        header = _header(layout, hashes, base)
        encoded_header = header.encode()
        before = None if base is None else base.saved.stored
        stored_bytes = sum(sizes) + len(encoded_header)
        stored = StoredCheckpoint(
            number=number,
            log_number=log_number,
            name=name,
            weights_digest=header.result.hex(),
            header_digest=self._put_header(number, encoded_header),
            base=before.number if before else None,
            chain_length=before.chain_length + 1 if before else 0,
            chain_bytes=before.chain_bytes + stored_bytes if before else 0,
            size_bytes=layout.size_bytes,
            stored_bytes=stored_bytes,
            created_at=created_at,
        )
        transact(self._engine, lambda connection: _finish(connection, stored))
        return SavedWeights(stored, header, digests, hashes)

    def _put_segment(self, number: int, index: int, data: bytes) -> str:
        digest = self._blobs.digest_of(data)
        row = {"checkpoint_id": number, "segment_index": index, "blob_digest": digest}
        row["size_bytes"] = len(data)

        def note(connection: Connection) -> None:
            connection.execute(insert(_SEGMENTS), [row])
            self._blobs.hold(connection, digest, is_shared=True)

        # the row first: whatever happens next, somebody knows that the blob may be there
        transact(self._engine, note)
        self._blobs.put(data, digest)
        return digest

    def _put_header(self, number: int, data: bytes) -> str:
        digest = self._blobs.digest_of(data)
        own = update(_CHECKPOINTS).where(_CHECKPOINTS.c.id == number)

        def note(connection: Connection) -> None:
            connection.execute(own.values(header_digest=digest))
            self._blobs.hold(connection, digest, is_shared=True)

        transact(self._engine, note)
        return self._blobs.put(data, digest)

    def stored(self, log_number: int | None = None) -> list[StoredCheckpoint]:
        """Return what is stored, oldest first, of one log or of all."""
        query = select(_CHECKPOINTS).where(_CHECKPOINTS.c.state == STORED)
        if log_number is not None:
            query = query.where(_CHECKPOINTS.c.log_number == log_number)
        with self._engine.connect() as connection:
            return [_stored(row) for row in connection.execute(query.order_by(_CHECKPOINTS.c.id))]

    def going(self, log_number: int) -> list[StoredCheckpoint]:
        """Return those of a log that are to be discarded, by who was cut off before he did."""
        query = select(_CHECKPOINTS).where(_CHECKPOINTS.c.state == GOING)
        query = query.where(_CHECKPOINTS.c.log_number == log_number)
        with self._engine.connect() as connection:
            return [_stored(row) for row in connection.execute(query.order_by(_CHECKPOINTS.c.id))]

    def unfinished(self, log_number: int | None = None) -> list[int]:
        """Return the numbers of checkpoints that are being stored, or never were to the end."""
        query = select(_CHECKPOINTS.c.id).where(_CHECKPOINTS.c.state == STORING)
        if log_number is not None:
            query = query.where(_CHECKPOINTS.c.log_number == log_number)
        with self._engine.connect() as connection:
            return list(connection.scalars(query.order_by(_CHECKPOINTS.c.id)))

    def claim(self, chosen: Iterable[StoredCheckpoint]) -> list[StoredCheckpoint]:
        """Mark checkpoints as going: from then on none is stored as a difference from them.

        Returns:
            Those that could be; not one that a kept one, or one that is being stored right now,
            is a difference from.
        """
        wanted = {x.number: x for x in chosen}

        def mark(connection: Connection) -> list[int]:
            own = _CHECKPOINTS.c
            # first: whoever is about to start from one of them has done so, or waits for this
            marked = _set_state(connection, wanted, STORED, GOING)
            staying = select(own.base_id).where(own.base_id.in_(marked), own.state != GOING)
            free, held = set(marked), set(connection.scalars(staying))
            while held := held & free:  # and what these start from in their turn
                free -= held
                held = {wanted[number].base for number in held}
            _set_state(connection, set(marked) - free, GOING, STORED)
            return sorted(free)

        return [wanted[number] for number in transact(self._engine, mark)]

    def find(self, log_number: int, name: str) -> StoredCheckpoint:
        """Return the newest stored checkpoint of a name.

        Raises:
            CheckpointMissing: none is stored.
        """
        stored = self.stored(log_number)
        found = [checkpoint for checkpoint in stored if checkpoint.name == name]
        if not found:
            known = ", ".join(dict.fromkeys(x.name for x in stored[-10:])) or "none"
            raise CheckpointMissing(
                f"the weights of {name!r:.120} are not stored", next_step=f"stored: {known}"
            )
        return found[-1]

    def reader(
        self, checkpoint: StoredCheckpoint, *, held: Mapping[int, HeldWeights] | None = None
    ) -> CheckpointReader:
        """Open a stored checkpoint, and the ones it is a difference from.

        Args:
            checkpoint: the one to rebuild.
            held: earlier ones that lie decoded already, by number; the chain is not read
                beyond them.

        Raises:
            CheckpointDamaged, MalformedDelta: the chain does not lead to its digest.
        """
        chain: list[StoredCheckpoint] = [checkpoint]
        parts: list[HeldWeights] = []
        while chain[-1].base is not None:
            if chain[-1].base in (held or {}):
                parts.append((held or {})[chain[-1].base])
                break
            if len(chain) > CHAIN_LENGTH_MAX + 1:
                raise CheckpointDamaged("a chain of stored checkpoints has no beginning")
            chain.append(self._numbered(chain[-1].base))
        opened = [self._part(item) for item in reversed(chain)]
        return CheckpointReader(checkpoint, [*parts, *opened], self._arithmetic)

    def _numbered(self, number: int) -> StoredCheckpoint:
        with self._engine.connect() as connection:
            row = connection.execute(
                select(_CHECKPOINTS).where(_CHECKPOINTS.c.id == number)
            ).first()
        if row is None or row.state != STORED:
            raise CheckpointDamaged("the weights that a stored checkpoint starts from are gone")
        return _stored(row)

    def segments(self, checkpoint: StoredCheckpoint) -> tuple[str, ...]:
        """Return the digests, hex, of a stored checkpoint's segments, in order."""
        own = _SEGMENTS.c.checkpoint_id == checkpoint.number
        query = select(_SEGMENTS.c.blob_digest).where(own).order_by(_SEGMENTS.c.segment_index)
        with self._engine.connect() as connection:
            return tuple(connection.scalars(query))

    def segment_bytes(self, checkpoint: StoredCheckpoint) -> Iterator[bytes]:
        """Yield a stored checkpoint's segments as they are, in order."""
        for digest in self.segments(checkpoint):
            yield self._blobs.get(digest)

    def _part(self, item: StoredCheckpoint) -> StoredDelta:
        digests = self.segments(item)
        header = parse_header(self._blobs.get(item.header_digest))
        if header.result.hex() != item.weights_digest:
            raise CheckpointDamaged(f"the header of {item.name} leads to other weights")
        return StoredDelta(header, digests, self._blobs)

    def discard(self, numbers: Iterable[int]) -> int:
        """Delete stored checkpoints and the blobs that nobody else refers to; return their bytes.

        Raises:
            CheckpointDamaged: another one is a difference from one of them; nothing is deleted.
            ObjectStoreFailed: a store did not let go; what it kept stays listed.
        """
        chosen = sorted(set(numbers), reverse=True)  # differences before what they start from
        return sum(transact(self._engine, lambda c, n=n: self._drop(c, n)) for n in chosen)  # type: ignore[misc]

    def _drop(self, connection: Connection, number: int) -> int:
        kept = select(_CHECKPOINTS.c.name).where(_CHECKPOINTS.c.base_id == number)
        if (needed_by := connection.scalar(kept)) is not None:
            raise CheckpointDamaged(
                f"the weights of {needed_by} are a difference from these",
                next_step="discard that one as well, or keep both",
            )
        own = _SEGMENTS.c.checkpoint_id == number
        rows = connection.execute(
            select(_SEGMENTS.c.blob_digest, _SEGMENTS.c.size_bytes).where(own)
        )
        sizes = {row.blob_digest: int(row.size_bytes) for row in rows}
        header = connection.scalar(
            select(_CHECKPOINTS.c.header_digest).where(_CHECKPOINTS.c.id == number)
        )
        connection.execute(delete(_SEGMENTS).where(own))
        connection.execute(delete(_CHECKPOINTS).where(_CHECKPOINTS.c.id == number))
        freed = 0
        # in one order: two who discard must not each wait for what the other one holds
        for digest in sorted({*sizes, *([header] if header else [])}):
            self._blobs.hold(connection, digest, is_shared=False)
            users = select(func.count()).where(_SEGMENTS.c.blob_digest == digest)
            heads = select(func.count()).where(_CHECKPOINTS.c.header_digest == digest)
            if not connection.scalar(users) and not connection.scalar(heads):
                # in this transaction: whoever stores the same bytes writes its row before
                self._blobs.discard(connection, digest)
                freed += sizes.get(digest, 0)
        return freed


def _begin(
    connection: Connection, log_number: int, name: str, created_at: str, base: int | None
) -> int:
    """Note what is about to be stored, and from what it starts: nobody discards that now."""
    if base is not None:
        own = (_CHECKPOINTS.c.id == base) & (_CHECKPOINTS.c.state == STORED)
        # written, not only read: so `claim` waits for this, and this for `claim`
        if connection.execute(update(_CHECKPOINTS).where(own).values(state=STORED)).rowcount != 1:
            raise BaseDiscarded(f"the weights that {name} is a difference from were discarded")
    row: dict[str, Any] = {"log_number": log_number, "name": name, "base_id": base}
    row |= {"state": STORING, "created_at": created_at}
    row |= {"weights_digest": "", "header_digest": "", "chain_length": 0, "chain_bytes": 0}
    row |= {"size_bytes": 0, "stored_bytes": 0}
    found = connection.execute(insert(_CHECKPOINTS).returning(_CHECKPOINTS.c.id), row)
    return int(found.scalar_one())


def _set_state(connection: Connection, numbers: Iterable[int], old: str, new: str) -> list[int]:
    """Change a state; return the numbers of those that had the old one."""
    own = _CHECKPOINTS.c
    chosen = own.id.in_(list(numbers)) & (own.state == old)
    changed = update(_CHECKPOINTS).where(chosen).values(state=new).returning(own.id)
    return list(connection.scalars(changed))


def _finish(connection: Connection, stored: StoredCheckpoint) -> None:
    values = {
        "state": STORED,
        "weights_digest": stored.weights_digest,
        "header_digest": stored.header_digest,
        "chain_length": stored.chain_length,
        "chain_bytes": stored.chain_bytes,
        "size_bytes": stored.size_bytes,
        "stored_bytes": stored.stored_bytes,
    }
    connection.execute(
        update(_CHECKPOINTS).where(_CHECKPOINTS.c.id == stored.number).values(**values)
    )


def _stored(row: Any) -> StoredCheckpoint:
    return StoredCheckpoint(
        number=row.id,
        log_number=row.log_number,
        name=row.name,
        weights_digest=row.weights_digest,
        header_digest=row.header_digest,
        base=row.base_id,
        chain_length=row.chain_length,
        chain_bytes=row.chain_bytes,
        size_bytes=row.size_bytes,
        stored_bytes=row.stored_bytes,
        created_at=row.created_at,
    )


def _header(
    layout: Layout, hashes: Sequence[Sequence[bytes]], base: Predecessor | None
) -> DeltaHeader:
    digest = None if base is None else bytes.fromhex(base.saved.stored.weights_digest)
    tensors = (
        DeltaTensor(record, base is None or base.number_of(place) is None)
        for record, place in zip(layout.records(hashes), layout.tensors, strict=True)
    )
    return DeltaHeader(digest, tuple(tensors))


def _base_reader(
    layout: Layout, base: Predecessor
) -> Callable[[ChunkPlace], tuple[Bytes, bytes] | None]:
    numbers = [base.number_of(place) for place in layout.tensors]

    def read(chunk: ChunkPlace) -> tuple[Bytes, bytes] | None:
        number = numbers[chunk.tensor]
        if number is None:
            return None
        return base.known(ChunkPlace(number, chunk.start, chunk.size_bytes))

    return read
