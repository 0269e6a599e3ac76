"""What the kernel's tests share: the sample log of the vectors, and patient hypothesis."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.append(str(Path(__file__).parents[1] / "vectors"))  # sample_log.py, generate.py

settings.register_profile("shared machine", deadline=None)  # no test depends on time
settings.load_profile("shared machine")


@pytest.fixture(scope="session")
def log() -> object:
    """Thirteen entries under known keys; signatures are those of the vectors."""
    from sample_log import SampleLog, read_notes

    return SampleLog(notes=read_notes())
