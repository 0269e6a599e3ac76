"""The tables. Entry bytes are authoritative; every other column can be recomputed from them.

Two databases: the ledger, and the vault's keys apart from it, so that long-lived backups of
the ledger do not keep what an erasure destroyed.
"""

from __future__ import annotations

from typing import ClassVar

from sqlalchemy import BigInteger, Column, LargeBinary, MetaData, UniqueConstraint
from sqlmodel import Field, SQLModel

__all__ = [
    "AnchorRow",
    "BlobRow",
    "BudgetRow",
    "CosignatureRow",
    "EntryRow",
    "ErasureRow",
    "HashTileRow",
    "KindTileRow",
    "LedgerRow",
    "LogRow",
    "PublisherLeaseRow",
    "RemoteWriterRow",
    "StoredCheckpointRow",
    "SubjectKeyRow",
    "SubjectTileRow",
    "TreeHeadRow",
    "VaultRow",
    "WeightSegmentRow",
    "WriterSpanRow",
    "WriterTokenRow",
    "key_metadata",
    "ledger_metadata",
]

ledger_metadata = MetaData()
key_metadata = MetaData()


class _LedgerTable(SQLModel):
    metadata: ClassVar[MetaData] = ledger_metadata


class LedgerRow(_LedgerTable, table=True):
    """The deployment itself; one row."""

    __tablename__ = "ledger"
    id: int = Field(default=1, primary_key=True)
    organisation: str
    created_at: str


class LogRow(_LedgerTable, table=True):
    """A log; its row is the lock under which indices are given out."""

    __tablename__ = "log"
    number: int | None = Field(default=None, primary_key=True)
    run_id: str = Field(unique=True)
    origin: str = Field(unique=True)
    size: int = Field(default=0, sa_type=BigInteger)
    closed: bool = False
    created_at: str
    # where the bytes of pruned entries went; empty while the entries are here
    archive: str = Field(default="", sa_column_kwargs={"server_default": ""})
    # of the ledger's persons, the same in all rows: who appends must not use an older secret
    erasures: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": "0"})


class EntryRow(_LedgerTable, table=True):
    """An entry's exact bytes at their index; never updated, but for their removal by pruning.

    Found by its index only: an index by writer and one by kind would each cost as much as a
    third of the row. The two tables below have one row for many entries instead, and a third
    one serves the vault.
    """

    __tablename__ = "entry"
    log_number: int = Field(primary_key=True, foreign_key="log.number")
    leaf_index: int = Field(primary_key=True, sa_type=BigInteger)
    writer_id: str
    seq: int = Field(sa_type=BigInteger)
    kind: str
    data: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    leaf_hash: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class WriterSpanRow(_LedgerTable, table=True):
    """Entries that one writer appended one after the other, with nobody's between them.

    Number `first_seq + n` of the writer is entry `first_index + n`, up to where the next span
    begins. By it an append that is tried again finds what became of the first attempt.
    """

    __tablename__ = "writer_span"
    __table_args__ = (UniqueConstraint("log_number", "writer_id", "first_seq"),)
    log_number: int = Field(primary_key=True, foreign_key="log.number")
    first_index: int = Field(primary_key=True, sa_type=BigInteger)
    writer_id: str
    first_seq: int = Field(sa_type=BigInteger)


class KindTileRow(_LedgerTable, table=True):
    """Among the 256 entries of tile `tile_index` there is one of this kind."""

    __tablename__ = "kind_tile"
    log_number: int = Field(primary_key=True, foreign_key="log.number")
    kind: str = Field(primary_key=True)
    tile_index: int = Field(primary_key=True, sa_type=BigInteger)


