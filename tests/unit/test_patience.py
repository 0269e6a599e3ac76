"""Patient tickets: kept together until one has waited long enough, or anybody is in a hurry."""

from __future__ import annotations

import threading

import pytest

from rlhf_audit_trail.ledger import writer
from rlhf_audit_trail.ledger.writer import Receipt, Ticket, Writer

LONG_S = 300.0


class Store:
    """Remembers which tickets were committed together."""

    def __init__(self, *, is_light: bool) -> None:
        self.groups: list[list[str]] = []
        self.changed = threading.Condition()
        self.prepared: list[str] = []
        self.writer: Writer[list[str]] = Writer(
            self._commit, lambda _: None, prepare=self._prepare, is_light=lambda _: is_light
        )

    def _prepare(self, ticket: Ticket[list[str]]) -> None:
        self.prepared += ticket.items

    def _commit(self, tickets, _retry):
        with self.changed:
            begin = sum(map(len, self.groups))
            for ticket in tickets:
                ticket.indices = range(begin, begin + ticket.count)
                begin += ticket.count
            self.groups.append([item for ticket in tickets for item in ticket.items])
            self.changed.notify_all()

    def hand_over(self, *items: str, patience_s: float = 0.0) -> Receipt:
        ticket = Ticket("run", list(items), patience_s)
        self.writer.submit(ticket)
        return Receipt(ticket, len(items) - 1)

    def all(self) -> list[str]:
        return [item for group in self.groups for item in group]


@pytest.fixture(params=[True, False], ids=["light", "heavy"])
def store(request):
    made = Store(is_light=request.param)
    yield made
    made.writer.close()


def test_they_are_committed_together_when_the_first_has_waited_long_enough(store):
    for name in "abc":
        store.hand_over(name, patience_s=0.2)
    assert store.groups == []
    with store.changed:
        assert store.changed.wait_for(lambda: len(store.all()) == 3, 30)
    assert store.all() == ["a", "b", "c"]


def test_who_asks_a_receipt_is_not_kept_waiting_and_takes_the_others_along(store):
    first = store.hand_over("a", patience_s=LONG_S)
    second = store.hand_over("b", patience_s=LONG_S)
    assert first.result(timeout_s=None) == 0
    assert second.result() == 1


def test_what_is_not_patient_follows_those_before_it(store):
    for name in "abc":
        store.hand_over(name, patience_s=LONG_S)
    assert store.hand_over("d").result() == 3
    assert store.all() == ["a", "b", "c", "d"]


def test_flush_and_close_end_the_waiting(store):
    store.hand_over("a", patience_s=LONG_S)
    store.writer.flush()
    assert store.all() == ["a"]
    store.hand_over("b", patience_s=LONG_S)
    store.writer.close()
    assert store.all() == ["a", "b"]


def test_many_do_not_wait_for_more(store):
    count = writer.PATIENT_ENTRIES_MAX
    for number in range(count):
        last = store.hand_over(str(number), patience_s=LONG_S)
    assert last.ticket.done.wait(30)
    assert store.all() == [str(number) for number in range(count)]


def test_a_full_queue_ends_the_waiting(store, monkeypatch):
    monkeypatch.setattr(writer, "QUEUE_ENTRIES_MAX", 3)
    for number in range(9):
        store.hand_over(str(number), patience_s=LONG_S)
    store.writer.flush()
    assert store.all() == [str(number) for number in range(9)]


def test_a_second_round_waits_again(store):
    store.hand_over("a", patience_s=LONG_S).result()
    store.hand_over("b", patience_s=LONG_S)
    assert not threading.Event().wait(0.05)
    assert store.all() == ["a"]
