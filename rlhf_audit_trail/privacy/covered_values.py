"""Values that a statistic takes: those of a run's own annotations, by annotator, from the vault.

A statistic covers exactly the entries of an index range. Whose value nobody knows, and what was
erased, is left out and counted; how many entries are so is public anyway.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final, Protocol

from rlhf_audit_trail.privacy.aggregates import Histogram, MeanSum
from rlhf_audit_trail.privacy.errors import InvalidParameter, NonFiniteValue
from rlhf_audit_trail.privacy.exact import rational

__all__ = ["Covered", "Of", "covered", "statistic_cells"]

_ANNOTATION: Final = "annotation.recorded"
_CORRECTION: Final = "annotation.corrected"
_CELLS_MAX: Final = 4096  # each is a number in an entry


class _Sealed(Protocol):
    @property
    def leaf_index(self) -> int: ...
    @property
    def event(self) -> dict[str, Any]: ...
    @property
    def subject(self) -> bytes: ...
    @property
    def values(self) -> dict[str, Any] | None: ...


class ValuesLog(Protocol):
    """What is needed of a stored log whose vault is here."""

    def sealed_entries(self, start: int, stop: int, *, kind: str) -> Iterable[_Sealed]:
        """Yield entries of a kind with what they seal."""

    def account_of(self, tag: bytes) -> bytes:
        """Return a person's account."""


@dataclass(frozen=True)
class Of:
    """What a statistic is made of.

    Attributes:
        field: sealed field of an annotation, a number.
        contributions: so many values of one annotator count, the first ones.
        edges: of a histogram's cells, growing; cell 0 lies below the first of them.
    """

    field: str = "reward"
    contributions: int = 1
    edges: tuple[Fraction, ...] = ()

    def __post_init__(self) -> None:
        if self.field != "reward":
            raise InvalidParameter("statistics are about rewards", next_step="use field='reward'")
        if self.contributions < 1:
            raise InvalidParameter("an annotator contributes at least one value")
        if list(self.edges) != sorted(set(self.edges)) or len(self.edges) >= _CELLS_MAX:
            raise InvalidParameter(f"edges grow, and are fewer than {_CELLS_MAX}")

    @classmethod
    def said(cls, fields: Mapping[str, Any]) -> Of:
        """Read what an entry says; raises InvalidParameter, KeyError, TypeError, ValueError."""
        edges = tuple(rational(x, name="an edge") for x in fields.get("edges", ()))
        return cls(str(fields["field"]), int(fields["contributions"]), edges)

    def public(self) -> dict[str, Any]:
        """Return it as JSON types."""
        found: dict[str, Any] = {"field": self.field, "contributions": self.contributions}
        return found | ({"edges": list(map(str, self.edges))} if self.edges else {})


@dataclass(frozen=True)
class Covered:
    """The values of an index range.

    Attributes:
        values: pseudonym to the values that count, in the order of their entries.
        accounts: pseudonym to the person's account.
        entries: how many of the range's entries are annotations with such a value.
        left_out: how many of those were left out, and why.
    """

    values: dict[str, list[Any]] = field(repr=False)
    accounts: dict[str, bytes] = field(repr=False)
    entries: int
    left_out: dict[str, int]

    def only(self, names: Iterable[str]) -> Covered | None:
        """Return the part of some participants; None if one of them has no value any more."""
        chosen = set(names)
        if not chosen <= self.values.keys():
            return None
        values = {name: self.values[name] for name in chosen}
        accounts = {name: self.accounts[name] for name in chosen}
        return Covered(values, accounts, self.entries, self.left_out)


def covered(log: ValuesLog, first: int, end: int, of: Of) -> Covered:
    """Read the values of the annotations in [first, end), as corrected before `end`.

    Raises:
        VaultDamaged: a sealed value does not open.
    """
    newer = {
        (int(x.event["supersedes"]), x.subject): x.values[of.field]
        for x in log.sealed_entries(first, end, kind=_CORRECTION)
        if x.values is not None and of.field in x.values
    }
    values: dict[str, list[Any]] = {}
    accounts: dict[str, bytes] = {}
    entries, left_out = 0, Counter[str]()
    for item in log.sealed_entries(first, end, kind=_ANNOTATION):
        commitments = item.event.get("c", {})
        if of.field not in commitments:
            continue
        entries += 1
        if "annotator" not in commitments:
            left_out["unattributed"] += 1
        elif item.values is None:
            left_out["erased"] += 1
        else:
            name = str(item.values["annotator"])
            accounts[name] = log.account_of(item.subject)
            theirs = values.setdefault(name, [])
            if len(theirs) < of.contributions:
                value = newer.get((item.leaf_index, item.subject), item.values[of.field])
                theirs.append(value)
            else:
                left_out["beyond_contributions"] += 1
    return Covered(values, accounts, entries, dict(left_out))


def statistic_cells(
    statistic: MeanSum | Histogram, of: Of, values: Mapping[str, Sequence[Any]]
) -> list[int]:
    """Return the raw statistic, which must not leave without noise.

    Raises:
        NonFiniteValue: a value is no finite number; the message does not hold it.
    """
    if isinstance(statistic, MeanSum):
        return statistic.statistic(values)
    return statistic.statistic(
        {name: list(_cells(of.edges, some)) for name, some in values.items()}
    )


def _cells(edges: Sequence[Fraction], values: Iterable[Any]) -> Iterator[int]:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise NonFiniteValue("a reward must be a number")
        exact = Fraction(value)  # JSON has no infinities
        yield sum(edge <= exact for edge in edges)
