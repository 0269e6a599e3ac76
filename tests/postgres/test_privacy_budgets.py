"""Budgets on PostgreSQL: the same rows and refusals, and processes that wait for each other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_audit_trail.ledger.budgets import Budgets, Sums
from rlhf_audit_trail.ledger.subjects import erase_subject
from rlhf_audit_trail.privacy.cost import UNBOUNDED
from rlhf_audit_trail.privacy.errors import BudgetExhausted
from rlhf_audit_trail.privacy.replay import replay_log
from tests.privacy_ledger.charging import COST, LARGE, accounts_of, charge
from tests.privacy_ledger.runs import annotate, auditor
from tests.privacy_ledger.test_processes import USES, indices

CHILD = "tests.privacy_ledger.charge_until_exhausted"


def test_charges_are_added_and_refused_as_on_the_other_database(ledger, directory, sound):
    log = ledger.open_run("run42")
    people = accounts_of(ledger, *(f"person-{x}" for x in range(1_201)))
    charge(log, people, parts=2)
    charge(log, people[:1])
    found = Budgets(ledger.engine).spent(people)
    assert set(list(found.values())[1:]) == {(0, Sums(UNBOUNDED, COST.rho_units, 0))}
    assert found[people[0]] == (0, Sums(UNBOUNDED, 2 * COST.rho_units, 0))
    with pytest.raises(BudgetExhausted):
        charge(log, [people[0], *accounts_of(ledger, "somebody new")], cost=LARGE)
    assert Budgets(ledger.engine).spent(people) == found
    assert log.size == 3
    sound(directory)


def test_a_release_goes_the_same_way_on_the_other_database(ledger, directory, sound):
    assert ledger.runs() == []
    with auditor(directory) as audit, audit.track_training("a") as run:
        annotate(run, people=40)
        run.privacy.open_round(slots=2)
        run.privacy.coin()
        assert run.privacy.release_mean().participants == 40
        assert len(replay_log(run.log).check().sums) == 40
        erase_subject(audit.ledger, "annotator-3@example.org", basis="request")
        annotate(run, people=5)  # who was erased comes back, under a new pseudonym
        run.privacy.open_round(slots=2)
        run.privacy.coin()
        run.privacy.release_histogram(levels=3)
        sums = replay_log(run.log).check().sums
        assert len(sums) == 41
        report = audit.get_privacy_report()
        assert report.total_epsilon >= report.run_epsilon > 0
    sound(directory)


@pytest.mark.slow
@pytest.mark.usefixtures("ledger")
def test_processes_that_charge_each_others_people_never_block_for_ever(directory, sound):
    given = (("a", "ada,bob"), ("b", "bob,ada"), ("c", "cleo,bob"), ("a", "dan,bob"))
    command = [sys.executable, "-m", CHILD, directory]
    options = {"stdout": subprocess.PIPE, "text": True, "cwd": Path(__file__).parents[2]}
    children = [subprocess.Popen([*command, *x], **options) for x in given]
    found = [indices(child.communicate(timeout=120)[0]) for child in children]
    assert [child.returncode for child in children] == [0] * 4
    assert sum(map(len, found)) == USES
    sound(directory)
