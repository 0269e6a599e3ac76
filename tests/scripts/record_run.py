"""Record a small run, for the command-line scripts: `record_run.py LEDGER RUN COUNT`."""

from __future__ import annotations

import sys

from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Ledger

directory, run, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Ledger.open(directory) as ledger:
    log = ledger.open_run(run)
    for i in range(count):
        person = f"annotator-{i % 3}"
        log.record(
            Event(
                "annotation.recorded",
                {"source": "simulated", "batch": i // 16},
                {"prompt": f"p{i}", "response": f"r{i}", "annotator": person, "reward": i / count},
                subject=person,
            )
        )
    print(log.publish().head.size)
