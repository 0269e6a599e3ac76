"""A worker process of fsck: opens the ledger on its own, and does tasks until its pipe ends."""

from __future__ import annotations

import gc
import re
import signal
import sys
from multiprocessing.connection import Connection as Pipe
from typing import Any, Final

from rlhf_audit_trail.ledger.fsck.ranges import Bench
from rlhf_audit_trail.ledger.fsck.storage import open_damaged
from rlhf_audit_trail.ledger.fsck.tasks import Task
from rlhf_audit_trail.ledger.fsck.workers import Start, WorkerFailed
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

_GC_OBJECTS: Final = 100_000  # a tile's records are that many objects at most, and no garbage
_SNAPSHOT: Final = re.compile(r"[0-9A-F-]{1,64}")  # as PostgreSQL names them


def main(handle: int) -> None:
    """Serve the process at the other end of the pipe `handle`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller decides when we end
    gc.freeze()  # what was imported is here to stay
    gc.set_threshold(_GC_OBJECTS)
    with Pipe(handle) as pipe:
        try:
            _serve(pipe)
        except EOFError:  # the caller wants no more
            return
        except AuditTrailError as error:
            pipe.recv()
            pipe.send(WorkerFailed(error.message, next_step=error.next_step))


def _serve(pipe: Pipe) -> None:
    start: Start = pipe.recv()
    with open_damaged(start.directory) as storage, storage.engine.connect() as connection:
        if start.snapshot:
            if _SNAPSHOT.fullmatch(start.snapshot) is None:
                raise WorkerFailed("the name of a snapshot is none")
            connection.exec_driver_sql(f"SET TRANSACTION SNAPSHOT '{start.snapshot}'")
        bench = Bench(connection, storage.vault, storage.blobs)
        while True:
            pipe.send(_report(pipe.recv(), bench))


def _report(task: Task, bench: Bench) -> Any:
    try:
        return task.run(bench)
    except AuditTrailError as error:
        return WorkerFailed(error.message, next_step=error.next_step)
    except Exception as error:  # noqa: BLE001 - a defect is told to the caller, not left silent
        sys.excepthook(*sys.exc_info())  # goes nowhere unless the caller asks for it
        # by type only: the text of a driver's error may hold stored values
        return WorkerFailed(f"unexpected {type(error).__name__} while checking {task.title}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
