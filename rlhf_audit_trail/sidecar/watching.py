"""A sidecar: records what a training framework writes to its folder, and changes nothing.

It is an observer of files: the record says so, and commits to each file's digest. All that it
must remember is in the log, so it can be killed at any moment and goes on without doubling.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.importers.rows import UnreadableExport, digest_of
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.record.recorder import RunRecorder
from rlhf_audit_trail.sidecar.formats import FORMATS, FileFormat, NoCompletions, read_completions

__all__ = ["SETTLED_S", "AlreadyWatched", "Look", "Sidecar", "watching"]

# Frameworks write these files in one go, but not at once: who looks in between sees half.
SETTLED_S: Final = 5.0
UNREADABLE: Final = "file_unreadable"
REWRITTEN: Final = "file_rewritten"


class AlreadyWatched(AuditTrailError):
    """Another process records this run from files now; two would record everything twice."""


@dataclass
class Look:
    """What one look at the folders showed.

    Attributes:
        files: recorded now.
        completions: recorded now.
        checkpoints: recorded now.
        waiting: files that are still being written, perhaps.
        unreadable: files that turned out to be something else, found now.
    """

    files: int = 0
    completions: int = 0
    checkpoints: int = 0
    waiting: int = 0
    unreadable: int = 0


@dataclass
class _Known:
    """What the log says was recorded already."""

    files: dict[str, set[str]] = field(default_factory=dict)  # name to digests
    unreadable: set[str] = field(default_factory=set)
    checkpoints: dict[int, float] = field(default_factory=dict)  # step to when it was recorded


class Sidecar:
    """Records one run from the files below some folders; made by `watching`."""

    def __init__(
        self,
        run: RunRecorder,
        folders: Sequence[Path],
        form: FileFormat,
        *,
        settled_s: float = SETTLED_S,
    ) -> None:
        """Read from the log what was recorded before; the folders may not exist yet."""
        self._run = run
        self._folders = folders
        self._form = form
        self._settled_s = settled_s
        self._known = _known(run)
        self._seen: dict[Path, tuple[int, int]] = {}  # of what was recorded: size and time

    def look(self) -> Look:
        """Record what is new and whole: completions in the order of steps, then checkpoints."""
        done = Look()
        for step, folder, path in self._found():
            if path.is_dir():
                self._checkpoint(done, step, path)
            else:
                self._file(done, step, folder, path)
        return done

    def _found(self) -> list[tuple[int, Path, Path]]:
        """Return (step, folder, path) of all that has a name of the format."""
        files, checkpoints = [], []
        for folder in self._folders:
            for place, below, names in os.walk(folder):
                here = Path(place)
                files += [(step, folder, here / x) for x, step in _steps(names, self._form.name)]
                whole = _steps(below, self._form.checkpoint)
                checkpoints += [(step, folder, here / x) for x, step in whole]
                below[:] = sorted(set(below) - {x for x, _ in whole})  # weights hold no rollouts
        return [*sorted(files), *sorted(checkpoints)]

    def _file(self, done: Look, step: int, folder: Path, path: Path) -> None:
        try:
            before = _state(path)
            if self._seen.get(path) == before:
                return
            if time.time() - before[1] / 1e9 < self._settled_s:
                done.waiting += 1
                return
            digest, size_bytes = digest_of(path)
            name = path.relative_to(folder).as_posix()
            if digest not in self._known.files.get(name, ()):
                self._record(done, step, path, {"file": name, "digest": digest})
            if _state(path) == before and size_bytes == before[0]:
                self._seen[path] = before
        except FileNotFoundError:  # rotated away in between: it was there, and is not now
            done.waiting += 1

    def _record(self, done: Look, step: int, path: Path, observed: dict[str, Any]) -> None:
        name, digest = observed["file"], observed["digest"]
        if f"{name} {digest}" in self._known.unreadable:
            return
        try:
            found = read_completions(path, self._form)
        except (UnreadableExport, NoCompletions):
            self._run.alert(UNREADABLE, f"{name} {digest}")
            self._known.unreadable.add(f"{name} {digest}")
            done.unreadable += 1
            return
        if digest_of(path)[0] != digest:  # written again while it was read
            done.waiting += 1
            return
        if name in self._known.files:
            self._run.alert(REWRITTEN, f"{name} was recorded before with other contents")
        observed |= {"unreadable_rows": found.unreadable_rows, "lossy": self._form.is_lossy}
        self._run.on_rollouts_scored(
            found.prompts,
            found.completions,
            found.rewards,
            found.advantages,
            weights=found.weights,
            policy_step=step,
            trainer_step=step,
            observed=observed,
        ).receipt.result()
        self._known.files.setdefault(name, set()).add(digest)
        done.files += 1
        done.completions += len(found.prompts)

    def _checkpoint(self, done: Look, step: int, path: Path) -> None:
        """Record a checkpoint's folder, unless it is the one recorded under this step."""
        try:
            if path.stat().st_mtime <= self._known.checkpoints.get(step, -1.0):
                return
            self._run.checkpoint(epoch=step, path=path).receipt.result()
        except FileNotFoundError:  # removed in between, to make room for a newer one
            done.waiting += 1
            return
        self._known.checkpoints[step] = time.time()
        done.checkpoints += 1


