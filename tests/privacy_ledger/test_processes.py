"""Charging by several processes, and by processes that are killed."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_audit_trail.ledger.budgets import Budgets
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.privacy.account import Spent
from tests.privacy_ledger.charge_until_exhausted import COST
from tests.privacy_ledger.charging import BUDGET, accounts_of

CHILD = "tests.privacy_ledger.charge_until_exhausted"
ROOT = Path(__file__).parents[2]
USES = BUDGET.uses_left(Spent(), COST)


def start(directory, run_id, names):
    command = [sys.executable, "-m", CHILD, directory, run_id, names]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def indices(text):
    return [int(x) for x in text.split() if x.isdecimal()]


@pytest.mark.slow
def test_processes_that_charge_the_same_people_never_exceed_a_budget(directory, findings):
    Ledger.create(directory, organisation="acme.example").close()
    given = (("a", "ada,bob"), ("b", "bob,cleo"), ("a", "cleo,bob"))
    children = [start(directory, *x) for x in given]
    found = [indices(child.communicate()[0]) for child in children]
    assert [child.returncode for child in children] == [0, 0, 0]
    assert sum(map(len, found)) == USES  # bob is in all of them
    assert findings(directory) == []


@pytest.mark.slow
def test_killed_at_any_moment_what_was_spent_stays_spent_and_is_told(directory, findings):
    Ledger.create(directory, organisation="acme.example").close()
    chosen, promised, last = random.SystemRandom(), [], ""
    while "exhausted" not in last:
        child = start(directory, "a", "ada,bob")
        last = "".join(child.stdout.readline() for _ in range(chosen.randrange(1, 16)))
        child.kill()
        last += child.communicate()[0]
        new = indices(last)
        assert not set(new) & set(promised)
        promised += new
        assert findings(directory) == []  # the table is what the entries say
    with Ledger.open(directory) as ledger:
        log = ledger.find("a")
        spends = [x.leaf_index for x in log.entries(kind="dp.spend")]
        assert set(promised) <= set(spends)
        assert len(spends) == USES
        for rule, sums in Budgets(ledger.engine).spent(accounts_of(ledger, "ada", "bob")).values():
            assert (rule, sums.epsilon_units) == (0, USES * COST.epsilon_units)
