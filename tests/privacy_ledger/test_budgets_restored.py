"""Budgets after a loss: rebuilt from entries and a backup's vault, and never to anybody's favour."""

from __future__ import annotations

import shutil
import sqlite3

import pytest

from rlhf_audit_trail.ledger.budgets import EVERYONE, Budgets
from rlhf_audit_trail.ledger.export import update_export
from rlhf_audit_trail.ledger.importing import import_copies
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.pruning import PrunePolicy, prune
from rlhf_audit_trail.privacy.errors import BudgetExhausted
from rlhf_audit_trail.privacy.replay import replay_log
from tests.privacy_ledger.charging import accounts_of
from tests.privacy_ledger.runs import annotate, auditor

PERSON = "annotator-3@example.org"


@pytest.fixture
def lost(ledger, directory, tmp_path):
    """A release was made and exported; the database is gone, and its backup elsewhere."""
    ledger.close()
    with auditor(directory, epsilon=1.0, epsilon_per_round=0.4) as audit:
        with audit.track_training("a") as run:
            annotate(run)
            run.privacy.open_round()
            run.privacy.coin()
            run.privacy.release_mean()
        audit.ledger.registry.publish()
        for name in ("registry", "a"):
            update_export(audit.ledger.find(name), tmp_path / "copies" / name)
        (account,) = accounts_of(audit.ledger, PERSON)
        sums = Budgets(audit.ledger.engine).spent([account])[account]
    shutil.copy(directory / "ledger.db", tmp_path / "backup.db")
    for path in directory.glob("ledger.db*"):
        path.unlink()
    return account, sums


def again(directory):
    config = {"epsilon": 1.0, "epsilon_per_round": 0.9}
    with auditor(directory, **config) as audit, audit.track_training("b") as run:
        annotate(run)
        run.privacy.open_round()
        run.privacy.coin()
        run.privacy.release_mean()


def test_with_a_backup_of_the_vault_every_sum_is_what_it_was(lost, directory, tmp_path, findings):
    account, sums = lost
    import_copies(directory, str(tmp_path / "copies"), backup=tmp_path / "backup.db")
    with Ledger.open(directory) as ledger:
        found = Budgets(ledger.engine).spent([account, EVERYONE])
        assert found[account] == sums
        assert found[EVERYONE][1].second_units == 0
        assert replay_log(ledger.find("a")).check().unopened == 0
    assert [x for x in findings(directory) if "budget" in x] == []
    with pytest.raises(BudgetExhausted):
        again(directory)


def test_without_a_backup_everybody_is_charged(lost, directory, tmp_path, findings):
    account, sums = lost
    import_copies(directory, str(tmp_path / "copies"))
    with Ledger.open(directory) as ledger:
        found = Budgets(ledger.engine).spent([account, bytes(31) + b"1"])
        assert set(found.values()) == {sums}
        assert replay_log(ledger.find("a")).check().unopened == 1
    assert [x for x in findings(directory) if "budget" in x] == []
    with pytest.raises(BudgetExhausted):
        again(directory)


def test_a_pruned_run_keeps_what_its_annotators_spent(ledger, directory, tmp_path, findings):
    ledger.close()
    with auditor(directory) as audit:
        with audit.track_training("a") as run:
            annotate(run)
            run.privacy.open_round()
            run.privacy.coin()
            run.privacy.release_mean()
        audit.ledger.find("a").close()
        policy = PrunePolicy(reason="kept for long enough", drop_vault=True)
        done = prune(audit.ledger, "a", tmp_path / "archive", policy)
        assert done.vault_rows >= 30
    assert findings(directory) == []
    with sqlite3.connect(directory / "ledger.db") as store:
        rows = store.execute("SELECT kind, data FROM entry WHERE data != x'' AND log_number = 2")
        assert {kind for kind, _ in rows} == {"dp.spend"}
        store.execute("UPDATE budget SET second_units = second_units - 1")
        store.commit()
    assert any("budget" in x for x in findings(directory))
