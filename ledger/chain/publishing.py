"""Anchor a ledger's logs: its settings, its journal and the anchorer put together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

from rlhf_audit_trail.ledger.chain.anchorer import Anchorer
from rlhf_audit_trail.ledger.chain.compiled import load_artifact
from rlhf_audit_trail.ledger.chain.contract import deploy
from rlhf_audit_trail.ledger.chain.journal import SqlAnchorJournal
from rlhf_audit_trail.ledger.chain.peer import ContractPeer
from rlhf_audit_trail.ledger.chain.reader import AnchoredHead, AnchorReader
from rlhf_audit_trail.ledger.chain.rpc import RpcClient
from rlhf_audit_trail.ledger.chain.signer import Signer
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Ledger, Log
from rlhf_audit_trail.ledger.settings import ChainSettings, SettingsError

__all__ = ["WITNESS_WAIT_S", "Publisher"]

WITNESS_WAIT_S: Final = 10.0
"""How long anchoring waits for the witnesses' quorum, for all logs together."""


class Publisher:
    """Signs and anchors the logs of one ledger with one publisher key.

    Use it as a context manager; it holds one connection to the node. Not thread-safe.
    """

    def __init__(
        self, ledger: Ledger, signer: Signer, *, after_mined: Callable[[], None] = lambda: None
    ) -> None:
        """Take chain and contract from the ledger's settings; nothing is sent.

        Raises:
            SettingsError: the settings name no node, no chain, or another publisher.
        """
        settings = ledger.chain
        contract = _contract(settings, signer)
        # whatever the settings say, this key's own heads are the ones to compare with
        ledger.add_peer(ContractPeer.of(settings, signer.address))
        self._ledger = ledger
        self._signer = signer
        self._wait_s = WITNESS_WAIT_S
        self._rpc = RpcClient(settings.rpc_url)
        self._reader = AnchorReader(self._rpc, chain_id=settings.chain_id, contract=contract)
        self._after_mined = after_mined

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
        self._reader.check()  # before anything is written about a chain that is not there
        log.require_writable()
        self._register()
        signed = log.publish()
        self._await_witnesses(log, signed.head.size)
        anchorer = Anchorer(
            self._reader, self._signer, self._journal(), after_mined=self._after_mined
        )
        return anchorer.step(_View(log))

    def _await_witnesses(self, log: Log, tree_size: int) -> None:
        began_s = time.monotonic()
        self._ledger.watch.await_quorum(log.run_id, tree_size, timeout_s=self._wait_s)
        self._wait_s = max(0.0, self._wait_s - (time.monotonic() - began_s))
        log.require_writable()  # which a witness may just have shown to be wrong

    def _journal(self) -> SqlAnchorJournal:
        """Keep the records of every log: they share the publisher's nonces."""
        ledger = self._ledger
        return SqlAnchorJournal(
            ledger.engine, [ledger.registry, *(ledger.find(run) for run in ledger.runs())]
        )

    def close(self) -> None:
        """Let go of the connection."""
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

    def _register(self) -> None:
        registry, fields = self._ledger.registry, self._place()
        known = [entry.event for entry in registry.entries(kind="chain.registered")]
        if not known or any(known[-1][name] != value for name, value in fields.items()):
            registry.record(Event("chain.registered", fields)).result()

    def _place(self) -> dict[str, str | int]:
        return {
            "chain_id": self._reader.chain_id,
            "contract": self._reader.contract,
            "publisher": self._signer.address.lower(),
        }


class _View:
    """A log in the words of the anchorer."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.origin = log.origin
        self.log_id = log.log_id

    @property
    def size(self) -> int:
        return self._log.size

    def latest_head(self) -> tuple[int, bytes] | None:
        signed = self._log.published()
        return None if signed is None else (signed.head.size, signed.head.root)

    def root_at(self, size: int) -> bytes:
        return self._log.root_at(size)

    def consistency_proof(self, old: int, new: int) -> Sequence[bytes]:
        return self._log.prove_consistency(old, new)


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
