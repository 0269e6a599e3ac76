"""A training beside an erasure: for each line `PERSON COUNT` it records annotations.

Answers with the leaf indices as JSON. The ledger stays open, and so does what its vault knows.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Ledger


@contextmanager
def annotating(directory: Path, run_id: str) -> Iterator[Callable[[str, int], list[int]]]:
    """Run it, and give what makes it annotate: (person, count) to leaf indices."""
    command = [sys.executable, __file__, directory, run_id]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def annotate(person: str, count: int) -> list[int]:
            process.stdin.write(f"{person} {count}\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield annotate
        process.stdin.close()
        assert process.wait(30) == 0


def main(directory, run_id):
    with Ledger.open(directory) as ledger:
        log = ledger.open_run(run_id)
        for line in sys.stdin:
            person, count = line.split()
            receipts = log.record_many(
                Event(
                    "annotation.recorded",
                    {"source": "simulated", "batch": number},
                    {"prompt": f"asked {number}", "annotator": person, "reward": number / 7},
                    person,
                )
                for number in range(int(count))
            )
            print(json.dumps([receipt.result() for receipt in receipts]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
