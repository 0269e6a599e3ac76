"""What a private training may spend, has spent, and what it may say about it. Never torch.

Spending is counted before noise is drawn and written down before that where there is a file,
so neither a crash nor an older checkpoint gives anything back. Figures are cross-checked: two
accountants that are both upper bounds cannot differ in every way.
"""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from rlhf_audit_trail.ledger.files import write_whole
from rlhf_audit_trail.privacy.config import PrivacyConfig
from rlhf_audit_trail.privacy.curves import DELTA_UNITS, EPSILON_UNITS
from rlhf_audit_trail.privacy.errors import (
    ConflictingParameters,
    InvalidDelta,
    InvalidEpsilon,
    InvalidParameter,
    PrivacyError,
    UnsafeAccounting,
)
from rlhf_audit_trail.privacy.exact import ceil_units
from rlhf_audit_trail.privacy.guarantee import Guarantee
from rlhf_audit_trail.privacy.os_seeded import NAME as GENERATOR
from rlhf_audit_trail.privacy.sampling_loss import Steps, composed_epsilon

__all__ = [
    "SamplingAccount",
    "SgdPlan",
    "SgdReport",
    "SgdStatement",
    "StepsExhausted",
    "check_accountant",
    "check_agreement",
]

_VERSION: Final = 1
_ACCOUNTANT: Final = "pld"
_SLACK: Final = 0.02  # of PLD above RDP: its grid, and no more
_EXCESS: Final = 1.40  # of RDP over PLD where epsilon is not small; normal are 1.07 to 1.31
_EXCESS_FROM: Final = 0.5
_DISAGREEMENT: Final = 0.01
_VIEW: Final = "public"  # whoever sees the model and all public entries, and no batches
_CAVEATS: Final = (
    f"noise generator: {GENERATOR}",
    "readers of a log that shows the number of rows are protected by the replace statements",
    "amplification by sampling does not hold for an auditor who is shown batches",
    "what was read off the data elsewhere (settings tuned on it, evaluations) is not counted",
)


class StepsExhausted(PrivacyError):
    """The plan's steps are spent: another one would exceed the epsilon that was planned."""


@dataclass(frozen=True, kw_only=True)
class SgdPlan:
    """The public parameters of a private training; none may be read off the data.

    Attributes:
        noise_multiplier: standard deviation of the noise over `clip_norm`.
        clip_norm: L2 bound on what one example adds to a step's gradient.
        sample_rate: probability with which each example is in a step's batch.
        normaliser: what sums are divided by: a public number, for example `sample_rate` times a
            public size. The number of rows is private, and so is that of a batch.
        dp_delta: of the guarantee.
        steps_max: after so many the training is refused.
        examples_per_annotator_max: rows beyond it are never sampled.
        epsilon: of an example after `steps_max` steps, add/remove; checked if it is given.

    Raises:
        InvalidParameter, InvalidDelta, InvalidEpsilon: a setting is outside its range.
        UnsafeAccounting: there is no public normaliser.
        ConflictingParameters: `epsilon` is not what the other settings give, within 1 %.
    """

    noise_multiplier: float
    clip_norm: float
    sample_rate: float
    normaliser: float
    dp_delta: float
    steps_max: int
    examples_per_annotator_max: int = 1
    epsilon: float | None = None

    def __post_init__(self) -> None:
        Steps(self.noise_multiplier, self.sample_rate, self.steps_max)
        given: Any = self.normaliser
        if given is None:
            raise UnsafeAccounting(
                "gradients would be divided by a size that depends on the data",
                next_step="pass a public normaliser, for example sample_rate times a rounded size",
            )
        for name in ("clip_norm", "normaliser"):
            value = getattr(self, name)
            if not math.isfinite(value) or value <= 0:
                raise InvalidParameter(f"{name} must be a finite number above 0")
        if not 0 < self.dp_delta < 1:
            raise InvalidDelta("delta must be above 0 and below 1", next_step="use 1e-6")
        if self.examples_per_annotator_max < 1 or self.steps_max < 1:
            raise InvalidParameter("examples_per_annotator_max and steps_max are 1 or more")
        if self.epsilon is not None:
            self._check_epsilon(self.epsilon)

    @classmethod
    def from_config(cls, config: PrivacyConfig, **public: Any) -> SgdPlan:
        """Take noise, clipping norm and delta from a run's privacy settings.

        Raises:
            InvalidParameter: they have no `noise_multiplier`.
        """
        if config.noise_multiplier is None:
            raise InvalidParameter(
                "the privacy settings have no noise_multiplier",
                next_step="set PrivacyConfig(noise_multiplier=...)",
            )
        return cls(
            noise_multiplier=config.noise_multiplier,
            clip_norm=config.clip_norm,
            dp_delta=config.delta,
            **public,
        )

    def planned_epsilon(self) -> float:
        """Return an example's epsilon, add/remove, after all planned steps."""
        steps = Steps(self.noise_multiplier, self.sample_rate, self.steps_max)
        return composed_epsilon((steps,), self.dp_delta)

    def to_public_dict(self) -> dict[str, Any]:
        """Return all settings as JSON types."""
        return {**asdict(self), "sampling": "poisson"}

    def _check_epsilon(self, epsilon: float) -> None:
        if not math.isfinite(epsilon) or epsilon <= 0:
            raise InvalidEpsilon("epsilon must be a finite number above 0")
        planned = self.planned_epsilon()
        if abs(planned - epsilon) > _DISAGREEMENT * epsilon:
            raise ConflictingParameters(
                f"noise and steps give epsilon {planned:.4g}, which is not the one that is given",
                next_step="leave epsilon out, or change noise_multiplier, sample_rate or steps_max",
            )


