"""Rotate and retire a ledger's keys, and die by SIGKILL at one of the moments that matter.

Arguments: directory, number of the moment. Moments are before and after each commit, link and
rename. Ends with status 0 when there were fewer moments.
"""

from __future__ import annotations

import os
import signal
import sys

from sqlalchemy.engine.default import DefaultDialect

from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.rotation import retire, rotate

left = int(sys.argv[2])


def moment():
    global left  # noqa: PLW0603 - this process exists to count down
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def deadly(place, name):
    real = getattr(place, name)

    def call(*arguments, **options):
        moment()
        done = real(*arguments, **options)
        moment()
        return done

    setattr(place, name, call)


with Ledger.open(sys.argv[1]) as ledger:
    deadly(os, "link")
    deadly(os, "replace")
    deadly(DefaultDialect, "do_commit")
    rotate(ledger)
    retire(ledger)
    left = 0
