"""Bring the newest tree head of a log onto the chain: one step, safe to repeat after any crash.

Each transaction is written to the journal, with its signed bytes, before it is broadcast. After a
crash the same bytes are sent again, so that no crash makes two anchors of one tree head; what the
chain shows is always believed over what the journal remembers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rlhf_audit_trail.ledger.chain.abi import Head
from rlhf_audit_trail.ledger.chain.contract import confirm, prepare_anchor
from rlhf_audit_trail.ledger.chain.errors import (
    Forked,
    NotConfirmed,
    RolledBack,
    TransactionFailed,
)
from rlhf_audit_trail.ledger.chain.reader import AnchoredHead, AnchorReader, AnchorState
from rlhf_audit_trail.ledger.chain.signer import Signer
from rlhf_audit_trail.ledger.chain.transaction import (
    RECEIPT_TIMEOUT_S,
    await_receipt,
    broadcast,
    chain_nonce,
    find_receipt,
)

__all__ = [
    "AnchorJournal",
    "AnchorRecord",
    "AnchorableLog",
    "Anchorer",
    "JournalEntry",
    "check_against_chain",
]


class AnchorableLog(Protocol):
    """What the anchorer needs of a log; roots and proofs come from stored nodes."""

    @property
    def origin(self) -> str:
        """The log's name, for messages."""
        ...

    @property
    def log_id(self) -> bytes:
        """SHA-256(origin || 0x0A || 0x01 || first Ed25519 public key), 32 bytes."""
        ...

    @property
    def size(self) -> int:
        """Count of durable entries."""
        ...

    def latest_head(self) -> tuple[int, bytes] | None:
        """Return size and root of the newest signed tree head, if there is one."""
        ...

    def root_at(self, size: int) -> bytes:
        """Return the root over the first `size` entries, `1 <= size <= self.size`."""
        ...

    def consistency_proof(self, old: int, new: int) -> Sequence[bytes]:
        """Return the RFC 9162 proof between two sizes, `1 <= old <= new <= self.size`."""
        ...


@dataclass(frozen=True)
class AnchorRecord:
    """One signed anchor transaction, as the journal keeps it.

    Attributes:
        chain_id: of the chain it was signed for.
        contract: address, lower-case hex.
        publisher: address of the signer, with its checksum case.
        log_id: 32 bytes.
        tree_size: count of leaves of the tree head.
        root: 32 bytes.
        nonce: of the publisher account.
        raw: the signed transaction; sent again unchanged after a crash.
        tx_hash: 32 bytes; identifies the record.
    """

    chain_id: int
    contract: str
    publisher: str
    log_id: bytes
    tree_size: int
    root: bytes
    nonce: int
    raw: bytes = field(repr=False)
    tx_hash: bytes


@dataclass(frozen=True)
class JournalEntry:
    """A record and where it was last seen; None while it is pending."""

    record: AnchorRecord
    anchored: AnchoredHead | None = None

    @property
    def state(self) -> AnchorState:
        """Pending until it was seen in a block."""
        return self.anchored.state if self.anchored else AnchorState.PENDING


class AnchorJournal(Protocol):
    """Durable memory of sent transactions; each call is on disk when it returns."""

    def intent(self, record: AnchorRecord) -> None:
        """Keep a transaction that is about to be sent for the first time."""
        ...

    def mined(self, record: AnchorRecord, anchored: AnchoredHead) -> None:
        """Note the block it stands in and how settled that is; called again at each change."""
        ...

    def unmined(self, record: AnchorRecord) -> None:
        """Note that the chain lost its block: pending again."""
        ...

    def dropped(self, record: AnchorRecord, reason: str) -> None:
        """Note that it anchored nothing and never will; the tree head needs another."""
        ...

    def unsettled(self) -> Sequence[JournalEntry]:
        """Return all entries that are neither finalized nor dropped, in the order of intent."""
        ...


def check_against_chain(log: AnchorableLog, head: Head) -> None:
    """Make sure that the local log extends the anchored tree head.

    Raises:
        RolledBack: the log is shorter.
        Forked: it has another root at the anchored size.
    """
    if head.tree_size == 0:
        return
    read_only = "stop writing; restore the log from a mirror that holds the anchored entries"
    if log.size < head.tree_size:
        raise RolledBack(
            f"{log.origin} has {log.size:,} entries, and {head.tree_size:,} are anchored",
            next_step=read_only,
        )
    if log.root_at(head.tree_size) != head.root:
        raise Forked(
            f"{log.origin} has another root at the anchored size {head.tree_size:,}",
            next_step=read_only,
        )


