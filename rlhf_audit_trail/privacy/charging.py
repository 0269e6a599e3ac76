"""Charging: a mechanism's cost, put to the budgets that a ledger keeps of everybody.

The ledger adds and stores whole numbers, in the transaction that stores the entries; whether
they are within a budget is decided here, by `account` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rlhf_audit_trail.ledger.budgets import Charge, Sums
from rlhf_audit_trail.privacy.account import Budget, Spent
from rlhf_audit_trail.privacy.cost import UNBOUNDED, Cost

__all__ = ["budget_of", "charge_labels", "charge_of", "public_budget", "public_cost"]


def charge_of(budget: Budget, cost: Cost, participants: Mapping[bytes, str]) -> Charge:
    """Return the charge of one use of a mechanism to everybody whose values it takes.

    Args:
        budget: of each of them; a person who was first charged under another rule keeps that.
        cost: of one use.
        participants: account to the pseudonym by which an error may name the person.

    Its `admit` raises BudgetExhausted.
    """
    admitted: dict[tuple[int, Sums], Sums] = {}  # most of a crowd has spent the same

    def admit(account: bytes, response_units: int, sums: Sums) -> Sums:
        known = admitted.get((response_units, sums))
        if known is None:
            own = replace(budget, response_units=response_units)
            own.charged(Spent(*sums), cost, annotator=participants[account])
            added = own.charge(cost)
            known = Sums(added.epsilon_units, added.second_units, added.delta_units)
            admitted[response_units, sums] = known
        return known

    return Charge(tuple(sorted(participants)), budget.response_units, admit)


def charge_labels(
    budget: Budget, cost: Cost, people: Mapping[bytes, str], uses: Mapping[bytes, int]
) -> Charge:
    """Return the charge of several uses for each person, all of them or none.

    Args:
        budget: as for `charge_of`.
        cost: of one use.
        people: account to pseudonym.
        uses: account to how many, 1 or more.
    """
    admitted: dict[tuple[int, Sums, int], Sums] = {}

    def admit(account: bytes, response_units: int, sums: Sums) -> Sums:
        known = admitted.get((response_units, sums, uses[account]))
        if known is not None:
            return known
        own = replace(budget, response_units=response_units)
        spent, added = Spent(*sums), Spent()
        for _ in range(uses[account]):
            spent = own.charged(spent, cost, annotator=people[account])
            added = added.plus(own.charge(cost))
        found = Sums(added.epsilon_units, added.second_units, added.delta_units)
        admitted[response_units, sums, uses[account]] = found
        return found

    return Charge(tuple(sorted(people)), budget.response_units, admit)


def public_cost(cost: Cost) -> dict[str, Any]:
    """Return a cost as an entry has it: text, and null for what there is no guarantee of."""
    units = {"epsilon_units": cost.epsilon_units, "rho_units": cost.rho_units}
    found: dict[str, Any] = {
        name: None if value == UNBOUNDED else str(value) for name, value in units.items()
    }
    return found | {"delta_units": str(cost.delta_units), "is_response": cost.is_response}


def public_budget(budget: Budget) -> dict[str, str]:
    """Return a budget's rule and caps as an entry has them."""
    return {
        "rule": budget.rule,
        "epsilon_units": str(budget.epsilon_units),
        "second_units": str(budget.second_cap_units),
        "delta_units": str(budget.delta_units),
        "share_units": str(budget.share_units),
        "response_units": str(budget.response_units),
    }


def budget_of(fields: Mapping[str, Any]) -> Budget:
    """Return the budget that an entry states; what does not follow from the rest is not read.

    Raises:
        KeyError, TypeError, ValueError, PrivacyError: it states none.
    """
    names = ("epsilon_units", "delta_units", "share_units", "response_units")
    return Budget(*(int(fields[name]) for name in names))
