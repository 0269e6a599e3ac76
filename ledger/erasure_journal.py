"""The journal of erasures: what is to be destroyed, kept until nothing of it is left.

It lies beside the subjects' secrets, so that a secret and the decision to destroy it change
in one transaction. A row names a subject by its tag until all else is done; what is deleted
last, when the files have been cleansed of that as well, names nobody.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Row, and_, delete, select, update

from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.database import insert_missing, transact

__all__ = ["ErasureJournal", "PendingErasure"]

_KEYS = models.SubjectKeyRow.__table__  # type: ignore[attr-defined]
_ERASURES = models.ErasureRow.__table__  # type: ignore[attr-defined]


@dataclass(frozen=True)
class PendingErasure:
    """An erasure that was asked for.

    Attributes:
        subject: the tag under which the vault files whoever is erased.
        run_id: the only run it is about; empty for all of them and the secret, too.
        basis: why, as the registry log will say.
        limits: log number to the size below which values go; empty until it is decided.
        erasures: the ledger's count that deciding it makes.
    """

    subject: bytes
    run_id: str
    basis: str
    limits: Mapping[int, int] | None = None
    erasures: int = 0


class ErasureJournal:
    """The erasures under way in one database of secrets."""

    def __init__(self, keys: Engine) -> None:
        """Keep it in the database `keys`."""
        self._engine = keys

    def begin(self, item: PendingErasure) -> None:
        """Write down what is to be erased; from here on it will be, whatever happens.

        Asked for again while it is not complete, it is decided anew: there may be a new secret.
        """
        row: dict[str, Any] = {"subject": item.subject, "run_id": item.run_id, "basis": item.basis}
        row |= {"limits": "", "erasures": 0}

        def work(connection: Connection) -> None:
            connection.execute(delete(_ERASURES).where(_is(item)))
            insert_missing(connection, _ERASURES, [row])

        transact(self._engine, work)

    def pending(self) -> list[PendingErasure]:
        """Return all that is not complete."""
        with self._engine.connect() as connection:
            return [_read(row) for row in connection.execute(select(_ERASURES))]

    def again(self, item: PendingErasure) -> PendingErasure | None:
        """Return an erasure as it stands now; None when it is complete."""
        with self._engine.connect() as connection:
            row = connection.execute(select(_ERASURES).where(_is(item))).first()
        return None if row is None else _read(row)

    def decide(
        self, item: PendingErasure, limits: Mapping[int, int], erasures: int
    ) -> PendingErasure:
        """Destroy the subject's secret, unless one run is meant, and say which values go."""
        texts = {str(number): size for number, size in limits.items()}
        values = {"limits": json.dumps(texts), "erasures": erasures}

        def work(connection: Connection) -> None:
            if not item.run_id:
                connection.execute(delete(_KEYS).where(_KEYS.c.subject == item.subject))
            connection.execute(update(_ERASURES).where(_is(item)).values(**values))

        transact(self._engine, work)
        return replace(item, limits=dict(limits), erasures=erasures)

    def forget_whom(self, item: PendingErasure) -> PendingErasure:
        """Put a random name in the place of the tag, once nothing is left but to cleanse."""
        name = secrets.token_bytes(len(item.subject))
        same = _is(item) & (_ERASURES.c.erasures == item.erasures)  # not asked for again since
        change = update(_ERASURES).where(same).values(subject=name, limits="{}")
        transact(self._engine, lambda connection: connection.execute(change))
        return replace(item, subject=name, limits={})

    def end(self, item: PendingErasure) -> None:
        """Forget an erasure that is complete."""
        transact(
            self._engine, lambda connection: connection.execute(delete(_ERASURES).where(_is(item)))
        )


def _is(item: PendingErasure) -> ColumnElement[bool]:
    return and_(_ERASURES.c.subject == item.subject, _ERASURES.c.run_id == item.run_id)


def _read(row: Row[Any]) -> PendingErasure:
    sizes = json.loads(row.limits) if row.limits else None
    limits = None if sizes is None else {int(number): int(size) for number, size in sizes.items()}
    return PendingErasure(bytes(row.subject), row.run_id, row.basis, limits, row.erasures)