class HashTileRow(_LedgerTable, table=True):
    """A full tile of 256 hashes (c2sp.org/tlog-tiles); never updated.

    Written in the transaction that completes it. Partial tiles are derived. `inner_nodes` holds the
    255 nodes above the hashes, which a proof would else have to compute.
    """

    __tablename__ = "hash_tile"
    log_number: int = Field(primary_key=True, foreign_key="log.number")
    level: int = Field(primary_key=True)
    tile_index: int = Field(primary_key=True, sa_type=BigInteger)
    hashes: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    inner_nodes: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class TreeHeadRow(_LedgerTable, table=True):
    """A signed tree head; one per size, kept as signed, never signed again."""

    __tablename__ = "tree_head"
    log_number: int = Field(primary_key=True, foreign_key="log.number")
    tree_size: int = Field(primary_key=True, sa_type=BigInteger)
    root: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    note: str
    signed_at: str


class CosignatureRow(_LedgerTable, table=True):
    """A witness's verified signature over one of our tree heads; the first one is kept."""

    __tablename__ = "cosignature"
    log_number: int = Field(primary_key=True, foreign_key="log.number")
    tree_size: int = Field(primary_key=True, sa_type=BigInteger)
    witness: str = Field(primary_key=True)  # the name in the signature line
    key_id: str = Field(primary_key=True)  # eight hex digits
    vkey: str  # with which it was verified, so that fsck can do so again
    blob: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    cosigned_at_s: int = Field(sa_type=BigInteger)


class VaultRow(_LedgerTable, table=True):
    """The sealed values and salts of one entry, encrypted under its subject's key.

    Where they were erased, the row stays with both columns empty: not lost, and nobody's.
    """

    __tablename__ = "vault"
    log_number: int = Field(primary_key=True, foreign_key="log.number")
    leaf_index: int = Field(primary_key=True, sa_type=BigInteger)
    subject: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    ciphertext: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class SubjectTileRow(_LedgerTable, table=True):
    """Among the 256 entries of tile `tile_index` there are sealed values about this subject."""

    __tablename__ = "subject_tile"
    log_number: int = Field(primary_key=True, foreign_key="log.number")
    tile_index: int = Field(primary_key=True, sa_type=BigInteger)
    subject: bytes = Field(sa_column=Column(LargeBinary, primary_key=True))


class AnchorRow(_LedgerTable, table=True):
    """A tree head on its way to the chain; written before its transaction is broadcast."""

    __tablename__ = "anchor"
    __table_args__ = (UniqueConstraint("tx_hash", "log_number"),)
    id: int | None = Field(default=None, primary_key=True)
    log_number: int = Field(foreign_key="log.number", index=True)
    tree_size: int = Field(sa_type=BigInteger)
    root: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    chain_id: int = Field(sa_type=BigInteger)
    contract: str
    publisher: str
    nonce: int = Field(sa_type=BigInteger, index=True)
    tx_hash: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    # the signed transaction, in the row of the first of its logs; empty in the others'
    raw_tx: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    max_fee_wei: int | None = Field(default=None, sa_type=BigInteger)
    tip_wei: int | None = Field(default=None, sa_type=BigInteger)
    state: str = Field(index=True)  # pending, mined, safe, finalized, dropped
    reason: str = ""  # why it was dropped
    sequence: int | None = Field(default=None, sa_type=BigInteger)
    block_number: int | None = Field(default=None, sa_type=BigInteger)
    block_hash: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    block_timestamp: int | None = Field(default=None, sa_type=BigInteger)
    # what the whole transaction cost, in the row of the first of its logs
    gas_used: int | None = Field(default=None, sa_type=BigInteger)
    gas_price_wei: int | None = Field(default=None, sa_type=BigInteger)
    created_at: str


class PublisherLeaseRow(_LedgerTable, table=True):
    """Who may sign with a publisher key now; the row is gone when nobody does."""

    __tablename__ = "publisher_lease"
    chain_id: int = Field(primary_key=True, sa_type=BigInteger)
    publisher: str = Field(primary_key=True)  # address in small letters
    holder: str  # drawn at random by each who asks
    host: str
    process: str  # number and start time


