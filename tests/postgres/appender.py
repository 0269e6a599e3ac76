"""Append to a run, and print each receipt; stop itself in between when asked to.

Usage: appender.py DIRECTORY RUN_ID TOTAL GROUP [idle|holding], TOTAL 0 for no end.

`idle` stops the process between two groups, `holding` inside a transaction that has the
log's row locked. Before it stops it prints `stopping`.
"""

from __future__ import annotations

import os
import signal
import sys

from sqlalchemy import event

from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.store import postgresql

postgresql.IDLE_TIMEOUT_S = 1


def annotation(number):
    person = f"person-{number % 7}"
    sealed = {"prompt": "p", "annotator": person}
    return Event("annotation.recorded", {"source": "simulated", "batch": number}, sealed, person)


def stop():
    print("stopping", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)


def stop_before_the_next(beginning, engine):
    """Stop before the next statement that begins so."""
    armed = [True]

    def execute(_connection, _cursor, statement, *_):
        if armed and statement.startswith(beginning):
            armed.clear()
            stop()

    event.listen(engine, "before_cursor_execute", execute)


def main(directory, run_id, total, group, how=""):
    with Ledger.open(directory) as ledger:
        log, done = ledger.open_run(run_id), 0
        while not int(total) or done < int(total):
            if done and how == "idle":
                stop()
            elif done and how == "holding":
                stop_before_the_next("INSERT INTO entry", ledger.engine)
            how = how if not done else ""
            receipts = log.record_many(annotation(done + x) for x in range(int(group)))
            indices = [receipt.result() for receipt in receipts]
            sys.stdout.write("".join(f"{log.writer_id} {index}\n" for index in indices))
            sys.stdout.flush()
            done += int(group)
            if done % (8 * int(group)) == 0:
                log.publish()


if __name__ == "__main__":
    main(*sys.argv[1:])
