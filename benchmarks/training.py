"""What recording costs a training, as a share of the same work without it."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import Result, _checkpoints, _steps, _tiny_steps


def run() -> Sequence[Result]:
    """Measure everything the goals name."""
    return [*_checkpoints.run(), *_steps.run(), *_tiny_steps.run()]
