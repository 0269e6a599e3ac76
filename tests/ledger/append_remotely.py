"""Append to a run over HTTP, and print each receipt.

Usage: append_remotely.py URL RUN_ID TOTAL GROUP [LEAVE]; the token is in the environment.
TOTAL 0: until standard input ends.

Prints `writer_id index` for each event. With LEAVE the process hands over and ends: it
neither flushes nor closes, and prints nothing.
"""

from __future__ import annotations

import sys
import threading

from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.remote import RemoteLog


def annotation(number):
    person = f"person-{number % 7}"
    sealed = {"prompt": f"prompt {number}", "annotator": person, "reward": 0.5}
    return Event("annotation.recorded", {"source": "simulated", "batch": number}, sealed, person)


def main(url, run_id, total, group, leave=""):
    log, done, told = RemoteLog(url, run_id, timeout_s=10), 0, threading.Event()
    if not int(total):
        threading.Thread(target=lambda: (sys.stdin.read(), told.set()), daemon=True).start()
    while not told.is_set() if not int(total) else done < int(total):
        receipts = log.record_many(annotation(done + x) for x in range(int(group)))
        done += int(group)
        if leave:
            continue
        indices = [receipt.result(timeout_s=90) for receipt in receipts]
        sys.stdout.write("".join(f"{log.writer_id} {index}\n" for index in indices))
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
