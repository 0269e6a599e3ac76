"""Opening the ledger, and beginning runs in it: what stands below the facade.

One process of a training records; the others join, and tell it what they did.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

from rlhf_audit_trail.capture import WrongArgument
from rlhf_audit_trail.detectors.rule import Rule
from rlhf_audit_trail.detectors.rules import DEFAULT_RULES
from rlhf_audit_trail.detectors.watching import Detectors
from rlhf_audit_trail.ledger.appending import Log
from rlhf_audit_trail.ledger.chain.anchoring.following import following
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.remote_ledger import RemoteLedger
from rlhf_audit_trail.privacy.config import PrivacyConfig, PrivacyError
from rlhf_audit_trail.privacy.labels import is_per_label
from rlhf_audit_trail.ranks.log import RankLog
from rlhf_audit_trail.ranks.processes import Place, place, terminable
from rlhf_audit_trail.record.recorder import RunRecorder
from rlhf_audit_trail.run_events import check_source, config_event, rehearse

__all__ = ["AuditorRuns", "UnsupportedMode"]

# what a step records waits so long for the next steps: a kill loses no more, and counts it
_PATIENCE_S: Final = 0.25
_OF_EACH_STEP: Final = frozenset(
    {"rollout.scored", "batch.consumed", "policy.update", "metrics.logged"}
)


class UnsupportedMode(PrivacyError):
    """A privacy mode promises what cannot be kept here."""


class AuditorRuns:
    """Holds a ledger, and the runs that are being recorded into it."""

    def __init__(
        self,
        model_name: str,
        *,
        ledger: Ledger | RemoteLedger | Path | str,
        token: str | None = None,
        privacy_config: PrivacyConfig | None = None,
        source: str = "human",
        judge_model: str = "",
        seed: int | None = None,
        watch_optimizers: bool = True,
        storage_backend: str | None = None,
    ) -> None:
        """Open the ledger.

        Args:
            model_name: of the policy, for people.
            ledger: an open one, or its directory, which is then closed by `close`. Or the
                address of `rlhf-audit serve` on another machine: https://audit.acme.example.
            token: for such an address; by default RLHF_AUDIT_WRITER_TOKEN.
            privacy_config: how annotators are protected; by default the mode moderate.
            source: who gives the preferences: human, user_interaction, ai_feedback, simulated.
            judge_model: the judging model's name and revision, for ai_feedback.
            seed: of the training; recorded as a commitment only.
            watch_optimizers: measure every torch optimizer step while training is tracked.
            storage_backend: store the weights of checkpoints, too: "local" beside the ledger,
                "s3", "gcp" or "azure" in the bucket of its settings, or a URL such as
                s3://BUCKET/PREFIX. None records their digests only.

        Raises:
            WrongArgument: `privacy_config` is something else, or a token comes with a directory.
            UnknownSource: nobody could tell who gave the preferences.
            UnsupportedMode: labels are to be charged, which is done where the ledger is, and it
                is on another machine.
            LedgerMissing, RolledBack, Forked: the ledger cannot be opened or trusted.
            InvalidPlace: `storage_backend` names no object store.
        """
        if privacy_config is not None and not isinstance(privacy_config, PrivacyConfig):
            raise WrongArgument(
                f"privacy_config is of type {type(privacy_config).__name__}",
                next_step="pass PrivacyConfig(...), for example with annotator_privacy_mode",
            )
        self.model_name = model_name
        self.privacy_config = privacy_config or PrivacyConfig()
        self.source = check_source(source, judge_model)
        self.judge_model = judge_model
        self.seed = seed
        is_remote = isinstance(ledger, RemoteLedger) or _is_address(ledger)
        if is_remote and is_per_label(self.privacy_config):
            raise UnsupportedMode(
                "each label is charged where the ledger is, and this one is on another machine",
                next_step="train on the ledger's machine, ledger=DIRECTORY; or choose moderate "
                "without release_values",
            )
        self._watch_optimizers = watch_optimizers
        self._owns_ledger = not isinstance(ledger, Ledger | RemoteLedger)
        self._given, self._token = ledger, token
        self._ledger: Ledger | RemoteLedger | None = None
        self._storage_backend = storage_backend
        if not place().is_main:  # the ledger may not even be on this machine
            storage_backend = None
        else:
            self._ledger = _opened(ledger, token)
        if storage_backend is not None:
            from rlhf_audit_trail.weights.weight_keeping import check_backend  # noqa: PLC0415 - NumPy

            check_backend(self.ledger, storage_backend)
        self._current: ContextVar[RunRecorder | None] = ContextVar("run", default=None)
        self._active: list[RunRecorder] = []  # owned by _lock
        self._lock = threading.Lock()
        self._last_run: RunRecorder | None = None

    @property
    def ledger(self) -> Ledger | RemoteLedger:
        """The ledger; among several processes only the recording one opens it before it is used."""
        if self._ledger is None:
            self._ledger = _opened(self._given, self._token)
        return self._ledger

    def close(self) -> None:
        """Let go of the ledger, if it was opened here."""
        if self._owns_ledger and self._ledger is not None:
            self._ledger.close()

    def _begun(
        self,
        name: str,
        config: Mapping[str, Any] | None,
        seed: int | None,
        detectors: Iterable[Rule] = DEFAULT_RULES,
    ) -> RunRecorder:
        """Open a run, record its beginning, and watch until it ends."""
        settings = {"model_name": self.model_name, **(config or {})}
        settings["privacy"] = self.privacy_config.to_public_dict()
        started = {"name": name, "model_name": self.model_name, "source": self.source}
        # opening a run announces it for ever: what would be refused is refused before
        rehearse([Event("run.started", started), config_event(settings, seed)])
        here = place()
        if not here.is_main:
            return self._joined(name, here)
        if here.size > 1:
            settings["processes"] = here.size
        log = self.ledger.open_run(name)
        if isinstance(log, Log):
            log.be_patient(_PATIENCE_S, _OF_EACH_STEP)
        ledger = self.ledger if isinstance(self.ledger, Ledger) else None
        blobs = ledger.blobs if ledger else None
        recorder = RunRecorder(
            log,
            source=self.source,
            judge_model=self.judge_model,
            blobs=blobs,
            detectors=Detectors(detectors),
        )
        recorder.protect(self.privacy_config, ledger)
        if ledger is not None and self._storage_backend is not None:
            from rlhf_audit_trail.weights.weight_keeping import weight_keeping  # noqa: PLC0415 - NumPy

            recorder.keep_weights(weight_keeping(ledger, ledger.find(name), self._storage_backend))
        recorder.begin(name, self.model_name, settings, seed)
        if here.size > 1:
            recorder.listen(here)
        with ExitStack() as opened:
            if here.size > 1:  # launchers end the others when one has failed
                opened.enter_context(terminable(lambda: recorder.is_ending))
            if ledger is not None:  # one on another machine is anchored there
                opened.enter_context(following(ledger))
            opened.enter_context(self._made_active(recorder))
            opened.enter_context(self._watching(recorder))
            recorder.ends_with().push(opened.pop_all())
        return recorder

    def _joined(self, name: str, here: Place) -> RunRecorder:
        """Take part in a run that another process of this training records."""
        recorder = RunRecorder(
            RankLog(name, here.rank),
            source=self.source,
            judge_model=self.judge_model,
            detectors=Detectors(()),  # they watch where all of it comes together
        )
        recorder.protect(self.privacy_config, None)
        with ExitStack() as opened:
            opened.enter_context(self._made_active(recorder))
            opened.enter_context(self._watching(recorder))
            recorder.ends_with().push(opened.pop_all())
        return recorder

    @contextmanager
    def _made_active(self, recorder: RunRecorder) -> Iterator[None]:
        with self._lock:
            self._active.append(recorder)
            self._last_run = recorder
        try:
            yield
        finally:
            with self._lock:
                self._active.remove(recorder)

    @contextmanager
    def _watching(self, recorder: RunRecorder) -> Iterator[None]:
        """Keep torch's optimizer hooks installed for the block; without torch, do nothing."""
        if not self._watch_optimizers or importlib.util.find_spec("torch") is None:
            yield
            return
        from rlhf_audit_trail.movement.optimizer_watch import OptimizerWatch  # noqa: PLC0415 - imports torch

        recorder.optimizer_watch = watch = OptimizerWatch(
            lambda: recorder.tree_head, is_main=recorder.is_main, all_here=recorder.all_here
        )
        watch.install()
        try:
            yield
        finally:
            watch.remove()
            recorder.optimizer_watch = None


def _is_address(ledger: object) -> bool:
    return isinstance(ledger, str) and ledger.startswith(("http://", "https://"))


def _opened(ledger: Ledger | RemoteLedger | Path | str, token: str | None) -> Ledger | RemoteLedger:
    if isinstance(ledger, str) and _is_address(ledger):
        return RemoteLedger(ledger, token)
    if token is not None:
        raise WrongArgument(
            "a writer token is for a ledger at an address",
            next_step='pass ledger="https://...", or leave the token out',
        )
    return ledger if isinstance(ledger, Ledger | RemoteLedger) else Ledger.open(ledger)
