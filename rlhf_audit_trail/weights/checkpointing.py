"""Recording model checkpoints: weights digested, stored and entered while the training goes on.

`checkpoint()` notes where the weights are and opens their files; a thread does the rest. One
checkpoint at a time: the next one, and the end of the run, wait for the one before.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlalchemy.exc import SQLAlchemyError

from rlhf_audit_trail.ledger.blobs import BlobStore
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Receipt
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.weights.checkpoints import CheckpointStore
from rlhf_audit_trail.ledger.weights.delta import Layout
from rlhf_audit_trail.ledger.weights.digest import TensorRecord, chunk_hash
from rlhf_audit_trail.ledger.weights.errors import BaseDiscarded
from rlhf_audit_trail.ledger.weights.manifest import FileRecord, Manifest, Storage
from rlhf_audit_trail.ledger.weights.scratch import Scratch
from rlhf_audit_trail.ledger.weights.stored import Lineage, Predecessor, SavedWeights
from rlhf_audit_trail.run_events import checkpoint_event
from rlhf_audit_trail.weights.pinned_files import PinnedFiles

if TYPE_CHECKING:
    from rlhf_audit_trail.weights.snapshot import LiveCopy

__all__ = ["CheckpointRecord", "Checkpoints", "WeightKeeping"]

_logger = logging.getLogger(__name__)
_THREADS: Final = 2


class CheckpointRecord:
    """What was recorded of a model checkpoint; what is still being made is waited for.

    Attributes:
        name: `epoch_<n>`, or the one it was given.
    """

    def __init__(self, name: str, outcome: Future[tuple[str | None, Receipt]]) -> None:
        """Take the digest, hex or None, and the receipt from `outcome`."""
        self.name = name
        self._outcome = outcome

    @property
    def weights_digest(self) -> str | None:
        """Hex, or None where no weights were given; raises what recording it raised."""
        return self._outcome.result()[0]

    @property
    def receipt(self) -> Receipt:
        """The entry's receipt; raises what recording it raised."""
        return self._outcome.result()[1]

    def done(self) -> bool:
        """Whether nothing is waited for any more."""
        return self._outcome.done()

    def __repr__(self) -> str:
        return f"CheckpointRecord(name={self.name!r}, done={self.done()})"


@dataclass(frozen=True)
class WeightKeeping:
    """Where weights are kept.

    Attributes:
        store: of checkpoints.
        log_number: of the run's log.
        scratch: a directory with room for three copies of the weights.
        now: the time as text.
    """

    store: CheckpointStore
    log_number: int
    scratch: Path
    now: Callable[[], str]


class _Recorder(Protocol):
    """What is needed of a run's recorder."""

    @property
    def is_strict(self) -> bool: ...
    @property
    def policy_step(self) -> int: ...
    def alert(self, name: str, detail: str, *, severity: str = "warning") -> Receipt: ...
    def gap(self, count: int, reason: str) -> None: ...


@dataclass
class _Work:
    """One checkpoint on its way."""

    epoch: int
    name: str
    more: Mapping[str, Any]
    metrics: Mapping[str, Any] | None
    step: int
    is_waited_for: bool
    files: PinnedFiles | None = None
    records: Sequence[TensorRecord] | None = None
    aliases: Mapping[str, str] | None = None
    copy: LiveCopy | None = None
    scratch: Scratch | None = None


