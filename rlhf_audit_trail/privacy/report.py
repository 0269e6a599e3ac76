"""The privacy report of a run: what its entries allow to be said, and what they do not.

Public view: everything here follows from public entries, from who took part in what, and from
costs, which depend on public parameters alone. No value, noise, seed or id is read for it.

Guarantees of different things are kept apart: of the log itself, of released aggregates, of the
model. They are added up only where unit, relation and view are the same, and there is one of each.
`reporting` makes it.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from typing import Any, Final

from rlhf_audit_trail.privacy.curves import DELTA_UNITS, EPSILON_UNITS
from rlhf_audit_trail.privacy.errors import InvalidParameter
from rlhf_audit_trail.privacy.guarantee import RELATION, UNIT, Guarantee
from rlhf_audit_trail.privacy.registry_entry import Deployment, registry_yaml
from rlhf_audit_trail.privacy.trained_models import TrainingPart

__all__ = ["NO_INTEGRITY", "LabelPart", "PrivacyReport", "shown_up"]

VIEW: Final = "public"
NO_INTEGRITY: Final = "no integrity: the operator could choose among noises"
_STRONG, _MODERATE = 1, 10


@dataclass(frozen=True)
class LabelPart:
    """What became of values that were privatised one by one.

    Attributes:
        charged: labels that annotators were charged for.
        privatised: of these, how many have an answer, and
        skipped: how many were given up.
        released: how many answers are public.
        raw: annotations whose raw values the run seals.
        epsilon_per_label: of the newest charge.
        is_all_of_training: the run was trained, has labels, and nothing raw in its entries.
    """

    charged: int = 0
    privatised: int = 0
    skipped: int = 0
    released: int = 0
    raw: int = 0
    epsilon_per_label: float | None = None
    is_all_of_training: bool = False


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
        cap_epsilon: what nobody may exceed under the newest settings; None under the mode minimal.
        dp_delta: that belongs to both.
        remaining_budget: cap less spent, never below 0; the filter, not this number, decides.
        remaining_rho_units: of 2^-40, which the rho filter has left; 0 under another rule.
        remaining_rounds: how many more releases, or under the mode strong labels, the filter
            admits for the worst annotator.
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
        labels: values that were privatised one by one.
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
    labels: LabelPart = field(default_factory=LabelPart)

    @property
    def delta(self) -> float:
        """Another name for `dp_delta`."""
        return self.dp_delta

    @property
    def remaining_labels(self) -> int:
        """How many labels the filter admits for the worst annotator; 0 in other modes."""
        return self.remaining_rounds if self.mode == "strong" else 0

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
        return f"{self._of_values()} {self._of_model()} {self._of_noise()}"

    def _of_model(self) -> str:
        if self.labels.is_all_of_training and not self.differences:
            return "The model was trained only on privatised labels: same guarantee."
        return self.trained.sentence()

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
            f"eps={shown_up(spent.epsilon_units, EPSILON_UNITS)}, "
            f"delta={shown_up(spent.delta_units, DELTA_UNITS)} against readers of the public "
            "ledger, this report and the API; whatever is released later under these settings, "
            f"eps={shown_up(Fraction(self.cap_epsilon), 1)} is not exceeded."
        )

    def _of_noise(self) -> str:
        words = ["Prompts and responses are committed, not differentially private."]
        if self.labels.charged:
            words.append(
                f"{self.labels.privatised:,} labels were privatised one by one, by noise of the "
                "operating system, which nobody can draw again."
            )
        coins = sorted({str(release["coin"]) for release in self.releases})
        if coins:
            words.append(
                f"Noise came from precommitted seeds and coins of type {', '.join(coins)}."
            )
        lacking = sum(not release["has_integrity"] for release in self.releases)
        if lacking:
            words.append(f"{lacking:,} of {len(self.releases):,} releases have {NO_INTEGRITY}.")
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
        found["remaining_labels"] = self.remaining_labels
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


def shown_up(units: Fraction | int, per_one: int) -> str:
    """Return units as text of four digits, rounded up."""
    value = Fraction(units, per_one)
    if not value:
        return "0"
    power = 3 - math.floor(math.log10(value))
    scaled = Fraction(-((-value * Fraction(10) ** power).__floor__())) / Fraction(10) ** power
    return f"{float(scaled):.4g}"
