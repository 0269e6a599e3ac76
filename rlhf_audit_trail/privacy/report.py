"""The privacy report of a run: what its entries allow to be said, and what they do not.

Public view: everything here follows from public entries, from who took part in what, and from
costs, which depend on public parameters alone. No value, noise, seed or id is read for it.

Guarantees of different things are kept apart: of the log itself, of released aggregates, of the
model. They are added up only where unit, relation and view are the same, and there is one of each.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any, Final

from rlhf_audit_trail.ledger.reading import StoredLog
from rlhf_audit_trail.privacy import rounds
from rlhf_audit_trail.privacy.account import Budget, Spent
from rlhf_audit_trail.privacy.aggregates import MeanSum
from rlhf_audit_trail.privacy.choosing import release_mechanism
from rlhf_audit_trail.privacy.config import PrivacyConfig
from rlhf_audit_trail.privacy.cost import UNBOUNDED
from rlhf_audit_trail.privacy.curves import DELTA_UNITS, EPSILON_UNITS
from rlhf_audit_trail.privacy.errors import InvalidParameter, PrivacyError, PrivacyWarning
from rlhf_audit_trail.privacy.guarantee import RELATION, UNIT, Guarantee
from rlhf_audit_trail.privacy.interval import Interval
from rlhf_audit_trail.privacy.registry_entry import Deployment, registry_yaml
from rlhf_audit_trail.privacy.replay import Replay, replay_log
from rlhf_audit_trail.privacy.reserving import budget_left
from rlhf_audit_trail.privacy.trained_models import TrainingPart, training_part

__all__ = ["PrivacyReport", "report_of"]

VIEW: Final = "public"
_NO_INTEGRITY: Final = "no integrity: the operator could know the coin beforehand"
_UNPROTECTED: Final = (
    "who took part in what, how often and when: participation, counts and times are public",
    "prompts and responses: committed, not differentially private",
    "the operator, the store, timing, and auditors to whom something was opened",
)
_STRONG, _MODERATE = 1, 10


@dataclass(frozen=True)
class PrivacyReport:
    """What may be said of a run.

    Attributes:
        run: its id.
        mode: where noise goes: strong, moderate, minimal.
        unit: whose data may differ: all values of one annotator.
        relation: in what way: replaced, since a log shows its size.
        view: against whom it holds.
        total_epsilon: spent by the worst annotator of this run, in all runs of the ledger whose
            budgets are at hand; None where nothing finite can be claimed. It is not the cap.
        run_epsilon: the same, in this run alone.
        cap_epsilon: what nobody may exceed; None under the mode minimal.
        dp_delta: that belongs to both.
        remaining_budget: cap less spent, never below 0; the filter, not this number, decides.
        remaining_rho_units: of 2^-40, which the rho filter has left; 0 under another rule.
        remaining_rounds: how many more releases the filter admits for the worst annotator.
        releases: every release, with its coin and noise.
        trained: what was trained, and by what it is protected; `training` as a mapping.
        disclosures: what was opened to whom.
        annotators: how many were charged; None if no list was opened.
        exhausted: how many of them no further release admits.
        unprotected: what nothing here protects.
        caveats: what a reader must know besides.
        ledger_release: of reading the log itself.
        aggregate_release: of the released aggregates, None where there is no guarantee.
        model_release: of the model, None where there is none.
        combined: of all of it, None where there is none.
        differences: what a replay found to be wrong; then no guarantee is stated.
    """

    run: str
    mode: str
    total_epsilon: float | None
    run_epsilon: float | None
    cap_epsilon: float | None
    dp_delta: float
    remaining_budget: float | None
    remaining_rho_units: int
    remaining_rounds: int
    releases: tuple[dict[str, Any], ...]
    trained: TrainingPart
    disclosures: tuple[dict[str, Any], ...]
    annotators: int | None
    exhausted: int
    unprotected: tuple[str, ...]
    caveats: tuple[str, ...]
    ledger_release: Guarantee | None
    aggregate_release: Guarantee | None
    model_release: Guarantee | None
    combined: Guarantee | None
    differences: tuple[str, ...] = ()
    unit: str = UNIT
    relation: str = RELATION
    view: str = VIEW
    scope: str = ""

    @property
    def delta(self) -> float:
        """Another name for `dp_delta`."""
        return self.dp_delta

    @property
    def training(self) -> dict[str, Any]:
        """What was trained, as JSON types."""
        return dict(json.loads(json.dumps(asdict(self.trained))))

    @property
    def strength(self) -> str:
        """The card's word for the cap, in no way a guarantee: strong, moderate, weak or none."""
        cap = self.cap_epsilon
        if cap is None:
            return "none"
        return "strong" if cap <= _STRONG else "moderate" if cap <= _MODERATE else "weak"

    def for_scope(self, scope: str) -> PrivacyReport:
        """Return the same report with what belongs to one scope alone.

        Args:
            scope: `releases`, or an algorithm that the run trained by, such as `dpo`. What an
                annotator spent stays: it is over everything.

        Raises:
            InvalidParameter: the run has no such scope.
        """
        if scope == "releases":
            nothing = replace(self.trained, algorithms={})
            return replace(self, trained=nothing, scope=scope)
        if scope not in self.trained.algorithms:
            known = ", ".join(["releases", *sorted(self.trained.algorithms)])
            raise InvalidParameter("this run has no such scope", next_step=f"known: {known}")
        one = {scope: self.trained.algorithms[scope]}
        return replace(
            self, releases=(), trained=replace(self.trained, algorithms=one), scope=scope
        )

    def statement(self) -> str:
        """Return the sentences that may be printed about the run."""
        return f"{self._of_values()} {self.trained.sentence()} {self._of_noise()}"

    def _of_values(self) -> str:
        if self.differences:
            return "A replay of this run's entries found contradictions; no guarantee is stated."
        if self.cap_epsilon is None:
            return "Feedback values of annotators are not differentially private: no DP claim."
        spent = self.aggregate_release
        if spent is None:
            return "No finite guarantee for feedback values can be stated."
        return (
            "Feedback values of each annotator (unit: all values of one annotator; relation: "
            "replace; participation, counts and times are public) are protected with "
            f"eps={_shown_up(spent.epsilon_units, EPSILON_UNITS)}, "
            f"delta={_shown_up(spent.delta_units, DELTA_UNITS)} against readers of the public "
            "ledger, this report and the API; whatever is released later, "
            f"eps={self.cap_epsilon:g} is not exceeded."
        )

    def _of_noise(self) -> str:
        words = ["Prompts and responses are committed, not differentially private."]
        coins = sorted({str(release["coin"]) for release in self.releases})
        if coins:
            words.append(
                f"Noise came from precommitted seeds and coins of type {', '.join(coins)}."
            )
        if any(not release["has_integrity"] for release in self.releases):
            words.append(f"Coins of type local have {_NO_INTEGRITY}.")
        if self.disclosures:
            readers = {str(item["reader"]) for item in self.disclosures}
            words.append(
                f"{len(self.disclosures):,} entries were opened to {', '.join(sorted(readers))}, "
                "who are not bound by this eps."
            )
        return " ".join(words)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        found = asdict(self)
        found["training"] = found.pop("trained")
        found |= {"strength": self.strength, "statement": self.statement(), "delta": self.delta}
        return dict(json.loads(json.dumps(found)))

    def to_registry_yaml(self, **known: str) -> str:
        """Return an entry for the Deployments Registry, as a draft.

        Args:
            known: what no ledger can tell: name, data_curator, intended_use, description,
                data_product_region, publication_date, registry_author.

        Raises:
            InvalidParameter: there is nothing to be registered, or an argument is missing.
        """
        found = Deployment(
            run=self.run,
            guarantee=self.combined or self.aggregate_release,
            cap_epsilon=self.cap_epsilon,
            is_model=self.model_release is not None and self.combined is not None,
            releases=len(self.releases),
            coins=tuple(sorted({str(release["coin"]) for release in self.releases})),
            has_integrity=all(release["has_integrity"] for release in self.releases),
            unprotected=self.unprotected,
            statement=self.statement(),
        )
        return registry_yaml(found, known)


