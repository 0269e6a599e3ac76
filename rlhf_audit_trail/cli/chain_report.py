"""How `rlhf-audit chain` shows what it found: as lines for people, as records for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from rlhf_audit_trail.cli.output import say, styled

if TYPE_CHECKING:
    from rlhf_audit_trail.ledger.chain.anchoring.standing import ChainStanding, LogStanding
    from rlhf_audit_trail.ledger.chain.contract.deployment import (
        Deployment,
        DeploymentPlan,
        Derivation,
        FoundCode,
    )

__all__ = [
    "code_record",
    "deployment_record",
    "print_code",
    "print_deployment",
    "print_plan",
    "print_standing",
    "standing_record",
]

_CODE_WORDS: Final = {
    "same": "TreeHeadAnchor, byte for byte",
    "other": "other code: NOT TreeHeadAnchor",
    "missing": "no code there",
}


def print_plan(plan: DeploymentPlan, payer: str | None) -> None:
    """Say what a deployment will cost, before it is made."""
    say(f"contract  {plan.address}   on chain {plan.chain_id}")
    if plan.is_needed:
        say(f"gas       {plan.gas:,}, limit {plan.gas_limit:,}")
        say(f"cost      about {_ether(plan.expected_wei)}, at most {_ether(plan.cost_wei_max)}")
    if payer is not None and plan.balance_wei is not None:
        say(f"payer     {payer}   has {_ether(plan.balance_wei)}")


def print_deployment(plan: DeploymentPlan, done: Deployment | None) -> None:
    """Say what was done."""
    if not plan.is_needed:
        say("already there; nothing was sent, nothing spent")
    elif done is None or done.tx_hash is None:
        say("dry run: nothing was sent")
    else:
        say(f"deployed  in block {done.block_number:,}, transaction 0x{done.tx_hash.hex()}")
        say(f"spent     {done.gas_used:,} gas, {_ether(done.cost_wei)}")


def deployment_record(
    plan: DeploymentPlan, payer: str | None, done: Deployment | None
) -> dict[str, Any]:
    """Return plan and outcome; `deployed` tells whether this very call deployed it."""
    tx_hash = done.tx_hash if done else None
    return {
        "chain_id": plan.chain_id,
        "contract": plan.address,
        "was_there": not plan.is_needed,
        "deployed": tx_hash is not None,
        "payer": payer,
        "balance_wei": plan.balance_wei,
        "gas": plan.gas,
        "gas_limit": plan.gas_limit,
        "cost_wei_expected": plan.expected_wei,
        "cost_wei_max": plan.cost_wei_max,
        "tx_hash": f"0x{tx_hash.hex()}" if tx_hash else None,
        "gas_used": done.gas_used if done else 0,
        "cost_wei": done.cost_wei if done else 0,
        "block_number": done.block_number if done else None,
    }


def print_standing(found: ChainStanding) -> None:
    """Say how far each log is anchored."""
    final = "none yet" if found.finalized_block is None else f"{found.finalized_block:,}"
    say(f"chain      {found.code.chain_id}, block {found.block_number:,}, finalized {final}")
    say(f"contract   {found.code.address}   {_CODE_WORDS[found.code.state]}")
    say(f"publisher  {found.publisher}   {_ether(found.balance_wei)}")
    if found.code.state == "missing":
        say("next: rlhf-audit chain deploy")
        return
    say()
    say(f"{'log':<40} {'entries':>10} {'anchored':>10} {'finalized':>10} {'behind':>8}")
    for log in found.logs:
        say(
            f"{log.origin:<40} {log.size:>10,} {log.head.tree_size:>10,}"
            f" {log.finalized_size:>10,} {log.lag:>8,}"
        )
    for log in found.logs:
        for anchor in log.unsettled:
            sent = f"0x{anchor.tx_hash.hex()}"
            say(f"{anchor.state:<9}  {log.run_id}, size {anchor.tree_size:,}, {sent}")
        if log.alarm:
            say(f"{styled('FAILED')}  {log.alarm.message}")
            say(f"  next: {log.alarm.next_step}")
    behind = [log.run_id for log in found.logs if log.lag]
    if behind and not any(log.alarm for log in found.logs):
        say(f"next: rlhf-audit anchor   (not anchored to the end: {', '.join(behind)})")


def standing_record(found: ChainStanding) -> dict[str, Any]:
    """Return everything that was found."""
    return {
        "chain_id": found.code.chain_id,
        "block_number": found.block_number,
        "block_timestamp": found.block_timestamp,
        "finalized_block": found.finalized_block,
        "contract": found.code.address,
        "code": found.code.state.value,
        "publisher": found.publisher,
        "balance_wei": found.balance_wei,
        "logs": [_log_record(log) for log in found.logs],
    }


def _log_record(log: LogStanding) -> dict[str, Any]:
    return {
        "run": log.run_id,
        "origin": log.origin,
        "size": log.size,
        "signed_size": log.signed_size,
        "anchored_size": log.head.tree_size,
        "anchored_root": log.head.root.hex() if log.head.tree_size else None,
        "anchored_at_block": log.head.block_number,
        "anchored_at": log.head.timestamp,
        "anchors": log.head.sequence,
        "finalized_size": log.finalized_size,
        "lag": log.lag,
        "unsettled": [
            {"state": x.state, "tree_size": x.tree_size, "tx_hash": f"0x{x.tx_hash.hex()}"}
            for x in log.unsettled
        ],
        "alarm": log.alarm and {"kind": type(log.alarm).__name__, "finding": log.alarm.message},
    }


def print_code(derivation: Derivation, seen: Sequence[tuple[str, FoundCode]]) -> None:
    """Show the address being derived, then what each node has there."""
    say("address = last 20 bytes of keccak256(0xff || factory || salt || keccak256(init code))")
    say(f"  factory         {derivation.factory}")
    say(f"  salt            0x{derivation.salt.hex()}")
    say(f"  init code hash  0x{derivation.init_code_hash.hex()}")
    say(f"  address         {derivation.address}")
    say(f"  runtime hash    0x{derivation.runtime_code_hash.hex()}")
    for node, found in seen:
        word = styled("passed" if found.state == "same" else "failed")
        say(f"{word}  {node}, chain {found.chain_id}, {found.address}: {_CODE_WORDS[found.state]}")
        if found.state == "other":
            say(f"  found {found.size_bytes:,} bytes, hash 0x{found.code_hash.hex()}")


def code_record(derivation: Derivation, seen: Sequence[tuple[str, FoundCode]]) -> dict[str, Any]:
    """Return the derivation and what each node has there."""
    return {
        "derivation": {
            "factory": derivation.factory,
            "salt": f"0x{derivation.salt.hex()}",
            "init_code_hash": f"0x{derivation.init_code_hash.hex()}",
            "address": derivation.address,
            "runtime_code_hash": f"0x{derivation.runtime_code_hash.hex()}",
        },
        "nodes": [
            {
                "node": node,
                "chain_id": found.chain_id,
                "address": found.address,
                "code": found.state.value,
                "size_bytes": found.size_bytes,
                "code_hash": f"0x{found.code_hash.hex()}",
            }
            for node, found in seen
        ],
        "is_same": all(found.state == "same" for _, found in seen),
    }


def _ether(wei: int) -> str:
    return f"{wei / 10**18:,.6f} ether"
