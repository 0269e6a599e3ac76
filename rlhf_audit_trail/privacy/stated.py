"""Mechanisms and statistics read back from an entry, none of whose numbers is believed.

The parameters that define one are read strictly; thresholds, scales, sensitivities and costs
are computed from them again, and the whole must be written as `public()` writes it. So an
inflated epsilon, another threshold, a lower cost or a second spelling is found here, before
anything is drawn or charged again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final, TypeVar

from rlhf_audit_trail.privacy.aggregates import Histogram, MeanSum
from rlhf_audit_trail.privacy.errors import PrivacyError, TamperedParameters
from rlhf_audit_trail.privacy.exact import MAX_RATIONAL_BITS
from rlhf_audit_trail.privacy.interval import Interval
from rlhf_audit_trail.privacy.mechanisms import (
    Binomial,
    DiscreteGaussian,
    Geometric,
    Mechanism,
    RandomisedResponse,
    RoundedResponse,
    code_digest,
)

__all__ = ["check_sensitivity", "mechanism_of", "same_code", "statistic_of"]

_Made = TypeVar("_Made")
_CODE: Final = "code_digest"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
# no exponents: Fraction would write 1e999999999 out
_RATIONAL: Final = re.compile(r"-?[0-9]+(/[0-9]+)?")
_RATIONAL_CHARS_MAX: Final = 2 * (MAX_RATIONAL_BITS * 30103 // 100_000 + 2)
_FIELDS_CHARS_MAX: Final = 32_768  # of JSON; the longest rationals that are allowed fit twice

_MECHANISMS: Final[Mapping[str, Callable[[Mapping[str, Any]], Mechanism]]] = {
    RandomisedResponse.name: lambda given: RandomisedResponse(
        _rational(given["epsilon"]), _whole(given["levels"])
    ),
    RoundedResponse.name: lambda given: RoundedResponse(
        _rational(given["epsilon"]), _interval(given["bounds"])
    ),
    Geometric.name: lambda given: Geometric(
        _rational(given["epsilon"]), _whole(given["sensitivity_l1"])
    ),
    DiscreteGaussian.name: lambda given: DiscreteGaussian(
        _rational(given["variance"]), _whole(given["sensitivity_l2_squared"])
    ),
    Binomial.name: lambda given: Binomial(
        _whole(given["coins"]),
        _rational(given["epsilon"]),
        _rational(given["delta"]),
        _whole(given["sensitivity"]),
    ),
}
_STATISTICS: Final[Mapping[str, Callable[[Mapping[str, Any]], MeanSum | Histogram]]] = {
    "mean_sum": lambda given: MeanSum(_interval(given["bounds"]), _whole(given["steps"])),
    "histogram": lambda given: Histogram(_whole(given["cells"]), _whole(given["contributions"])),
}


def mechanism_of(fields: Mapping[str, Any]) -> Mechanism:
    """Return the mechanism that the fields of a `dp.mechanism` entry state (`public()`).

    The digest of the code is the one field that may differ from today's: `same_code` tells.
    What it draws with another is decided by drawing again.

    Raises:
        TamperedParameters: a field is missing, unknown, of another type or spelling, out of
            range, or not what follows from the others.
    """
    return _mechanism_of(_bounded(fields))


@lru_cache(maxsize=256)  # an audit reads the same one for each of many events
def _mechanism_of(text: str) -> Mechanism:
    fields = json.loads(text)
    found = _built(_MECHANISMS, fields.get("name"), fields.get("parameters"))
    code = fields.get(_CODE)
    if not isinstance(code, str) or not _DIGEST.fullmatch(code):
        raise _tampered("mechanism")
    _same("mechanism", {**found.public(), _CODE: code}, text)
    return found


def statistic_of(fields: Mapping[str, Any]) -> MeanSum | Histogram:
    """Return the statistic that the fields of an entry state (`public()`).

    Raises:
        TamperedParameters: as for `mechanism_of`.
    """
    text = _bounded(fields)
    found = _built(_STATISTICS, fields.get("statistic"), fields)
    _same("statistic", found.public(), text)
    return found


def check_sensitivity(mechanism: Mechanism, statistic: MeanSum | Histogram) -> Mechanism:
    """Return the mechanism, shown to hide as far as one annotator moves the statistic.

    Raises:
        TamperedParameters: its noise is for a smaller sensitivity, or it draws for single
            values, not for statistics.
    """
    if isinstance(mechanism, DiscreteGaussian):
        enough = mechanism.sensitivity_squared >= statistic.sensitivity_squared
    elif isinstance(mechanism, Geometric | Binomial):
        enough = mechanism.sensitivity >= statistic.sensitivity_l1
    else:
        enough = False
    if not enough:
        raise TamperedParameters(
            "a mechanism is made for a smaller sensitivity than its statistic has",
            next_step="count the release as not private",
        )
    return mechanism


def same_code(fields: Mapping[str, Any]) -> bool:
    """Tell whether an entry names the samplers that this process runs, to the byte."""
    return fields.get(_CODE) == code_digest()


def _built(
    makers: Mapping[str, Callable[[Mapping[str, Any]], _Made]], name: object, given: object
) -> _Made:
    if not isinstance(name, str) or name not in makers or not isinstance(given, Mapping):
        raise _tampered("mechanism or statistic")
    try:
        return makers[name](given)
    except (KeyError, PrivacyError) as error:
        raise _tampered("mechanism or statistic") from error


def _bounded(fields: object) -> str:
    """Return fields as text, whose size is bounded before any number in it is read."""
    if isinstance(fields, Mapping) and len(text := _text(fields)) <= _FIELDS_CHARS_MAX:
        return text
    raise _tampered("mechanism or statistic")


def _same(what: str, ours: Mapping[str, Any], theirs: str) -> None:
    # as text: in Python 1, 1.0 and True are equal
    if _text(ours) != theirs:
        raise _tampered(what)


def _text(fields: Mapping[str, Any]) -> str:
    try:
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), default=dict)
    except (TypeError, ValueError, RecursionError):
        raise _tampered("mechanism or statistic") from None


def _tampered(what: str) -> TamperedParameters:
    return TamperedParameters(
        f"a recorded {what} does not follow from its own parameters",
        next_step="believe neither its cost nor its guarantee",
    )


def _rational(text: object) -> Fraction:
    if (
        not isinstance(text, str)
        or len(text) > _RATIONAL_CHARS_MAX
        or not _RATIONAL.fullmatch(text)
    ):
        raise _tampered("mechanism or statistic")
    try:
        return Fraction(text)
    except ZeroDivisionError:
        raise _tampered("mechanism or statistic") from None


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _tampered("mechanism or statistic")
    return value


def _interval(ends: object) -> Interval:
    if not isinstance(ends, list | tuple) or len(ends) != 2:  # noqa: PLR2004 - low and high
        raise _tampered("mechanism or statistic")
    return Interval.of(_rational(ends[0]), _rational(ends[1]))
