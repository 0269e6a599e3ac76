"""Making the privacy report of a run from its log; `report` says what it holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, Final

from rlhf_audit_trail.ledger.reading import StoredLog
from rlhf_audit_trail.privacy import rounds
from rlhf_audit_trail.privacy.account import Budget, Spent
from rlhf_audit_trail.privacy.aggregates import MeanSum
from rlhf_audit_trail.privacy.choosing import label_mechanism, release_mechanism
from rlhf_audit_trail.privacy.config import PrivacyConfig
from rlhf_audit_trail.privacy.cost import UNBOUNDED
from rlhf_audit_trail.privacy.curves import DELTA_UNITS, EPSILON_UNITS
from rlhf_audit_trail.privacy.errors import PrivacyError
from rlhf_audit_trail.privacy.guarantee import Guarantee
from rlhf_audit_trail.privacy.interval import Interval
from rlhf_audit_trail.privacy.labels import PRIVATISED_KIND
from rlhf_audit_trail.privacy.recorded_settings import raw_entries, recorded_config
from rlhf_audit_trail.privacy.replay import replay_log
from rlhf_audit_trail.privacy.replay_findings import Replay
from rlhf_audit_trail.privacy.report import NO_INTEGRITY, LabelPart, PrivacyReport
from rlhf_audit_trail.privacy.reserving import budget_left
from rlhf_audit_trail.privacy.trained_models import TrainingPart, training_part

__all__ = ["report_of"]

_UNPROTECTED: Final = (
    "who took part in what, how often and when: participation, counts and times are public",
    "prompts and responses: committed, not differentially private",
    "the operator, the store, timing, and auditors to whom something was opened",
)


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
    config = recorded_config(log) or PrivacyConfig()
    found, known = replay_log(log), rounds.read(log)
    budget = found.budgets[-1] if found.budgets else budget_left(config, log)
    spent = _worst(found, budget)
    total = [_under(budget, rule, sums) for rule, sums in others or ()] or [spent]
    worst = max(total, key=lambda item: _epsilon(budget, item))
    training = training_part(log)
    shown = sum(1 for _ in log.entries(kind="dp.unprotected"))
    aggregate = None if found.differences or shown else _guarantee(budget, worst, total)
    labels = _labels(log, found, training)
    closed = None if config.annotator_privacy_mode == "minimal" else Guarantee(0, 0)
    model = aggregate if labels.is_all_of_training else training.guarantee()
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
        unprotected=tuple(_unprotected(shown, training, labels)),
        caveats=tuple(
            _caveats(config, found, known, others is not None, other_runs, training, labels)
        ),
        # whoever reads published labels has what annotators were charged for
        ledger_release=aggregate if labels.released and closed is not None else closed,
        aggregate_release=aggregate,
        model_release=model,
        # of privatised labels a model says nothing that they did not
        combined=_combined(
            closed,
            aggregate,
            None if labels.is_all_of_training else model,
            is_trained=training.is_any and not labels.is_all_of_training,
        ),
        differences=tuple(map(str, found.differences)),
        labels=labels,
    )


def _worst(found: Replay, budget: Budget | None) -> Spent:
    """Return the largest sums in this run; where lists are not opened, as if one were in all."""
    if budget is None:
        return Spent()
    if not found.unopened:
        every = (_under(budget, found.rules[name], x) for name, x in found.sums.items())
        return max(every, key=lambda x: _epsilon(budget, x), default=Spent())
    sums = Spent()
    for cost, _ in found.charges:
        sums = sums.plus(budget.charge(cost))
    for cost, count in found.labels:
        sums = sums.plus(budget.charge(cost).times(count))
    return sums


def _labels(log: StoredLog, found: Replay, training: TrainingPart) -> LabelPart:
    """Count labels and raw values, and tell whether the model was trained on labels alone."""
    released = sum("released" in x.event for x in log.entries(kind=PRIVATISED_KIND))
    raw = sum(1 for _ in raw_entries(log))
    charged = sum(count for _, count in found.labels)
    one = found.labels[-1][0].epsilon_units / EPSILON_UNITS if found.labels else None
    is_all = training.is_any and found.privatised > 0 and not raw
    return LabelPart(charged, found.privatised, found.skipped, released, raw, one, is_all)


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


def _guarantee(budget: Budget | None, worst: Spent, total: Sequence[Spent]) -> Guarantee | None:
    """Return what holds for everybody: who has the largest delta may be another than the worst."""
    units = _epsilon(budget, worst)
    if budget is None or units >= UNBOUNDED:
        return None
    delta = 0 if worst == Spent() else budget.delta_units + max(x.delta_units for x in total)
    return Guarantee(units, delta)


def _combined(
    ledger: Guarantee | None,
    aggregate: Guarantee | None,
    model: Guarantee | None,
    *,
    is_trained: bool,
) -> Guarantee | None:
    if ledger is None or aggregate is None or (is_trained and model is None):
        return None
    whole = ledger.plus(aggregate)
    return whole.plus(model) if model is not None else whole


def _left(
    config: PrivacyConfig, budget: Budget | None, worst: Spent, total: Sequence[Spent]
) -> tuple[int, int]:
    """Return how many annotators are exhausted, and how many rounds the worst has left."""
    if budget is None:
        return 0, 0
    if config.annotator_privacy_mode == "strong":
        cost = label_mechanism(config).cost
        return sum(not budget.admits(x, cost) for x in total), budget.uses_left(worst, cost)
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
            # whoever has the secret knows a coin's noise in every slot, and could pass some over
            has_integrity = rounds.has_integrity(into.coin) and not spend.given_up
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
                "given_up_before": spend.given_up,
                "has_integrity": has_integrity,
            }


def _unprotected(shown: int, training: TrainingPart, labels: LabelPart) -> Iterable[str]:
    yield from _UNPROTECTED
    if shown:
        yield f"{shown:,} aggregates that were shown without noise: no DP claim"
    if training.is_any and training.guarantee() is None and not labels.is_all_of_training:
        yield "the model: no guarantee for annotators"


def _caveats(
    config: PrivacyConfig,
    found: Replay,
    known: rounds.Rounds,
    has_others: bool,  # noqa: FBT001 - passed on
    other_runs: int,
    training: TrainingPart,
    labels: LabelPart,
) -> Iterable[str]:
    yield "what was spent is exact for releases settled beforehand; else the cap holds"
    yield (
        "a run with a larger cap may charge the same annotators more; models of other runs are "
        "not counted here"
    )
    yield "commitments hide values computationally: salts are secret, SHA-256 a random oracle"
    yield from _of_coins(known)
    if found.unopened:
        yield "participants of some charges are not opened: figures are as if one were in all"
    yield from _of_labels(config, found, labels)
    if found.pending:
        yield f"{found.pending:,} charges are not released yet; the next call does it"
    if other_runs and has_others:
        yield (
            f"what participants spent in {other_runs:,} other runs of this ledger is included, as "
            "its table of budgets has it; rlhf-audit fsck compares that with the entries"
        )
    elif other_runs:
        yield f"{other_runs:,} other runs of this ledger charged annotators; each budget counts"
    if config.noise_multiplier is not None and not training.is_private:
        yield "noise_multiplier is set, but nothing was trained with it: it had no effect"
    yield from training.caveats


def _of_coins(known: rounds.Rounds) -> Iterable[str]:
    coins = [x.coin for x in known.rounds if x.coin is not None]
    if any(not rounds.has_integrity(coin) for coin in coins):
        yield f"some noise has {NO_INTEGRITY}"
    if any(coin.source == "auditor" for coin in coins):
        yield "coins of type auditor show only to the auditor who gave them that none was chosen"
    if any(coin.source == "prevrandao" for coin in coins):
        yield "coins of type prevrandao are as trusted as the chain: compare them with it"
    passed = sum(max((spend.given_up for spend in x.spends), default=0) for x in known.rounds)
    if passed:
        yield f"{passed:,} slots were given up when the operator could know their noise"
    if any(x.spends for x in known.rounds):
        yield (
            "which statistics a round releases, and from which slot each, was settled after its "
            "coin: the operator could not change noise, and could match it"
        )


def _of_labels(config: PrivacyConfig, found: Replay, labels: LabelPart) -> Iterable[str]:
    if labels.charged:
        yield "that labels were drawn as stated is the operator's word: nobody can draw them again"
    if labels.is_all_of_training:
        yield "that the model was trained on nothing else about annotators is the operator's word"
    if config.annotator_privacy_mode == "strong" and labels.raw:
        yield f"{labels.raw:,} raw values lie in this run: the model may be trained on them"
    if labels.skipped:
        yield f"{labels.skipped:,} labels were charged and given up; they stay charged"
    if found.labels_waiting:
        yield f"{found.labels_waiting:,} labels were charged and have no answer yet"


def _up(units: int, per_one: int) -> float | None:
    """Return units as a float that is not below them; None for what has no bound."""
    if units >= UNBOUNDED:
        return None
    exact = Fraction(units, per_one)
    near = float(exact)
    return near if Fraction(near) >= exact else math.nextafter(near, math.inf)
