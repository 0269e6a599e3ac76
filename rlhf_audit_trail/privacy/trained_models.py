"""What a run's entries say of the privacy of its model: by algorithm, and of the final one.

The figures are those that the training process recorded with its final model; two accountants
agreed on them there. A model of which some update was not private has no guarantee.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final

from rlhf_audit_trail.ledger.reading import StoredLog
from rlhf_audit_trail.privacy.curves import DELTA_UNITS, EPSILON_UNITS
from rlhf_audit_trail.privacy.exact import ceil_units
from rlhf_audit_trail.privacy.guarantee import RELATION, UNIT, Guarantee

__all__ = ["TrainingPart", "training_part"]

_FINAL_ROLE: Final = "policy_final"


@dataclass(frozen=True)
class TrainingPart:
    """What was trained.

    Attributes:
        algorithms: name to the number of updates, in all and private ones.
        statements: of the final model: unit, relation, view, epsilon, dp_delta each.
        examples_max: of one annotator.
        caveats: that came with the statements.
    """

    algorithms: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    statements: tuple[Mapping[str, Any], ...] = ()
    examples_max: int = 0
    caveats: tuple[str, ...] = ()
    is_private: bool = False
    is_any: bool = False

    def epsilon(self, unit: str, relation: str) -> float | None:
        """Return one of the statements' epsilons; None where nothing is claimed."""
        found = self._statement(unit, relation)
        return None if found is None else found.get("epsilon")

    def guarantee(self) -> Guarantee | None:
        """Return what holds for one annotator, replaced; None if nothing does."""
        found = self._statement(UNIT, RELATION)
        if found is None or found.get("epsilon") is None:
            return None
        return Guarantee(
            ceil_units(Fraction(found["epsilon"]), EPSILON_UNITS),
            ceil_units(Fraction(found["dp_delta"]), DELTA_UNITS),
        )

    def sentence(self) -> str:
        """Return what may be printed about the model."""
        if not self.is_any:
            return "No model was trained in this run."
        if not self.statements:
            return "The model was trained WITHOUT differential privacy."
        example = self.epsilon("example", "replace")
        annotator = self.epsilon(UNIT, RELATION)
        shown = "none" if annotator is None else f"{annotator:.4g}"
        return (
            "The model was trained with DP-SGD: example-level "
            f"eps={'none' if example is None else f'{example:.4g}'}, annotator-level eps={shown} "
            f"with at most {self.examples_max} examples each, relation replace, Poisson sampling, "
            "batches undisclosed. DP-SGD noise generator: not cryptographic."
        )

    def _statement(self, unit: str, relation: str) -> Mapping[str, Any] | None:
        if not self.is_private:
            return None
        for item in self.statements:
            if (item.get("unit"), item.get("relation")) == (unit, relation):
                return item
        return None


def training_part(log: StoredLog) -> TrainingPart:
    """Read what a run says of its training."""
    algorithms: dict[str, dict[str, int]] = {}
    for entry in log.entries(kind="policy.update"):
        event = entry.event
        counts = algorithms.setdefault(str(event["algorithm"]), {"updates": 0, "private": 0})
        counts["updates"] += int(event["updates"])
        counts["private"] += int(event["updates"]) if "dp" in event else 0
    is_any = any(counts["updates"] for counts in algorithms.values())
    is_private = is_any and all(x["updates"] == x["private"] for x in algorithms.values())
    said: dict[str, Any] = {}
    for entry in log.entries(kind="model.registered"):
        if entry.event["role"] == _FINAL_ROLE:
            said = entry.event.get("dp") or {}
    caveats = [str(text) for text in said.get("caveats", ())]
    if is_any and not is_private and any(x["private"] for x in algorithms.values()):
        caveats.append("some updates of this model were not private, so it has no guarantee")
    if is_private and not said:
        caveats.append("the private training has not recorded its final model: nothing is claimed")
    statements = tuple(said.get("statements", ())) if is_private else ()
    most = max((int(x.get("examples_max", 0)) for x in statements), default=0)
    return TrainingPart(algorithms, statements, most, tuple(caveats), is_private, is_any)
