"""What routes ask for: the ledger, one of its logs, and no parameter that nothing reads."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Depends, Path, Request
from fastapi.dependencies.models import Dependant

from rlhf_audit_trail.api.problems import (
    BadRequest,
    LogMissing,
    NoSuchPath,
    UnknownParameter,
)
from rlhf_audit_trail.ledger.log import Ledger, LedgerMissing, Log
from rlhf_audit_trail.ledger.proof.bundle import MAX_INDEX
from rlhf_audit_trail.ledger.proof.tree_head import SignedTreeHead
from rlhf_audit_trail.ledger.reading import EntryMissing, NotPublished

__all__ = [
    "PAGE_DEFAULT",
    "PAGE_MAX",
    "LeafIndex",
    "LedgerOfApp",
    "LogOfPath",
    "covering",
    "find_log",
    "refuse_unknown",
]

PAGE_DEFAULT: Final = 50
PAGE_MAX: Final = 500


def refuse_unknown(request: Request) -> None:
    """Refuse what the router lets through: parameters it does not have, or has twice."""
    if not request.scope["path"].isprintable():  # the router overlooks a newline at the end
        raise NoSuchPath("there is nothing at this address")
    known = _query_names(request.scope["route"].dependant)
    given = [name for name, _ in request.query_params.multi_items()]
    for name in given:
        if name not in known:
            raise UnknownParameter(
                f"unknown query parameter {name[:80]!r}",
                next_step=f"known here: {', '.join(sorted(known)) or 'none'}",
            )
        if given.count(name) > 1:
            raise BadRequest(f"the query parameter {name!r} is given more than once")


def _query_names(dependant: Dependant) -> set[str]:
    names = {field.alias for field in dependant.query_params}
    return names.union(*(_query_names(inner) for inner in dependant.dependencies))


def _ledger(request: Request) -> Ledger:
    ledger: Ledger = request.app.state.ledger
    return ledger


LedgerOfApp = Annotated[Ledger, Depends(_ledger)]


def find_log(ledger: Ledger, run: str) -> Log:
    """Return a log by its run id, `registry` included, or raise LogMissing."""
    try:
        return ledger.find(run)
    except LedgerMissing as error:
        raise LogMissing(error.message, next_step=error.next_step) from error


def _log(
    ledger: LedgerOfApp,
    run: Annotated[str, Path(description="Run id, or `registry`.", examples=["run42"])],
) -> Log:
    return find_log(ledger, run)


LogOfPath = Annotated[Log, Depends(_log)]
LeafIndex = Annotated[
    int, Path(ge=0, le=MAX_INDEX, description="Leaf index, from 0.", examples=[3])
]


def covering(log: Log, leaf_index: int) -> SignedTreeHead:
    """Return the newest signed tree head, which covers the entry.

    Raises:
        EntryMissing: the log has no such entry.
        NotPublished: it has, but no signed tree head covers it yet.
    """
    signed = log.published()
    if signed is not None and leaf_index < signed.head.size:
        return signed
    if leaf_index >= log.size:
        raise EntryMissing(f"{log.origin} has no entry {leaf_index:,}")
    raise NotPublished(
        f"entry {leaf_index:,} is not under a signed tree head yet",
        next_step="ask again after the next tree head was signed",
    )
