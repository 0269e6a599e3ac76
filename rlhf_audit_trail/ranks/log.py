"""A run's log as the processes see it that do not record: some is forwarded, the rest left.

What a process did by itself, the rows and completions of its own batches, goes to the main
process and gets the rank. What all processes do alike, settings, updates, checkpoints, is
recorded there once, and left out here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Final, NoReturn

from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.progress import Progress
from rlhf_audit_trail.ledger.remote_ledger import NotHere
from rlhf_audit_trail.ledger.writer import Receipt, Ticket
from rlhf_audit_trail.ranks.channel import OWN_KINDS
from rlhf_audit_trail.ranks.link import RankLink

__all__ = ["OnMainProcess", "RankLog", "elsewhere"]

_END: Final = "run.finished"

_logger = logging.getLogger(__name__)


class OnMainProcess(NotHere):
    """This belongs to the process of rank 0, which alone records."""


class RankLog:
    """The log of a run, for a process that does not write it; safe between threads."""

    is_strict = False  # whether it is, the main process knows, and ends the training

    def __init__(self, run_id: str, rank: int) -> None:
        """Forward to the main process of this training."""
        self.run_id, self.rank = run_id, rank
        self.tree_head = f"{run_id}\n0\n"
        # counters begin at 0 here: the main process adds where the run stood
        self.begun = Progress(0, is_closed=False, policy_step=0, batch=0, tree_head=self.tree_head)
        self._link = RankLink(run_id, rank)

    def all_here(self) -> bool:
        """Whether the main process knows of this one, and so waits for its part."""
        return self._link.reaches()

    def record_many(self, events: Iterable[Event]) -> list[Receipt]:
        """Forward what is this process's own; the receipts' indices are known there only."""
        given = list(events)
        own = [event for event in given if event.kind in OWN_KINDS]
        if own:
            said = [
                {"kind": x.kind, "fields": x.fields, "sealed": x.sealed, "subject": x.subject}
                for x in own
            ]
            self._link.tell({"events": said}, len(own))
        for event in given:
            if event.kind == _END:
                self._end(event)
        ticket: Ticket[list[Event]] = Ticket(self.run_id, given)
        ticket.error = elsewhere("the index of an entry")
        ticket.done.set()
        return [Receipt(ticket, position) for position in range(len(given))]

    def record_columns(self, columns: Any) -> NoReturn:
        """Refuse annotations: nobody could tell whether other processes log the same ones."""
        del columns
        raise OnMainProcess(
            f"annotations are logged once, and this is rank {self.rank}",
            next_step="call it where `run.is_main` holds, with the rows of all processes",
        )

    def lose(self, count: int, reason: str) -> None:
        """Have the main process count events that could not be captured here."""
        self._link.tell({"lost": count, "reason": reason}, count)

    def flush(self) -> None:
        """Do nothing: what was handed over is the main process's to make durable."""

    def publish(self) -> None:
        """Do nothing: the main process signs."""

    def entries(self, *_: object, **__: object) -> NoReturn:
        """Refuse to read what is not here."""
        raise elsewhere("a stored entry")

    def _end(self, event: Event) -> None:
        self._link.tell({"end": event.fields["outcome"], "error": event.fields["error"]}, 0)
        if self._link.unsent:
            _logger.warning("%d events of rank %d were lost", self._link.unsent, self.rank)
        self._link.close()


def elsewhere(what: str) -> OnMainProcess:
    """Return the error for what only the main process knows."""
    return OnMainProcess(
        f"{what} is known to the process of rank 0 alone",
        next_step="ask it there: where `run.is_main` holds",
    )
