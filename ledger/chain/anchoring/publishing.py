"""Anchor a ledger's logs: its settings, its journal and the anchorer put together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Final, Self

from rlhf_audit_trail.ledger.chain.anchoring.anchorer import Anchorer, Plan, Step
from rlhf_audit_trail.ledger.chain.anchoring.costs import CostReport, report_costs
from rlhf_audit_trail.ledger.chain.anchoring.fees import WEI_PER_ETHER, WEI_PER_GWEI, FeeLimits
from rlhf_audit_trail.ledger.chain.anchoring.journal import SqlAnchorJournal
from rlhf_audit_trail.ledger.chain.anchoring.lease import PublisherLease
from rlhf_audit_trail.ledger.chain.anchoring.log_view import LogView
from rlhf_audit_trail.ledger.chain.anchoring.policy import Wish
from rlhf_audit_trail.ledger.chain.contract.compiled import load_artifact
from rlhf_audit_trail.ledger.chain.contract.peer import ContractPeer
from rlhf_audit_trail.ledger.chain.contract.reader import AnchoredHead, AnchorReader
from rlhf_audit_trail.ledger.chain.contract.writer import deploy
from rlhf_audit_trail.ledger.chain.node.agreement import connect
from rlhf_audit_trail.ledger.chain.signing.signer import Signer
from rlhf_audit_trail.ledger.chain.signing.transaction import RECEIPT_TIMEOUT_S
from rlhf_audit_trail.ledger.contradictions import Forked, RolledBack
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Ledger, Log
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.proof.tree_head import SignedTreeHead, TreeHead
from rlhf_audit_trail.ledger.settings import AnchorSettings, ChainSettings, SettingsError

__all__ = ["WITNESS_WAIT_S", "Publisher", "fee_limits"]

WITNESS_WAIT_S: Final = 10.0
"""How long anchoring waits for the witnesses' quorum, for all logs together."""


