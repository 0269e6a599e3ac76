"""One thread, because the models are tiny; a plan that costs little."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_audit_trail.privacy.sampling_accounts import SgdPlan
from tests.train.conftest import auditor, ledger, one_thread

__all__ = ["auditor", "ledger", "one_thread"]  # fixtures here, too


@pytest.fixture
def plan() -> SgdPlan:
    return make_plan()


def make_plan(**change: Any) -> SgdPlan:
    given: dict[str, Any] = {
        "noise_multiplier": 1.0, "clip_norm": 0.5, "sample_rate": 0.25, "normaliser": 8.0,
        "dp_delta": 1e-5, "steps_max": 40,
    }  # fmt: skip
    return SgdPlan(**(given | change))


@pytest.fixture
def change_plan() -> Any:
    return make_plan
