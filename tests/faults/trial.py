"""One trial: a copy of a ledger, processes that are spoilt one after the other, a judgement.

A worker of the pool imports everything once and then forks for each process it needs, so a
trial costs no start of Python. It stays single-threaded itself.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import recorded_run
from system_calls import Call, Fault, run

from rlhf_audit_trail.ledger import writer

__all__ = ["Verdict", "in_fork", "prepare", "try_out"]

NUMBERS = 10_000  # of events; each process has its own


@dataclass(frozen=True)
class Verdict:
    """What a trial showed.

    Attributes:
        faults: one for each process; None for a process that was let alone.
        calls: what each process did.
        spoilt: how many of its calls were spoilt.
        statuses: as `waitpid` gives them.
        errors: what the processes' steps raised: step, class, whether it is ours, message.
        wrong: what the judge found; empty if all is well.
    """

    faults: tuple[Fault | None, ...]
    calls: tuple[tuple[Call, ...], ...]
    spoilt: tuple[int, ...]
    statuses: tuple[int, ...]
    errors: tuple[tuple[str, str, bool, str], ...]
    wrong: tuple[str, ...]

    def __str__(self):
        where = ", then ".join(
            f"{fault.way} at call {fault.number} ({_shown(calls, fault.number)})"
            for fault, calls in zip(self.faults, self.calls, strict=True)
            if fault
        )
        return f"{where}: {'; '.join(self.wrong)}"


def _shown(calls, number):
    call = calls[number - 1] if number <= len(calls) else None
    return f"{call.name} {call.path}" if call else "not reached"


def prepare():
    """Run once in each worker: no pause before the store is asked again."""
    writer.RETRY_DELAYS_S = (0.0,) * len(writer.RETRY_DELAYS_S)


def in_fork(work, result):
    """Do `work` in a process of its own, and return its lines of text through the file `result`."""
    pid = os.fork()
    if pid == 0:
        try:
            lines = work()
        except BaseException:  # noqa: BLE001 - it is the outcome
            lines = [traceback.format_exc()]
        result.write_text("\0".join(lines or ()), "utf-8")
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert status == 0
    return tuple(filter(None, result.read_text("utf-8").split("\0")))


def try_out(template, faults):
    """Have a process for each fault go on with a copy of the ledger, then judge what is left."""
    home = Path(tempfile.mkdtemp(dir=template.parent))
    directory, told, found = home / "ledger", recorded_run.Told(), []
    try:
        shutil.copytree(template, directory)
        for count, fault in enumerate(faults, 1):
            with _files(home / f"report-{count}", home / "healed") as handles:
                traced = run(
                    lambda first=count * NUMBERS: recorded_run.go_on(directory, *handles, first),
                    below=directory,
                    fault=fault,
                    heal_handle=handles[1],
                )
            told.read(home / f"report-{count}")
            found.append(traced)
        wrong = in_fork(lambda: recorded_run.judge(directory, told), home / "judgement")
    finally:
        shutil.rmtree(home)
    return Verdict(
        tuple(faults),
        tuple(tuple(x.calls) for x in found),
        tuple(x.spoilt for x in found),
        tuple(x.status for x in found),
        tuple(map(tuple, told.errors)),
        wrong,
    )


@contextmanager
def _files(*paths):
    handles = [os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND) for path in paths]
    try:
        yield handles
    finally:
        for handle in handles:
            os.close(handle)
