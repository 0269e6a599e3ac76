"""Ask nodes whether a block is one of the chain: all that chain evidence needs from outside.

Any full node can answer for any block, years later: it keeps headers, and no old state is asked
for. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from rlhf_audit_trail.ledger.chain.errors import ChainError, ChainUnreachable, WrongChain
from rlhf_audit_trail.ledger.chain.node.agreement import AgreeingRpc
from rlhf_audit_trail.ledger.chain.node.rpc import RpcClient, parse_data, parse_quantity
from rlhf_audit_trail.ledger.proof.evm.evidence import TrustedBlock

__all__ = ["BlockNotFinal", "ask_nodes", "confirm_block", "final_blocks", "newest_final"]

_FINALIZED: Final = "finalized"
_HASH_BYTES: Final = 32
_WITHOUT_BODIES: Final = False


class BlockNotFinal(ChainError):
    """The block may still be taken back, or the chain does not reach it."""


def ask_nodes(urls: Sequence[str], *, needed: int) -> RpcClient:
    """Return a way to ask these nodes, of which `needed` must say the same."""
    clients = [RpcClient(url) for url in urls]
    return clients[0] if len(clients) == 1 else AgreeingRpc(clients, needed=needed)


def confirm_block(rpc: RpcClient, *, chain_id: int, number: int, by: str) -> TrustedBlock:
    """Return the chain's final block of that number.

    Args:
        rpc: a node, or several in agreement.
        chain_id: the pinned chain.
        number: of the block.
        by: who is asked, for people.

    Raises:
        WrongChain: the nodes serve another chain.
        BlockNotFinal: the block is not final yet.
        ChainUnreachable, RpcError: no usable answer.
    """
    newest = newest_final(rpc, chain_id)
    if number > newest:
        raise BlockNotFinal(
            f"block {number:,} is not final yet; the newest final one is {newest:,}",
            next_step="wait, and verify again",
        )
    return TrustedBlock(chain_id, number, _hash_of(rpc, number), by)


def final_blocks(
    rpc: RpcClient, *, chain_id: int, first: int, last: int | None = None
) -> Iterator[TrustedBlock]:
    """Yield the chain's final blocks from `first` to `last`, or to the newest one.

    Raises:
        WrongChain: the node serves another chain.
        ChainUnreachable, RpcError: no usable answer.
    """
    newest = newest_final(rpc, chain_id)
    for number in range(first, min(newest if last is None else last, newest) + 1):
        yield TrustedBlock(chain_id, number, _hash_of(rpc, number), "")


def newest_final(rpc: RpcClient, chain_id: int) -> int:
    """Return the number of the newest final block.

    Raises:
        WrongChain: the nodes serve another chain.
        ChainUnreachable, RpcError: no usable answer.
    """
    found = parse_quantity(rpc.call("eth_chainId"))
    if found != chain_id:
        raise WrongChain(
            f"the node serves chain {found}, not the pinned chain {chain_id}",
            next_step="point the RPC address at a node of the pinned chain",
        )
    return parse_quantity(_block(rpc, _FINALIZED).get("number"))


def _hash_of(rpc: RpcClient, number: int) -> bytes:
    return parse_data(_block(rpc, hex(number)).get("hash"), size_bytes=_HASH_BYTES)


def _block(rpc: RpcClient, number_or_tag: str) -> dict[str, Any]:
    block = rpc.call("eth_getBlockByNumber", number_or_tag, _WITHOUT_BODIES)
    if not isinstance(block, dict):
        raise ChainUnreachable(f"the node has no {number_or_tag} block")
    return block