def report_of(
    log: StoredLog,
    *,
    run: str,
    disclosures: Iterable[Mapping[str, Any]] = (),
    others: Sequence[tuple[int, Spent]] | None = None,
    other_runs: int = 0,
) -> PrivacyReport:
    """Read a run's report from its log.

    Args:
        log: of the run, with its vault.
        run: its id.
        disclosures: what the registry log says was opened.
        others: of this run's participants, the rule's response units and what each was charged
            in all runs, in any order; None where that is not at hand.
        other_runs: how many other runs of the ledger charged anybody.
    """
    config = _config(log)
    found, known = replay_log(log), rounds.read(log)
    budget = found.budgets[-1] if found.budgets else budget_left(config, log)
    spent = _worst(found, budget)
    total = [_under(budget, rule, sums) for rule, sums in others or ()] or [spent]
    worst = max(total, key=lambda item: _epsilon(budget, item))
    training = training_part(log)
    shown = sum(1 for _ in log.entries(kind="dp.unprotected"))
    aggregate = None if found.differences or shown else _guarantee(budget, worst)
    ledger_release = None if config.annotator_privacy_mode == "minimal" else Guarantee(0, 0)
    model = training.guarantee()
    exhausted, left = _left(config, budget, worst, total)
    return PrivacyReport(
        run=run,
        mode=config.annotator_privacy_mode,
        total_epsilon=None if budget is None else _up(_epsilon(budget, worst), EPSILON_UNITS),
        run_epsilon=None if budget is None else _up(_epsilon(budget, spent), EPSILON_UNITS),
        cap_epsilon=None if budget is None else budget.epsilon_units / EPSILON_UNITS,
        dp_delta=_delta(config, budget),
        remaining_budget=_remaining(budget, worst),
        remaining_rho_units=0
        if budget is None or budget.response_units
        else budget.left(worst).second_units,
        remaining_rounds=left,
        releases=tuple(_releases(known)),
        trained=training,
        disclosures=tuple(map(dict, disclosures)),
        annotators=None if found.unopened else len(found.sums),
        exhausted=exhausted,
        unprotected=tuple(_unprotected(shown, training)),
        caveats=tuple(_caveats(config, found, known, others is not None, other_runs, training)),
        ledger_release=ledger_release,
        aggregate_release=aggregate,
        model_release=model,
        combined=_combined(ledger_release, aggregate, model, training),
        differences=tuple(map(str, found.differences)),
    )