@contextmanager
def watching(
    ledger: Ledger,
    run_id: str,
    folders: Sequence[Path],
    form: str,
    *,
    source: str,
    judge_model: str = "",
    settled_s: float = SETTLED_S,
) -> Iterator[Sidecar]:
    """Open a run as its observer; on leaving, sign what was recorded.

    The run is not finished then: that the training ended, no file says.

    Args:
        ledger: an open one, of this machine.
        run_id: of the run; a new process goes on with it.
        folders: to look in, with all folders below them.
        form: a name in `FORMATS`.
        source: who gave the preferences that the rewards stand for.
        judge_model: of ai_feedback.
        settled_s: how long a file must have been left alone before it is read.

    Raises:
        AlreadyWatched: another process does so now.
        InvalidName, RunClosed, UnknownSource: the run cannot be opened.
    """
    chosen = FORMATS[form]
    observer = {
        "role": "observer of files, not part of the training",
        "format": form,
        "lossy": chosen.is_lossy,
        "limits": chosen.limits,
    }
    auditor = AuditableRLHF(
        run_id, ledger=ledger, source=source, judge_model=judge_model, watch_optimizers=False
    )
    with _alone(ledger, run_id):
        run = auditor.run(run_id, {"observer": observer})
        try:
            yield Sidecar(run, folders, chosen, settled_s=settled_s)
        finally:
            try:
                run.sign()
            finally:
                run.ends_with().close()


@contextmanager
def _alone(ledger: Ledger, run_id: str) -> Iterator[None]:
    """Hold a lock that the system takes back when this process ends, however it ends."""
    folder = ledger.directory / "watching"
    folder.mkdir(exist_ok=True)
    with (folder / f"{run_id.replace('/', '_')}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyWatched(
                f"another process is watching the run {run_id} on this machine",
                next_step="end it first, or watch into another run",
            ) from None
        yield


def _known(run: RunRecorder) -> _Known:
    """Read from the log what was recorded before."""
    known = _Known()
    for entry in run.log.entries(kind="rollout.scored"):
        observed = entry.event.get("observed")
        if isinstance(observed, dict):
            known.files.setdefault(observed["file"], set()).add(observed["digest"])
    for entry in run.log.entries(kind="alert.raised"):
        if entry.event["name"] == UNREADABLE:
            known.unreadable.add(entry.event["detail"])
    for entry in run.log.entries(kind="checkpoint.saved"):
        event = entry.event
        known.checkpoints[event["epoch"]] = datetime.fromisoformat(event["recorded_at"]).timestamp()
    return known


def _steps(names: Iterable[str], pattern: re.Pattern[str] | None) -> list[tuple[str, int]]:
    """Return the names that a pattern fits, each with its step."""
    matches = ((name, pattern.fullmatch(name)) for name in names) if pattern else ()
    return [(name, int(match[1])) for name, match in matches if match]


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
