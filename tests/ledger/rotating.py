"""Logs whose keys are exchanged, for the tests of rotation and of those who follow it."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from rlhf_audit_trail.ledger.fsck import fsck, open_damaged


def begin(ledger, annotation):
    """A run with five entries and one signed tree head."""
    run = ledger.open_run("run")
    run.record_many(annotation(number) for number in range(5))
    run.publish()
    return run


def grow(log, annotation):
    log.record(annotation(7))
    return log.publish()


def findings(directory):
    with open_damaged(directory) as storage:
        return [str(finding) for finding in fsck(storage)]


def execute(directory, statement, *values):
    with closing(sqlite3.connect(directory / "ledger.db")) as database, database:
        return database.execute(statement, values).fetchall()
