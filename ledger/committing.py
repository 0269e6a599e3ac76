"""Committing: what the writer's threads do with the batches of all logs of a ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sqlalchemy import Connection, Engine

from rlhf_audit_trail.ledger.appending import Log
from rlhf_audit_trail.ledger.batches import Batch
from rlhf_audit_trail.ledger.budgets import hold_budgets
from rlhf_audit_trail.ledger.store.database import renew, transact
from rlhf_audit_trail.ledger.writer import Ticket, Writer

__all__ = ["Committer"]


class Committer:
    """Prepares and commits batches, whichever of the ledger's open logs they are for."""

    def __init__(self, engine: Engine, logs: Mapping[str, Log]) -> None:
        """Commit to the database of these logs, by run id; others may join them later."""
        self._engine = engine
        self._logs = logs

    def make_writer(self, started: Callable[[], None]) -> Writer[Batch]:
        """Return a writer for the logs; `started` is called before its first ticket."""
        return Writer(
            self._commit,
            self._lost,
            prepare=lambda ticket: self._logs[ticket.log].encode([ticket]),
            is_light=lambda batch: batch.is_light,
            started=started,
        )

    def _commit(self, tickets: Sequence[Ticket[Batch]], retry: bool) -> None:  # noqa: FBT001 - the writer's callback
        """Make a group durable: indices, tree and rows in one transaction."""
        by_log: dict[str, list[Ticket[Batch]]] = {}
        for ticket in tickets:
            by_log.setdefault(ticket.log, []).append(ticket)
        # always in the same order: two processes must not each wait for the other's next log
        logs = sorted((self._logs[run_id] for run_id in by_log), key=lambda log: log.number)
        for log in logs:
            log.encode(by_log[log.run_id])
        terms = [ticket.items.terms for ticket in tickets if ticket.items.terms]
        if retry:  # a failed commit leaves a connection in doubt: look through new ones
            renew(self._engine)

        def work(connection: Connection) -> None:
            nonlocal retry
            is_again, retry = retry, True
            if any(x.charge for x in terms):  # first of all locks, in every process
                hold_budgets(connection)
            for log in logs:
                if is_again:
                    log.forget_tree()
                log.assign(connection, by_log[log.run_id], retry=is_again)

        try:
            transact(self._engine, work)
        except BaseException:
            for log in logs:
                log.forget_tree()
            raise

    def _lost(self, tickets: Sequence[Ticket[Batch]]) -> None:
        for ticket in tickets:
            self._logs[ticket.log].note_loss(ticket)
