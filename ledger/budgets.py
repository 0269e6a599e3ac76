"""Budgets: what each person was charged in all runs of a ledger, as the store keeps it.

A charge and the entries that tell of it are one transaction: both are there, or neither. Here
are sums only; what a budget admits is for who charges to say, by a function that is given the
sums and raises. Nothing is ever subtracted.

One row is nobody's: what `EVERYONE` was charged counts for each person. It stands for entries
whose participants cannot be told any more, since a copy without the vault brought them back.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, NamedTuple, Self

from sqlalchemy import Connection, Engine, delete, select
from sqlalchemy.dialects import postgresql as postgresql_dialect
from sqlalchemy.dialects import sqlite as sqlite_dialect

from rlhf_audit_trail.ledger.refusals import LogMoved
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.entries import newest_of_kinds

__all__ = [
    "ACCOUNT_BYTES",
    "EVERYONE",
    "UNBOUNDED",
    "Budgets",
    "Charge",
    "Price",
    "Sums",
    "Terms",
    "hold_budgets",
    "replace_budgets",
    "stored_budgets",
]

UNBOUNDED: Final = 2**61  # no guarantee of this kind is left; sums stay there
ACCOUNT_BYTES: Final = 32
EVERYONE: Final = bytes(ACCOUNT_BYTES)
_AT_ONCE: Final = 500  # so many keys are few enough for one statement of either database
_BUDGETS = models.BudgetRow.__table__  # type: ignore[attr-defined]
_LEDGER = models.LedgerRow.__table__  # type: ignore[attr-defined]
_ENTRIES = models.EntryRow.__table__  # type: ignore[attr-defined]


class Sums(NamedTuple):
    """What was charged, or is: units of 10^-12, of the rule's second sum, and of 10^-18."""

    epsilon_units: int = 0
    second_units: int = 0
    delta_units: int = 0

    def plus(self, other: Sums) -> Sums:
        """Return both together; what is unbounded stays so."""
        return Sums(*(min(x + y, UNBOUNDED) for x, y in zip(self, other, strict=True)))

    def times(self, uses: int) -> Sums:
        """Return what so many uses add up to."""
        return Sums(*(min(x * uses, UNBOUNDED) for x in self))


@dataclass(frozen=True)
class Price:
    """What an entry says that one use of a mechanism costs each participant.

    Attributes:
        epsilon_units: of 10^-12, or `UNBOUNDED`.
        rho_units: of 2^-40, or `UNBOUNDED`.
        delta_units: of 10^-18.
        is_response: whether it is randomised response.
    """

    epsilon_units: int
    rho_units: int
    delta_units: int = 0
    is_response: bool = False

    @classmethod
    def said(cls, fields: Mapping[str, Any]) -> Self:
        """Read the public fields of an entry; null is unbounded."""
        epsilon, rho, delta = (
            UNBOUNDED if fields.get(name) is None else int(fields[name])
            for name in ("epsilon_units", "rho_units", "delta_units")
        )
        return cls(epsilon, rho, delta, fields.get("is_response") is True)

    def added(self, response_units: int) -> Sums:
        """Return what it adds to a person's sums under the rule of that person.

        Args:
            response_units: under `fixed_rr` the epsilon of the one response; 0 under `union`.
        """
        second = self.rho_units
        if response_units:
            fits = self.is_response and self.epsilon_units == response_units
            second = 1 if fits else UNBOUNDED
        return Sums(self.epsilon_units, second, self.delta_units)


@dataclass(frozen=True)
class Charge:
    """What a batch costs the people it is about.

    Attributes:
        accounts: whose budgets, each once.
        response_units: settles a person's rule, if this is the first charge.
        admit: given an account, the person's rule and sums, returns what is added to them, or
            raises; it must not use the database.
    """

    accounts: Sequence[bytes] = field(repr=False)
    response_units: int
    admit: Callable[[bytes, int, Sums], Sums] = field(repr=False)

    def settle(self, connection: Connection) -> None:
        """Charge everybody or, if somebody's budget does not admit it, nobody.

        Args:
            connection: in a transaction that writes, after `hold_budgets`.
        """
        known = dict(_stored(connection, [*self.accounts, EVERYONE]))
        common = known.pop(EVERYONE, (0, Sums()))[1]
        after: list[tuple[bytes, int, Sums]] = []
        for account in self.accounts:
            rule, sums = known.get(account, (self.response_units, Sums()))
            added = self.admit(account, rule, sums.plus(_under(common, rule)))
            after.append((account, rule, sums.plus(added)))
        _put(connection, after)


