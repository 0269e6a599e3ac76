"""Log labels of a person under the mode strong until the budget is spent.

Arguments: directory, run id, name, mode. `labels` reports each index, and at last `exhausted`;
`die` is killed between the charge and the draw.
"""

from __future__ import annotations

import os
import signal
import sys

from rlhf_audit_trail.privacy import labels
from rlhf_audit_trail.privacy.errors import BudgetExhausted
from tests.privacy_ledger.runs import auditor


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def main(directory, run_id, name, mode):
    if mode == "die":
        labels.drawn = die
    with (
        auditor(directory, annotator_privacy_mode="strong") as audit,
        audit.track_training(run_id) as run,
    ):
        try:
            while True:
                given = {"prompts": ["p"] * 2, "responses": ["r"] * 2, "rewards": [0.25, 0.75]}
                made = run.log_annotations(**given, annotator_ids=[name] * 2)
                print(made[0].result(), made[1].result(), flush=True)
        except BudgetExhausted:
            print("exhausted", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
