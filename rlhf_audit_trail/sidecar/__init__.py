"""The sidecar: a record of trainings that cannot be changed, from the files that they write."""

from __future__ import annotations

from rlhf_audit_trail.sidecar.formats import FORMATS
from rlhf_audit_trail.sidecar.watching import AlreadyWatched, Look, Sidecar, watching

__all__ = ["FORMATS", "AlreadyWatched", "Look", "Sidecar", "watching"]
