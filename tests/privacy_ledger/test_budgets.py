"""Budgets in the ledger: charged with the entries or not at all, and given back by nothing."""

from __future__ import annotations

import random
import sqlite3
from fractions import Fraction

import pytest

from rlhf_audit_trail.ledger.budget_entries import rebuild_budgets
from rlhf_audit_trail.ledger.budgets import EVERYONE, Budgets, Price, Sums, Terms
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.refusals import LogMoved
from rlhf_audit_trail.ledger.rotation import rotate
from rlhf_audit_trail.ledger.subjects import erase_subject
from rlhf_audit_trail.privacy.account import Budget, Spent
from rlhf_audit_trail.privacy.charging import budget_of, charge_of, public_budget, public_cost
from rlhf_audit_trail.privacy.cost import UNBOUNDED, Cost, pure_cost, response_cost
from rlhf_audit_trail.privacy.errors import BudgetExhausted
from tests.privacy_ledger.charging import ANYTHING, BUDGET, COST, LARGE, accounts_of, charge, spend


def spent(ledger, account):
    return Budgets(ledger.engine).spent([account])[account]


def annotation(person, number=0):
    sealed = {"prompt": "p", "response": "r", "annotator": person, "reward": 0.5}
    return Event("annotation.recorded", {"source": "simulated", "batch": number}, sealed, person)


def test_a_charge_and_its_entry_are_there_together(ledger, directory, findings):
    log = ledger.open_run("run42")
    people = accounts_of(ledger, "ada", "bob", "cleo")
    first = charge(log, people[:2])
    second = charge(log, people[1:], parts=2)
    assert (list(first), list(second)) == ([0], [1, 2])
    one = Sums(COST.epsilon_units, COST.rho_units, 0)
    assert [spent(ledger, x) for x in people] == [(0, one), (0, one.plus(one)), (0, one)]
    assert findings(directory) == []


def test_what_exceeds_one_budget_charges_nobody_and_writes_nothing(ledger, directory, findings):
    log = ledger.open_run("run42")
    ada, bob = accounts_of(ledger, "ada", "bob")
    for _ in range(3):
        charge(log, [ada], cost=LARGE)
    log.record(annotation("ada")).result()
    size, before = log.size, spent(ledger, ada)
    with pytest.raises(BudgetExhausted) as refused:
        charge(log, [bob, ada], cost=LARGE)
    assert (log.size, spent(ledger, ada), spent(ledger, bob)) == (size, before, (0, Sums()))
    with sqlite3.connect(directory / "ledger.db") as store:
        assert store.execute("SELECT count(*) FROM budget").fetchone() == (1,)
    assert ada.hex() not in str(refused.value) + repr(refused.value.__dict__)
    log.record(annotation("ada")).result()  # the run goes on, without a hole in its numbers
    assert findings(directory) == []


def test_a_refused_batch_leaves_the_others_of_its_group_alone(ledger, directory, findings):
    log, other = ledger.open_run("run42"), ledger.open_run("run43")
    ada, bob = accounts_of(ledger, "ada", "bob")
    for _ in range(3):
        charge(log, [ada], cost=LARGE)
    with ledger._writer._at_work:  # so that all of them become one group
        tickets = []
        for run, people in ((log, [ada]), (other, [ada, bob]), (other, [bob])):
            terms = Terms(ANYTHING, -1, charge_of(BUDGET, LARGE, dict.fromkeys(people, "")))
            tickets.append(_submitted(run, terms, spend(people, cost=LARGE)))
        plain = other.record(annotation("bob"))
    for ticket in tickets:
        ticket.done.wait()
    assert [type(x.error) for x in tickets] == [BudgetExhausted, BudgetExhausted, type(None)]
    assert plain.result() == tickets[2].indices[0] + 1
    assert spent(ledger, bob)[1].epsilon_units == LARGE.epsilon_units
    assert findings(directory) == []


def _submitted(log, terms, events):
    from rlhf_audit_trail.ledger.appending import now_text
    from rlhf_audit_trail.ledger.batches import Batch
    from rlhf_audit_trail.ledger.drafts import draft

    batch = Batch(f"{random.getrandbits(128):032x}", 0, now_text(), list(map(draft, events)))
    batch.terms = terms
    ticket = log._checked(batch)
    log._writer.submit(ticket)
    return ticket


def test_a_batch_that_is_tried_again_is_charged_once(ledger, monkeypatch):
    """The first commit succeeds, and the way back is lost."""
    log = ledger.open_run("run42")
    (ada,) = accounts_of(ledger, "ada")
    charge(log, [ada], cost=LARGE)
    from rlhf_audit_trail.ledger import committing

    real, calls = committing.transact, []

    def lossy(engine, work):
        found = real(engine, work)
        calls.append(1)
        if len(calls) == 1:
            raise OSError("the answer was lost")
        return found

    monkeypatch.setattr(committing, "transact", lossy)
    assert len(charge(log, [ada], cost=LARGE)) == 1
    assert len(calls) == 2
    assert spent(ledger, ada)[1].epsilon_units == 2 * LARGE.epsilon_units
    assert log.size == 2


