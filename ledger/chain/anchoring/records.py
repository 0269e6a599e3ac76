"""What the anchorer keeps and needs: transactions as they were signed, and the logs behind them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias

from rlhf_audit_trail.ledger.chain.anchoring.view import Place
from rlhf_audit_trail.ledger.chain.contract.reader import AnchoredHead, AnchorState
from rlhf_audit_trail.ledger.chain.signing.transaction import Fees

__all__ = [
    "SUPERSEDED",
    "Account",
    "AnchorJournal",
    "AnchorRecord",
    "AnchorableLog",
    "ComparableLog",
    "Dropped",
    "Intended",
    "JournalEntry",
    "Lost",
    "Member",
    "Mined",
    "Note",
    "Seen",
    "Spent",
]

SUPERSEDED: Final = "the chain lost it with many others, and newer heads were sent in their place"
"""Why a transaction was dropped that is looked for again should the chain come back."""


class ComparableLog(Protocol):
    """What is needed of a log to compare it with what the chain holds."""

    @property
    def origin(self) -> str:
        """The log's name, for messages."""
        ...

    @property
    def size(self) -> int:
        """Count of durable entries."""
        ...

    def root_at(self, tree_size: int, /) -> bytes:
        """Return the root over the first entries, `1 <= tree_size <= self.size`."""
        ...


class AnchorableLog(ComparableLog, Protocol):
    """What the anchorer needs of a log; roots and proofs come from stored nodes."""

    @property
    def log_id(self) -> bytes:
        """SHA-256(origin || 0x0A || 0x01 || first Ed25519 public key), 32 bytes."""
        ...

    def latest_head(self) -> tuple[int, bytes] | None:
        """Return size and root of the signed tree head to anchor, if there is one."""
        ...

    def consistency_proof(self, old: int, new: int) -> Sequence[bytes]:
        """Return the RFC 9162 proof between two sizes, `1 <= old <= new <= self.size`."""
        ...


@dataclass(frozen=True)
class Account:
    """Whose anchors they are, and where.

    Attributes:
        chain_id: of the chain.
        contract: address, lower-case hex.
        publisher: address, with its checksum case.
    """

    chain_id: int
    contract: str
    publisher: str


@dataclass(frozen=True)
class Member:
    """One log's tree head in a transaction.

    Attributes:
        log_id: 32 bytes.
        tree_size: count of leaves.
        root: 32 bytes.
    """

    log_id: bytes
    tree_size: int
    root: bytes


@dataclass(frozen=True)
class AnchorRecord:
    """One signed anchor transaction, as the journal keeps it.

    Attributes:
        chain_id: of the chain it was signed for.
        contract: address, lower-case hex.
        publisher: address of the signer, with its checksum case.
        nonce: of the publisher account; of several with the same one, at most one is mined.
        members: one or more, each of another log.
        fees: what it offers; a replacement must offer more.
        raw: the signed transaction; sent again unchanged after a crash.
        tx_hash: 32 bytes; identifies the record.
    """

    chain_id: int
    contract: str
    publisher: str
    nonce: int
    members: tuple[Member, ...]
    fees: Fees
    raw: bytes = field(repr=False)
    tx_hash: bytes


@dataclass(frozen=True)
class Spent:
    """What a mined transaction cost.

    Attributes:
        gas_used: by the whole transaction.
        gas_price_wei: what each unit of it cost, base fee and tip.
        timestamp: of its block, Unix seconds.
    """

    gas_used: int
    gas_price_wei: int
    timestamp: int

    @property
    def fee_wei(self) -> int:
        """The whole cost."""
        return self.gas_used * self.gas_price_wei


@dataclass(frozen=True)
class Mined:
    """Where a transaction was last seen.

    Attributes:
        state: how settled its block is.
        place: its block.
        sequences: of each member's log the count of anchors up to this one, in their order.
        spent: what it cost.
    """

    state: AnchorState
    place: Place
    sequences: tuple[int, ...]
    spent: Spent

    def heads(self, record: AnchorRecord) -> dict[bytes, AnchoredHead]:
        """Return what this transaction anchored, by log id."""
        return {
            member.log_id: AnchoredHead(
                tree_size=member.tree_size,
                root=member.root,
                sequence=sequence,
                block_number=self.place.block_number,
                block_hash=self.place.block_hash,
                tx_hash=record.tx_hash,
                timestamp=self.spent.timestamp,
                state=self.state,
            )
            for member, sequence in zip(record.members, self.sequences, strict=True)
        }


@dataclass(frozen=True)
class JournalEntry:
    """A record and where it was last seen; not mined and not dropped, it is pending.

    Attributes:
        record: what was signed.
        mined: where it stands, with effect.
        is_dropped: it anchored nothing.
        failed_at: the block in which it was mined without effect, until that is final: after a
            reorganisation it may be mined again, and succeed.
    """

    record: AnchorRecord
    mined: Mined | None = None
    is_dropped: bool = False
    failed_at: Place | None = None

    @property
    def place(self) -> Place | None:
        """The block it was last seen in, with or without effect."""
        return self.failed_at if self.mined is None else self.mined.place

    @property
    def is_pending(self) -> bool:
        """Whether it may still be mined, as far as this journal knows."""
        return self.mined is None and not self.is_dropped


@dataclass(frozen=True)
class Intended:
    """A transaction is about to be sent for the first time."""

    record: AnchorRecord


@dataclass(frozen=True)
class Seen:
    """It stands in a block, with effect; noted again at each change.

    Attributes:
        record: what was signed.
        mined: where it stands.
        is_known: the block was noted before; how settled it is, is all that is new.
    """

    record: AnchorRecord
    mined: Mined
    is_known: bool = False


@dataclass(frozen=True)
class Lost:
    """The chain lost its block: pending again."""

    record: AnchorRecord


@dataclass(frozen=True)
class Dropped:
    """It anchored nothing.

    Attributes:
        record: what was signed.
        reason: for people.
        spent: if it was mined, and failed.
        failed_at: the block of that, if it is not final yet.
    """

    record: AnchorRecord
    reason: str
    spent: Spent | None = None
    failed_at: Place | None = None


Note: TypeAlias = Intended | Seen | Lost | Dropped


class AnchorJournal(Protocol):
    """Durable memory of sent transactions."""

    def write(self, notes: Sequence[Note]) -> None:
        """Keep all of them or none, in their order; they are on disk when this returns."""
        ...

    def unsettled(self, account: Account) -> Sequence[JournalEntry]:
        """Return what is neither finalized nor dropped, and what shares a nonce with that.

        In the order of intent. A dropped transaction may still be mined after a
        reorganisation, in the place of the one that had been; one that failed counts as
        dropped only once its block is final.
        """
        ...

    def last_final(self, account: Account) -> Place | None:
        """Return the block of the newest anchor that was seen to be final."""
        ...

    def finalized(self, account: Account) -> Iterable[JournalEntry]:
        """Return all that was seen to be final, newest first."""
        ...

    def superseded(self, account: Account) -> Sequence[JournalEntry]:
        """Return all that was dropped because it is `SUPERSEDED`, in the order of intent."""
        ...

    def spent_since(self, publisher: str, timestamp: int) -> int:
        """Return what a publisher's transactions cost in blocks later than that, in wei."""
        ...
