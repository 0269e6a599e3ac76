"""Append to a run, or publish it, until killed; a test starts several of these.

Arguments: directory, `append` or `publish`, the first event's number. Tells on standard
output, line by line, what became durable: `kept INDEX NUMBER`, or the note that was signed, in hex.
"""

from __future__ import annotations

import sys

from recorded_run import event_of

from rlhf_audit_trail.ledger.log import Ledger

EACH = 5


def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def append(log, first):
    while True:
        receipts = log.record_many(event_of(first + x) for x in range(EACH))
        for number, receipt in enumerate(receipts, first):
            say("kept", receipt.result(), number)
        first += EACH


def publish(log):
    while True:
        say("signed", str(log.publish().note).encode().hex())


def main(directory, what, first):
    with Ledger.open(directory) as ledger:
        log = ledger.open_run("run42")
        if what == "append":
            append(log, first)
        publish(log)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
