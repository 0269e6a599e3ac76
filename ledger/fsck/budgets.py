"""Budgets as the store has them, against what the entries of all runs charged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sqlalchemy import Connection

from rlhf_audit_trail.ledger.budget_entries import account_sums, all_spends
from rlhf_audit_trail.ledger.budgets import EVERYONE, Sums, stored_budgets
from rlhf_audit_trail.ledger.findings import Finding
from rlhf_audit_trail.ledger.vault import Vault

__all__ = ["budget_findings"]

_NOBODY: Final = (0, Sums())


def budget_findings(connection: Connection, vault: Vault | None) -> Iterator[Finding]:
    """Yield each row that has other sums than the entries; rows are named by their place alone.

    Where participants of a charge cannot be told any more, rows may have more than what is known,
    and never less.
    """
    if vault is None:
        return
    stored = {account: (rule, sums) for account, rule, sums in stored_budgets(connection)}
    spends = list(all_spends(connection, vault))
    told = account_sums(spends, {account: rule for account, (rule, _) in stored.items()})
    lost = told.pop(EVERYONE, _NOBODY)[1]
    is_whole = lost == Sums()
    common = stored.get(EVERYONE, _NOBODY)[1]
    for place, (account, (_, sums)) in enumerate(stored.items()):
        if account == EVERYONE:
            if is_whole:
                yield _found(place, "everyone was charged, though all participants can be told")
            continue
        said = told.pop(account, _NOBODY)[1]
        if is_whole and sums != said:
            yield _found(place, "its sums are not those of the entries")
        elif not _reaches(sums.plus(common), said):
            yield _found(place, "its sums are less than those of the entries")
    if any(not _reaches(common, sums) for _, sums in told.values()):
        yield Finding("", "budget", "table", "people were charged who have no row")
    if not is_whole and not stored:
        yield Finding("", "budget", "table", "charges of people who cannot be told are missing")


def _found(place: int, detail: str) -> Finding:
    return Finding("", "budget", f"row {place}", detail)


def _reaches(sums: Sums, least: Sums) -> bool:
    return all(x >= y for x, y in zip(sums, least, strict=True))
