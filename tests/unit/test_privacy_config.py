"""Privacy settings: what cannot mean anything is refused before anything is recorded."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from typing import Any

import pytest

from rlhf_audit_trail.privacy import (
    ConflictingParameters,
    InvalidDelta,
    InvalidEpsilon,
    InvalidParameter,
    MissingSensitivity,
    PrivacyConfig,
    PrivacyError,
)
from rlhf_audit_trail.privacy.config import PrivacyWarning


@pytest.mark.parametrize(
    ("mode", "total", "one"),
    [("moderate", 3.0, 0.1), ("minimal", None, None), ("strong", 10.0, 0.25)],
)
def test_each_mode_has_its_defaults(mode: str, total: float | None, one: float | None) -> None:
    config = PrivacyConfig(annotator_privacy_mode=mode, reward_bounds=(0, 1))
    assert (config.epsilon, config.total_epsilon, config.epsilon_per_round) == (total, total, one)


def test_epsilon_and_total_epsilon_are_one_cap() -> None:
    assert PrivacyConfig(epsilon=1) == PrivacyConfig(total_epsilon=1.0)
    assert PrivacyConfig(epsilon=2, total_epsilon=2).total_epsilon == 2.0
    assert PrivacyConfig(epsilon=0.05).epsilon_per_round == 0.05
    with pytest.raises(ConflictingParameters, match="two names"):
        PrivacyConfig(epsilon=1, total_epsilon=2)


def test_the_public_form_is_json_and_makes_the_same_settings() -> None:
    config = PrivacyConfig(
        epsilon=1.0,
        delta=1e-7,
        clip_norm=0.5,
        noise_multiplier=1.1,
        reward_bounds=(-1, 1),
        reward_levels=5,
        n_annotators=100,
        beacon="drand",
    )
    public = json.loads(json.dumps(config.to_public_dict()))
    assert PrivacyConfig(**public) == config
    assert config.sensitivity == 2.0
    assert dataclasses.replace(config, delta=1e-8).total_epsilon == 1.0


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PrivacyConfig().epsilon = 2.0  # type: ignore[misc]


@pytest.mark.parametrize(
    "value", [0, -1, math.nan, math.inf, True, "1", 1e-13, 1001, pytest.param(10**400, id="huge")]
)
@pytest.mark.parametrize("name", ["epsilon", "total_epsilon", "epsilon_per_round"])
def test_an_epsilon_is_a_finite_number_above_zero(name: str, value: Any) -> None:
    with pytest.raises(InvalidEpsilon, match=name):
        PrivacyConfig(**{name: value})


@pytest.mark.parametrize(
    "settings",
    [
        {"delta": -1e-9},
        {"delta": 1.0},
        {"delta": math.nan},
        {"delta": "1e-6"},
        {"delta": 0},
        {"delta": 0, "annotator_privacy_mode": "minimal", "noise_multiplier": 1.0},
        {"delta": 1e-5, "n_annotators": 100_000},
    ],
)
def test_a_delta_that_protects_nobody_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidDelta):
        PrivacyConfig(**settings)


def test_a_delta_near_the_limit_warns() -> None:
    with pytest.warns(PrivacyWarning, match="tenth"):
        PrivacyConfig(delta=5e-6, n_annotators=100_000)
    PrivacyConfig(delta=1e-6, n_annotators=100_000)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"annotator_privacy_mode": "minimal", "epsilon": 1.0}, ConflictingParameters),
        ({"epsilon": 1.0, "epsilon_per_round": 2.0}, ConflictingParameters),
        ({"annotator_privacy_mode": "minimal", "release_values": True}, ConflictingParameters),
        ({"annotator_privacy_mode": "strong"}, MissingSensitivity),
        ({"release_values": True}, MissingSensitivity),
        ({"reward_levels": 5}, MissingSensitivity),
        ({"annotator_privacy_mode": "weak"}, InvalidParameter),
        ({"beacon": "moon"}, InvalidParameter),
        ({"clip_norm": 0}, InvalidParameter),
        ({"clip_norm": math.inf}, InvalidParameter),
        ({"noise_multiplier": 0}, InvalidParameter),
        ({"max_contributions": 0}, InvalidParameter),
        ({"max_contributions": 1.5}, InvalidParameter),
        ({"n_annotators": 0}, InvalidParameter),
        ({"reward_levels": 1, "reward_bounds": (0, 1)}, InvalidParameter),
        ({"reward_bounds": (1, 0)}, InvalidParameter),
        ({"reward_bounds": (0, math.nan)}, InvalidParameter),
        ({"reward_bounds": 3}, InvalidParameter),
    ],
)
def test_each_refusal_has_its_type(settings: dict[str, Any], error: type[PrivacyError]) -> None:
    with pytest.raises(error):
        PrivacyConfig(**settings)


def test_without_bounds_nothing_can_be_scaled() -> None:
    with pytest.raises(MissingSensitivity):
        _ = PrivacyConfig().sensitivity


def test_neither_the_package_nor_the_settings_import_anything_heavy() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'numpy', 'sqlmodel', 'sqlalchemy', 'web3', 'fastapi'):\n"
        "    sys.modules[name] = None\n"
        "import rlhf_audit_trail\n"
        "assert 'PrivacyConfig' in dir(rlhf_audit_trail)\n"
        "print(rlhf_audit_trail.PrivacyConfig(epsilon=2).epsilon, rlhf_audit_trail.PPOArgs().epochs)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2.0", "2"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    import rlhf_audit_trail

    with pytest.raises(AttributeError, match="Auditable"):
        _ = rlhf_audit_trail.Auditable