class Checkpoints:
    """Records the checkpoints of one run."""

    def __init__(
        self,
        recorder: _Recorder,
        record: Callable[[list[Event]], Sequence[Receipt]],
        blobs: BlobStore | None,
    ) -> None:
        """Record by `record`; manifests go to `blobs`, where there are some."""
        self._recorder, self._record, self._blobs = recorder, record, blobs
        self.keeping: WeightKeeping | None = None
        self._lineage = Lineage()
        self._scratches: list[Scratch] = []  # three at most: two that lineage needs, one more
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._awaited: list[Future[Any]] = []

    def save(
        self,
        *,
        epoch: int,
        metrics: Mapping[str, Any] | None,
        model: Any,
        path: Path | None,
        wait: bool,
        name: str | None = None,
        aliases: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> CheckpointRecord:
        """Record a checkpoint; see `RunRecorder.checkpoint`."""
        self.join()
        step = self._recorder.policy_step
        # what would be refused is refused here, before anything is begun
        rehearsed = checkpoint_event(
            epoch=epoch, records=None, metrics=metrics, path=None, step=step, name=name
        )
        name = str(rehearsed[0].fields["name"])
        work = _Work(epoch, name, more or {}, metrics, step, wait, aliases=aliases)
        if model is not None:
            self._note_weights(work, model, wait=wait)
        work.files = PinnedFiles(path) if path is not None else None
        outcome: Future[tuple[str | None, Receipt]] = Future()
        if wait:
            self._finish(work, outcome)
            self._raise_failure()
        else:
            if work.copy is not None:
                work.copy.hold_optimizers()
            self._thread = threading.Thread(
                target=self._finish, args=(work, outcome), name="checkpoint", daemon=True
            )
            self._thread.start()
        return CheckpointRecord(name, outcome)

    def join(self) -> None:
        """Wait for the checkpoint that is being recorded.

        Raises:
            AuditTrailError: where the ledger is strict, and it could not be recorded.
        """
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        self._raise_failure()

    def await_too(self, outcome: Future[Any]) -> None:
        """Have `settle` wait for a checkpoint that somebody else writes and records."""
        self._awaited = [x for x in self._awaited if not x.done()] + [outcome]

    def failed(self, error: BaseException) -> None:
        """Have the next call raise what another thread met."""
        self._failure = error

    def settle(self) -> None:
        """Wait for all that is under way, also for what others write; raises as `join`."""
        wait_for(self._awaited)
        self.join()

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _note_weights(self, work: _Work, model: Any, *, wait: bool) -> None:
        if isinstance(model, list | tuple):  # records: there are no bytes to keep
            work.records = model
            return
        # torch takes over a second to import, and is not needed for records
        from rlhf_audit_trail.weights import model_weights, snapshot  # noqa: PLC0415

        if self.keeping is None and wait:
            found = model_weights.digest_model(model)
            work.records = found.records
            work.aliases = {**(work.aliases or {}), **found.aliases}
            return
        named = model_weights.named_tensors(model)
        layout = snapshot.layout_of(named)
        work.aliases = {**(work.aliases or {}), **named.aliases}
        try:
            work.scratch = self._room(layout)
        except OSError as error:  # a full disk; digested where they lie they need no room
            self._not_stored(work, error, f"the weights of {work.name} were")
            work.records = model_weights.digest_model(model).records
            return
        work.copy = snapshot.LiveCopy(named, work.scratch, _urgent(model, named.tensors))

    def _room(self, layout: Layout) -> Scratch:
        """Return a scratch file that no checkpoint lies in that is still needed."""
        needed = [before.read for before in self._lineage.held]
        free = [x for x in self._scratches if x.read not in needed]
        self._scratches = [x for x in self._scratches if x.read in needed]
        found = next((x for x in free if x.layout.tensors == layout.tensors), None)
        if found is None:
            found = Scratch(layout, None if self.keeping is None else self.keeping.scratch)
        self._scratches.append(found)
        return found

    def _finish(self, work: _Work, outcome: Future[tuple[str | None, Receipt]]) -> None:
        """Do what is left; in a thread beside the training, unless it waits."""
        try:
            records, saved = self._weights(work)
            path_digest, files = work.files.digest() if work.files is not None else ("", ())
            digest = self._manifest(work, records, files, saved)
            events = checkpoint_event(
                epoch=work.epoch,
                records=records,
                metrics=work.metrics,
                path=None,
                step=work.step,
                path_digest=path_digest,
                manifest_digest=digest,
                name=work.name,
                more=work.more,
            )
            receipt = self._record(events)[0]
            outcome.set_result((events[0].fields["weights_digest"], receipt))
        except BaseException as error:  # noqa: BLE001 - a thread has nobody to raise to
            outcome.set_exception(error)
            self._failed(work, error)
        finally:
            if work.copy is not None:
                work.copy.release()
            if work.files is not None:
                work.files.close()

    def _weights(self, work: _Work) -> tuple[Sequence[TensorRecord] | None, SavedWeights | None]:
        if work.copy is None or work.scratch is None:
            return work.records, None
        work.copy.take()
        keeping, scratch = self.keeping, work.scratch
        if keeping is None:
            return _digested(scratch), None
        lineage, self._lineage = self._lineage, Lineage()
        try:
            try:
                saved = _saved(keeping, work.name, scratch, lineage.next_base())
            except BaseDiscarded:  # by `checkpoint gc`, for one: then this one is whole
                lineage = Lineage()
                saved = _saved(keeping, work.name, scratch, None)
        except (AuditTrailError, OSError, SQLAlchemyError) as error:
            self._not_stored(work, error, f"the weights of {work.name} were")
            return _digested(scratch), None
        lineage.add(Predecessor(saved, scratch.layout, scratch.read))
        self._lineage = lineage
        return [tensor.record for tensor in saved.header.tensors], saved

    def _manifest(
        self,
        work: _Work,
        records: Sequence[TensorRecord] | None,
        files: tuple[FileRecord, ...],
        saved: SavedWeights | None,
    ) -> str:
        if records is None or self._blobs is None:
            return ""
        storage = None
        if saved is not None:
            base = None if saved.header.base is None else saved.header.base.hex()
            storage = Storage(base, saved.stored.header_digest, saved.segments)
        manifest = Manifest(tuple(records), work.aliases or {}, files, storage)
        try:
            return self._blobs.put(manifest.encode())
        except (AuditTrailError, OSError, SQLAlchemyError) as error:
            self._not_stored(work, error, f"the manifest of {work.name} was")
            return ""

    def _not_stored(self, work: _Work, error: Exception, what: str) -> None:
        """The digest is recorded all the same; what is not kept is said."""
        _logger.warning("%s: %s not stored: %s", work.name, what, error)
        detail = f"{what} not stored: {type(error).__name__}"
        self._recorder.alert("checkpoint_not_stored", detail)
        if self._recorder.is_strict:
            self._failure = error

    def _failed(self, work: _Work, error: BaseException) -> None:
        """Have it raised where somebody waits or the ledger is strict; else count and tell it."""
        if work.is_waited_for or self._recorder.is_strict:
            self._failure = error
            return
        _logger.warning("%s was not recorded: %s", work.name, error)
        self._recorder.gap(1, f"a checkpoint could not be recorded: {type(error).__name__}")
        detail = f"the checkpoint {work.name} was not recorded: {type(error).__name__}"
        try:
            self._recorder.alert("checkpoint_not_recorded", detail, severity="critical")
        except AuditTrailError as second:  # then the run's end cannot be recorded either
            _logger.warning("nor could that be recorded: %s", second)


def _urgent(model: Any, tensors: Mapping[str, Any]) -> Collection[str]:
    """Return the names of all but a module's parameters: a forward pass may write to them."""
    if not callable(getattr(model, "named_parameters", None)):
        return tensors.keys()
    # a tied parameter stands under the first of its names here as well as there
    return tensors.keys() - {name for name, _ in model.named_parameters(remove_duplicate=False)}


def _saved(
    keeping: WeightKeeping, name: str, scratch: Scratch, base: Predecessor | None
) -> SavedWeights:
    return keeping.store.save(
        keeping.log_number,
        name,
        scratch.layout,
        scratch.read,
        created_at=keeping.now(),
        base=base,
    )


def _digested(scratch: Scratch) -> tuple[TensorRecord, ...]:
    with ThreadPoolExecutor(_THREADS) as pool:
        hashes = pool.map(
            lambda segment: [chunk_hash(scratch.read(chunk)) for chunk in segment],
            scratch.layout.segments,
        )
        return scratch.layout.records(list(hashes))