class Publisher:
    """Signs and anchors the logs of one ledger with one publisher key.

    Use it as a context manager; it holds connections to the nodes. Not thread-safe.
    """

    def __init__(
        self,
        ledger: Ledger,
        signer: Signer,
        *,
        after_mined: Callable[[], None] = lambda: None,
        receipt_timeout_s: float = RECEIPT_TIMEOUT_S,
        witness_wait_s: float = WITNESS_WAIT_S,
    ) -> None:
        """Take chain, contract and limits from the ledger's settings; nothing is sent.

        Raises:
            SettingsError: the settings name no node, no chain, or another publisher.
        """
        settings = ledger.chain
        contract = _contract(settings, signer)
        # whatever the settings say, this key's own heads are the ones to compare with
        self._peer = ContractPeer.of(settings, signer.address)
        ledger.add_peer(self._peer)
        self._ledger = ledger
        self._signer = signer
        self._wait_s = witness_wait_s
        self._rpc = connect(settings)
        self._reader = AnchorReader(self._rpc, chain_id=settings.chain_id, contract=contract)
        self._after_mined = after_mined
        self._receipt_timeout_s = receipt_timeout_s
        self._lease = PublisherLease(
            ledger.engine, chain_id=settings.chain_id, publisher=signer.address
        )
        self._anchorer: Anchorer | None = None
        self._logs: dict[bytes, Log] = {}

    @property
    def address(self) -> str:
        """The publisher's account."""
        return self._signer.address

    def deploy(self) -> str:
        """Put the contract on the chain unless it stands there; return its address.

        Raises:
            SettingsError: the settings name another address than the contract's own.
        """
        address = deploy(self._rpc, self._signer, chain_id=self._reader.chain_id)
        if address.lower() != self._reader.contract:
            raise SettingsError(
                f"the settings name the contract {self._reader.contract}, its address is {address}",
                next_step="leave chain.contract out of rlhf-audit.toml",
            )
        return address

    def anchor(self, log: Log) -> AnchoredHead | None:
        """Sign the log's newest tree head and anchor it; None if there was nothing to do.

        The registry log says first where anchors go, so that a later change is visible.
        Witnesses come before the chain, and are waited for so long; what they have not
        signed until then is anchored all the same.

        Raises:
            RolledBack, Forked: a peer can prove that the store is not the newest copy.
        """
        done = self.anchor_all([log])
        if log.log_id in done.findings:
            raise done.findings[log.log_id]
        return done.anchored.get(log.log_id)

    def anchor_all(self, logs: Iterable[Log]) -> Step:
        """Sign the newest tree heads of many logs, and anchor them in few transactions.

        What contradicts the chain or a peer, or cannot be signed, is a finding of the step, and
        keeps no other log from being anchored.

        Raises:
            WrongChain, NoContractCode, WrongContractCode: not what was pinned; nothing is sent.
            PublisherBusy: another process is anchoring with this key.
            InsufficientFunds, ChainUnreachable, RpcError: see `Anchorer.step`.
        """
        self._reader.check()  # before anything is written about a chain that is not there
        signed, findings = self._signed(logs, Log.publish)
        return self._step(signed, findings)

    def anchor_wishes(self, wishes: Mapping[Log, Wish], *, align_to: int) -> Step:
        """Anchor as a policy wants it, for a thread beside the one that records.

        Raises:
            As `anchor_all`.
        """
        self._reader.check()
        newest = [log for log, wish in wishes.items() if wish is Wish.NEWEST]
        aligned = [log for log, wish in wishes.items() if wish is Wish.ALIGNED]
        signed, findings = self._signed(newest, Log.publish_durable)
        more, others = self._signed(aligned, lambda log: log.publish_durable(align_to))
        return self._step(signed | more, findings | others)

    def plan(self, logs: Iterable[Log]) -> Plan:
        """Say what `anchor_all` would send now; nothing is signed, stored or sent."""
        heads: dict[Log, TreeHead | None] = {}
        for log in logs:
            size = log.size
            heads[log] = TreeHead(log.origin, size, log.root_at(size)) if size else None
        return self._anchorer_now().plan([LogView(log, head) for log, head in heads.items()])

    def costs(self) -> CostReport:
        """Report what was spent on anchors, and how many more the balance pays for."""
        balance_wei = self._anchorer_now().balance_wei()
        return report_costs(self._ledger.engine, self._signer.address, balance_wei=balance_wei)

    def reconcile(self) -> bool:
        """Look what became of what was sent; return whether some of it waits for its block."""
        with self._lease.held():
            return self._anchorer_now().reconcile() is not None

    def close(self) -> None:
        """Let go of the connections."""
        self._rpc.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- a step -----------------------------------------------------------------------

    def _signed(
        self, logs: Iterable[Log], sign: Callable[[Log], SignedTreeHead | None]
    ) -> tuple[dict[Log, TreeHead], dict[bytes, AuditTrailError]]:
        """Sign each log and have it witnessed; return the heads to anchor, and what failed."""
        heads: dict[Log, TreeHead] = {}
        findings: dict[bytes, AuditTrailError] = {}
        is_registered = False
        for log in logs:
            try:
                log.require_writable()
                is_registered = is_registered or self._register()
                signed = sign(log)
                if signed is not None:
                    self._await_witnesses(log, signed.head.size)
                    heads[log] = signed.head
            except AuditTrailError as error:
                findings[log.log_id] = error
        return heads, findings

    def _step(self, heads: Mapping[Log, TreeHead], findings: dict[bytes, AuditTrailError]) -> Step:
        with self._lease.held():
            done = self._anchorer_now().step([LogView(log, head) for log, head in heads.items()])
        for log in heads:
            self._heed(log, done)
        done.findings |= findings
        return done

    def _heed(self, log: Log, done: Step) -> None:
        """Make a log read-only, and keep the evidence, if the chain holds another history."""
        if isinstance(done.findings.get(log.log_id), RolledBack | Forked):
            head = done.heads[log.log_id]
            log.heed(self._peer.shown(head))

    def _await_witnesses(self, log: Log, tree_size: int) -> None:
        began_s = time.monotonic()
        self._ledger.watch.await_quorum(log.run_id, tree_size, timeout_s=self._wait_s)
        self._wait_s = max(0.0, self._wait_s - (time.monotonic() - began_s))
        log.require_writable()  # which a witness may just have shown to be wrong

    def _anchorer_now(self) -> Anchorer:
        """Return the anchorer; made anew when the ledger has got another log.

        It keeps the records of every log: they share the publisher's nonces.
        """
        ledger = self._ledger
        logs = [ledger.registry, *(ledger.find(run) for run in ledger.runs())]
        if self._anchorer is None or len(logs) != len(self._logs):
            self._logs = {log.log_id: log for log in logs}
            journal = SqlAnchorJournal(ledger.engine, logs, require=self._lease.require)
            self._anchorer = Anchorer(
                self._reader,
                self._signer,
                journal,
                limits=fee_limits(ledger.anchoring),
                find=self._find,
                after_mined=self._after_mined,
                receipt_timeout_s=self._receipt_timeout_s,
            )
        return self._anchorer

    def _find(self, log_id: bytes) -> LogView | None:
        log = self._logs.get(log_id)
        signed = log.published() if log else None
        return LogView(log, signed.head) if log and signed else None

    def _register(self) -> bool:
        """Say in the registry log where anchors go, unless its last word on that is the same."""
        registry, fields = self._ledger.registry, self._place()
        known = [entry.event for entry in registry.entries(kind="chain.registered")]
        if not known or any(known[-1][name] != value for name, value in fields.items()):
            registry.record(Event("chain.registered", fields)).result()
        return True

    def _place(self) -> dict[str, str | int]:
        return {
            "chain_id": self._reader.chain_id,
            "contract": self._reader.contract,
            "publisher": self._signer.address.lower(),
        }


def fee_limits(settings: AnchorSettings) -> FeeLimits:
    """Return the settings' caps in wei."""
    return FeeLimits(
        fee_wei_max=int(settings.fee_gwei_max * WEI_PER_GWEI),
        day_wei_max=int(settings.ether_per_day_max * WEI_PER_ETHER),
        replace_after_s=settings.replace_after_s,
    )


def _contract(settings: ChainSettings, signer: Signer) -> str:
    """Return the contract's address after making sure that the settings are complete."""
    if not settings.rpc_url or not settings.chain_id:
        raise SettingsError(
            "no chain is configured",
            next_step="set rpc_url and chain_id below [chain] in rlhf-audit.toml",
        )
    if settings.publisher and settings.publisher.lower() != signer.address.lower():
        raise SettingsError(
            f"the publisher key is that of {signer.address}, the settings name another publisher",
            next_step="use the right key, or change chain.publisher in rlhf-audit.toml",
        )
    return settings.contract or load_artifact().address
