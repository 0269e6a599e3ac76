"""Releasing statistics about annotators from a run, so that each step is an entry of its log.

    run.privacy.open_round(slots=16)        # settles the noise; then the log is anchored
    run.privacy.coin(value=nonce, source="auditor")
    mean = run.privacy.release_mean()       # charges everybody, then draws

A charge and its entry are one transaction, before anything is drawn. A crash after it loses
nothing: the next call draws the same noise from the same slot, and charges nobody again. Under
the mode minimal there is no noise and no claim: a mean over 20 annotators or more is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Final

from rlhf_audit_trail.ledger.budgets import Terms
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.noise_secrets import own_subject
from rlhf_audit_trail.ledger.vault import Erased
from rlhf_audit_trail.privacy.account import Budget, Spent
from rlhf_audit_trail.privacy.aggregates import Histogram, MeanSum, enough_annotators
from rlhf_audit_trail.privacy.charging import charge_of, public_budget, public_cost
from rlhf_audit_trail.privacy.choosing import release_mechanism
from rlhf_audit_trail.privacy.covered_values import Covered, Of, covered, statistic_cells
from rlhf_audit_trail.privacy.errors import (
    InvalidDelta,
    InvalidParameter,
    MissingSensitivity,
    NoiseProtocolError,
)
from rlhf_audit_trail.privacy.estimates import (
    derived,
    estimate,
    mechanism_fields,
    statistic_name,
)
from rlhf_audit_trail.privacy.exact import rational
from rlhf_audit_trail.privacy.interval import Interval
from rlhf_audit_trail.privacy.mechanisms import Mechanism
from rlhf_audit_trail.privacy.redraw import drawn
from rlhf_audit_trail.privacy.reserving import budget_left
from rlhf_audit_trail.privacy.rounds import PROTOCOL_KINDS, Round, Rounds, Spend
from rlhf_audit_trail.privacy.run_rounds import RunRounds
from rlhf_audit_trail.privacy.slots import NoiseSlots
from rlhf_audit_trail.privacy.stated import mechanism_of, statistic_of

__all__ = ["NO_CLAIM", "Release", "RunPrivacy"]

NO_CLAIM: Final = "no DP claim"
_CLAIM: Final = "differentially private; unit: annotator, relation: replace"
_PARTICIPANTS_MAX: Final = 4_096  # of one entry: what is opened to an auditor at once stays small


@dataclass(frozen=True)
class Release:
    """What was published of a statistic.

    Attributes:
        statistic: mean_sum or histogram.
        value: the noised integers; empty where nothing may be shown.
        estimate: the mean, or the counts, that follow from them; None where nothing may be shown.
        std: standard deviation of the estimate's noise; 0 without noise.
        participants: annotators whose values it takes.
        claim: what it is protected by, in words.
        entries: leaf indices of `dp.spend` and `dp.release`.
    """

    statistic: str
    value: tuple[int, ...]
    estimate: Fraction | tuple[int, ...] | None
    std: float
    participants: int
    claim: str
    entries: tuple[int, ...] = ()


class RunPrivacy(RunRounds):
    """Statistics of one run, under its privacy settings; safe to share between threads."""

    # --- statistics ---------------------------------------------------------------------

    def release_mean(self, *, leave_out_exhausted: bool = False) -> Release:
        """Release the mean reward per annotator over the covered annotations of the open round.

        The same statistic of the same round is released, and charged for, once; asked again it is
        returned.

        Args:
            leave_out_exhausted: go on without those whose budget does not admit it. By costs,
                which are public, and never by values.

        Raises:
            BudgetExhausted: somebody's budget does not admit it; nobody was charged.
            MissingSensitivity: `reward_bounds` are not declared; or nobody's value is covered.
            NoiseProtocolError: there is no coin yet, or no slot left.
            InvalidDelta: delta is not below one over the number of participants.
        """
        return self._release(
            MeanSum(self._interval()), self._of(), leave_out_exhausted=leave_out_exhausted
        )

    def release_histogram(
        self,
        *,
        levels: int | None = None,
        edges: Sequence[Fraction | float | str] = (),
        leave_out_exhausted: bool = False,
    ) -> Release:
        """Release how many annotators' rewards fall into each cell.

        Args:
            levels: so many cells of one width between the bounds; by default `reward_levels`.
            edges: where cells begin, instead; cell 0 lies below the first of them.
            leave_out_exhausted: as for `release_mean`, which raises the same.
        """
        given = tuple(rational(x, name="an edge") for x in edges)
        if not given:
            cells = levels or self._config.reward_levels or 0
            if cells < 2:  # noqa: PLR2004 - one cell shows nothing
                raise InvalidParameter("a histogram needs two cells", next_step="pass levels")
            bounds = self._interval()
            given = tuple(bounds.at(Fraction(x, cells)) for x in range(1, cells))
        of = replace(self._of(), edges=given)
        statistic = Histogram(len(given) + 1, of.contributions)
        return self._release(statistic, of, leave_out_exhausted=leave_out_exhausted)

    def _of(self) -> Of:
        return Of(contributions=self._config.max_contributions)

    def _interval(self) -> Interval:
        bounds = self._config.reward_bounds
        if bounds is None:
            raise MissingSensitivity(
                "noise cannot be scaled: the range of a reward is not declared",
                next_step="declare it, for example reward_bounds=(0.0, 1.0)",
            )
        return Interval.of(*bounds)

    def _release(
        self, statistic: MeanSum | Histogram, of: Of, *, leave_out_exhausted: bool
    ) -> Release:
        with self._lock:
            self._require_aggregates()
            self._log.flush()
            if self._config.total_epsilon is None:
                return self._show(statistic, of)
            said = {"statistic": statistic.public(), "of": of.public()}

            def attempt(known: Rounds) -> Release:
                last = self._with_slot(known)
                for spend in last.spends:
                    if spend.release is not None and _is_of(spend, said):
                        return _stored(spend)
                if last.used >= last.slots:
                    raise NoiseProtocolError(
                        "this round has no slot left", next_step="open another round"
                    )
                if self._slots(last) is None:
                    raise NoiseProtocolError(
                        "this round's noise went with the values of somebody who was erased",
                        next_step="open another round, for values that are logged from here on",
                    )
                index = self._spend(known, last, statistic, of, is_lenient=leave_out_exhausted)
                spend = Spend(index, self._log.read(index).event)
                release = self._finish(last, spend, newest=index)
                if release is None:
                    raise NoiseProtocolError(
                        "values were erased between the charge and the release; the charge stays",
                        next_step="call again: another slot is used, and everybody is charged",
                    )
                return release

            return self._attempted(attempt)

    def _with_slot(self, known: Rounds) -> Round:
        last = known.last
        if last is None or last.coin is None:
            raise NoiseProtocolError(
                "noise is not settled: this round has no coin yet" if last else "no round is open",
                next_step="call coin()" if last else "call open_round(), then coin()",
            )
        return last

    def _spend(
        self,
        known: Rounds,
        last: Round,
        statistic: MeanSum | Histogram,
        of: Of,
        *,
        is_lenient: bool,
    ) -> int:
        """Charge everybody, and return the index of the entry that says so."""
        coin = last.coin
        budget = budget_left(self._config, self._log)
        if coin is None or budget is None:  # both were seen to before
            raise NoiseProtocolError("there is nothing to charge for")
        taken = covered(self._log, last.first_index, coin.tree_size, of)
        mechanism = release_mechanism(self._config, statistic)
        if is_lenient:
            taken = self._without_exhausted(taken, budget, mechanism)
        self._check_crowd(len(taken.values))
        statistic_cells(statistic, of, taken.values)  # what it refuses is refused before the charge
        names = sorted(taken.values)
        accounts = sorted(account.hex() for account in taken.accounts.values())
        parts = -(-len(names) // _PARTICIPANTS_MAX)
        fields = {
            "round": last.number,
            "statistic": statistic.public(),
            "of": of.public(),
            "mechanism_ref": self._mechanism_ref(known, mechanism),
            "coin_ref": coin.leaf_index,
            "first_index": last.first_index,
            "end_index": coin.tree_size,
            "entries": taken.entries,
            "left_out": taken.left_out,
            "participants": len(names),
            **public_cost(mechanism.cost),
            "budget": public_budget(budget),
            "slots": [last.used],
            "parts": parts,
        }
        # both lists are sorted by themselves: side by side they would say whose account is whose
        lists = [
            {"participants": names[begin:end], "accounts": accounts[begin:end]}
            for begin in range(0, len(names), _PARTICIPANTS_MAX)
            for end in [begin + _PARTICIPANTS_MAX]
        ]
        events = [Event("dp.spend", fields, lists[0])]
        events += [
            Event("dp.participants", {"round": last.number, "part": part, "parts": parts}, some)
            for part, some in enumerate(lists[1:], start=1)
        ]
        whose = {account: name for name, account in taken.accounts.items()}
        terms = Terms(PROTOCOL_KINDS, known.newest, charge_of(budget, mechanism.cost, whose))
        return self._log.record_on(terms, events)[0]

    def _without_exhausted(self, taken: Covered, budget: Budget, mechanism: Mechanism) -> Covered:
        """Return the part of those whose budgets admit one more use."""
        found = self._budgets.spent(taken.accounts.values(), response_units=budget.response_units)
        admitted = [
            name
            for name, account in taken.accounts.items()
            for rule, sums in [found[account]]
            if replace(budget, response_units=rule).admits(Spent(*sums), mechanism.cost)
        ]
        left_out = len(taken.values) - len(admitted)
        part = taken.only(admitted) or taken
        counts = taken.left_out | ({"exhausted_annotators": left_out} if left_out else {})
        return replace(part, left_out=counts)

    def _check_crowd(self, participants: int) -> None:
        if not participants:
            raise MissingSensitivity(
                "no covered annotation has a value of a known annotator",
                next_step="log annotations with annotator_ids before the round's anchor",
            )
        if self._config.delta * participants >= 1:
            raise InvalidDelta(
                f"delta must be below one over the {participants:,} participants",
                next_step="lower delta: at this one, publishing somebody's data would pass",
            )

    def _mechanism_ref(self, known: Rounds, mechanism: Mechanism) -> int:
        """Return the index of the mechanism's entry, which is made where there is none."""
        public = mechanism.public()
        for index, event in known.mechanisms.items():
            if all(event.get(name) == value for name, value in public.items()):
                return index
        return self._log.record(Event("dp.mechanism", public)).result()

    def _finish(self, last: Round, spend: Spend, *, newest: int) -> Release | None:
        """Draw what was charged for, and publish it; None if that cannot be done any more.

        The same slot, coin and values give the same: so does a call after a crash.
        """
        event, coin = spend.event, last.coin
        statistic, of = statistic_of(event["statistic"]), Of.said(event["of"])
        terms = Terms(PROTOCOL_KINDS, newest)
        taken = covered(self._log, event["first_index"], event["end_index"], of)
        part, slots = taken.only(self._participants(spend)), self._slots(last)
        if part is None or coin is None or slots is None:  # somebody was erased since the charge
            gone: dict[str, Any] = {"round": last.number, "slot": spend.slot, "count": 1}
            gone |= {"reason": "values were erased after the charge", "spend_ref": spend.leaf_index}
            self._log.record_on(terms, [Event("dp.skipped", gone)])
            return None
        mechanism = mechanism_of(mechanism_fields(self._log.read(event["mechanism_ref"]).event))
        cells = statistic_cells(statistic, of, part.values)
        found = drawn(mechanism, cells, slots.bits(spend.slot, coin.value))
        value = [found] if isinstance(found, int) else found
        fields = {
            "round": last.number,
            "spend_ref": spend.leaf_index,
            "coin_ref": coin.leaf_index,
            "slots": [spend.slot],
            "value": list(map(str, value)),
            **derived(statistic, mechanism, value, len(part.values)),
        }
        (index,) = self._log.record_on(terms, [Event("dp.release", fields)])
        return _stored(replace(spend, release=fields, release_index=index))

    def _slots(self, last: Round) -> NoiseSlots | None:
        """Return a round's slots; None if its secret was erased."""
        try:
            secret = self._log.opened(last.root_index)["secret"]
        except Erased:
            return None
        slots = NoiseSlots(bytes.fromhex(secret), last.slots)
        if slots.root != last.root:
            raise NoiseProtocolError(
                "the vault's secret is not the one that this round was settled with",
                next_step="run rlhf-audit fsck; restore the vault from a backup",
            )
        return slots

    def _participants(self, spend: Spend) -> list[str]:
        first, parts = spend.leaf_index, int(spend.event["parts"])
        lists = [self._log.opened(first + part)["participants"] for part in range(parts)]
        return [name for some in lists for name in some]

    # --- the mode minimal ---------------------------------------------------------------

    def _show(self, statistic: MeanSum | Histogram, of: Of) -> Release:
        """Show a statistic without noise, of 20 annotators or more; this is no privacy."""
        size = self._log.size
        taken = covered(self._log, 0, size, of)
        count = len(taken.values)
        if not enough_annotators(count):
            return Release(statistic_name(statistic), (), None, 0.0, count, NO_CLAIM)
        cells = statistic_cells(statistic, of, taken.values)
        fields = {"statistic": statistic.public(), "of": of.public(), "participants": count}
        fields |= {"first_index": 0, "end_index": size}
        event = Event("dp.unprotected", fields, {"value": list(map(str, cells))}, own_subject())
        index = self._log.record(event).result()
        return Release(
            statistic_name(statistic), tuple(cells), estimate(statistic, cells, count), 0.0, count,
            NO_CLAIM, (index,),
        )  # fmt: skip


def _is_of(spend: Spend, said: Mapping[str, Any]) -> bool:
    return all(spend.event[name] == value for name, value in said.items())


def _stored(spend: Spend) -> Release:
    """Return what a release's entry says."""
    if spend.release is None:
        raise NoiseProtocolError("what was charged for is not released")
    statistic = statistic_of(spend.event["statistic"])
    value = tuple(int(x) for x in spend.release["value"])
    count = int(spend.event["participants"])
    return Release(
        statistic_name(statistic), value, estimate(statistic, value, count),
        float(spend.release["noise"]["estimate_std"]), count,
        _CLAIM,
        (spend.leaf_index, spend.release_index),
    )  # fmt: skip