def test_nothing_gives_a_budget_back(directory, findings):
    with Ledger.create(directory, organisation="acme.example") as ledger:
        log = ledger.open_run("run42")
        log.record(annotation("ada")).result()
        (ada,) = accounts_of(ledger, "ada")
        for _ in range(3):
            charge(log, [ada], cost=LARGE)
        log.close()
        rotate(ledger)
        erase_subject(ledger, "ada", basis="request")
    with Ledger.open(directory) as ledger:
        again = ledger.open_run("run43")
        again.record(annotation("ada")).result()  # under a new secret, and another pseudonym
        assert accounts_of(ledger, "ada") == [ada]
        with pytest.raises(BudgetExhausted):
            charge(again, [ada], cost=LARGE)
        assert spent(ledger, ada)[1].epsilon_units == BUDGET.epsilon_units
    assert findings(directory) == []


def test_terms_refuse_a_log_that_moved(ledger):
    log = ledger.open_run("run42")
    (ada,) = accounts_of(ledger, "ada")
    assert list(charge(log, [ada], kinds=("dp.spend",))) == [0]
    with pytest.raises(LogMoved):
        charge(log, [ada], kinds=("dp.spend",))
    assert list(charge(log, [ada], kinds=("dp.spend",), newest=0)) == [1]
    assert spent(ledger, ada)[1] == Sums(UNBOUNDED, 2 * COST.rho_units, 0)


def test_the_rule_of_a_person_stays_that_of_the_first_charge(ledger):
    log = ledger.open_run("run42")
    (ada,) = accounts_of(ledger, "ada")
    one = Fraction(1, 10)
    strong = Budget.of(3, "1e-6", response=one)
    charge(log, [ada], cost=response_cost(one), budget=strong)
    assert spent(ledger, ada) == (10**11, Sums(10**11, 1, 0))
    with pytest.raises(BudgetExhausted):  # no Gaussian passes under it, though none was charged
        charge(log, [ada], cost=COST)
    charge(log, [ada], cost=LARGE)  # pure, and within the sum of epsilons
    assert spent(ledger, ada) == (10**11, Sums(11 * 10**11, UNBOUNDED, 0))


def test_the_ledger_adds_as_the_account_does():
    chosen = random.Random(7)
    for _ in range(300):
        epsilon = Fraction(chosen.randrange(1, 4000), 1000)
        cost = chosen.choice([response_cost, pure_cost])(epsilon)
        if chosen.random() < 0.3:
            cost = Cost(cost.epsilon_units, UNBOUNDED, chosen.randrange(1, 10**9))
        response = chosen.choice([None, epsilon, Fraction(1, 7)])
        budget = Budget.of(10, "1e-6", share="1e-8", response=response)
        price, before = Price.said(public_cost(cost)), Sums(5 * 10**11, 7, 3)
        added = price.added(budget.response_units)
        assert Spent(*added) == budget.charge(cost)
        assert Spent(*before.plus(added)) == Spent(*before).plus(budget.charge(cost))
        assert budget_of(public_budget(budget)) == budget


def test_fsck_names_a_row_that_is_not_the_entries_sum_by_its_place(directory, findings):
    with Ledger.create(directory, organisation="acme.example") as ledger:
        log = ledger.open_run("run42")
        people = sorted(accounts_of(ledger, "ada", "bob", "cleo"))
        charge(log, people)
    store = sqlite3.connect(directory / "ledger.db")
    for statement, expected in (
        ("UPDATE budget SET second_units = second_units - 1 WHERE account = ?", "row 1"),
        ("UPDATE budget SET second_units = second_units + 2 WHERE account = ?", "row 1"),
        ("DELETE FROM budget WHERE account = ?", "table"),
    ):
        store.execute(statement, (people[1],))
        store.commit()
        (found,) = findings(directory)
        assert expected in found
        assert not any(x.hex() in found for x in people)
    store.close()
    with Ledger.open(directory) as ledger:
        assert rebuild_budgets(ledger.engine, ledger.vault) == 3
    assert findings(directory) == []


def test_what_came_back_without_the_vault_counts_for_everyone(directory, findings):
    with Ledger.create(directory, organisation="acme.example") as ledger:
        log = ledger.open_run("run42")
        ada, bob = accounts_of(ledger, "ada", "bob")
        charge(log, [ada], cost=LARGE)
        charge(log, [ada], cost=LARGE)
    store = sqlite3.connect(directory / "ledger.db")
    store.execute("DELETE FROM budget")
    store.execute("DELETE FROM vault WHERE leaf_index = 0 AND log_number = 2")
    store.commit()
    store.close()
    with Ledger.open(directory) as ledger:
        rebuild_budgets(ledger.engine, ledger.vault)
        assert rebuild_budgets(ledger.engine, ledger.vault) == 2  # again, nothing grows
        units = LARGE.epsilon_units
        assert spent(ledger, ada)[1].epsilon_units == 2 * units
        assert spent(ledger, bob)[1].epsilon_units == units
        assert spent(ledger, EVERYONE)[1].epsilon_units >= units
        log = ledger.open_run("run42")
        charge(log, [bob], cost=LARGE)
        charge(log, [bob], cost=LARGE)
        with pytest.raises(BudgetExhausted):
            charge(log, [bob], cost=LARGE)
    assert [x for x in findings(directory) if "budget" in x] == []
