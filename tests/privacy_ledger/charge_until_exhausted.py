"""Charge people in a run until the budget of one of them is spent; a test may kill this process.

Arguments: directory, run id, names of people by commas. Reports each leaf index once it is
durable, and at last who was refused: `exhausted`.
"""

from __future__ import annotations

import sys
from fractions import Fraction

from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.privacy.cost import pure_cost
from rlhf_audit_trail.privacy.errors import BudgetExhausted
from tests.privacy_ledger.charging import accounts_of, charge

COST = pure_cost(Fraction(3, 40))  # forty of them are a budget of 3, and their rho is no way out


def main(directory, run_id, names):
    with Ledger.open(directory) as ledger:
        log = ledger.open_run(run_id)
        accounts = accounts_of(ledger, *names.split(","))
        try:
            while True:
                print(charge(log, accounts, cost=COST, parts=2)[0], flush=True)
        except BudgetExhausted:
            print("exhausted", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