class SamplingAccount:
    """The steps that were paid for; owned by the thread that trains."""

    def __init__(self, plan: SgdPlan, path: Path | None = None) -> None:
        """Go on from a file, if it is there; nothing that it counts is ever given back.

        Args:
            plan: of the training.
            path: where each step is written down before its noise is drawn; None keeps the
                count in memory, and whoever resumes must restore it.

        Raises:
            UnsafeAccounting: the file is not readable as an account.
        """
        self.plan, self._path = plan, path
        self._history: list[Steps] = []
        if path is not None and path.exists():
            self._history = _parsed(path.read_text())

    @property
    def history(self) -> tuple[Steps, ...]:
        """What was spent, in order."""
        return tuple(self._history)

    @property
    def steps(self) -> int:
        """How many steps were paid for."""
        return sum(entry.steps for entry in self._history)

    def charge(self) -> None:
        """Pay for one step, before its noise is drawn.

        Raises:
            StepsExhausted: nothing was charged, and nothing may be drawn.
        """
        with self._shared():
            self._charge()
            if self._path is not None:
                write_whole(self._path, json.dumps(self.state()))

    @contextmanager
    def _shared(self) -> Iterator[None]:
        """Hold the file, and go on from what any process has written into it."""
        if self._path is None:
            yield
            return
        with self._path.with_name(self._path.name + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # ends with the file, also in a crash
            if self._path.exists():
                self.restore(self._path.read_text())
            yield

    def _charge(self) -> None:
        plan = self.plan
        if self.steps >= plan.steps_max:
            raise StepsExhausted(
                f"all {plan.steps_max} planned steps are spent, also those of interrupted attempts",
                next_step="stop here, or plan anew with a larger steps_max and its epsilon",
            )
        last = self._history[-1] if self._history else None
        count = 1
        if last and (last.noise_multiplier, last.sample_rate) == (
            plan.noise_multiplier, plan.sample_rate,
        ):  # fmt: skip
            self._history.pop()
            count += last.steps
        self._history.append(Steps(plan.noise_multiplier, plan.sample_rate, count))

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"version": _VERSION, "history": [asdict(entry) for entry in self._history]}

    def restore(self, state: Any) -> None:
        """Take up what a checkpoint counted, where that is more than is known here.

        Raises:
            UnsafeAccounting: it is no account.
        """
        found = _parsed(state)
        if sum(entry.steps for entry in found) > self.steps:
            self._history = found


@dataclass(frozen=True)
class SgdStatement:
    """One (epsilon, dp_delta) with what makes it mean something.

    Attributes:
        unit: `example` (of preferences: a pair), or `annotator`: all examples of one person.
        relation: `add_remove` or `replace`; statements of different ones must not be added.
        view: against whom it holds.
        epsilon: None where nothing finite can be claimed.
        dp_delta: of the statement.
        examples_max: of the unit.
    """

    unit: str
    relation: str
    view: str
    epsilon: float | None
    dp_delta: float
    examples_max: int

    def to_guarantee(self) -> Guarantee | None:
        """Return it in the whole units that budgets are kept in, rounded up; None without one."""
        if self.epsilon is None:
            return None
        return Guarantee(
            ceil_units(Fraction(self.epsilon), EPSILON_UNITS),
            ceil_units(Fraction(self.dp_delta), DELTA_UNITS),
            unit=self.unit,
            relation=self.relation,
            view=self.view,
        )


