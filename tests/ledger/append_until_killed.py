"""Append to a run and report each receipt only once it is durable; a test kills this process.

Arguments: directory, run id, entries to append (0: until killed), size of a call.
Reports a line for each entry: leaf index, SHA-256 of its bytes.
"""

from __future__ import annotations

import hashlib
import sys

from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Ledger


def event(number):
    person = f"person-{number % 7}"
    sealed = {"prompt": "p", "response": "r", "annotator": person, "reward": number / 10}
    return Event("annotation.recorded", {"source": "simulated", "batch": number}, sealed, person)


def main(directory, run_id, total, group):
    with Ledger.open(directory) as ledger:
        log = ledger.open_run(run_id)
        done = 0
        while not total or done < total:
            receipts = log.record_many(event(done + x) for x in range(group))
            for receipt in receipts:
                index = receipt.result()
                data = receipt.ticket.items.encoded.data[receipt.position]
                sys.stdout.write(f"{index} {hashlib.sha256(data).hexdigest()}\n")
            sys.stdout.flush()
            done += group
            if done % (group * 16) == 0:
                log.publish()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
