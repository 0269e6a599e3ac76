"""A ledger on another machine, as a training uses it: runs are recorded, nothing is read.

    auditor = AuditableRLHF("gpt2", ledger="https://audit.acme.example")

The run must exist there, and RLHF_AUDIT_WRITER_TOKEN hold a token for it; both are made by
`rlhf-audit writer add NAME --run RUN`. Files and weights never travel: their digests do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NoReturn, Protocol, Self

from rlhf_audit_trail.ledger.append_call import NotAnswered
from rlhf_audit_trail.ledger.events import KINDS, Event
from rlhf_audit_trail.ledger.progress import Progress
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.refusals import RunClosed
from rlhf_audit_trail.ledger.remote import CLOSE_TIMEOUT_S, RemoteLog
from rlhf_audit_trail.ledger.writer import AppendFailed, Receipt

__all__ = ["NotHere", "RemoteLedger", "RemoteRun"]

_ATTEMPTS: Final = 3
_PAUSE_S: Final = 1.0
_ANNOTATOR: Final = "annotator"


class NotHere(AuditTrailError):
    """This needs the stored entries, which are on the service's machine."""


class _Columns(Protocol):
    """`drafts.EventColumns`."""

    @property
    def kind(self) -> str: ...
    @property
    def fields(self) -> Mapping[str, Any]: ...
    @property
    def sealed(self) -> Mapping[str, Sequence[Any]]: ...
    @property
    def subjects(self) -> Sequence[str]: ...


class RemoteRun:
    """One run's log on another machine: the writing side of `Log`; safe between threads."""

    def __init__(self, log: RemoteLog, progress: Progress, *, is_strict: bool) -> None:
        """Record into `log`, which stands where `progress` says."""
        self.run_id = log.run_id
        self.begun = progress
        self._log = log
        self.is_strict = is_strict

    @property
    def tree_head(self) -> str:
        """Text of the tree head that was the newest when the run was opened.

        A training does not wait for the network to learn of a newer one.
        """
        return self.begun.tree_head

    def record_many(self, events: Iterable[Event]) -> list[Receipt]:
        """Hand over events; see `RemoteLog.record_many`."""
        return self._log.record_many(events)

    def record_columns(self, columns: _Columns) -> list[Receipt]:
        """Hand over many events given as columns."""
        paths, has_person = list(columns.sealed), _ANNOTATOR in KINDS[columns.kind].sealed
        rows = zip(*(columns.sealed[path] for path in paths), strict=True)
        events = []
        for subject, values in zip(columns.subjects, rows, strict=True):
            sealed = dict(zip(paths, values, strict=True))
            if subject and has_person:  # the service puts a pseudonym in its place
                sealed[_ANNOTATOR] = subject
            events.append(Event(columns.kind, columns.fields, sealed, subject))
        return self._log.record_many(events) if events else []

    def lose(self, count: int, reason: str) -> None:
        """Count events that could not be captured; see `RemoteLog.lose`."""
        self._log.lose(count, reason)

    def flush(self) -> None:
        """Wait until everything is durable, for half a minute at most.

        Raises:
            AppendFailed: if it is strict, nobody answered; events may be lost.
            NotAnswered: nobody answered yet; events are still queued.
        """
        try:
            self._log.flush(CLOSE_TIMEOUT_S)
        except TimeoutError as error:
            kind = AppendFailed if self.is_strict else NotAnswered
            raise kind(
                f"entries of the run {self.run_id} are not durable after {CLOSE_TIMEOUT_S:g} s",
                next_step="see that the service answers; they are sent until the process ends",
            ) from error

    def publish(self) -> None:
        """Have the service sign what is durable.

        Raises:
            NotAnswered: it does not do so now, perhaps since its own peers are silent.
        """
        self._log.publish()

    def close(self) -> None:
        """Send what is queued, then stop; raises as `RemoteLog.close`."""
        self._log.close()

    def entries(self, *_: object, **__: object) -> NoReturn:
        """Refuse to read what is not here."""
        raise _not_here(self.run_id)


class RemoteLedger:
    """Runs of a ledger on another machine; safe to share between threads."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        on_loss: str = "warn",
        queue_wait_s: float = 5.0,
        is_private_network: bool = False,
    ) -> None:
        """Ask nothing yet.

        Args:
            url: where `rlhf-audit serve` is reached.
            token: made by `rlhf-audit writer add`; by default RLHF_AUDIT_WRITER_TOKEN.
            on_loss: as in a ledger's settings: `warn`, or `strict` to raise where events
                are lost; a `gap` event counts them in any case.
            queue_wait_s: how long a call waits for room in the queue.
            is_private_network: nobody else listens between here and there: plain http will do.
        """
        if on_loss not in {"warn", "strict"}:
            raise ValueError(f"on_loss is {on_loss!r:.80}, not warn or strict")
        self.url = url
        self._token = token
        self._is_strict = on_loss == "strict"
        self._options: dict[str, Any] = {"queue_wait_s": queue_wait_s}
        self._options["is_private_network"] = is_private_network
        self._lock = threading.Lock()
        self._runs: list[RemoteRun] = []

    def __repr__(self) -> str:
        """Tell where it is; not the token."""
        return f"RemoteLedger({self.url!r})"

    def open_run(self, run_id: str) -> RemoteRun:
        """Return a run that exists there, as a writer of its own.

        Raises:
            BadAddress, InsecureAddress, BadToken: nothing is sent to such an address, or so.
            LogMissing, NotPermitted: there is no such run, or the token is for another.
            RunClosed: nothing can be appended to it any more.
            NotAnswered: nobody answers.
        """
        log = RemoteLog(self.url, run_id, self._token, is_strict=self._is_strict, **self._options)
        progress = _patiently(log)
        if progress.is_closed:
            raise RunClosed(f"the run {run_id} is closed", next_step="open a run with another name")
        run = RemoteRun(log, progress, is_strict=self._is_strict)
        with self._lock:
            self._runs.append(run)
        return run

    def find(self, run_id: str) -> NoReturn:
        """Refuse to read what is not here."""
        raise _not_here(run_id)

    def runs(self) -> list[str]:
        """Return the runs that were opened through this object, newest last."""
        with self._lock:
            return list(dict.fromkeys(run.run_id for run in self._runs))

    def close(self) -> None:
        """Send what is queued; raises as `RemoteLog.close`, after all of it was tried."""
        with self._lock:
            runs, self._runs = self._runs, []
        failure: AuditTrailError | None = None
        for run in runs:
            try:
                run.close()
            except AuditTrailError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _patiently(log: RemoteLog) -> Progress:
    for _ in range(_ATTEMPTS - 1):
        try:
            return log.progress()
        except NotAnswered:
            time.sleep(_PAUSE_S)
    return log.progress()


def _not_here(run_id: str) -> NotHere:
    return NotHere(
        f"the entries of the run {run_id!r:.120} are on the service's machine",
        next_step="check them there, where the ledger's directory is, or from here by the public "
        "log: rlhf-audit monitor",
    )
