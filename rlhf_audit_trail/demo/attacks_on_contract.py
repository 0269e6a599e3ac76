"""Attacks on the contract, by who has the publisher's key."""

from __future__ import annotations

from collections.abc import Callable

from rlhf_audit_trail.demo.scene import Scene
from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader
from rlhf_audit_trail.ledger.chain.contract.writer import anchor
from rlhf_audit_trail.ledger.chain.errors import AnchorRefused
from rlhf_audit_trail.ledger.chain.node.rpc import RpcClient
from rlhf_audit_trail.ledger.log import Ledger, Log
from rlhf_audit_trail.ledger.proof.merkle import consistency_proof, leaf_hash, root_hash
from rlhf_audit_trail.ledger.tiles import GrowingTree

__all__ = [
    "fork_offered",
    "smaller_offered",
]


def _offered(scene: Scene, offer: Callable[[Log], tuple[int, bytes, tuple[bytes, ...]]]) -> str:
    """Send a tree head straight to the contract, past the anchorer's own checks."""
    with Ledger.open(scene.directory) as ledger:
        log = ledger.find(scene.run)
        size, root, proof = offer(log)
        with RpcClient(ledger.chain.rpc_url) as rpc:
            reader = AnchorReader(
                rpc, chain_id=ledger.chain.chain_id, contract=ledger.chain.contract
            )
            try:
                anchor(
                    reader, scene.signer,
                    log_id=log.log_id, tree_size=size, root=root, proof=proof,
                )  # fmt: skip
            except AnchorRefused as error:
                return f"contract: {error.reason}, {error.message}"
    return ""


def fork_offered(scene: Scene) -> str:
    """A larger tree over forged leaves, with the best proof the forger can make."""

    def offer(log: Log) -> tuple[int, bytes, tuple[bytes, ...]]:
        leaves = [leaf_hash(entry.data) for entry in log.entries()]
        leaves[0] = leaf_hash(b"another beginning")
        leaves.append(leaf_hash(b"and another end"))
        forged = GrowingTree()
        forged.append(leaves)
        return forged.size, forged.root(), _proof(leaves, log.size, forged.size)

    return _offered(scene, offer)


def _proof(leaves: list[bytes], old: int, new: int) -> tuple[bytes, ...]:
    def node(level: int, index: int) -> bytes:
        return root_hash(leaves[index << level : (index + 1) << level])

    return consistency_proof(old, new, node)


def smaller_offered(scene: Scene) -> str:
    """A tree that lacks the last anchored entry."""

    def offer(log: Log) -> tuple[int, bytes, tuple[bytes, ...]]:
        size = log.size - 1
        return size, log.root_at(size), ()

    return _offered(scene, offer)
