"""Who does the tasks: this process alone, or others with it that it starts, one for each core.

A worker is a fresh Python (neither forked, nor in need of the caller's main module) that
opens the ledger on its own, read-only. Tasks and reports go through a pipe that only the two
have. A worker that dies breaks its pipe, which is noticed at once; when the caller dies, is
interrupted, or wants no more, the workers end.
"""

from __future__ import annotations

import os
import queue
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from rlhf_audit_trail.ledger.fsck.ranges import Bench
from rlhf_audit_trail.ledger.fsck.tasks import Task
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = ["Crew", "Start", "WorkerFailed", "alone", "employ"]

_ENDING_S: Final = 5.0
_AHEAD: Final = 4  # tasks for each worker that may be done before an earlier one is

AnyTask = TypeVar("AnyTask", bound=Task)


class WorkerFailed(AuditTrailError):
    """A worker ended, or met a defect: what it was checking is unknown."""


class Crew(Protocol):
    """Does tasks."""

    def run(self, tasks: Iterable[AnyTask]) -> Iterator[tuple[AnyTask, Any]]:
        """Do tasks, perhaps several at once; yield each with its report, in their order.

        Raises:
            WorkerFailed: one could not be done; what comes after it is not done either.
        """

    def begin(self, task: Task) -> Callable[[], Any]:
        """Begin a task on the side; what is returned waits for the report."""


@dataclass(frozen=True)
class Start:
    """What a worker must know before its first task.

    Attributes:
        directory: of the ledger.
        snapshot: name of the state that the caller sees, where a database has such names.
    """

    directory: Path
    snapshot: str


class _Alone:
    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def run(self, tasks: Iterable[AnyTask]) -> Iterator[tuple[AnyTask, Any]]:
        for task in tasks:
            yield task, task.run(self._bench)

    def begin(self, task: Task) -> Callable[[], Any]:
        return lambda: task.run(self._bench)


@contextmanager
def alone(bench: Bench) -> Iterator[Crew]:
    """Do everything in this process, one task after the other."""
    yield _Alone(bench)


@contextmanager
def employ(bench: Bench, start: Start, count: int) -> Iterator[Crew]:
    """Work with `count` others that are started for it; they have ended when the context has."""
    workers: list[_Worker] = []
    pool = ThreadPoolExecutor(count, thread_name_prefix="ledger-fsck")
    try:
        # not by a list of them: an interrupt in between must find those that are there
        workers.extend(_Worker(start) for _ in range(count))
        yield _Crew(bench, workers, pool)
    finally:
        for worker in workers:  # first: threads that wait for a report then wait no more
            worker.kill()
        pool.shutdown(cancel_futures=True)
        for worker in workers:
            worker.close()


class _Job:
    """A task that somebody will do, or has done."""

    def __init__(self, task: Any, promise: Future[Any]) -> None:
        self.task = task
        self.promise = promise

    def take(self, bench: Bench) -> bool:
        """Do it here unless somebody has begun; return whether it was done."""
        if not self.promise.cancel():
            return False
        self.promise = Future()
        self.promise.set_result(self.task.run(bench))
        return True


class _Crew:
    """Threads of this process hand tasks to workers; the caller's own does what none has begun."""

    def __init__(self, bench: Bench, workers: list[_Worker], pool: ThreadPoolExecutor) -> None:
        self._bench = bench
        self._pool = pool
        self._ahead = _AHEAD * len(workers)
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in workers:
            self._idle.put(worker)

    def run(self, tasks: Iterable[AnyTask]) -> Iterator[tuple[AnyTask, Any]]:
        waiting: deque[_Job] = deque()
        for task in tasks:
            waiting.append(self._submit(task))
            while len(waiting) > self._ahead or (waiting and waiting[0].promise.done()):
                yield self._first(waiting)
        while waiting:
            yield self._first(waiting)

    def begin(self, task: Task) -> Callable[[], Any]:
        waiting = deque([self._submit(task)])
        return lambda: self._first(waiting)[1]

    def _submit(self, task: Task) -> _Job:
        return _Job(task, self._pool.submit(self._hand_over, task))

    def _first(self, waiting: deque[_Job]) -> tuple[Any, Any]:
        """Return the first task with its report, which somebody may still be working on."""
        while not waiting[0].promise.done() and any(job.take(self._bench) for job in waiting):
            pass
        job = waiting.popleft()
        return job.task, job.promise.result()

    def _hand_over(self, task: Task) -> Any:
        worker = self._idle.get()
        try:
            return worker.ask(task)
        finally:
            self._idle.put(worker)


class _Worker:
    """One process; one thread at a time may use it."""

    def __init__(self, start: Start) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            handle = str(theirs.fileno())
            self._process = subprocess.Popen(
                # -P: a module beside the user's files must not pass for one of ours
                [sys.executable, "-P", "-m", f"{__package__}.worker", handle],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=None if os.environ.get("RLHF_AUDIT_TRACEBACK") else subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is for us; we end the workers
            )
        self._pipe = Pipe(ours.detach())
        self._start: Start | None = start

    def ask(self, task: Task) -> Any:
        """Have a task done; raises WorkerFailed."""
        try:
            if self._start is not None:
                self._pipe.send(self._start)
                self._start = None
            self._pipe.send(task)
            report = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise WorkerFailed(
                f"the process that checked {task.title} ended ({self._how()}); it and what comes "
                "after it were not checked",
                next_step="run it again with --jobs 1",
            ) from error
        if isinstance(report, WorkerFailed):
            raise report
        return report

    def _how(self) -> str:
        """Say how the process ended; it has closed its end of the pipe."""
        try:
            code = self._process.wait(_ENDING_S)
        except subprocess.TimeoutExpired:
            return "still running, but silent"
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def kill(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Let go of the pipe; no thread may be using it."""
        self._pipe.close()