@dataclass(frozen=True)
class SgdReport:
    """What a private training may say so far; public as a whole."""

    plan: SgdPlan
    history: tuple[Steps, ...]
    statements: tuple[SgdStatement, ...]
    epsilon_rdp: float
    caveats: tuple[str, ...]

    @classmethod
    def of(
        cls, account: SamplingAccount, epsilon_rdp: float, *, annotators_known: bool
    ) -> SgdReport:
        """Compute all statements of an account.

        Args:
            account: what was spent.
            epsilon_rdp: of an example, by another accountant.
            annotators_known: whether the bound per annotator was enforced.

        Raises:
            UnsafeAccounting: the two accountants contradict each other.
        """
        plan, history = account.plan, account.history
        example = composed_epsilon(history, plan.dp_delta)
        check_agreement(epsilon_pld=example, epsilon_rdp=epsilon_rdp)
        units = [("example", 1)]
        caveats: tuple[str, ...] = _CAVEATS
        if annotators_known:
            units.append(("annotator", plan.examples_per_annotator_max))
        else:
            caveats += ("whose examples these are was not said: nothing holds for annotators",)
        found = [
            _statement(history, plan.dp_delta, unit, examples, relation)
            for unit, examples in units
            for relation in ("add_remove", "replace")
        ]
        return cls(plan, history, tuple(found), epsilon_rdp, caveats)

    def epsilon(self, unit: str = "example", relation: str = "add_remove") -> float | None:
        """Return one epsilon: of an `example` or an `annotator`; None where nothing is claimed."""
        found = [x.epsilon for x in self.statements if (x.unit, x.relation) == (unit, relation)]
        return found[0] if found else None

    def to_public_dict(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return {
            "plan": self.plan.to_public_dict(),
            "history": [asdict(entry) for entry in self.history],
            "statements": [asdict(statement) for statement in self.statements],
            "epsilon_rdp": self.epsilon_rdp,
            "accountant": _ACCOUNTANT,
            "caveats": list(self.caveats),
        }


def check_accountant(name: str) -> None:
    """Return if an accountant may be used at all.

    Raises:
        UnsafeAccounting: it understates (`gdp`: a central limit), or is not one of ours.
    """
    if name != _ACCOUNTANT:
        raise UnsafeAccounting(
            f"the accountant {name!r:.20} is not used: gdp understates epsilon, others are looser",
            next_step="leave it out: figures are by pld, cross-checked by rdp",
        )


def check_agreement(*, epsilon_pld: float, epsilon_rdp: float) -> None:
    """Return if two upper bounds on an example's epsilon are as far apart as they may be.

    Raises:
        UnsafeAccounting: one of them is wrong.
    """
    is_tight = not epsilon_pld > epsilon_rdp + _SLACK
    is_near = epsilon_pld < _EXCESS_FROM or epsilon_rdp <= _EXCESS * epsilon_pld
    if not (is_tight and is_near):
        raise UnsafeAccounting(
            f"two accountants contradict each other: {epsilon_pld:.4g} by pld, "
            f"{epsilon_rdp:.4g} by rdp",
            next_step="make no claim; check the installed versions, and tell us the settings",
        )


def _statement(
    history: tuple[Steps, ...], dp_delta: float, unit: str, examples: int, relation: str
) -> SgdStatement:
    epsilon = composed_epsilon(history, dp_delta, examples=examples, relation=relation)
    finite = epsilon if math.isfinite(epsilon) else None
    return SgdStatement(unit, relation, _VIEW, finite, dp_delta, examples)


def _parsed(state: Any) -> list[Steps]:
    try:
        content = json.loads(state) if isinstance(state, str) else state
        if content["version"] != _VERSION:
            raise ValueError  # noqa: TRY301 - one refusal for whatever is wrong with it
        return [Steps(**entry) for entry in content["history"]]
    except (ValueError, KeyError, TypeError, InvalidParameter) as error:
        raise UnsafeAccounting(
            "what should say how much was spent cannot be read",
            next_step="put the account back from a copy; without it nothing can be claimed",
        ) from error
