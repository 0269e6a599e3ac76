"""Sign a run again and again until told to end, and print each tree head that was signed.

Usage: signer.py DIRECTORY RUN_ID [holding]; ends with its standard input.

`holding` stops the process once, inside a transaction that has the log's row locked, with the
tree head signed and not yet stored. Before it stops it prints `stopping`.
"""

from __future__ import annotations

import hashlib
import sys
import threading
import time

from appender import stop_before_the_next

from rlhf_audit_trail.ledger.log import Ledger


def main(directory, run_id, how=""):
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    with Ledger.open(directory) as ledger:
        log = ledger.open_run(run_id)
        log.publish()
        if how:
            stop_before_the_next("INSERT INTO tree_head", ledger.engine)
        while not ended.is_set():
            signed = log.publish()
            digest = hashlib.sha256(str(signed.note).encode()).hexdigest()
            print(signed.head.size, digest, flush=True)
            time.sleep(0.01)  # the row's lock is not fair: appenders shall have their turn


if __name__ == "__main__":
    main(*sys.argv[1:])
