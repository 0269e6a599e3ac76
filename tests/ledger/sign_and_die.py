"""Sign a tree head, and die by SIGKILL before its cosignatures are collected, or while they are.

Arguments: directory, run id, and where to die: `before` asking, or `after` the witness's reply
and before it is stored. A test starts this process.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from rlhf_audit_trail.ledger import collecting, witness_client
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Ledger


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def main(directory, run_id, where):
    with Ledger.open(directory) as ledger:
        log = ledger.open_run(run_id)
        log.record(Event("alert.raised", {"name": "n", "severity": "warning", "step": 0,
                                          "detail": "d"})).result()  # fmt: skip
        if where == "before":
            collecting.Collector.wake = die
        else:
            witness_client._store = die
        log.publish()
        while True:
            time.sleep(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
