"""Experiment trackers: a run in W&B, MLflow or Trackio gets the log's signed tree head.

    share_head(run, wandb.run, address="https://log.acme.example")

Who reads the tracker then knows which log belongs to the run and how far it had come, and
holds a copy of a head that the log cannot go back behind. The tracker is trusted for nothing:
the head carries its own signatures.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from rlhf_audit_trail.ledger.log import Log
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError, Inconsistent
from rlhf_audit_trail.ledger.reading import NotPublished
from rlhf_audit_trail.record.recorder import RunRecorder

__all__ = ["SharedHead", "UnknownTracker", "require_in", "share_at_end", "share_head"]

_logger = logging.getLogger(__name__)
_OFFLINE: Final = "ask the run's operator for a bundle, then: rlhf-audit verify FILE --key KEY"


class UnknownTracker(AuditTrailError):
    """This is no run of W&B, MLflow or Trackio."""


@dataclass(frozen=True)
class SharedHead:
    """A tree head as a tracker holds it.

    Attributes:
        origin: of the log.
        tree_size: entries it covers.
        root: of the Merkle tree, hex.
        signed_head: the signed note, which anyone can check who has the log's key.
        verify: where, or how, the log is checked.
    """

    origin: str
    tree_size: int
    root: str
    signed_head: str
    verify: str


def share_head(run: RunRecorder | Log, tracker: Any, *, address: str = "") -> SharedHead:
    """Write a run's newest signed tree head into a tracker's run; again for a newer one.

    Args:
        run: what `track_training` gave, whose tree head is signed now; or a log.
        tracker: what `wandb.init`, `mlflow.start_run` or `trackio.init` returned.
        address: where `rlhf-audit serve` is reached; empty if nowhere.

    Raises:
        UnknownTracker: it is something else.
        NotPublished: nothing of the log is signed yet.
        NotHere: the run's log is on another machine; share it there.
    """
    write = _writer(tracker)
    if isinstance(run, RunRecorder):
        run.sign()
    log = run if isinstance(run, Log) else run.log
    signed = log.published()
    if signed is None:
        raise NotPublished(
            f"nothing of {log.origin} is signed yet", next_step="sign it: rlhf-audit anchor"
        )
    verify = f"{address.rstrip('/')}/rlhf/{log.run_id}/checkpoint" if address else _OFFLINE
    head = signed.head
    shared = SharedHead(head.origin, head.size, head.root.hex(), str(signed.note), verify)
    write(tracker, vars(shared))
    return shared


def share_at_end(run: RunRecorder, tracker: Any, *, address: str = "") -> None:
    """Share the tree head when the run ends; a tracker that fails then costs a warning.

    Raises:
        UnknownTracker: at once.
    """
    _writer(tracker)

    def share() -> None:
        try:
            share_head(run.log, tracker, address=address)
        except Exception as error:  # noqa: BLE001 - the training is done: nothing of it may fail here
            _logger.warning("the tree head was not shared: %s", type(error).__name__)

    run.ends_with().callback(share)


def require_in(log: Log, shared: SharedHead) -> None:
    """Check that a log still holds the tree that a tracker was told of.

    Raises:
        Inconsistent: it holds another one, or is shorter.
    """
    is_there = log.origin == shared.origin and log.size >= shared.tree_size
    if not is_there or log.root_at(shared.tree_size).hex() != shared.root:
        raise Inconsistent(
            f"{log.origin} does not hold the tree head of {shared.tree_size:,} entries "
            "that the tracker was given",
            next_step="keep both: one of the two histories is not the one that was signed",
        )


def _to_wandb(run: Any, fields: Mapping[str, Any]) -> None:
    run.summary.update({f"rlhf_audit/{name}": value for name, value in fields.items()})


def _to_mlflow(run: Any, fields: Mapping[str, Any]) -> None:
    from mlflow import MlflowClient  # noqa: PLC0415 - the tracker's own package is there

    client = MlflowClient()
    for name, value in fields.items():
        client.set_tag(run.info.run_id, f"rlhf_audit.{name}", value)


def _to_trackio(run: Any, fields: Mapping[str, Any]) -> None:
    run.log({f"rlhf_audit/{name}": value for name, value in fields.items()})


_WRITERS: Final[Mapping[str, Callable[[Any, Mapping[str, Any]], None]]] = {
    "wandb": _to_wandb,
    "mlflow": _to_mlflow,
    "trackio": _to_trackio,
}


def _writer(tracker: Any) -> Callable[[Any, Mapping[str, Any]], None]:
    """Return what writes to this kind of run, told by the package of its class."""
    for cls in type(tracker).__mro__:
        package = cls.__module__.split(".")[0]
        if package in _WRITERS:
            return _WRITERS[package]
    raise UnknownTracker(
        f"{type(tracker).__name__} is no run of {', '.join(_WRITERS)}",
        next_step="pass what wandb.init, mlflow.start_run or trackio.init returned",
    )