def _config(log: StoredLog) -> PrivacyConfig:
    """Return the newest settings that the run recorded."""
    said = [x.event["config"].get("privacy") for x in log.entries(kind="run.config")]
    known = [item for item in said if isinstance(item, dict)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrivacyWarning)  # they were told when the run began
        try:
            return PrivacyConfig(**known[-1]) if known else PrivacyConfig()
        except (TypeError, PrivacyError) as error:
            raise InvalidParameter("the run recorded no privacy settings that are known") from error


def _worst(found: Replay, budget: Budget | None) -> Spent:
    """Return the largest sums in this run; where lists are not opened, as if one were in all."""
    if budget is None:
        return Spent()
    if not found.unopened:
        return max(found.sums.values(), key=lambda x: _epsilon(budget, x), default=Spent())
    sums = Spent()
    for cost, _ in found.charges:
        sums = sums.plus(budget.charge(cost))
    return sums


def _under(budget: Budget | None, response_units: int, spent: Spent) -> Spent:
    """Return sums as this budget's rule reads them: of another rule only epsilons count."""
    if budget is None or response_units == budget.response_units:
        return spent
    return replace(spent, second_units=UNBOUNDED)


def _epsilon(budget: Budget | None, spent: Spent) -> int:
    """Return units of epsilon, `UNBOUNDED` where nothing finite is known."""
    if budget is None or spent == Spent():
        return 0
    try:
        return budget.spent_epsilon_units(spent)
    except PrivacyError:
        return UNBOUNDED


def _guarantee(budget: Budget | None, spent: Spent) -> Guarantee | None:
    units = _epsilon(budget, spent)
    if budget is None or units >= UNBOUNDED:
        return None
    delta = 0 if spent == Spent() else budget.delta_units + spent.delta_units
    return Guarantee(units, delta)


