"""The contract as one who remembers how far a log had grown; standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from rlhf_audit_trail.ledger.alarm import PeerHead
from rlhf_audit_trail.ledger.chain.contract.compiled import load_artifact
from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader, Head
from rlhf_audit_trail.ledger.chain.errors import NoContractCode
from rlhf_audit_trail.ledger.chain.node.agreement import connect
from rlhf_audit_trail.ledger.reading import StoredLog
from rlhf_audit_trail.ledger.settings import ChainSettings

__all__ = ["ContractPeer"]


@dataclass(frozen=True)
class ContractPeer:
    """Heads anchored under our own publisher's address: nobody else can have put them there.

    Each answer is as trustworthy as the node that gives it, or as enough of them that agree.
    """

    settings: ChainSettings = field(repr=False)  # many providers put a secret into the address
    chain_id: int
    contract: str
    publisher: str

    @classmethod
    def of(cls, chain: ChainSettings, publisher: str) -> Self:
        """Take node, chain and contract from the settings."""
        contract = chain.contract or load_artifact().address
        return cls(chain, chain.chain_id, contract.lower(), publisher.lower())

    @property
    def name(self) -> str:
        """Contract and chain."""
        return f"contract {self.contract} on chain {self.chain_id}"

    def newest(self, log: StoredLog, *, timeout_s: float) -> PeerHead | None:
        """Return the newest anchored head; None if there is none, or no contract yet.

        Raises:
            ChainUnreachable, RpcError: no answer, or the node's refusal.
            WrongChain, WrongContractCode: what answers is not what was pinned.
        """
        with connect(self.settings, timeout_s=timeout_s) as rpc:
            reader = AnchorReader(rpc, chain_id=self.chain_id, contract=self.contract)
            try:
                reader.check()
            except NoContractCode:  # before the first `rlhf-audit anchor --deploy`
                return None
            head = reader.head(self.publisher, log.log_id)
        return self.shown(head) if head.tree_size else None

    def shown(self, head: Head) -> PeerHead:
        """Return an anchored head in the guard's words."""
        return PeerHead(self.name, head.tree_size, head.root, publisher=self.publisher)
