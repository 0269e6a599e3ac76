"""Recording what `torch.distributed.checkpoint.async_save` writes, when all of it is written.

Each process calls it with what its own `async_save` returned. Rank 0's is done when the shards of
all processes and their index lie on disk; then it reads them back, and what is recorded is the
digest of what can be loaded again, not of what was meant to be saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from rlhf_audit_trail.ranks.log import elsewhere
from rlhf_audit_trail.record.recorder import CheckpointRecord, RunRecorder
from rlhf_audit_trail.weights.model_files import read_model

__all__ = ["record_async_save"]


def record_async_save(
    run: RunRecorder,
    response: Any,
    path: Path | str,
    *,
    epoch: int,
    name: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    derived_from: Any = None,
    derivation: str = "training",
) -> Future[CheckpointRecord]:
    """Record a checkpoint once it is complete; the run's end waits for that.

    Args:
        run: that is being recorded.
        response: what `async_save` returned: a future, or one for staging and one for writing.
        path: the folder, its `checkpoint_id`.
        epoch: 0 or more.
        name: of the checkpoint; by default `epoch_<n>`.
        metrics: sealed.
        derived_from: what the weights were made from, and
        derivation: how; as `RunRecorder.register_model` takes them.

    Returns:
        What was recorded; or what saving, reading or recording raised. That is a gap of the
        record as well, and under the strict policy the run's end raises it.
    """
    outcome: Future[CheckpointRecord] = Future()
    upload: Future[Any] = getattr(response, "upload_completion", response)
    if not run.is_main:
        run.awaits(upload)  # what follows the run may use the process group that it uses
        outcome.set_exception(elsewhere("the entry of a checkpoint"))
        return outcome
    folder = Path(path)

    def record(written: Future[Any]) -> None:
        written.result()
        found = run.checkpoint(
            epoch=epoch,
            metrics=metrics,
            model=read_model(folder).records(),
            path=folder,
            wait=True,
            name=name,
            derived_from=derived_from,
            derivation=derivation,
        )
        outcome.set_result(found)

    def completed(written: Future[Any]) -> None:
        try:
            with run.kept_alive("checkpoint.saved"):
                try:
                    record(written)
                except Exception as error:
                    outcome.set_exception(error)
                    raise
        except Exception as error:  # noqa: BLE001 - strict: whoever ends the run raises it
            run.fails_with(error)

    run.awaits(outcome)
    upload.add_done_callback(completed)
    return outcome