def _combined(
    ledger: Guarantee | None,
    aggregate: Guarantee | None,
    model: Guarantee | None,
    training: TrainingPart,
) -> Guarantee | None:
    if ledger is None or aggregate is None or (training.is_any and model is None):
        return None
    whole = ledger.plus(aggregate)
    return whole.plus(model) if model is not None else whole


def _left(
    config: PrivacyConfig, budget: Budget | None, worst: Spent, total: Sequence[Spent]
) -> tuple[int, int]:
    """Return how many annotators are exhausted, and how many rounds the worst has left."""
    if budget is None:
        return 0, 0
    statistic = None
    if config.reward_bounds is None:  # the cost of a round is the same whatever the range is
        statistic = MeanSum(Interval.of(0, 1))
    cost = release_mechanism(config, statistic).cost
    return sum(not budget.admits(item, cost) for item in total), budget.uses_left(worst, cost)


def _remaining(budget: Budget | None, worst: Spent) -> float | None:
    if budget is None:
        return None
    left = Fraction(max(budget.epsilon_units - _epsilon(budget, worst), 0), EPSILON_UNITS)
    near = float(left)
    return near if Fraction(near) <= left else math.nextafter(near, 0)


def _delta(config: PrivacyConfig, budget: Budget | None) -> float:
    if budget is None:
        return config.delta
    return (budget.delta_units + budget.share_units) / DELTA_UNITS


def _releases(known: rounds.Rounds) -> Iterable[dict[str, Any]]:
    for into in known.rounds:
        for spend in into.spends:
            if spend.release is None or into.coin is None:
                continue
            has_integrity = rounds.has_integrity(into.coin)
            yield {
                "spend_index": spend.leaf_index,
                "release_index": spend.release_index,
                "round": into.number,
                "statistic": spend.event["statistic"]["statistic"],
                "participants": spend.event["participants"],
                "estimate": spend.release["estimate"],
                "noise": spend.release["noise"],
                "epsilon_units": spend.event["epsilon_units"],
                "rho_units": spend.event["rho_units"],
                "delta_units": spend.event["delta_units"],
                "coin": into.coin.source,
                "has_integrity": has_integrity,
            }


def _unprotected(shown: int, training: TrainingPart) -> Iterable[str]:
    yield from _UNPROTECTED
    if shown:
        yield f"{shown:,} aggregates that were shown without noise: no DP claim"
    if training.is_any and training.guarantee() is None:
        yield "the model: no guarantee for annotators"


def _caveats(
    config: PrivacyConfig,
    found: Replay,
    known: rounds.Rounds,
    has_others: bool,  # noqa: FBT001 - passed on
    other_runs: int,
    training: TrainingPart,
) -> Iterable[str]:
    yield "what was spent is exact for releases settled beforehand; the cap holds in any case"
    yield "commitments hide values computationally: salts are secret, SHA-256 a random oracle"
    if any(x.coin is not None and not rounds.has_integrity(x.coin) for x in known.rounds):
        yield f"some noise has {_NO_INTEGRITY}"
    if found.unopened:
        yield "participants of some charges are not opened: figures are as if one were in all"
    if found.pending:
        yield f"{found.pending:,} charges are not released yet; the next call does it"
    if other_runs and has_others:
        yield f"what participants spent in {other_runs:,} other runs of this ledger is included"
    elif other_runs:
        yield f"{other_runs:,} other runs of this ledger charged annotators; each budget counts"
    if config.noise_multiplier is not None and not training.is_private:
        yield "noise_multiplier is set, but nothing was trained with it: it had no effect"
    yield from training.caveats


def _up(units: int, per_one: int) -> float | None:
    """Return units as a float that is not below them; None for what has no bound."""
    if units >= UNBOUNDED:
        return None
    exact = Fraction(units, per_one)
    near = float(exact)
    return near if Fraction(near) >= exact else math.nextafter(near, math.inf)


def _shown_up(units: int, per_one: int) -> str:
    """Return units as text of four digits, rounded up."""
    value = Fraction(units, per_one)
    if not value:
        return "0"
    power = 3 - math.floor(math.log10(value))
    scaled = Fraction(-((-value * Fraction(10) ** power).__floor__())) / Fraction(10) ** power
    return f"{float(scaled):.4g}"
