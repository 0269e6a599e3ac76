"""What `rlhf-audit anchor` shows: as JSON, and for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rlhf_audit_trail.cli.output import say, show_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rlhf_audit_trail.ledger.chain.anchoring.anchorer import Plan, Step
    from rlhf_audit_trail.ledger.chain.anchoring.costs import CostReport
    from rlhf_audit_trail.ledger.chain.anchoring.following import Round
    from rlhf_audit_trail.ledger.chain.anchoring.publishing import Publisher
    from rlhf_audit_trail.ledger.log import Ledger, Log

__all__ = [
    "anchors_record",
    "costs_record",
    "plan_record",
    "print_anchors",
    "print_costs",
    "print_plan",
    "print_round",
]

_WEI_PER_ETHER: Final = 10**18
_WEI_PER_GWEI: Final = 10**9


# --- anchors ------------------------------------------------------------------------------


def anchors_record(
    ledger: Ledger, publisher: Publisher, logs: list[Log], step: Step, contract: str | None
) -> dict[str, Any]:
    """Return what a step came to."""
    costs = publisher.costs()
    return {
        "contract": contract,
        "publisher": publisher.address,
        "anchors": [_anchor_record(ledger, log, step) for log in logs],
        "waiting": _waiting(step),
        "vanished": [alarm.message for alarm in step.vanished],
        "anchors_left": costs.anchors_left,
        "is_low": _is_low(costs.anchors_left, ledger.anchoring.warn_below_anchors),
    }


def _anchor_record(ledger: Ledger, log: Log, step: Step) -> dict[str, Any]:
    said, newest = step.anchored.get(log.log_id), log.anchors()
    finding = step.findings.get(log.log_id)
    return {
        "origin": log.origin,
        "tree_size": said.tree_size if said else max(log.anchored_sizes(), default=0),
        "new": said is not None,
        "block_number": said.block_number if said else None,
        "state": newest[-1].state if newest else "none",
        "finding": finding.message if finding else None,
        **_witnessed(ledger, log),
    }


def _waiting(step: Step) -> dict[str, Any] | None:
    if step.waiting is None and step.held_back is None:
        return None
    newest = step.waiting.newest if step.waiting else None
    return {
        "tx_hash": f"0x{newest.tx_hash.hex()}" if newest else None,
        "reason": step.held_back.message if step.held_back else "it is not mined yet",
    }


def _witnessed(ledger: Ledger, log: Log) -> dict[str, Any]:
    """Say whether the newest signed tree head has its quorum, and who has not cosigned it."""
    signed = log.published()
    if ledger.watch.policy is None or signed is None:
        return {"quorum": None, "missing": []}
    found = ledger.watch.await_quorum(log.run_id, signed.head.size, timeout_s=0)
    if found is None or found.head.size < signed.head.size:
        names = [item.shown for item in ledger.watch.policy.witnesses]
        missing = [{"witness": name, "finding": "no answer yet"} for name in names]
        return {"quorum": False, "missing": missing}
    missing = [
        {"witness": x.witness, "finding": x.finding.message if x.finding else ""}
        for x in found.outcomes
        if x.state != "cosigned"
    ]
    return {"quorum": found.is_quorum, "missing": missing}


def print_anchors(record: Mapping[str, Any]) -> None:
    """Show `anchors_record` to people."""
    if record["contract"]:
        say(f"contract {record['contract']}")
    for item in record["anchors"]:
        if item["finding"]:
            what = "not anchored"
        elif item["new"]:
            what = f"anchored in block {item['block_number']:,}"
        else:
            what = "nothing new"
        say(f"{item['origin']:<40} {item['tree_size']:>10,}  {what}, {item['state']}")
        if item["quorum"] is False:
            say("  too few witnesses cosigned it:")
        for witness in item["missing"]:
            say(f"  {witness['witness']}  {witness['finding']}")
    if record["waiting"]:
        say(f"waiting: {record['waiting']['reason']}")
        say("next: rlhf-audit anchor   (it looks at what waits, and offers more if it must)")
    if any(item["quorum"] is False for item in record["anchors"]):
        say("next: rlhf-audit witness collect   (anchored all the same)")
    if record["is_low"]:
        say(_low(record["publisher"], record["anchors_left"]))


# --- a dry run ----------------------------------------------------------------------------


def plan_record(plan: Plan, origins: Mapping[bytes, str]) -> dict[str, Any]:
    """Return what a step would send."""
    return {
        "transactions": [
            {
                "logs": [
                    {"origin": origins.get(x.log_id, x.log_id.hex()), "tree_size": x.tree_size}
                    for x in item.updates
                ],
                "gas": item.gas,
                "gas_limit": item.gas_limit,
                "max_fee_gwei": item.fees.max_fee_wei / _WEI_PER_GWEI,
                "expected_ether": item.expected_wei / _WEI_PER_ETHER,
            }
            for item in plan.transactions
        ],
        "findings": {origins[key]: x.message for key, x in plan.findings.items()},
        "balance_ether": plan.balance_wei / _WEI_PER_ETHER,
    }


def print_plan(record: Mapping[str, Any]) -> None:
    """Show `plan_record` to people."""
    for item in record["transactions"]:
        say(
            f"would send {len(item['logs'])} tree heads: {item['gas']:,} gas, at most "
            f"{item['max_fee_gwei']:g} gwei each, about {item['expected_ether']:.8f} ether"
        )
        for log in item["logs"]:
            say(f"  {log['origin']:<40} {log['tree_size']:>10,}")
    if not record["transactions"]:
        say("would send nothing: all is anchored")
    for origin, finding in record["findings"].items():
        say(f"{origin}: {finding}")
    say(f"balance {record['balance_ether']:.6f} ether; nothing was signed, stored or sent")


# --- costs --------------------------------------------------------------------------------


def costs_record(costs: CostReport, least: int) -> dict[str, Any]:
    """Return what was spent, and how long the balance lasts."""
    return {
        "anchors": [item.to_json() for item in costs.anchors],
        "ether_by_day": {day: wei / _WEI_PER_ETHER for day, wei in costs.by_day.items()},
        "total_ether": costs.total_wei / _WEI_PER_ETHER,
        "balance_ether": costs.balance_wei / _WEI_PER_ETHER,
        "anchors_left": costs.anchors_left,
        "is_low": _is_low(costs.anchors_left, least),
    }


def print_costs(record: Mapping[str, Any]) -> None:
    """Show `costs_record` to people."""
    say(f"{'day':<12} {'transaction':<20} {'logs':>5} {'gas':>10} {'gwei':>10} {'ether':>12}")
    for item in record["anchors"]:
        say(
            f"{item['day']:<12} {item['tx_hash'][:18]:<20} {item['logs'] or 'none':>5}"
            f" {item['gas_used']:>10,} {item['gas_price_wei'] / _WEI_PER_GWEI:>10.4f}"
            f" {item['fee_ether']:>12.8f}"
        )
    for day, ether in record["ether_by_day"].items():
        say(f"{day:<12} {'all of the day':<49} {ether:>12.8f}")
    left = "unknown" if record["anchors_left"] is None else f"about {record['anchors_left']:,}"
    say(
        f"total {record['total_ether']:.8f} ether; "
        f"balance {record['balance_ether']:.6f}: {left} more anchors"
    )
    if record["is_low"]:
        say(_low("the publisher's account", record["anchors_left"]))


def _is_low(left: int | None, least: int) -> bool:
    return left is not None and left < least


def _low(who: str, left: int) -> str:
    return f"{who} pays for about {left:,} more anchors\nnext: send ether to that account"


# --- following ----------------------------------------------------------------------------


def print_round(ledger: Ledger, found: Round, *, as_json: bool) -> None:
    """Show what a look came to, if it came to anything: a line each, or an object each."""
    origins = {log.log_id: log.origin for log in map(ledger.find, ("registry", *ledger.runs()))}
    step = found.step
    lines: list[dict[str, Any]] = []
    for log_id, head in (step.anchored if step else {}).items():
        place = {"tree_size": head.tree_size, "block_number": head.block_number}
        lines.append({"origin": origins[log_id]} | place)
    lines += [{"origin": None, "finding": x.message} for x in (step.vanished if step else ())]
    for log_id, finding in (step.findings if step else {}).items():
        lines.append({"origin": origins[log_id], "finding": finding.message})
    if found.failure is not None:
        again = {"again_in_s": round(found.pause_s, 1)}
        lines.append({"origin": None, "finding": found.failure.message} | again)
    for line in lines:
        if as_json:
            show_json(line)
        elif "finding" in line:
            before = "nothing is anchored for now" if "again_in_s" in line else "ALARM"
            say(f"{line['origin'] or before}: {line['finding']}")
        else:
            where = f"anchored in block {line['block_number']:,}"
            say(f"{line['origin']:<40} {line['tree_size']:>10,}  {where}")
