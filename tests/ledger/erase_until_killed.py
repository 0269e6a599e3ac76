"""Erase a person from copies of a ledger, killed before each statement in turn that changes anything.

Arguments: a closed ledger, a folder for copies, the person's id. Writes one line of JSON for
each copy: after how many statements it was killed, and what is there once it was opened again.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from sqlalchemy import Engine, event

from rlhf_audit_trail.ledger.fsck import Summary, fsck, open_damaged
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.subjects import SubjectMissing, erase_subject, find_subject

_STATEMENTS_MAX = 1_000


def die_before(statements: int) -> None:
    """Have this process killed before its n-th statement that changes anything."""
    left = statements
    changing = ("INSERT", "UPDATE", "DELETE", "COMMIT", "VACUUM", "PRAGMA wal_checkpoint")

    def trace(statement: str) -> None:
        nonlocal left
        if statement.startswith(changing):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    event.listen(Engine, "connect", lambda driver, _: driver.set_trace_callback(trace))


def erase_and_die(directory: Path, person: str, statements: int) -> bool:
    """Erase in a child process; return whether it was killed before it was through."""
    child = os.fork()
    if child == 0:
        die_before(statements)
        erase_subject(Ledger.open(directory), person, basis="request")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def state(directory: Path, person: str, tag: bytes, secret: bytes) -> dict:
    """Open again, which goes on, and return what is there now."""
    with Ledger.open(directory) as ledger:
        try:
            left = find_subject(ledger, person).entries
        except SubjectMissing:
            left = 0
        told = [x.event for x in ledger.registry.entries(kind="subject.erased")]
        files = [path for path in directory.rglob("*") if path.is_file()]
        seen = sorted({x.name for x in files if secret in x.read_bytes() or tag in x.read_bytes()})
    summary = Summary()
    with open_damaged(directory) as storage:
        findings = [str(finding) for finding in fsck(storage, jobs=1, summary=summary)]
    with closing(sqlite3.connect(directory / "vault-keys.db")) as keys:
        pending = keys.execute("SELECT count(*) FROM erasure").fetchone()[0]
    return {
        "left": left,
        "told": {x["run"]: x["entries"] for x in told},
        "entries_told": len(told),
        "emptied": summary.erased,
        "findings": findings,
        "seen_in": seen,
        "pending": pending,
    }


def main(source: Path, folder: Path, person: str) -> None:
    with Ledger.open(source) as ledger:
        tag = ledger.vault.subject_tag(person, "")
    with closing(sqlite3.connect(source / "vault-keys.db")) as keys:
        query = "SELECT secret FROM subject_key WHERE subject = ?"
        (secret,) = keys.execute(query, (tag,)).fetchone()
    for statements in range(_STATEMENTS_MAX):
        copy = shutil.copytree(source, folder / "copy")
        is_killed = erase_and_die(copy, person, statements)
        found = {"statements": statements, "is_killed": is_killed}
        print(json.dumps(found | state(copy, person, tag, secret)), flush=True)
        shutil.rmtree(copy)
        if not is_killed:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