@dataclass(frozen=True)
class Terms:
    """On what terms a batch is stored: all of it with its charge, or nothing of it.

    Attributes:
        kinds: of the entries that it builds upon.
        newest: index of the last of them that was seen; -1 for none.
        charge: what it costs; None for nothing.
    """

    kinds: tuple[str, ...]
    newest: int
    charge: Charge | None = None

    def settle(self, connection: Connection, log_number: int) -> None:
        """Check the log, then charge; the log's row is locked in this transaction.

        Raises:
            LogMoved: there are newer entries of these kinds.
            AuditTrailError: a budget does not admit it.
        """
        columns = (_ENTRIES.c.leaf_index,)
        row = newest_of_kinds(connection, columns, log_number, self.kinds)
        if (-1 if row is None else int(row.leaf_index)) != self.newest:
            raise LogMoved(
                "entries that these build upon were appended meanwhile",
                next_step="read the log again, and try again",
            )
        if self.charge is not None:
            self.charge.settle(connection)


class Budgets:
    """Reads what people were charged."""

    def __init__(self, engine: Engine) -> None:
        """Read from the ledger's database."""
        self._engine = engine

    def spent(
        self, accounts: Iterable[bytes], *, response_units: int = 0
    ) -> dict[bytes, tuple[int, Sums]]:
        """Return each account's rule and sums, with what everyone was charged."""
        wanted = list(accounts)
        with self._engine.connect() as connection:
            known = dict(_stored(connection, [*wanted, EVERYONE]))
        common = known.pop(EVERYONE, (0, Sums()))[1]
        found = {}
        for account in wanted:
            rule, sums = known.get(account, (response_units, Sums()))
            found[account] = (rule, sums.plus(_under(common, rule)))
        return found


def hold_budgets(connection: Connection) -> None:
    """Let nobody else charge until the transaction ends.

    The ledger's one row is the lock, taken before any log's: whoever charges waits here, and
    holds nothing that another could wait for. SQLite has one writer anyway.
    """
    connection.execute(select(_LEDGER.c.id).with_for_update()).all()


def replace_budgets(connection: Connection, rows: Iterable[tuple[bytes, int, Sums]]) -> None:
    """Put these rows, each an account with its rule and sums, in the place of all."""
    connection.execute(delete(_BUDGETS))
    _put(connection, rows)


def stored_budgets(connection: Connection) -> Iterator[tuple[bytes, int, Sums]]:
    """Yield all rows by growing account."""
    query = select(_BUDGETS).order_by(_BUDGETS.c.account)
    for row in connection.execute(query).yield_per(_AT_ONCE):
        yield bytes(row.account), *_parsed(row)


def _under(common: Sums, response_units: int) -> Sums:
    """Return what everyone was charged as one person's rule counts it: rho is no response."""
    if response_units and common.second_units:
        return common._replace(second_units=UNBOUNDED)
    return common


def _stored(
    connection: Connection, accounts: Sequence[bytes]
) -> Iterator[tuple[bytes, tuple[int, Sums]]]:
    for begin in range(0, len(accounts), _AT_ONCE):
        some = accounts[begin : begin + _AT_ONCE]
        for row in connection.execute(select(_BUDGETS).where(_BUDGETS.c.account.in_(some))):
            yield bytes(row.account), _parsed(row)


def _parsed(row: Any) -> tuple[int, Sums]:
    return row.response_units, Sums(row.epsilon_units, row.second_units, row.delta_units)


def _put(connection: Connection, rows: Iterable[tuple[bytes, int, Sums]]) -> None:
    names = ("account", "response_units", *Sums._fields)
    values = (dict(zip(names, (account, rule, *sums), strict=True)) for account, rule, sums in rows)
    statement = _upsert(connection.dialect.name)
    while some := list(itertools.islice(values, _AT_ONCE)):
        connection.execute(statement, some)


@cache
def _upsert(dialect: str) -> Any:
    made: Any = (postgresql_dialect if dialect == "postgresql" else sqlite_dialect).insert(_BUDGETS)
    new = {name: made.excluded[name] for name in Sums._fields}
    return made.on_conflict_do_update(index_elements=[_BUDGETS.c.account], set_=new)
