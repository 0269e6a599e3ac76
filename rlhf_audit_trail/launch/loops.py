"""Records optimizers that no trainer steps: loops of one's own, without a change of code.

What optimizers do is seen by their hooks: updates, how far weights moved, gradients as they
were applied, learning rates. What the loop alone knows is not: rows, rewards, metrics,
checkpoints, names of parameters; the record says so before its first update.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from torch.optim.optimizer import Optimizer

from rlhf_audit_trail.auditor import of_environment
from rlhf_audit_trail.movement.optimizer_watch import relay

if TYPE_CHECKING:
    from rlhf_audit_trail.record.recorder import RunRecorder

__all__ = ["after_step", "before_step"]

_NOT_SEEN: Final = ("rows", "rewards", "metrics", "checkpoints", "parameter names")
_watches: Final = relay()
_begun: list[RunRecorder] = []  # the one run that this module began


def before_step(optimizer: Optimizer) -> None:
    """Begin a run where none is tracked, follow the optimizer, and have it measured.

    Raises:
        LedgerMissing, NotPermitted, NotAnswered: nothing can be recorded.
    """
    auditor = of_environment()
    run = auditor.current()
    if run is None:
        run = auditor.lasting(_name())
        _begun.append(run)
        run.config({"recorded_by": "optimizer hooks", "not_seen": list(_NOT_SEEN)})
    watch = run.optimizer_watch
    if run in _begun and watch is not None and not watch.is_known(optimizer):
        run.watch(None, optimizer, algorithm="loop")  # a trainer would have named it before
    for watch in list(_watches):
        watch.before_step(optimizer)


def after_step(optimizer: Optimizer) -> None:
    """Have the step measured and recorded."""
    for watch in list(_watches):
        watch.after_step(optimizer)


def _name() -> str:
    """Return the run's name: as it was given, else that of the script."""
    script = getattr(sys.modules.get("__main__"), "__file__", None) or "training"
    return os.environ.get("RLHF_AUDIT_RUN") or Path(script).stem.strip("_-.") or "training"