class Anchorer:
    """Anchors logs with one publisher key, one transaction in flight at a time.

    Only one process may use a publisher key. Not thread-safe.
    """

    def __init__(
        self,
        reader: AnchorReader,
        signer: Signer,
        journal: AnchorJournal,
        *,
        after_mined: Callable[[], None] = lambda: None,
        receipt_timeout_s: float = RECEIPT_TIMEOUT_S,
    ) -> None:
        """Put the parts together; nothing is sent.

        Args:
            reader: the pinned chain and contract.
            signer: the publisher.
            journal: where intents are kept.
            after_mined: called once an anchor is mined, such as to save a development chain.
            receipt_timeout_s: how long a step waits for its transaction to be mined.
        """
        self.reader = reader
        self.signer = signer
        self.journal = journal
        self._after_mined = after_mined
        self._receipt_timeout_s = receipt_timeout_s

    def step(self, log: AnchorableLog) -> AnchoredHead | None:
        """Anchor the log's newest tree head if the chain lacks it and nothing is in flight.

        Returns:
            What this step saw mined, or None: nothing to do, or not mined yet.

        Raises:
            WrongChain, NoContractCode, WrongContractCode: not what was pinned; nothing is sent.
            RolledBack, Forked: log and chain contradict each other; nothing is sent.
            AnchorRefused: the contract would refuse it; nothing is sent.
            ChainUnreachable, RpcError: no answer, or the node's refusal; a later step goes on.
        """
        self.reader.check()
        self.reconcile()
        head = self.reader.head(self.signer.address, log.log_id)
        check_against_chain(log, head)
        wanted = log.latest_head()
        if wanted is None or wanted[0] <= head.tree_size:
            return None
        if any(entry.state is AnchorState.PENDING for entry in self._own_entries()):
            return None
        record = self._intend(log, head, *wanted)
        return self._send(record)

    def reconcile(self) -> None:
        """Compare every unsettled record with the chain, and send again what the chain lacks."""
        for entry in self._own_entries():
            self._look_at(entry)

    def _own_entries(self) -> list[JournalEntry]:
        """Unsettled entries of this publisher here, by nonce: each proof extends the one before."""
        mine = (self.reader.chain_id, self.reader.contract, self.signer.address)
        entries = [
            entry
            for entry in self.journal.unsettled()
            if (entry.record.chain_id, entry.record.contract, entry.record.publisher) == mine
        ]
        return sorted(entries, key=lambda entry: entry.record.nonce)

    def _intend(self, log: AnchorableLog, head: Head, size: int, root: bytes) -> AnchorRecord:
        """Sign the anchor of a tree head and commit it to the journal."""
        proof = log.consistency_proof(head.tree_size, size) if head.tree_size else ()
        signed = prepare_anchor(
            self.reader, self.signer, log_id=log.log_id, tree_size=size, root=root, proof=proof
        )
        record = AnchorRecord(
            chain_id=self.reader.chain_id,
            contract=self.reader.contract,
            publisher=self.signer.address,
            log_id=log.log_id,
            tree_size=size,
            root=root,
            nonce=signed.nonce,
            raw=signed.raw,
            tx_hash=signed.tx_hash,
        )
        self.journal.intent(record)  # must be durable before a single byte leaves
        return record

    def _send(self, record: AnchorRecord) -> AnchoredHead | None:
        """Broadcast a journalled transaction and wait a while for its block."""
        broadcast(self.reader.rpc, record.raw)
        try:
            receipt = await_receipt(
                self.reader.rpc, record.tx_hash, timeout_s=self._receipt_timeout_s
            )
        except NotConfirmed:
            return None
        return self._settle(JournalEntry(record), receipt)

    def _look_at(self, entry: JournalEntry) -> None:
        """Bring one entry in line with the chain."""
        rpc, record = self.reader.rpc, entry.record
        nonce = chain_nonce(rpc, record.publisher)  # read first: a receipt may come in between
        receipt = find_receipt(rpc, record.tx_hash)
        if receipt is not None:
            self._settle(entry, receipt)
            return
        if entry.state is not AnchorState.PENDING:
            self.journal.unmined(record)
        if nonce == record.nonce:
            self._send(record)
        elif nonce > record.nonce:
            self.journal.dropped(record, "its nonce was used by another transaction")
        elif not self._fills_gap(nonce):
            self.journal.dropped(record, "the chain went back past transactions unknown here")

    def _fills_gap(self, nonce: int) -> bool:
        """Whether a pending record of ours has the chain's next nonce, so that later ones wait."""
        return any(
            entry.record.nonce == nonce and entry.state is AnchorState.PENDING
            for entry in self._own_entries()
        )

    def _settle(self, entry: JournalEntry, receipt: dict[str, Any]) -> AnchoredHead | None:
        """Write down what a receipt says, if it says anything new."""
        record = entry.record
        try:
            event = confirm(
                receipt,
                contract=record.contract,
                publisher=record.publisher,
                log_id=record.log_id,
                tree_size=record.tree_size,
                root=record.root,
            )
        except TransactionFailed as error:
            self.journal.dropped(record, error.message)
            return None
        anchored = self.reader.place(event)
        if anchored != entry.anchored:
            self.journal.mined(record, anchored)
        if entry.state is AnchorState.PENDING:
            self._after_mined()
        return anchored