class WriterTokenRow(_LedgerTable, table=True):
    """A token with which a named writer may append over HTTP; never deleted, its name never reused.

    In force from the index on at which the registry log tells of the grant.
    """

    __tablename__ = "writer_token"
    writer: str = Field(primary_key=True)
    run_id: str  # empty: every run
    token_digest: bytes = Field(sa_column=Column(LargeBinary, nullable=False, unique=True))
    created_at: str
    granted_index: int | None = Field(default=None, sa_type=BigInteger)
    revoked_at: str = ""  # empty: not revoked
    revoked_index: int | None = Field(default=None, sa_type=BigInteger)


class RemoteWriterRow(_LedgerTable, table=True):
    """Under which token a process appends: writer ids are public, and nobody else may use it."""

    __tablename__ = "remote_writer"
    log_number: int = Field(primary_key=True, foreign_key="log.number")
    writer_id: str = Field(primary_key=True)
    writer: str = Field(foreign_key="writer_token.writer", index=True)
    first_seen_at: str


class BlobRow(_LedgerTable, table=True):
    """Bytes named by their SHA-256; small ones here, large ones in the object store."""

    __tablename__ = "blob"
    digest: str = Field(primary_key=True)
    size_bytes: int = Field(sa_type=BigInteger)
    data: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))
    # URL of the object store that holds it; empty: the ledger's own directory
    place: str = Field(default="", sa_column_kwargs={"server_default": ""})


class StoredCheckpointRow(_LedgerTable, table=True):
    """The weights of a model checkpoint, whole or as a difference from those of another one."""

    __tablename__ = "stored_checkpoint"
    id: int | None = Field(default=None, primary_key=True)
    log_number: int = Field(foreign_key="log.number", index=True)
    name: str
    state: str  # storing until everything is there, then stored; going before it is discarded
    weights_digest: str = ""
    header_digest: str = ""  # of the blob with the delta's header
    base_id: int | None = Field(default=None, foreign_key="stored_checkpoint.id", index=True)
    chain_length: int = 0  # differences between this one and the whole weights
    chain_bytes: int = Field(default=0, sa_type=BigInteger)  # that those take, this one included
    size_bytes: int = Field(default=0, sa_type=BigInteger)  # of the weights themselves
    stored_bytes: int = Field(default=0, sa_type=BigInteger)  # that this one takes
    created_at: str


class BudgetRow(_LedgerTable, table=True):
    """What one person was charged in all runs of this ledger, in whole units.

    The key is a keyed tag, and the row is never deleted: neither an erasure nor a new run gives
    a budget back. The sums are those of the entries; see `budgets`.
    """

    __tablename__ = "budget"
    account: bytes = Field(sa_column=Column(LargeBinary, primary_key=True))
    response_units: int = Field(sa_type=BigInteger)  # of the rule, settled by the first charge
    epsilon_units: int = Field(sa_type=BigInteger)
    second_units: int = Field(sa_type=BigInteger)
    delta_units: int = Field(sa_type=BigInteger)


class WeightSegmentRow(_LedgerTable, table=True):
    """A piece of a stored checkpoint; written before its blob, so that none is ever forgotten."""

    __tablename__ = "weight_segment"
    checkpoint_id: int = Field(primary_key=True, foreign_key="stored_checkpoint.id")
    segment_index: int = Field(primary_key=True)
    blob_digest: str = Field(index=True)
    size_bytes: int = Field(sa_type=BigInteger)


class SubjectKeyRow(SQLModel, table=True):
    """One data subject's secret; deleting it erases all of the subject's sealed values."""

    metadata: ClassVar[MetaData] = key_metadata
    __tablename__ = "subject_key"
    subject: bytes = Field(sa_column=Column(LargeBinary, primary_key=True))
    secret: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class ErasureRow(SQLModel, table=True):
    """An erasure that is under way; the row is gone when nothing is left to be erased."""

    metadata: ClassVar[MetaData] = key_metadata
    __tablename__ = "erasure"
    subject: bytes = Field(sa_column=Column(LargeBinary, primary_key=True))
    run_id: str = Field(primary_key=True)  # empty: everywhere, and the secret, too
    basis: str
    limits: str = ""  # once decided, JSON: log number to the size below which values go
    erasures: int = Field(default=0, sa_type=BigInteger)  # the count that this one makes
