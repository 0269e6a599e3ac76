"""The privacy report of a run where its ledger is: with what annotators spent in other runs."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Any, Final

from rlhf_audit_trail.ledger.budget_entries import spend_entries
from rlhf_audit_trail.ledger.budgets import Budgets
from rlhf_audit_trail.ledger.log import Ledger, Log
from rlhf_audit_trail.ledger.reading import StoredLog
from rlhf_audit_trail.ledger.remote_ledger import RemoteLedger
from rlhf_audit_trail.privacy import rounds
from rlhf_audit_trail.privacy.account import Spent
from rlhf_audit_trail.privacy.bits import SystemBits
from rlhf_audit_trail.privacy.charging import budget_of
from rlhf_audit_trail.privacy.curves import DELTA_UNITS, EPSILON_UNITS
from rlhf_audit_trail.privacy.empirical import epsilon_lower_bound
from rlhf_audit_trail.privacy.errors import NotChargedHere
from rlhf_audit_trail.privacy.estimates import mechanism_fields
from rlhf_audit_trail.privacy.mechanisms import DiscreteGaussian
from rlhf_audit_trail.privacy.report import PrivacyReport
from rlhf_audit_trail.privacy.reporting import report_of
from rlhf_audit_trail.privacy.reserving import has_charged
from rlhf_audit_trail.privacy.stated import mechanism_of

__all__ = ["Audited", "audited_release", "privacy_report"]

_DRAWS: Final = 10_000


@dataclass(frozen=True)
class Audited:
    """What watching a mechanism's own sampler shows of one release.

    Attributes:
        epsilon_low: it is surely not more private than that, at this confidence.
        epsilon_claimed: what it is charged with, at the same delta.
        draws: of each of two neighbouring inputs.
        confidence: of the lower bound.
    """

    epsilon_low: float
    epsilon_claimed: float
    draws: int
    confidence: float


def audited_release(log: StoredLog, *, draws: int = _DRAWS) -> Audited | None:
    """Audit the mechanism of a run's newest release; None if nothing was released.

    Its noise is drawn anew from the operating system, for two inputs as far apart as one
    annotator can move the statistic; no value of the run is used.
    """
    found = rounds.read(log)
    spends = [spend for into in found.rounds for spend in into.spends]
    if not spends:
        return None
    event = spends[-1].event
    mechanism = mechanism_of(mechanism_fields(found.mechanisms[event["mechanism_ref"]]))
    if not isinstance(mechanism, DiscreteGaussian):
        return None
    budget, far = budget_of(event["budget"]), isqrt(mechanism.sensitivity_squared)
    bits, confidence = SystemBits(), 0.999
    first, second = ([mechanism.release(bits, [x])[0] for _ in range(draws)] for x in (0, far))
    delta = budget.delta_units / DELTA_UNITS
    low = epsilon_lower_bound(first, second, dp_delta=delta, confidence=confidence)
    claimed = budget.spent_epsilon_units(budget.charge(mechanism.cost)) / EPSILON_UNITS
    return Audited(low, claimed, draws, confidence)


def privacy_report(ledger: Ledger | RemoteLedger, run_id: str) -> PrivacyReport:
    """Return what may be said about a run; public view.

    Raises:
        LedgerMissing: there is no such run.
        NotChargedHere: the ledger is on another machine.
    """
    if not isinstance(ledger, Ledger):
        raise NotChargedHere(
            "the entries of this run are on another machine",
            next_step="run there: rlhf-audit privacy RUN",
        )
    log = ledger.find(run_id)
    charged = [run for run in ledger.runs() if has_charged(ledger.find(run))]
    return report_of(
        log,
        run=run_id,
        disclosures=_disclosures(ledger, run_id),
        others=_others(ledger, log),
        other_runs=len(set(charged) - {run_id}),
    )


def _others(ledger: Ledger, log: Log) -> list[tuple[int, Spent]]:
    """Return what everybody who was charged in a run was charged in all of them."""
    with ledger.engine.connect() as connection:
        spends = spend_entries(connection, ledger.vault, log.number, log.run_id, log.origin)
        accounts = {account for spend in spends for account in spend.accounts or ()}
    found = Budgets(ledger.engine).spent(sorted(accounts))
    return [(rule, Spent(*sums)) for rule, sums in found.values()]


def _disclosures(ledger: Ledger, run_id: str) -> list[dict[str, Any]]:
    """Return what the public registry log says was opened of a run."""
    names = ("index", "fields", "reader")
    return [
        {name: entry.event[name] for name in names} | {"registry_index": entry.leaf_index}
        for entry in ledger.registry.entries(kind="access.read")
        if entry.event["run"] == run_id
    ]
