"""Privacy settings of a run: checked when made, frozen, free of torch.

A setting that cannot mean anything is refused here, before a value is recorded or a
budget charged. Messages name the setting and never a value that was recorded.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass, fields
from typing import Any, Final

from rlhf_audit_trail.privacy.curves import EPSILON_MAX, EPSILON_UNITS
from rlhf_audit_trail.privacy.errors import (
    ConflictingParameters,
    InvalidDelta,
    InvalidEpsilon,
    InvalidParameter,
    MissingSensitivity,
    PrivacyError,
    PrivacyWarning,
)

__all__ = [
    "ConflictingParameters",
    "InvalidDelta",
    "InvalidEpsilon",
    "InvalidParameter",
    "MissingSensitivity",
    "PrivacyConfig",
    "PrivacyError",
    "PrivacyWarning",
]

MODES: Final = ("strong", "moderate", "minimal")
BEACONS: Final = ("auditor", "drand", "prevrandao", "local")

# Cap over everything, and one charge: a release of an aggregate, or in `strong` one label.
_TOTAL_EPSILON: Final = {"strong": 10.0, "moderate": 3.0, "minimal": None}
_EPSILON_PER_ROUND: Final = {"strong": 0.25, "moderate": 0.1, "minimal": None}
_DELTA_MARGIN: Final = 10  # above 1 / (10 n) one annotator's data could leak whole, unluckily
_LEVELS_MIN: Final = 2


@dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
    """How annotators are protected; unit: all values of one annotator, relation: replace.

    Attributes:
        epsilon: another name for `total_epsilon`; give one of them.
        total_epsilon: cap per annotator over everything released; by mode 10, 3 or none.
        delta: `dp_delta` elsewhere in this project; below 1 / `n_annotators`.
        epsilon_per_round: one charge: the release of an aggregate, or in `strong` one label.
        clip_norm: DP-SGD only: L2 bound on one example's gradient.
        noise_multiplier: DP-SGD only: noise std over `clip_norm`. It is no epsilon.
        annotator_privacy_mode: where noise goes: at entry (`strong`), on released aggregates
            (`moderate`), or nowhere, without a claim of differential privacy (`minimal`).
        reward_bounds: declared (low, high); rewards outside are clipped before noise.
        reward_levels: number of distinct rewards between the bounds, 2 or more.
        max_contributions: values of one annotator that one statistic may use.
        release_values: publish a privatised value for each annotation.
        beacon: where the coin comes from that fixes noise after it was committed to.
        n_annotators: how many people there are, where it is known beforehand.

    Raises:
        InvalidEpsilon, InvalidDelta, InvalidParameter: a setting is outside its range.
        ConflictingParameters: settings contradict each other.
        MissingSensitivity: single values are to be noised, and `reward_bounds` is absent.
    """

    epsilon: float | None = None
    total_epsilon: float | None = None
    delta: float = 1e-6
    epsilon_per_round: float | None = None
    clip_norm: float = 1.0
    noise_multiplier: float | None = None
    annotator_privacy_mode: str = "moderate"
    reward_bounds: tuple[float, float] | None = None
    reward_levels: int | None = None
    max_contributions: int = 1
    release_values: bool = False
    beacon: str = "auditor"
    n_annotators: int | None = None

    def __post_init__(self) -> None:
        _one_of("annotator_privacy_mode", self.annotator_privacy_mode, MODES)
        _one_of("beacon", self.beacon, BEACONS)
        self._settle_epsilons()
        _positive("clip_norm", self.clip_norm)
        if self.noise_multiplier is not None:
            _positive("noise_multiplier", self.noise_multiplier)
        _whole("max_contributions", self.max_contributions, least=1)
        if self.n_annotators is not None:
            _whole("n_annotators", self.n_annotators, least=1)
        self._check_delta()
        self._check_rewards()

    def _settle_epsilons(self) -> None:
        mode = self.annotator_privacy_mode
        for name in ("epsilon", "total_epsilon", "epsilon_per_round"):
            _check_epsilon(name, getattr(self, name))
        if None not in (self.epsilon, self.total_epsilon) and self.epsilon != self.total_epsilon:
            raise ConflictingParameters(
                "epsilon and total_epsilon are two names of one cap, and differ",
                next_step="give one of them",
            )
        total = self.total_epsilon if self.epsilon is None else self.epsilon
        if mode == "minimal" and (total, self.epsilon_per_round) != (None, None):
            raise ConflictingParameters(
                "the mode minimal adds no noise, so it cannot keep an epsilon",
                next_step="leave the epsilons out, or choose moderate",
            )
        if mode == "minimal" and self.release_values:
            raise ConflictingParameters(
                "the mode minimal has no epsilon to spend on values that are published",
                next_step="leave release_values out, or choose strong",
            )
        total = _TOTAL_EPSILON[mode] if total is None else float(total)
        one = self.epsilon_per_round
        if one is None and total is not None:
            one = min(_EPSILON_PER_ROUND[mode] or total, total)
        if one is not None and total is not None and one > total:
            raise ConflictingParameters(
                "epsilon_per_round is above total_epsilon, so no release could ever be made",
                next_step="lower epsilon_per_round, or raise total_epsilon",
            )
        # frozen for everyone else: the two names of the cap must agree from here on
        object.__setattr__(self, "epsilon", total)
        object.__setattr__(self, "total_epsilon", total)
        object.__setattr__(self, "epsilon_per_round", one)

    def _check_delta(self) -> None:
        if not _is_number(self.delta) or not 0 <= self.delta < 1:
            raise InvalidDelta(
                "delta must be a number from 0 to below 1",
                next_step="use 1e-6, or less than one over the number of annotators",
            )
        gaussian = self.annotator_privacy_mode == "moderate" or self.noise_multiplier is not None
        if self.delta == 0 and gaussian:
            raise InvalidDelta(
                "delta is 0, but Gaussian noise never reaches that", next_step="use 1e-6"
            )
        if self.n_annotators is None or self.annotator_privacy_mode == "minimal":
            return
        if self.delta >= 1 / self.n_annotators:
            raise InvalidDelta(
                f"delta must be below 1 / n_annotators = {1 / self.n_annotators:.3g}",
                next_step="lower delta: at this one, publishing somebody's data would pass",
            )
        if self.delta > 1 / (_DELTA_MARGIN * self.n_annotators):
            warnings.warn(
                "delta is above a tenth of 1 / n_annotators", PrivacyWarning, stacklevel=4
            )

    def _check_rewards(self) -> None:
        if self.reward_levels is not None:
            _whole("reward_levels", self.reward_levels, least=_LEVELS_MIN)
        if self.reward_bounds is not None:
            object.__setattr__(self, "reward_bounds", _interval(self.reward_bounds))
            return
        needs = {
            "annotator_privacy_mode strong": self.annotator_privacy_mode == "strong",
            "release_values": bool(self.release_values),
            "reward_levels": self.reward_levels is not None,
        }
        for name, needed in needs.items():
            if needed:
                raise MissingSensitivity(
                    f"{name} needs the range of a reward",
                    next_step="declare it, for example reward_bounds=(0.0, 1.0)",
                )

    @property
    def sensitivity(self) -> float:
        """How far one annotator can move a sum of per-annotator means: high - low.

        Raises:
            MissingSensitivity: `reward_bounds` is absent.
        """
        if self.reward_bounds is None:
            raise MissingSensitivity(
                "noise cannot be scaled: the range of a reward is not declared",
                next_step="declare it, for example reward_bounds=(0.0, 1.0)",
            )
        low, high = self.reward_bounds
        return high - low

    def to_public_dict(self) -> dict[str, Any]:
        """Return all settings as JSON types; they are public parameters of the mechanisms."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        bounds = self.reward_bounds
        return values | {"reward_bounds": None if bounds is None else list(bounds)}


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max  # neither NaN, infinite, nor too long for a float


def _check_epsilon(name: str, value: float | None) -> None:
    if value is None:
        return
    if not _is_number(value) or not 1 / EPSILON_UNITS <= value <= EPSILON_MAX:
        raise InvalidEpsilon(
            f"{name} must be a finite number above 0, and at most {EPSILON_MAX:,}",
            next_step="choose minimal to record without a claim of differential privacy",
        )


def _positive(name: str, value: object) -> None:
    if not (_is_number(value) and isinstance(value, int | float) and value > 0):
        raise InvalidParameter(f"{name} must be a finite number above 0")


def _whole(name: str, value: object, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidParameter(f"{name} must be a whole number, {least} or more")


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidParameter(f"{name} must be one of {', '.join(allowed)}")


def _interval(bounds: Any) -> tuple[float, float]:
    pair = tuple(bounds) if isinstance(bounds, tuple | list) else ()
    if len(pair) != 2 or not all(map(_is_number, pair)) or pair[0] >= pair[1]:  # noqa: PLR2004 - low and high
        raise InvalidParameter("reward_bounds must be two finite numbers, low below high")
    return float(pair[0]), float(pair[1])
