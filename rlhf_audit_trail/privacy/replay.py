"""Replay: what every participant spent, and whether the protocol was kept, from entries alone.

Nothing that an entry says of another is believed. Mechanisms and statistics are made again from
their parameters, costs from the mechanisms, ranges from the coins, and sums from the opened lists
of participants; they are whole numbers, so that any two auditors get the same bits. A list that
is not opened leaves sums out, and everything else is checked still.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from rlhf_audit_trail.ledger.reading import AnchorView, StoredLog
from rlhf_audit_trail.ledger.stored_entry import SealedEntry
from rlhf_audit_trail.privacy.aggregates import Histogram, MeanSum
from rlhf_audit_trail.privacy.charging import budget_of, public_budget, public_cost
from rlhf_audit_trail.privacy.coins import COIN_DELAY_BLOCKS, SOURCES
from rlhf_audit_trail.privacy.covered_values import Of
from rlhf_audit_trail.privacy.errors import (
    EarlyCoin,
    NoiseProtocolError,
    PrivacyError,
    ReleaseDiffers,
    ReleaseWithoutSpend,
    SlotReused,
    SlotSkipped,
    SpendDiffers,
    TamperedParameters,
)
from rlhf_audit_trail.privacy.estimates import derived, mechanism_fields
from rlhf_audit_trail.privacy.label_replay import LABEL_KINDS, Labelled, LabelReplay, Opened, whole
from rlhf_audit_trail.privacy.labels import PRIVATISED_KIND
from rlhf_audit_trail.privacy.mechanisms import Mechanism
from rlhf_audit_trail.privacy.redraw import CoinOrder, check_coin
from rlhf_audit_trail.privacy.replay_findings import Difference, Replay
from rlhf_audit_trail.privacy.replay_state import ReplayedRound, ReplayedSpend
from rlhf_audit_trail.privacy.stated import check_sensitivity, mechanism_of, statistic_of

__all__ = ["DP_KINDS", "Difference", "Replay", "replay", "replay_log"]

DP_KINDS: Final = (
    "dp.mechanism", "dp.noise_root", "dp.coin", "dp.spend", "dp.participants", "dp.release",
    "dp.skipped", *LABEL_KINDS,
)  # fmt: skip
_FINAL: Final = "finalized"
_People = Callable[[int, int], list[str | None]]


def replay_log(log: StoredLog) -> Replay:
    """Replay a run of an open ledger, with the lists that its vault opens, and its anchors."""
    entries: list[tuple[int, dict[str, Any]]] = []
    opened: dict[int, SealedEntry] = {}
    size = log.size
    for kind in DP_KINDS:
        if kind == PRIVATISED_KIND:  # what it seals is not needed, and there is one for each label
            found = log.entries(0, size, kind=kind)
            entries += [(x.leaf_index, x.event) for x in found]
            continue
        for item in log.sealed_entries(0, size, kind=kind):
            entries.append((item.leaf_index, item.event))
            opened[item.leaf_index] = item
    annotated, recorded = [], []
    for entry in log.entries(0, size, kind="annotation.recorded"):
        recorded.append(entry.leaf_index)
        if "reward" in entry.event.get("c", {}):
            annotated.append(entry.leaf_index)
    return replay(
        sorted(entries, key=lambda item: item[0]),
        opened=lambda index: opened[index].values,
        annotated=annotated,
        labelled=Labelled(recorded, lambda first, end: _annotators(log, first, end)),
        anchors=log.anchors(),
        people=lambda first, end: _people(log, first, end),
    )


def _people(log: StoredLog, first: int, end: int) -> list[str | None]:
    found = log.sealed_entries(first, end, kind="annotation.recorded")
    valued = (x for x in found if {"reward", "annotator"} <= x.event.get("c", {}).keys())
    return [None if x.values is None else str(x.values["annotator"]) for x in valued]


def _annotators(log: StoredLog, first: int, end: int) -> list[str | None]:
    found = log.sealed_entries(first, end, kind="annotation.recorded")
    return [None if x.values is None else x.values.get("annotator") for x in found]


def replay(
    entries: Iterable[tuple[int, Mapping[str, Any]]],
    *,
    opened: Opened = lambda _: None,
    annotated: Sequence[int] | None = None,
    labelled: Labelled | None = None,
    anchors: Iterable[AnchorView] | None = None,
    people: _People | None = None,
) -> Replay:
    """Recompute what a run's entries say of privacy.

    Args:
        entries: leaf index and record of those of `DP_KINDS`, growing.
        opened: leaf index to the sealed values of that entry; None where they are not opened.
        annotated: growing indices of annotations with a reward, to compare what charges cover.
        labelled: annotations, to compare whose labels were charged.
        anchors: of the run, to compare what coins say; None believes the entries.
        people: first index and end to whose rewards are between them, None for one that is not
            opened; to compare who was charged.
    """
    known = None if anchors is None else list(anchors)
    work = _Replaying(opened, annotated, labelled, known, people)
    for index, event in entries:
        work.take(index, event)
    return work.finish()


class _Replaying:
    """One replay under way."""

    def __init__(
        self,
        opened: Opened,
        annotated: Sequence[int] | None,
        labelled: Labelled | None,
        anchors: list[AnchorView] | None,
        people: _People | None,
    ) -> None:
        self.found = Replay()
        self._opened, self._annotated, self._anchors = opened, annotated, anchors
        self._people, self._there = people, dict[tuple[int, int], list[str | None]]()
        self._mechanisms: dict[int, Mechanism | None] = {}
        self._rounds: list[ReplayedRound] = []
        self._spends: dict[int, ReplayedSpend] = {}
        self._last: ReplayedSpend | None = None  # whose further lists may come
        self._covered = 0
        self._take: dict[str, Callable[[int, Mapping[str, Any]], None]] = {
            "dp.mechanism": self._mechanism,
            "dp.noise_root": self._noise_root,
            "dp.coin": self._coin,
            "dp.spend": self._spend,
            "dp.participants": self._more,
            "dp.release": self._release,
            "dp.skipped": self._skipped,
            **LabelReplay(self.found, self._mechanisms, opened, labelled).takes(),
        }

    def take(self, index: int, event: Mapping[str, Any]) -> None:
        """Take one entry; what is wrong with it is noted, and the rest goes on."""
        try:
            if event.get("kind") != "dp.participants":
                self._add_last()
            self._take[str(event.get("kind"))](index, event)
        except PrivacyError as error:
            self._differ(index, error)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            # the cause may quote a value
            self._differ(index, NoiseProtocolError("the entry does not say what its kind must"))

    def finish(self) -> Replay:
        """Return what was found; the last round may still be open."""
        self._add_last()
        spends = self._spends.values()
        self.found.pending = sum(x.released_at < 0 and x.skipped_at < 0 for x in spends)
        return self.found

    def _differ(self, index: int, error: PrivacyError) -> None:
        self.found.differ(index, error)

    def _mechanism(self, index: int, event: Mapping[str, Any]) -> None:
        self._mechanisms[index] = None  # named, and not believed
        self._mechanisms[index] = mechanism_of(mechanism_fields(event))

    def _noise_root(self, index: int, event: Mapping[str, Any]) -> None:
        if self._rounds:
            last = self._rounds[-1]
            if last.next_slot < last.slots:
                self._differ(index, _passed_over())
                last.next_slot = last.slots
        made = ReplayedRound(len(self._rounds), index, whole(event["slots"]), self._covered)
        self._rounds.append(made)
        if event["round"] != made.number or len(bytes.fromhex(event["root"])) != 32:  # noqa: PLR2004 - SHA-256
            raise NoiseProtocolError("a round has another number than follows from the entries")

    def _coin(self, index: int, event: Mapping[str, Any]) -> None:
        into = self._round(event)
        size, anchor = whole(event["tree_size"]), event.get("anchor") or {}
        if into.coin_index >= 0 or event["noise_root"] != into.index:
            raise NoiseProtocolError("a round has two coins, or one that is for other slots")
        into.coin_index, into.tree_size = index, size
        self._covered = max(self._covered, size)
        if size < into.first_index or event["source"] not in SOURCES:
            raise NoiseProtocolError("a coin covers less than the one before, or is of no source")
        if len(bytes.fromhex(event["value"])) != 32:  # noqa: PLR2004 - SHA-256
            raise NoiseProtocolError("a coin is 32 bytes")
        after, block = None, None
        if event["source"] != "local":
            if not anchor:
                raise _early()
            self._compare_anchor(size, anchor)
        if event["source"] == "prevrandao":
            after, block = int(anchor["block_number"]), int(event["block"]["number"])
            self._compare_first(into.index, anchor)
        committed = [into.index]
        check_coin(CoinOrder(committed, size, index, after, block))
        if block is not None and after is not None and block != after + COIN_DELAY_BLOCKS:
            raise NoiseProtocolError("a coin is of another block than the one that was settled")

    def _compare_anchor(self, size: int, said: Mapping[str, Any]) -> None:
        for anchor in self._anchors or ():
            known = (anchor.tree_size, anchor.tx_hash.hex(), anchor.block_number, anchor.chain_id)
            told = (size, said.get("tx_hash"), said.get("block_number"), said.get("chain_id"))
            if anchor.state == _FINAL and known == told:
                return
        if self._anchors is not None:
            raise _early()

    def _compare_first(self, root_index: int, said: Mapping[str, Any]) -> None:
        """Were any anchor allowed, the operator would choose among as many coins."""
        for anchor in self._anchors or ():
            is_same = (anchor.chain_id, anchor.contract) == (said["chain_id"], said["contract"])
            if not is_same or anchor.state != _FINAL or anchor.tree_size <= root_index:
                continue
            if (anchor.block_number or 0) < int(said["block_number"]):
                raise NoiseProtocolError("a coin is of a later anchor than the first of its slots")

    def _spend(self, index: int, event: Mapping[str, Any]) -> None:
        into = self._round(event)
        slots = [whole(slot, least=0) for slot in event["slots"]]
        self._use(index, into, slots[0], len(slots))
        if slots != list(range(slots[0], slots[0] + len(slots))):
            raise _passed_over()
        if into.coin_index < 0 or event["coin_ref"] != into.coin_index:
            raise _early()
        statistic, of = statistic_of(event["statistic"]), Of.said(event["of"])
        mechanism = self._mechanisms.get(event["mechanism_ref"])
        if mechanism is None:
            raise TamperedParameters("a charge names no mechanism that is as it must be")
        check_sensitivity(mechanism, statistic)
        budget = budget_of(event["budget"])
        spend = ReplayedSpend(
            index, slots, into.coin_index, whole(event["participants"]), whole(event["parts"]),
            statistic, mechanism, budget, mechanism.cost, (into.first_index, into.tree_size),
            whole(event["left_out"].get("exhausted_annotators", 0), least=0),
        )  # fmt: skip
        into.spends[index] = self._spends[index] = self._last = spend
        self.found.charges.append((mechanism.cost, spend.participants))
        self.found.budgets.append(budget)
        self._list(index)
        if any(event[name] != value for name, value in public_cost(mechanism.cost).items()):
            raise SpendDiffers("a charge is not what its mechanism costs")
        if dict(event["budget"]) != public_budget(budget):
            raise SpendDiffers("the caps of a budget do not follow from its epsilon and delta")
        self._compare_range(event, into, of, statistic)

    def _compare_range(
        self, event: Mapping[str, Any], into: ReplayedRound, of: Of, statistic: MeanSum | Histogram
    ) -> None:
        if (event["first_index"], event["end_index"]) != (into.first_index, into.tree_size):
            raise SpendDiffers("a charge covers other entries than its round does")
        if isinstance(statistic, Histogram) and (
            statistic.contributions != of.contributions or statistic.cells != len(of.edges) + 1
        ):
            raise SpendDiffers("a charge's statistic is made of something else than it says")
        if self._annotated is not None:
            ends = (into.tree_size, into.first_index)
            inside, before = (bisect_left(self._annotated, end) for end in ends)
            if event["entries"] != inside - before:
                raise SpendDiffers("a charge counts other annotations than its range has")

    def _list(self, index: int) -> None:
        """Take the list of one entry of the last charge."""
        spend, values = self._last, self._opened(index)
        if spend is None or spend.names is None:
            return
        if values is None:
            spend.names = None
        else:
            spend.names += [str(name) for name in values["participants"]]

    def _more(self, index: int, event: Mapping[str, Any]) -> None:
        spend = self._last
        if spend is None or index != spend.index + event["part"] or event["part"] >= spend.parts:
            raise SpendDiffers("a list of participants belongs to no charge")
        self._list(index)

    def _add_last(self) -> None:
        """Charge the participants of the last spend, whose lists are complete."""
        spend, self._last = self._last, None
        if spend is None:
            return
        if spend.names is None:
            self.found.unopened += 1
            return
        if not len(set(spend.names)) == len(spend.names) == spend.participants:
            self._differ(spend.index, SpendDiffers("a charge's list has other participants"))
        self._compare_people(spend, set(spend.names))
        self.found.charge(spend.names, spend.budget, spend.cost, spend.index)

    def _compare_people(self, spend: ReplayedSpend, charged: set[str]) -> None:
        """Compare who was charged with who has a value in the range."""
        if self._people is None:
            return
        if spend.range not in self._there:
            self._there[spend.range] = self._people(*spend.range)
        found = self._there[spend.range]
        there = {name for name in found if name is not None}
        if len(there - charged) > spend.exhausted:
            self._differ(spend.index, SpendDiffers("a charge leaves out people it has values of"))
        if len(charged - there) > found.count(None):  # those may be the others
            self._differ(spend.index, SpendDiffers("a charge has people of whom it has no value"))

    def _release(self, index: int, event: Mapping[str, Any]) -> None:
        into = self._round(event)
        spend = into.spends.get(event["spend_ref"])
        self.found.releases += 1
        if spend is None or spend.skipped_at >= 0:
            raise ReleaseWithoutSpend(
                "a statistic was released that nobody was charged for",
                next_step="count everybody's guarantee as lost",
            )
        if spend.released_at >= 0:
            raise SlotReused("a charge was released twice")
        spend.released_at = index
        if (event["slots"], event["coin_ref"]) != (spend.slots, spend.coin_index):
            raise ReleaseWithoutSpend("a release was drawn from other slots than were charged for")
        value = [int(x) for x in event["value"]]
        cells = spend.statistic.cells if isinstance(spend.statistic, Histogram) else 1
        said = derived(spend.statistic, spend.mechanism, value, spend.participants)
        if len(value) != cells or any(event[name] != x for name, x in said.items()):
            raise ReleaseDiffers("an estimate does not follow from the value that was released")

    def _skipped(self, index: int, event: Mapping[str, Any]) -> None:
        into = self._round(event)
        spend = into.spends.get(event.get("spend_ref", -1))
        if spend is not None:
            if spend.released_at >= 0 or spend.skipped_at >= 0:
                raise SlotReused("a slot was given up after it was used")
            spend.skipped_at = index
            if ([event["slot"]], event["count"]) != (spend.slots, 1):
                raise SlotReused("a slot was given up that is not the one that was charged for")
            return
        first = whole(event["slot"], least=0)
        self._use(index, into, first, whole(event["count"]))

    def _use(self, index: int, into: ReplayedRound, first: int, count: int) -> None:
        """Take slots, which follow the ones before them without a hole."""
        if first < into.next_slot:
            self._differ(index, SlotReused("a noise slot was used twice"))
        elif first > into.next_slot or first + count > into.slots:
            self._differ(index, _passed_over())
        into.next_slot = max(into.next_slot, min(first + count, into.slots))

    def _round(self, event: Mapping[str, Any]) -> ReplayedRound:
        number = whole(event["round"], least=0)
        if number >= len(self._rounds):
            raise NoiseProtocolError("an entry belongs to no round")
        return self._rounds[number]


def _passed_over() -> SlotSkipped:
    return SlotSkipped(
        "a noise slot was passed over without an entry",
        next_step="treat the round's noise as chosen by the operator",
    )


def _early() -> EarlyCoin:
    return EarlyCoin(
        "a coin was there before the slots and values that it is for were anchored",
        next_step="treat the round's noise as chosen by the operator",
    )
