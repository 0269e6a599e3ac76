"""Charges as the privacy part makes them, with entries as small as they may be."""

from __future__ import annotations

from fractions import Fraction

from rlhf_audit_trail.ledger.budgets import Terms
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.privacy.account import Budget
from rlhf_audit_trail.privacy.charging import charge_of, public_budget, public_cost
from rlhf_audit_trail.privacy.cost import gaussian_cost, pure_cost

BUDGET = Budget.of(3, "1e-6")
COST = gaussian_cost(Fraction(3631, 100) ** 2, 1)
LARGE = pure_cost(Fraction(1))  # three of them are the whole budget
ANYTHING = ("run.started",)  # terms that hold whatever else was appended


def spend(accounts, *, cost=COST, budget=BUDGET, parts=1):
    """The entries of a charge; the last parts hold the rest of a long list."""
    names = sorted(account.hex() for account in accounts)
    size = -(-len(names) // parts)
    lists = [names[begin : begin + size] for begin in range(0, parts * size, size)]
    fields = {
        "round": 0, "statistic": {}, "of": {}, "mechanism_ref": 0, "coin_ref": 0,
        "first_index": 0, "end_index": 0, "entries": 0, "left_out": {},
        "participants": len(names), **public_cost(cost), "budget": public_budget(budget),
        "slots": [0], "parts": parts,
    }  # fmt: skip
    sealed = [{"participants": [], "accounts": some} for some in lists]
    more = [
        Event("dp.participants", {"round": 0, "part": part, "parts": parts}, sealed[part])
        for part in range(1, parts)
    ]
    return [Event("dp.spend", fields, sealed[0]), *more]


def accounts_of(ledger, *people):
    return [ledger.vault.account_of(ledger.vault.subject_tag(x, "")) for x in people]


def charge(log, accounts, *, cost=COST, budget=BUDGET, kinds=ANYTHING, newest=-1, parts=1):
    terms = Terms(kinds, newest, charge_of(budget, cost, dict.fromkeys(accounts, "")))
    return log.record_on(terms, spend(accounts, cost=cost, budget=budget, parts=parts))
