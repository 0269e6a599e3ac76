"""Bring the newest tree heads of many logs onto the chain: a step, safe to repeat after any crash.

Each transaction is written to the journal, with its signed bytes, before it is broadcast. After a
crash the same bytes are sent again, so that no crash makes two anchors of one tree head; what the
chain shows is always believed over what the journal remembers. One transaction is in flight at a
time: while it waits, newer heads supersede what the next one would have held, and an offer that
stays too long is replaced by a higher one that holds the newest heads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from rlhf_audit_trail.ledger.chain.anchoring.batch import (
    Batch,
    Wishes,
    counted,
    counts_alike,
    estimated,
    grown_since,
    latest_block,
    read_wishes,
    refused_alone,
)
from rlhf_audit_trail.ledger.chain.anchoring.fees import (
    DAY_S,
    WEI_PER_ETHER,
    FeeLimits,
    fees_at,
    raised,
)
from rlhf_audit_trail.ledger.chain.anchoring.outbox import Flight, Outbox
from rlhf_audit_trail.ledger.chain.anchoring.records import (
    AnchorableLog,
    AnchorJournal,
    AnchorRecord,
    JournalEntry,
    Member,
)
from rlhf_audit_trail.ledger.chain.anchoring.view import BlockView, ChainView, look
from rlhf_audit_trail.ledger.chain.contract.abi import Head, HeadUpdate
from rlhf_audit_trail.ledger.chain.contract.reader import AnchoredHead, AnchorReader
from rlhf_audit_trail.ledger.chain.errors import (
    AnchorRefused,
    AnchorVanished,
    InsufficientFunds,
    SpendingCapReached,
)
from rlhf_audit_trail.ledger.chain.node.rpc import parse_quantity
from rlhf_audit_trail.ledger.chain.signing.signer import Signer
from rlhf_audit_trail.ledger.chain.signing.transaction import RECEIPT_TIMEOUT_S, Fees, sign
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = ["Anchorer", "Plan", "PlannedTransaction", "Step"]

_READINGS_MAX: Final = 3  # of the chain's heads, when they change between reading and estimate
_RECONCILE_S: Final = 0.2  # for what was sent again to be mined, where that takes no time
_TRANSACTIONS_MAX: Final = 100  # in one step, one after the other


@dataclass
class Step:
    """What one step came to.

    Attributes:
        anchored: what this step saw mined for the logs it was asked about, by log id.
        findings: why a log was left out, by log id: it contradicts the chain, or is refused.
        heads: what the chain held when it was last read, by log id.
        waiting: the transactions that are not mined yet; None if there are none.
        held_back: why nothing more was sent: a cap on fees or on a day's cost; None if none was.
        vanished: alarms: anchors that were final, and that the chain lost; they are sent again.
    """

    anchored: dict[bytes, AnchoredHead] = field(default_factory=dict)
    findings: dict[bytes, AuditTrailError] = field(default_factory=dict)
    heads: dict[bytes, Head] = field(default_factory=dict)
    waiting: Flight | None = None
    held_back: AuditTrailError | None = None
    vanished: tuple[AnchorVanished, ...] = ()


@dataclass(frozen=True)
class _Next:
    """A signed transaction, and whether it holds all there was to anchor."""

    record: AnchorRecord
    is_all: bool


@dataclass(frozen=True)
class PlannedTransaction:
    """A transaction that a step would send now.

    Attributes:
        updates: the heads in it.
        gas: what it will use, by the node's estimate.
        gas_limit: what it may use.
        fees: what it would offer for each unit.
        expected_wei: its cost at the present base fee.
    """

    updates: tuple[HeadUpdate, ...]
    gas: int
    gas_limit: int
    fees: Fees
    expected_wei: int


@dataclass(frozen=True)
class Plan:
    """What a step would do; made without signing, storing or sending anything."""

    transactions: tuple[PlannedTransaction, ...]
    findings: dict[bytes, AuditTrailError]
    balance_wei: int


class Anchorer:
    """Anchors logs with one publisher key, one transaction in flight at a time.

    Only one process may use a publisher key at a time. Not thread-safe.
    """

    def __init__(
        self,
        reader: AnchorReader,
        signer: Signer,
        journal: AnchorJournal,
        *,
        limits: FeeLimits | None = None,
        find: Callable[[bytes], AnchorableLog | None] = lambda _: None,
        after_mined: Callable[[], None] = lambda: None,
        receipt_timeout_s: float = RECEIPT_TIMEOUT_S,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Put the parts together; nothing is sent.

        Args:
            reader: the pinned chain and contract.
            signer: the publisher.
            journal: where intents are kept.
            limits: what it may cost.
            find: returns the log with an id, for a replacement that must hold all of what it
                replaces; None if there is no such log any more.
            after_mined: called once an anchor is mined, such as to save a development chain.
            receipt_timeout_s: how long a step waits for its transactions to be mined.
            now_s: a clock that only goes forward.
        """
        self.reader = reader
        self.signer = signer
        self.journal = journal
        self.limits = limits or FeeLimits()
        self.outbox = Outbox(reader, signer.address, journal, after_mined=after_mined, now_s=now_s)
        self._find = find
        self._receipt_timeout_s = receipt_timeout_s
        self._now_s = now_s
        self._sizes: dict[bytes, int] = {}  # what the chain was last seen to hold, by log id
        self._is_counted = False  # once the chain was seen to count gas as we do

    def step(self, logs: Iterable[AnchorableLog]) -> Step:
        """Anchor the newest tree heads that the chain lacks, as far as one may now.

        Raises:
            WrongChain, NoContractCode, WrongContractCode: not what was pinned; nothing is sent.
            InsufficientFunds: the account cannot pay; what was signed is kept and sent again.
            ChainUnreachable, RpcError: no answer, or the node's refusal; a later step goes on.
        """
        wanted, done = {log.log_id: log for log in logs}, Step()
        self.outbox.newly_mined.clear()
        done.waiting = self.outbox.reconcile() and self._wait()
        done.vanished, self.outbox.vanished = tuple(self.outbox.vanished), []
        is_replaced = False  # at most once in a step, but for what a node refuses for its price
        for _ in range(_TRANSACTIONS_MAX):
            flight = done.waiting
            if flight and (not self._is_due(flight) or (is_replaced and not flight.is_refused)):
                break
            found = self._next(wanted, done)
            if found is None:
                break
            self.outbox.send(found.record, instead_of=self._superseded(found, done))
            is_replaced = flight is not None
            done.waiting = self._wait()
            if found.is_all and done.waiting is None:
                break
        self.outbox.flush()
        for sent, mined in self.outbox.newly_mined:
            heads = mined.heads(sent)
            self._sizes |= {log_id: head.tree_size for log_id, head in heads.items()}
            done.anchored |= {log_id: x for log_id, x in heads.items() if log_id in wanted}
        return done

    def reconcile(self) -> Flight | None:
        """Compare what was sent with the chain, and send again what it lacks; see `Outbox`."""
        flight = self.outbox.reconcile()
        if flight is not None:
            return self.outbox.wait(_RECONCILE_S)
        self.outbox.flush()
        return None

    def plan(self, logs: Iterable[AnchorableLog]) -> Plan:
        """Say what a step would send now; nothing is signed, stored or sent.

        Raises:
            WrongChain, NoContractCode, WrongContractCode, ChainUnreachable, RpcError: as `step`.
        """
        view = look(self.reader, self.signer.address)
        block, fees = view.newest, self._fees(view)
        wishes = read_wishes(self.reader, self.signer.address, logs, block)
        price_wei = min(fees.max_fee_wei, block.base_fee_wei + fees.tip_wei)
        planned, left = [], wishes.updates
        while left:
            batch = self._accepted(wishes, left)
            if batch is None:
                break
            expected_wei = batch.gas * price_wei
            planned.append(
                PlannedTransaction(batch.updates, batch.gas, batch.gas_limit, fees, expected_wei)
            )
            left = [x for x in left if x not in batch.updates and x.log_id not in wishes.findings]
        return Plan(tuple(planned), wishes.findings, view.balance_wei)

    def balance_wei(self) -> int:
        """Return what the publisher's account holds."""
        rpc = self.reader.rpc
        return parse_quantity(rpc.call("eth_getBalance", self.signer.address, "latest"))

    # --- one transaction --------------------------------------------------------------

    def _next(self, wanted: dict[bytes, AnchorableLog], done: Step) -> _Next | None:
        """Sign the next transaction, or the one that replaces what waits; None for neither."""
        flight = done.waiting
        view = self.outbox.view or look(self.reader, self.signer.address)
        fees = self._fees(view)
        if flight is not None:
            higher = raised(flight.newest.fees, fees, self.limits)
            if higher is None:
                done.held_back = self._above_cap(view.newest)
                return None
            fees = higher
        logs = self._with_replaced(wanted, flight.entries if flight else self.outbox.superseded)
        found = self._known_batch(logs, view.newest, done)
        found = found or self._read_batch(logs, view.newest, done)
        if found is None:
            return None
        batch, is_all = found
        try:
            self._require_means(batch, fees, view)
        except SpendingCapReached as error:
            done.held_back = error
            return None
        nonce = flight.newest.nonce if flight else view.nonce
        return _Next(self._sign(batch, fees, nonce), is_all)

    def _with_replaced(
        self, wanted: dict[bytes, AnchorableLog], replaced: Iterable[JournalEntry]
    ) -> list[AnchorableLog]:
        """Add the logs of the transactions to be replaced: what they hold must not be lost."""
        members = (member for entry in replaced for member in entry.record.members)
        missing = {member.log_id for member in members} - set(wanted)
        found = [log for log in map(self._find, sorted(missing)) if log is not None]
        return [*wanted.values(), *found]

    def _superseded(self, found: _Next, done: Step) -> list[JournalEntry]:
        """Return what needs not be sent again once this transaction is written down."""
        if done.waiting or not found.is_all:
            return []
        return [
            entry
            for entry in self.outbox.superseded
            if done.findings.keys().isdisjoint(x.log_id for x in entry.record.members)
        ]

    def _known_batch(
        self, logs: Sequence[AnchorableLog], block: BlockView, done: Step
    ) -> tuple[Batch, bool] | None:
        """Take what grew since the chain's heads were last seen, and read the others alone.

        Sound, since the contract is tried: it takes only what extends the head that it holds.
        None where it does not, or nothing grew: then every head is read.
        """
        grown, others = grown_since(logs, self._sizes)
        if not (grown and self._is_counted):
            return None
        wishes = read_wishes(self.reader, self.signer.address, others, block)
        left = [*grown, *wishes.updates]
        try:
            batch = counted(self.reader, self.signer.address, left)
        except AnchorRefused:
            return None
        if batch is None:
            return None
        self._heed(wishes, done)
        return batch, len(batch.updates) == len(left)

    def _heed(self, wishes: Wishes, done: Step) -> None:
        done.findings |= wishes.findings
        done.heads |= wishes.heads
        self._sizes |= {log_id: head.tree_size for log_id, head in wishes.heads.items()}

    def _batch_of(self, updates: Sequence[HeadUpdate]) -> Batch:
        """Try our own count of gas where the chain counts as we do; else the node estimates."""
        reader, publisher = self.reader, self.signer.address
        if not self._is_counted:
            self._is_counted = counts_alike(reader, publisher, updates[0])
        batch = counted(reader, publisher, updates) if self._is_counted else None
        return batch or estimated(reader, publisher, updates)

    def _read_batch(
        self, logs: Sequence[AnchorableLog], block: BlockView, done: Step
    ) -> tuple[Batch, bool] | None:
        """Read the chain's heads, and take what one transaction holds; say whether it is all."""
        for _ in range(_READINGS_MAX):
            wishes = read_wishes(self.reader, self.signer.address, logs, block)
            self._heed(wishes, done)
            left = [x for x in wishes.updates if x.log_id not in done.findings]
            if not left:
                return None
            try:
                batch = self._batch_of(left)
            except AnchorRefused:  # another was anchored since, or one of them is refused for good
                block = latest_block(self.reader)
            else:
                return batch, len(batch.updates) == len(left)
        accepted = self._accepted(wishes, left)
        done.findings |= wishes.findings
        left = [x for x in left if x.log_id not in done.findings]
        return None if accepted is None else (accepted, len(accepted.updates) == len(left))

    def _accepted(self, wishes: Wishes, updates: Sequence[HeadUpdate]) -> Batch | None:
        """Estimate without those that the contract refuses, which become findings."""
        try:
            return estimated(self.reader, self.signer.address, updates)
        except AnchorRefused:
            refused = refused_alone(self.reader, self.signer.address, updates)
        wishes.findings |= refused
        left = [x for x in updates if x.log_id not in refused]
        publisher = self.signer.address
        return estimated(self.reader, publisher, left) if left else None

    def _require_means(self, batch: Batch, fees: Fees, view: ChainView) -> None:
        """Refuse what the day's limit or the account does not cover."""
        cost_wei = batch.gas_limit * fees.max_fee_wei
        if self.limits.day_wei_max:
            day_ago = view.newest.timestamp - DAY_S
            spent_wei = self.journal.spent_since(self.signer.address, day_ago)
            self.limits.require_budget(spent_wei=spent_wei, next_wei=cost_wei)
        if view.balance_wei < cost_wei:
            raise InsufficientFunds(
                f"{self.signer.address} holds {view.balance_wei / WEI_PER_ETHER:.6f} ether, and an "
                f"anchor may cost {cost_wei / WEI_PER_ETHER:.6f}",
                next_step="send ether to that address; signed tree heads are kept",
            )

    def _sign(self, batch: Batch, fees: Fees, nonce: int) -> AnchorRecord:
        signed = sign(
            self.signer,
            chain_id=self.reader.chain_id,
            nonce=nonce,
            fees=fees,
            gas=batch.gas_limit,
            to=self.reader.contract,
            data=batch.data,
        )
        return AnchorRecord(
            chain_id=self.reader.chain_id,
            contract=self.reader.contract,
            publisher=self.signer.address,
            nonce=nonce,
            members=tuple(Member(x.log_id, x.tree_size, x.root) for x in batch.updates),
            fees=fees,
            raw=signed.raw,
            tx_hash=signed.tx_hash,
        )

    # --- fees and time ----------------------------------------------------------------

    def _fees(self, view: ChainView) -> Fees:
        return fees_at(view.newest.base_fee_wei, view.tip_wei, self.limits)

    def _above_cap(self, block: BlockView) -> SpendingCapReached:
        return SpendingCapReached(
            f"an anchor waits at the cap on fees, {self.limits.fee_wei_max / 1e9:g} gwei; "
            f"the base fee is {block.base_fee_wei / 1e9:g}",
            next_step="wait: it is sent again until fees fall, or raise fee_gwei_max",
        )

    def _is_due(self, flight: Flight) -> bool:
        """Whether a higher offer should replace what waits."""
        age_s = self._now_s() - flight.since_s
        return flight.is_refused or age_s >= self.limits.replace_after_s

    def _wait(self) -> Flight | None:
        return self.outbox.wait(min(self._receipt_timeout_s, self.limits.replace_after_s))
