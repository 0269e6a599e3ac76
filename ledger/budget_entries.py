"""What the entries of all runs say that people were charged: by it the budgets are recomputed.

A `dp.spend` says in public what one use of a mechanism cost each participant, and seals the
participants' accounts; long lists go on in `dp.participants` right after it. A `dp.labels` says
what one label cost, and lists an account once for each of its labels. A charge whose list cannot be
opened any more is counted for everyone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, Engine, select

from rlhf_audit_trail.ledger.budgets import (
    ACCOUNT_BYTES,
    EVERYONE,
    Price,
    Sums,
    hold_budgets,
    replace_budgets,
    stored_budgets,
)
from rlhf_audit_trail.ledger.proof.bundle import parse_json
from rlhf_audit_trail.ledger.proof.errors import MalformedBundle
from rlhf_audit_trail.ledger.reading import place_of
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.database import transact
from rlhf_audit_trail.ledger.store.entries import spans_of_kinds
from rlhf_audit_trail.ledger.vault import Erased, Vault, VaultDamaged

__all__ = [
    "BUDGET_KINDS",
    "CHARGING_KINDS",
    "Account",
    "SpendEntry",
    "account_sums",
    "all_spends",
    "rebuild_budgets",
    "spend_entries",
]

SPEND_KIND: Final = "dp.spend"
MORE_KIND: Final = "dp.participants"
LABELS_KIND: Final = "dp.labels"
CHARGING_KINDS: Final = (SPEND_KIND, LABELS_KIND)
BUDGET_KINDS: Final = (*CHARGING_KINDS, MORE_KIND)
_PARTS_MAX: Final = 100_000
_LOGS = models.LogRow.__table__  # type: ignore[attr-defined]
_ENTRIES = models.EntryRow.__table__  # type: ignore[attr-defined]
_VAULT = models.VaultRow.__table__  # type: ignore[attr-defined]

Account = tuple[int, Sums]  # the rule's response units, and the sums


@dataclass(frozen=True)
class SpendEntry:
    """One charge, as its entries have it.

    Attributes:
        run_id: in which run.
        leaf_index: of the `dp.spend` or `dp.labels`.
        recorded_at: by the writer's clock.
        price: what one use cost.
        response_units: of the rule under which who was first charged here is counted.
        accounts: of the participants, one for each use; None if they cannot be told.
        uses: how many one participant may have had.
    """

    run_id: str
    leaf_index: int
    recorded_at: str
    price: Price
    response_units: int
    accounts: tuple[bytes, ...] | None = field(repr=False)
    uses: int = 1


@dataclass
class _Open:
    """A spend whose further parts are still to come."""

    event: Mapping[str, Any]
    leaf_index: int
    lists: list[list[str] | None]


def all_spends(connection: Connection, vault: Vault) -> Iterator[SpendEntry]:
    """Yield the charges of all runs, as this connection sees them, run by run."""
    query = select(_LOGS.c.number, _LOGS.c.run_id, _LOGS.c.origin).order_by(_LOGS.c.number)
    for row in connection.execute(query).all():
        yield from spend_entries(connection, vault, int(row.number), str(row.run_id), row.origin)


def spend_entries(
    connection: Connection, vault: Vault, log_number: int, run_id: str, origin: str
) -> Iterator[SpendEntry]:
    """Yield the charges of one run in order; entries that are none are passed over."""
    entry, sealed = _ENTRIES.c, _VAULT.c
    join = (sealed.log_number == entry.log_number) & (sealed.leaf_index == entry.leaf_index)
    columns = (entry.leaf_index, entry.writer_id, entry.seq, entry.data)
    query = select(*columns, sealed.subject, sealed.ciphertext)
    query = query.select_from(_ENTRIES.outerjoin(_VAULT, join)).order_by(entry.leaf_index)
    spans = list(spans_of_kinds(connection, log_number, BUDGET_KINDS))
    is_open: _Open | None = None
    for row in (row for span in spans for row in connection.execute(query.where(span)).all()):
        event = _event(row.data)
        if event.get("kind") in CHARGING_KINDS:
            if is_open is not None:
                yield from _spend(run_id, is_open)
            is_open = _Open(event, int(row.leaf_index), [_accounts(vault, row, origin)])
        elif is_open is not None and row.leaf_index == is_open.leaf_index + len(is_open.lists):
            is_open.lists.append(_accounts(vault, row, origin))
    if is_open is not None:
        yield from _spend(run_id, is_open)


def account_sums(
    spends: Iterable[SpendEntry], rules: Mapping[bytes, int] | None = None
) -> dict[bytes, Account]:
    """Add up what each account was charged; what nobody can be told of, under `EVERYONE`.

    Args:
        spends: of all runs.
        rules: response units of accounts whose rule is settled; of others, the first spend by its
            time settles it.
    """
    found: dict[bytes, Account] = {}
    for spend in sorted(spends, key=lambda x: (x.recorded_at, x.run_id, x.leaf_index)):
        if spend.accounts is None:
            sums = found.get(EVERYONE, (0, Sums()))[1]
            found[EVERYONE] = (0, sums.plus(spend.price.added(0).times(spend.uses)))
            continue
        added: dict[int, Sums] = {}
        for account in spend.accounts:
            rule, sums = found.get(account) or (
                (rules or {}).get(account, spend.response_units),
                Sums(),
            )
            if rule not in added:
                added[rule] = spend.price.added(rule)
            found[account] = (rule, sums.plus(added[rule]))
    return found


def rebuild_budgets(engine: Engine, vault: Vault) -> int:
    """Make the table hold at least what all entries charged; return how many rows it has.

    No row becomes less: what an older copy of the table knows of was charged, too.
    """

    def work(connection: Connection) -> int:
        hold_budgets(connection)
        stored = {account: (rule, sums) for account, rule, sums in stored_budgets(connection)}
        rules = {account: rule for account, (rule, _) in stored.items()}
        for account, (rule, sums) in account_sums(all_spends(connection, vault), rules).items():
            known = stored.get(account, (rule, Sums()))[1]
            stored[account] = (rule, Sums(*map(max, known, sums)))
        replace_budgets(connection, ((x, *stored[x]) for x in sorted(stored)))
        return len(stored)

    return transact(engine, work)


def _spend(run_id: str, item: _Open) -> Iterator[SpendEntry]:
    event = item.event
    try:
        price, rule = Price.said(event), int(event["budget"]["response_units"])
        is_labels = event["kind"] == LABELS_KIND
        count = int(event["labels" if is_labels else "participants"])
        parts = 1 if is_labels else int(event["parts"])
        recorded_at = str(event["recorded_at"])
    except (KeyError, TypeError, ValueError):
        return
    lists = item.lists[: min(max(parts, 1), _PARTS_MAX)]
    known = [name for some in lists if some is not None for name in some]
    accounts: tuple[bytes, ...] | None = None
    is_told = None not in lists and len(lists) == parts and count == len(known)
    if is_told and (is_labels or len(set(known)) == count):
        accounts = _parsed(known)
    uses = max(count, 1) if is_labels else 1
    yield SpendEntry(run_id, item.leaf_index, recorded_at, price, rule, accounts, uses)


def _parsed(names: list[str]) -> tuple[bytes, ...] | None:
    try:
        found = tuple(map(bytes.fromhex, names))
    except (TypeError, ValueError):
        return None
    return found if all(len(x) == ACCOUNT_BYTES for x in found) else None


def _event(data: Any) -> Mapping[str, Any]:
    try:
        found = parse_json(bytes(data or b""))
    except (MalformedBundle, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _accounts(vault: Vault, row: Any, origin: str) -> list[str] | None:
    if not row.ciphertext:
        return None
    try:
        place = place_of(row.writer_id, row.seq)
        opened = vault.unseal(bytes(row.subject), bytes(row.ciphertext), origin, place)
        values = [json.loads(x.value) for x in opened if x.path == "accounts"]
    except (Erased, VaultDamaged, TypeError, ValueError):
        return None
    return values[0] if values and isinstance(values[0], list) else None
