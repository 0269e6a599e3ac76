"""A contract's answer to a monitor: the newest head of one log; standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlhf_audit_trail.ledger.anchor_watch import Anchored, AnchorUnknown
from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader
from rlhf_audit_trail.ledger.chain.errors import ChainUnreachable, RpcError
from rlhf_audit_trail.ledger.chain.node.rpc import RpcClient

__all__ = ["ContractAnchors"]


@dataclass(frozen=True)
class ContractAnchors:
    """Asks one node about one publisher's anchors of one log.

    Attributes:
        rpc_url: the node; what it says is believed.
        chain_id: the pinned chain.
        contract: address of TreeHeadAnchor.
        publisher: whose anchors count.
        log_id: 32 bytes, see `proof.tree_head.log_id`.
    """

    rpc_url: str = field(repr=False)  # many providers put a secret there
    chain_id: int
    contract: str
    publisher: str
    log_id: bytes

    def newest(self) -> Anchored:
        """Return the newest anchored head.

        Raises:
            AnchorUnknown: the node gives no answer for now.
            WrongChain, NoContractCode, WrongContractCode: it is not what was pinned.
        """
        try:
            with RpcClient(self.rpc_url) as rpc:
                reader = AnchorReader(rpc, chain_id=self.chain_id, contract=self.contract)
                reader.check()
                head = reader.head(self.publisher, self.log_id)
        except (ChainUnreachable, RpcError) as error:
            raise AnchorUnknown(error.message, next_step=error.next_step) from error
        place = {
            "chain_id": self.chain_id,
            "contract": self.contract,
            "publisher": self.publisher,
            "log_id": self.log_id.hex(),
            "block_number": head.block_number,
        }
        return Anchored(head.tree_size, head.root, head.timestamp, place)
