"""A draft entry for the Deployments Registry of differential privacy (OpenDP, NIST), tier 3.

Its form is that of the registry's records; strings are written as JSON, which YAML contains.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from rlhf_audit_trail.privacy.errors import InvalidParameter
from rlhf_audit_trail.privacy.guarantee import Guarantee

__all__ = ["Deployment", "registry_yaml"]

_KNOWN: Final = (
    "name", "data_curator", "intended_use", "description", "data_product_region",
    "publication_date", "registry_author",
)  # fmt: skip
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d")


@dataclass(frozen=True)
class Deployment:
    """What a report says of what was published.

    Attributes:
        run: id.
        guarantee: of all that was published; None where there is none.
        cap_epsilon: of each annotator.
        is_model: whether a model is part of it.
        releases: their number.
        coins: the types of coin that they were drawn with.
        has_integrity: whether all of those were unknown to the operator beforehand.
        unprotected: what nothing protects.
        statement: what may be printed.
    """

    run: str
    guarantee: Guarantee | None
    cap_epsilon: float | None
    is_model: bool
    releases: int
    coins: tuple[str, ...]
    has_integrity: bool
    unprotected: tuple[str, ...]
    statement: str


def registry_yaml(report: Deployment, known: Mapping[str, str]) -> str:
    """Return the entry; `known` says what no ledger can tell.

    Raises:
        InvalidParameter: there is no guarantee to be registered, or something is not said.
    """
    missing = [name for name in _KNOWN if not known.get(name)]
    if missing or known.keys() - set(_KNOWN):
        raise InvalidParameter(
            "a registry entry needs words that no ledger has",
            next_step=f"pass {', '.join(_KNOWN)}, and nothing else",
        )
    if not _DATE.fullmatch(known["publication_date"]):
        raise InvalidParameter("publication_date is written 2026-11-20")
    found = report.guarantee
    if found is None or not report.releases:
        raise InvalidParameter(
            "there is no guarantee to be registered",
            next_step="release an aggregate under the modes moderate or strong first",
        )
    return "\n".join([*_lines(_record(report, known, found)), ""])


def _record(report: Deployment, known: Mapping[str, str], found: Guarantee) -> dict[str, Any]:
    slug = re.sub(r"[^a-z0-9]+", "-", f"{known['name']} {known['data_curator']}".lower())
    return {
        "url_slug": f"{slug.strip('-')}-{known['publication_date'][:4]}",
        "status": "Draft",
        "tier": 3,
        "deployment": {
            "product": {
                "name": known["name"],
                "data_curators": [known["data_curator"]],
                "intended_use": known["intended_use"],
                "data_product_type": "Machine learning model"
                if report.is_model
                else "Summary statistics",
                "data_product_region": known["data_product_region"],
                "description": known["description"],
                "publication_date": known["publication_date"],
                "data_product_sector": "Technology",
            },
            "dp_flavor": {
                "name": "Approximate DP",
                "data_domain": "Preference values that annotators gave in one training run; who "
                "took part, how often and when is fixed and public.",
                "unprotected_quantities": "; ".join(report.unprotected),
            },
            "privacy_loss": {
                "privacy_unit": "annotator",
                "privacy_unit_description": "All values of one annotator may be replaced by others "
                "of the same number; the relation is replace, not add or remove.",
                "privacy_parameters": {
                    "epsilon": _up(found.epsilon_units, 10**12),
                    "delta": _up(found.delta_units, 10**18),
                },
                "privacy_parameters_description": report.statement,
            },
            "model": {
                "model_name": "Central",
                "actors": "Annotators trust the operator with their values; readers of the public "
                "ledger, the API and the model are bound by the guarantee; auditors to whom "
                "something was opened are not.",
                "release_type": "Many releases",
                "release_type_description": "Each annotator has one budget over all runs of the "
                f"ledger, at most epsilon {report.cap_epsilon:g}; it is never refilled.",
                "data_source_type": "Dynamic",
                "access_type": "Non-interactive",
            },
            "accounting": {
                "post_processing": "Means and counts are computed from the released integers.",
                "composition": "A union of the pure and the zero-concentrated filter, in integer "
                "units rounded against the claim; charged before noise is drawn.",
            },
            "implementation": {
                "pre_processing_eda_hyperparameter_tuning": "Rewards are clipped to bounds that "
                "were declared beforehand; at most a declared number of values of each annotator "
                "counts. What was tuned on the values elsewhere is not counted.",
                "mechanisms": _mechanisms(report),
                "justification": "Mechanisms follow from the declared epsilon and delta; exact "
                "integer noise avoids the leaks of floating-point noise.",
            },
            "resources": {
                "sources": f"Run {report.run}: a verifiable log of charges, releases and coins.",
                "registry_authors": [known["registry_author"]],
            },
        },
    }


def _mechanisms(report: Deployment) -> str:
    words = ["Discrete Gaussian noise, drawn exactly in integers (Canonne, Kamath, Steinke 2020)."]
    coins = ", ".join(report.coins)
    words.append(f"Noise follows from precommitted seeds and coins of type {coins}.")
    if not report.has_integrity:
        words.append("Of some releases the operator could choose among noises.")
    words.append("Timing of the samplers is not protected.")
    return " ".join(words)


def _up(units: int, per_one: int) -> float:
    """Return units as a decimal that is not below them, and hardly above."""
    value = float(f"{units / per_one:.12g}")
    while Fraction(repr(value)) * per_one < units:  # what is written is its shortest decimal
        value = math.nextafter(value, math.inf)
    return value


def _lines(value: Mapping[str, Any], depth: int = 0) -> Iterator[str]:
    space = "  " * depth
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield f"{space}{name}:"
            yield from _lines(item, depth + 1)
        elif isinstance(item, list):
            yield f"{space}{name}:"
            yield from (f"{space}  - {_scalar(x)}" for x in item)
        else:
            yield f"{space}{name}: {_scalar(item)}"


def _scalar(value: object) -> str:
    if isinstance(value, float):
        return format(Decimal(repr(value)), "f")  # exact, without an exponent
    return json.dumps(value, ensure_ascii=False)
