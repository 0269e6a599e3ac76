"""Coins: what fixes a round's noise, and may come only when nothing can be changed any more.

The slots' root and the covered values must stand under one anchor that is final. Of the sources,

    auditor      32 bytes from somebody who checked that anchor; nobody else vouches for it
    prevrandao   RANDAO of one block, settled beforehand: 128 blocks after the first anchor that
                 holds the slots. Were any later block allowed, the operator would choose
    local        drawn here: exact noise, and no proof to anybody that it was not chosen

drand is refused: no client of it was tried here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import urandom
from typing import Any, Final, Protocol

from rlhf_audit_trail.ledger.chain.errors import ChainError
from rlhf_audit_trail.ledger.chain.node.agreement import connect
from rlhf_audit_trail.ledger.chain.node.rpc import parse_quantity
from rlhf_audit_trail.ledger.reading import AnchorView
from rlhf_audit_trail.ledger.settings import ChainSettings
from rlhf_audit_trail.privacy.bits import SEED_BYTES
from rlhf_audit_trail.privacy.errors import EarlyCoin, InvalidParameter, NoiseProtocolError

__all__ = ["COIN_DELAY_BLOCKS", "SOURCES", "ChosenCoin", "check_block", "choose_coin"]

SOURCES: Final = ("auditor", "prevrandao", "local")
# the anchor is final, by any chain's rule, before the proposers of that block reveal
COIN_DELAY_BLOCKS: Final = 128
_FINAL: Final = "finalized"
_HEX: Final = re.compile(r"(0x)?[0-9a-f]{64}")


class AnchoredLog(Protocol):
    """What is needed of a stored log."""

    @property
    def size(self) -> int:
        """Number of durable entries."""

    def anchors(self) -> Sequence[AnchorView]:
        """Return the log's anchors in growing tree size."""


@dataclass(frozen=True)
class ChosenCoin:
    """A coin that may be used.

    Attributes:
        source: where it is from.
        value: 32 bytes.
        tree_size: entries before it are covered.
        anchor: that holds them; empty for `local`.
        block: whose randomness it is; else empty.
    """

    source: str
    value: bytes
    tree_size: int
    anchor: Mapping[str, Any] = field(default_factory=dict)
    block: Mapping[str, Any] = field(default_factory=dict)


def choose_coin(
    log: AnchoredLog,
    root_index: int,
    *,
    source: str,
    value: bytes | str | None,
    chain: ChainSettings,
) -> ChosenCoin:
    """Return the coin of a round, if it may come now.

    Args:
        log: of the run, all of it durable.
        root_index: of the round's `dp.noise_root`.
        source: auditor, prevrandao or local.
        value: of an auditor 32 bytes, or their hex digits; of `local` None draws one.
        chain: where blocks are asked for.

    Raises:
        EarlyCoin: the slots and values are not under a final anchor yet, or the block is not final.
        NoiseProtocolError: no coin of this source can be had.
        InvalidParameter: the value has another form.
        ChainError: the chain does not answer.
    """
    if source == "drand":
        raise NoiseProtocolError(
            "a coin of drand cannot be fetched or checked here",
            next_step="use beacon 'prevrandao', or have the auditor who checks drand give its "
            "randomness as his coin: source='auditor'",
        )
    if source not in SOURCES:
        raise InvalidParameter(f"a coin comes from {', '.join(SOURCES)}")
    if source == "local":
        return ChosenCoin(source, urandom(SEED_BYTES) if value is None else _read(value), log.size)
    final = [x for x in log.anchors() if x.state == _FINAL and x.tree_size > root_index]
    if not final:
        raise EarlyCoin(
            "the slots and values of this round are not under a final anchor yet",
            next_step="run rlhf-audit anchor, and wait until the chain has finalized it; "
            "or use source='local', which proves nothing to anybody",
        )
    if source == "auditor":
        if value is None:
            raise NoiseProtocolError(
                "an auditor's coin is given, not drawn here",
                next_step="pass value: 32 random bytes from an auditor who saw the anchor",
            )
        return ChosenCoin(source, _read(value), final[-1].tree_size, _said(final[-1]))
    if value is not None:
        raise InvalidParameter("the coin of a block is read from the chain, not given")
    anchor = min(final, key=lambda x: (x.block_number or 0, x.tree_size))
    block = _block(chain, int(anchor.block_number or 0) + COIN_DELAY_BLOCKS)
    coin = bytes.fromhex(block.pop("value"))
    return ChosenCoin(source, coin, anchor.tree_size, _said(anchor), block)


def check_block(chain: ChainSettings, event: Mapping[str, Any]) -> None:
    """Compare what a `dp.coin` entry of the source prevrandao says of its block with the chain.

    Raises:
        NoiseProtocolError: the block has another hash or randomness; or no chain is configured.
        EarlyCoin: the block is not final.
        ChainError: the chain does not answer.
    """
    found = _block(chain, int(event["block"]["number"]))
    if (event["value"], event["block"]["hash"]) != (found["value"], found["hash"]):
        raise NoiseProtocolError(
            "a coin is not the randomness of the block that it names",
            next_step="treat the round's noise as chosen by the operator",
        )


def _read(value: bytes | str) -> bytes:
    if isinstance(value, str) and _HEX.fullmatch(value.lower()):
        value = bytes.fromhex(value.lower().removeprefix("0x"))
    if not isinstance(value, bytes) or len(value) != SEED_BYTES:
        raise InvalidParameter(f"a coin is {SEED_BYTES} bytes, or {2 * SEED_BYTES} hex digits")
    return value


def _said(anchor: AnchorView) -> dict[str, Any]:
    """Return what the coin's entry says of the anchor."""
    return {
        "chain_id": anchor.chain_id,
        "contract": anchor.contract,
        "tx_hash": anchor.tx_hash.hex(),
        "block_number": anchor.block_number,
    }


def _block(chain: ChainSettings, number: int) -> dict[str, Any]:
    """Return the randomness of a block that is final."""
    if not chain.rpc_url:
        raise NoiseProtocolError(
            "no chain is configured to ask for a block",
            next_step="set rpc_url below [chain], or use source='auditor'",
        )
    with connect(chain) as rpc:
        newest = rpc.call("eth_getBlockByNumber", _FINAL, False)  # noqa: FBT003 - without bodies
        reached = parse_quantity(newest["number"]) if isinstance(newest, dict) else 0
        if reached < number:
            raise EarlyCoin(
                f"block {number:,}, whose randomness is this round's coin, is not final yet",
                next_step=f"wait; the newest final block is {reached:,}",
            )
        found = rpc.call("eth_getBlockByNumber", hex(number), False)  # noqa: FBT003
    try:
        value = _read(found["mixHash"]).hex()
        return {"number": number, "hash": _read(found["hash"]).hex(), "value": value}
    except (KeyError, TypeError, AttributeError, InvalidParameter):
        raise ChainError("the node's answer is no block with a mixHash") from None
