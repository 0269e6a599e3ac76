"""Rounds of a run, read from its entries: which slots were used for what, and what is still open.

    dp.noise_root   slots are settled; whoever holds their secret cannot change the noise any more
    dp.coin         the public coin came; entries before its `tree_size`, and from where the round
                    before ended, are the ones that this round covers
    dp.spend        everybody whose values a statistic takes was charged; a slot is taken
    dp.release      the statistic with the noise of that slot
    dp.skipped      slots that nothing is drawn from

What the entries say is taken as it stands; `replay` checks it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

__all__ = [
    "DEVELOPMENT_CHAINS",
    "PROTOCOL_KINDS",
    "Coin",
    "Round",
    "Spend",
    "has_integrity",
    "read",
]

PROTOCOL_KINDS: Final = ("dp.noise_root", "dp.coin", "dp.spend", "dp.release", "dp.skipped")
DEVELOPMENT_CHAINS: Final = frozenset({1337, 31337})  # whose blocks their operator makes


class _Entry(Protocol):
    @property
    def leaf_index(self) -> int: ...
    @property
    def event(self) -> dict[str, Any]: ...


class ReadableLog(Protocol):
    """What is needed of a stored log."""

    def entries(
        self, start: int = 0, stop: int | None = None, *, kind: str = ""
    ) -> Iterable[_Entry]:
        """Yield entries of a kind in index order."""


@dataclass(frozen=True)
class Coin:
    """A round's coin.

    Attributes:
        leaf_index: of its entry.
        value: 32 bytes.
        source: auditor, prevrandao or local.
        tree_size: entries before it are covered.
        anchor: what the entry says of the anchor that holds them; empty for `local`.
        block: whose randomness it is, for `prevrandao`.
    """

    leaf_index: int
    value: bytes
    source: str
    tree_size: int
    anchor: Mapping[str, Any]
    block: Mapping[str, Any]


@dataclass
class Spend:
    """A charge, and what became of it.

    Attributes:
        leaf_index: of its entry.
        event: the entry.
        release: the entry of the release, None before it.
        release_index: its place.
        is_skipped: whether its slot was given up.
        given_up: how many slots were before it, when their noise could be known.
    """

    leaf_index: int
    event: Mapping[str, Any] = field(repr=False)
    release: Mapping[str, Any] | None = field(default=None, repr=False)
    release_index: int = -1
    is_skipped: bool = False
    given_up: int = 0

    @property
    def slot(self) -> int:
        """The slot that was taken."""
        return int(self.event["slots"][0])

    @property
    def is_pending(self) -> bool:
        """Whether it was charged, and neither released nor given up."""
        return self.release is None and not self.is_skipped


@dataclass
class Round:
    """One round.

    Attributes:
        number: from 0.
        root_index: of its `dp.noise_root`.
        slots: how many there are.
        root: of the slots, 32 bytes.
        first_index: from where on entries are covered.
        coin: None until it came.
        used: the next slot.
        given_up: how many slots were given up since the coin came.
        spends: in order.
    """

    number: int
    root_index: int
    slots: int
    root: bytes
    first_index: int
    coin: Coin | None = None
    used: int = 0
    given_up: int = 0
    spends: list[Spend] = field(default_factory=list)


@dataclass
class Rounds:
    """All rounds of a run.

    Attributes:
        rounds: oldest first.
        newest: index of the last entry that belongs to any of them; -1 for none.
        mechanisms: leaf index to the `dp.mechanism` entry.
    """

    rounds: list[Round] = field(default_factory=list)
    newest: int = -1
    mechanisms: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def last(self) -> Round | None:
        """The newest round."""
        return self.rounds[-1] if self.rounds else None

    @property
    def covered(self) -> int:
        """Up to where entries were covered by a round that has its coin."""
        return max((x.coin.tree_size for x in self.rounds if x.coin), default=0)

    def pending(self) -> list[tuple[Round, Spend]]:
        """Return what was charged and not released, oldest first."""
        return [(x, spend) for x in self.rounds for spend in x.spends if spend.is_pending]


def read(log: ReadableLog) -> Rounds:
    """Read the rounds of a run that was recorded here."""
    found = Rounds()
    taken = (entry for kind in PROTOCOL_KINDS for entry in log.entries(kind=kind))
    for entry in sorted(taken, key=lambda entry: entry.leaf_index):
        event = entry.event
        _TAKE[event["kind"]](found, entry.leaf_index, event)
        found.newest = entry.leaf_index
    found.mechanisms = {x.leaf_index: x.event for x in log.entries(kind="dp.mechanism")}
    return found


def has_integrity(coin: Coin) -> bool:
    """Tell whether the operator could not know the coin before the values were settled.

    A coin of his own, and anything on a chain whose blocks he makes, proves nothing.
    """
    return coin.source != "local" and coin.anchor.get("chain_id") not in DEVELOPMENT_CHAINS


def _root(found: Rounds, index: int, event: dict[str, Any]) -> None:
    number, root = len(found.rounds), bytes.fromhex(event["root"])
    found.rounds.append(Round(number, index, int(event["slots"]), root, found.covered))


def _coin(found: Rounds, index: int, event: dict[str, Any]) -> None:
    coin = Coin(
        index,
        bytes.fromhex(event["value"]),
        event["source"],
        int(event["tree_size"]),
        event.get("anchor", {}),
        event.get("block", {}),
    )
    found.rounds[event["round"]].coin = coin


def _spend(found: Rounds, index: int, event: dict[str, Any]) -> None:
    into = found.rounds[event["round"]]
    into.spends.append(Spend(index, event, given_up=into.given_up))
    into.used = max(into.used, *(slot + 1 for slot in event["slots"]))


def _release(found: Rounds, index: int, event: dict[str, Any]) -> None:
    for spend in found.rounds[event["round"]].spends:
        if spend.leaf_index == event["spend_ref"]:
            spend.release, spend.release_index = event, index


def _skipped(found: Rounds, _index: int, event: dict[str, Any]) -> None:
    into = found.rounds[event["round"]]
    into.used = max(into.used, event["slot"] + event["count"])
    into.given_up += event["count"] if into.coin is not None else 0
    for spend in into.spends:
        if spend.leaf_index == event.get("spend_ref"):
            spend.is_skipped = True


_TAKE: Final[Mapping[str, Callable[[Rounds, int, dict[str, Any]], None]]] = {
    "dp.noise_root": _root,
    "dp.coin": _coin,
    "dp.spend": _spend,
    "dp.release": _release,
    "dp.skipped": _skipped,
}
