"""Labels: values of annotations that are privatised before anything of them leaves the caller.

    labels = run.log_annotations(..., rewards=rewards, annotator_ids=ids)   # mode strong
    train(labels.rewards)

Charges and annotations are one transaction; then noise is drawn, and what came out is stored,
sealed for its annotator or, under `release_values`, in public. Under the mode strong the raw value
is in the caller's memory and nowhere else: killed between charge and draw, a label is lost and
stays paid for. Noise is the operating system's: nobody can draw it again, and that it was drawn so
is the operator's word.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final, cast, overload

from rlhf_audit_trail.ledger.assigning import Person
from rlhf_audit_trail.ledger.budgets import Budgets, Charge, Sums, Terms
from rlhf_audit_trail.ledger.drafts import ANNOTATOR, EventColumns
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Log, Receipt
from rlhf_audit_trail.ledger.refusals import LogMoved
from rlhf_audit_trail.ledger.writer import Ticket
from rlhf_audit_trail.privacy.bits import SystemBits
from rlhf_audit_trail.privacy.charging import charge_labels, public_budget, public_cost
from rlhf_audit_trail.privacy.choosing import label_mechanism
from rlhf_audit_trail.privacy.config import PrivacyConfig
from rlhf_audit_trail.privacy.errors import (
    ConflictingParameters,
    InvalidDelta,
    LabelsLost,
    UnattributedLabel,
)
from rlhf_audit_trail.privacy.interval import Interval
from rlhf_audit_trail.privacy.mechanisms import RandomisedResponse, RoundedResponse
from rlhf_audit_trail.privacy.redraw import drawn
from rlhf_audit_trail.privacy.reserving import budget_left

__all__ = ["LABELS_KIND", "PRIVATISED_KIND", "SKIPPED_KIND", "Labels", "RunLabels", "is_per_label"]

LABELS_KIND: Final = "dp.labels"
PRIVATISED_KIND: Final = "label.privatised"
SKIPPED_KIND: Final = "dp.labels_skipped"
_CONFIG_KIND: Final = "run.config"  # what is reserved stands there, and lowers the budget
_VALUE: Final = "reward"
_LABELS_MAX: Final = 4_096  # of one entry: its lists stay small
_ATTEMPTS: Final = 10  # each lost to another process that appended what must be looked at
_NOISE: Final = "system"

LabelMechanism = RandomisedResponse | RoundedResponse


def is_per_label(config: PrivacyConfig) -> bool:
    """Tell whether each value is privatised when it is logged."""
    return config.annotator_privacy_mode == "strong" or config.release_values


@dataclass(frozen=True)
class Labels(Sequence[Receipt]):
    """Receipts of annotations whose values were privatised, and what came out.

    Attributes:
        answers: of randomised response: a level, or the end of the interval (0 or 1).
        mechanism: that gave them.
        interval: the declared range.
        indices: leaf indices of the annotations.
    """

    answers: tuple[int, ...] = field(repr=False)
    mechanism: LabelMechanism
    interval: Interval
    indices: tuple[int, ...] = field(repr=False)

    @property
    def rewards(self) -> list[float]:
        """The privatised values on the scale of rewards, always within its bounds: to train on."""
        return [float(self.interval.at(Fraction(x, self._steps))) for x in self.answers]

    @property
    def estimates(self) -> list[float]:
        """Unbiased estimates of the raw values, for means; single ones lie far outside."""
        return [float(self._estimate(answer)) for answer in self.answers]

    @property
    def _steps(self) -> int:
        return self.mechanism.levels - 1 if isinstance(self.mechanism, RandomisedResponse) else 1

    def _estimate(self, answer: int) -> Fraction:
        made = self.mechanism
        if isinstance(made, RoundedResponse):
            return made.estimated(answer)
        # E[answer] = gap v + other (0 + 1 + ... + (k - 1)) for a value v
        everywhere = made.other * made.levels * (made.levels - 1) / 2
        return self.interval.at((answer - everywhere) / (made.keep - made.other) / self._steps)

    def __len__(self) -> int:
        """Count the annotations."""
        return len(self.indices)

    @overload
    def __getitem__(self, number: int) -> Receipt: ...

    @overload
    def __getitem__(self, number: slice) -> Sequence[Receipt]: ...

    def __getitem__(self, number: int | slice) -> Receipt | Sequence[Receipt]:
        """Return the receipt of one annotation, or of some; all of them are durable."""
        if isinstance(number, slice):
            return [self[place] for place in range(len(self))[number]]
        range(len(self))[number]  # raises IndexError
        return Receipt(self._ticket, number)

    @property
    def _ticket(self) -> Ticket[Any]:
        ticket: Ticket[Any] = Ticket("", (), indices=self.indices)
        ticket.done.set()
        return ticket


class RunLabels:
    """Privatises the values of one run's annotations; safe to share between threads."""

    def __init__(self, log: Log, config: PrivacyConfig, budgets: Budgets) -> None:
        """Record into `log` under these settings; the budgets are those of its ledger.

        Raises:
            MissingSensitivity, ConflictingParameters: the settings name no mechanism.
        """
        self._log, self._config, self._budgets = log, config, budgets
        self._mechanism = label_mechanism(config)
        self._interval = Interval.of(*(config.reward_bounds or ()))
        self._lock = threading.Lock()
        self._has_settled = False
        self._mechanism_index = -1

    def record(self, columns: EventColumns) -> Labels:
        """Charge a label for each annotation, record them, then draw and keep what came out.

        Returns when all of it is durable. Annotations that are recorded again are new ones, and
        are charged again.

        Args:
            columns: of annotations with a `reward`, checked; whoever gave each is a subject.

        Raises:
            BudgetExhausted: somebody's budget does not admit it; nothing was recorded or charged.
            UnattributedLabel, InvalidDelta: the same, of the rows or the crowd.
            LabelsLost: another process gave these labels up; they stay charged.
            AppendFailed: the store failed; what is charged stays so, and may be all there is.
        """
        self._check_people(columns.subjects)
        raw = [self._input(value) for value in columns.sealed[_VALUE]]
        with self._lock:
            self._log.flush()
            if not self._has_settled:
                self._give_up("the process ended between charge and draw")
                self._has_settled = True
            if not raw:
                return Labels((), self._mechanism, self._interval, ())
            places = self._charged(columns)
            bits = SystemBits()
            answers = [cast("int", drawn(self._mechanism, value, bits)) for value in raw]
            self._keep(places, answers, columns.subjects)
        indices = tuple(index for _, some in places for index in some)
        return Labels(tuple(answers), self._mechanism, self._interval, indices)

    def _input(self, value: Any) -> Any:
        """Return what the mechanism takes, before anything is charged."""
        if isinstance(self._mechanism, RandomisedResponse):
            return self._interval.level(value, self._mechanism.levels - 1)
        return self._interval.position(value)

    def _check_people(self, subjects: Sequence[str]) -> None:
        nobody = subjects.count("")
        if nobody:
            raise UnattributedLabel(
                f"{nobody:,} annotations are of nobody known, and cannot be charged",
                next_step="pass annotator_ids with a stable id in every row; nothing was recorded",
            )
        people = len(set(subjects))
        if self._config.delta * people >= 1:
            raise InvalidDelta(
                f"delta must be below one over the {people:,} annotators",
                next_step="lower delta: at this one, publishing somebody's data would pass",
            )

    # --- the charge -----------------------------------------------------------------------

    def _charged(self, columns: EventColumns) -> list[tuple[int, range]]:
        """Charge and record all annotations; return each `dp.labels` with those it is for."""
        for number in range(_ATTEMPTS):
            newest = self._newest(_CONFIG_KIND)
            budget = budget_left(self._config, self._log)
            if budget is None:  # refused when the run began
                raise ConflictingParameters("the mode minimal has no epsilon to spend on labels")
            erasures = self._log.erasures_seen
            people = self._log.people(columns.subjects)
            accounts = {person.account: person.pseudonym for person in people.values()}
            uses = Counter(people[subject].account for subject in columns.subjects)
            charge = charge_labels(budget, self._mechanism.cost, accounts, uses)
            events = self._events(columns, people, public_budget(budget), charge)
            terms = Terms((_CONFIG_KIND,), newest, self._while_known(charge, erasures))
            try:
                first = self._log.record_on(terms, events).start
            except LogMoved:
                if number == _ATTEMPTS - 1:
                    raise
                continue
            found = []
            for begin in range(0, len(columns), _LABELS_MAX):
                count = min(_LABELS_MAX, len(columns) - begin)
                found.append((first, range(first + 1, first + 1 + count)))
                first += 1 + count
            return found
        raise AssertionError  # the loop returns or raises

    def _while_known(self, charge: Charge, erasures: int) -> Charge:
        """Return a charge that holds only while pseudonyms are those that the lists have."""

        def admit(account: bytes, response_units: int, sums: Sums) -> Sums:
            if self._log.erasures_seen != erasures:
                raise LogMoved("somebody was erased meanwhile", next_step="try again")
            return charge.admit(account, response_units, sums)

        return Charge(charge.accounts, charge.response_units, admit)

    def _events(
        self,
        columns: EventColumns,
        people: Mapping[str, Person],
        budget: Mapping[str, str],
        charge: Charge,
    ) -> list[Event]:
        said = {**public_cost(self._mechanism.cost), "budget": dict(budget), "noise": _NOISE}
        said["mechanism_ref"] = self._mechanism_ref(charge)
        kept = [name for name in columns.sealed if name != _VALUE or self._keeps_raw]
        events: list[Event] = []
        for begin in range(0, len(columns), _LABELS_MAX):
            rows = range(begin, min(begin + _LABELS_MAX, len(columns)))
            who = [people[columns.subjects[row]] for row in rows]
            # sorted by themselves: side by side the lists would say whose account is whose
            lists = {
                "participants": sorted(person.pseudonym for person in who),
                "accounts": sorted(person.account.hex() for person in who),
            }
            events.append(Event(LABELS_KIND, {"labels": len(rows), **said}, lists))
            for row in rows:
                subject = columns.subjects[row]
                values = {name: columns.sealed[name][row] for name in kept}
                values[ANNOTATOR] = subject
                events.append(Event(columns.kind, columns.fields, values, subject))
        return events

    @property
    def _keeps_raw(self) -> bool:
        return self._config.annotator_privacy_mode != "strong"

    def _mechanism_ref(self, charge: Charge) -> int:
        """Return the index of the mechanism's entry, which is made where there is none."""
        public = self._mechanism.public()
        if self._mechanism_index < 0:
            for entry in self._log.entries(kind="dp.mechanism"):
                if all(entry.event.get(name) == value for name, value in public.items()):
                    self._mechanism_index = entry.leaf_index
        if self._mechanism_index < 0:
            # what will be refused leaves not even this entry
            found = self._budgets.spent(charge.accounts, response_units=charge.response_units)
            for account, (rule, sums) in found.items():
                charge.admit(account, rule, sums)
            self._mechanism_index = self._log.record(Event("dp.mechanism", public)).result()
        return self._mechanism_index

    # --- what came out ----------------------------------------------------------------------

    def _keep(
        self,
        places: Iterable[tuple[int, range]],
        answers: Sequence[int],
        subjects: Sequence[str],
    ) -> None:
        """Record the answers, all at once, unless somebody gave these labels up."""
        events: list[Event] = []
        for index, some in places:
            for place in some:
                subject, answer = subjects[len(events)], answers[len(events)]
                fields = {"labels_ref": index, "of": place}
                sealed: dict[str, Any] = {ANNOTATOR: subject}
                if self._config.release_values:
                    fields["released"] = answer
                else:
                    sealed["answer"] = answer
                events.append(Event(PRIVATISED_KIND, fields, sealed, subject))
        ours = {index for index, _ in places}
        for number in range(_ATTEMPTS):
            newest = self._newest(SKIPPED_KIND)
            if any(x.event["labels_ref"] in ours for x in self._log.entries(kind=SKIPPED_KIND)):
                raise LabelsLost(
                    "another process of this run gave these labels up; they stay charged",
                    next_step="log the annotations again; their annotators are charged again",
                )
            try:
                self._log.record_on(Terms((SKIPPED_KIND,), newest), events)
            except LogMoved:
                if number == _ATTEMPTS - 1:
                    raise
                continue
            return

    def _give_up(self, reason: str) -> None:
        """Say of labels that were charged and have no answer that they will never have one.

        One of another process that is just about to draw is given up, too: it finds that, and
        says so to its caller.
        """
        kinds = (SKIPPED_KIND, PRIVATISED_KIND)
        for number in range(_ATTEMPTS):
            newest = max(map(self._newest, kinds))
            skipped = {int(x.event["labels_ref"]) for x in self._log.entries(kind=SKIPPED_KIND)}
            waiting = {
                x.leaf_index: int(x.event["labels"])
                for x in self._log.entries(kind=LABELS_KIND)
                if x.leaf_index not in skipped
            }
            if not waiting:
                return
            for entry in self._log.entries(kind=PRIVATISED_KIND):
                waiting.pop(int(entry.event["labels_ref"]), None)
            events = [
                Event(SKIPPED_KIND, {"labels_ref": index, "labels": count, "reason": reason})
                for index, count in waiting.items()
            ]
            if not events:
                return
            try:
                self._log.record_on(Terms(kinds, newest), events)
            except LogMoved:
                if number == _ATTEMPTS - 1:
                    raise
                continue
            return

    def _newest(self, kind: str) -> int:
        found = self._log.newest(kind)
        return -1 if found is None else found.leaf_index
