"""The steps of a round, each an entry of the run's log: slots, coin, what is given up.

Whoever takes a step first finishes what was charged for and not released, and tries again where
another process took one meanwhile.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final, TypeVar

from rlhf_audit_trail.ledger.budget_entries import CHARGING_KINDS
from rlhf_audit_trail.ledger.budgets import Budgets, Terms
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Log
from rlhf_audit_trail.ledger.noise_secrets import own_subject
from rlhf_audit_trail.ledger.refusals import LogMoved
from rlhf_audit_trail.ledger.settings import ChainSettings
from rlhf_audit_trail.privacy import rounds
from rlhf_audit_trail.privacy.choosing import budget_for
from rlhf_audit_trail.privacy.coins import choose_coin
from rlhf_audit_trail.privacy.config import PrivacyConfig
from rlhf_audit_trail.privacy.errors import ConflictingParameters, NoiseProtocolError
from rlhf_audit_trail.privacy.guarantee import Guarantee
from rlhf_audit_trail.privacy.reserving import has_charged, reserved_by, reserved_fields
from rlhf_audit_trail.privacy.rounds import PROTOCOL_KINDS, Coin, Round, Rounds, Spend
from rlhf_audit_trail.privacy.slots import NoiseSlots

__all__ = ["RunRounds"]

_ATTEMPTS: Final = 10  # each lost to another process that did its part of the protocol

_Found = TypeVar("_Found")


class RunRounds(ABC):
    """Rounds of one run, each step of which is an entry; safe to share between threads."""

    def __init__(
        self, log: Log, config: PrivacyConfig, budgets: Budgets, chain: ChainSettings
    ) -> None:
        """Release from `log`; the budgets are those of its ledger."""
        self._log, self._config = log, config
        self._budgets, self._chain = budgets, chain
        self._lock = threading.RLock()

    # --- rounds -------------------------------------------------------------------------

    def open_round(self, *, slots: int = 64) -> Round:
        """Settle the noise of a new round, before anybody can know its coin.

        A round that has no coin yet is returned as it is. Slots that the round before left over
        are given up.

        Raises:
            InvalidParameter: the number of slots is out of range.
            NoiseProtocolError: the mode minimal draws no noise; or a charge of the round before
                is not released yet.
        """
        self._require_rounds()

        def attempt(known: Rounds) -> Round:
            last = known.last
            if last is not None and last.coin is None:
                return last
            made = NoiseSlots.draw(slots)
            number = 0 if last is None else last.number + 1
            fields = {"round": number, "slots": slots, "root": made.root.hex()}
            secret = {"secret": made.secret.hex()}
            events = [Event("dp.noise_root", fields, secret, own_subject())]
            if last is not None and last.used < last.slots:
                events.insert(0, _skipped(last, last.slots - last.used, "left over"))
            index = self._log.record_on(Terms(PROTOCOL_KINDS, known.newest), events)[-1]
            return Round(number, index, slots, made.root, known.covered)

        return self._attempted(attempt)

    def coin(self, *, value: bytes | str | None = None, source: str | None = None) -> Coin:
        """Take the coin of the open round; what is covered by it is settled with that.

        Args:
            value: of an auditor, 32 bytes or their hex digits.
            source: auditor, prevrandao or local; by default the `beacon` of the settings.

        Raises:
            NoiseProtocolError: there is no round that waits for a coin.
            EarlyCoin, InvalidParameter, ChainError: as `choose_coin`; nothing was recorded.
        """
        self._require_rounds()
        chosen_source = self._config.beacon if source is None else source

        def attempt(known: Rounds) -> Coin:
            last = known.last
            if last is None or last.coin is not None:
                raise NoiseProtocolError(
                    "no round waits for a coin", next_step="call open_round first"
                )
            chosen = choose_coin(
                self._log, last.root_index, source=chosen_source, value=value, chain=self._chain
            )
            fields: dict[str, Any] = {"round": last.number, "noise_root": last.root_index}
            fields |= {"tree_size": chosen.tree_size, "source": chosen.source}
            fields |= {"value": chosen.value.hex()}
            for name in ("anchor", "block"):
                if said := getattr(chosen, name):
                    fields[name] = dict(said)
            terms = Terms(PROTOCOL_KINDS, known.newest)
            (index,) = self._log.record_on(terms, [Event("dp.coin", fields)])
            return Coin(
                index, chosen.value, chosen.source, chosen.tree_size, chosen.anchor, chosen.block
            )

        return self._attempted(attempt)

    def skip(self, reason: str, *, count: int = 1) -> range:
        """Give up the next slots of the open round, and say why; return them.

        Raises:
            NoiseProtocolError: there is no round, or not as many slots.
        """
        self._require_rounds()

        def attempt(known: Rounds) -> range:
            last = known.last
            if last is None or not 1 <= count <= last.slots - last.used:
                raise NoiseProtocolError("this round has not so many slots left")
            event = _skipped(last, count, reason)
            self._log.record_on(Terms(PROTOCOL_KINDS, known.newest), [event])
            return range(last.used, last.used + count)

        return self._attempted(attempt)

    def reserve(self, share: Guarantee) -> None:
        """Set aside what the run's model will spend of every annotator's budget.

        Args:
            share: of one annotator, under the relation replace, such as a plan's final statement.

        Raises:
            ConflictingParameters: somebody was charged already, or another share is set aside.
            InvalidEpsilon, InvalidDelta: nothing would be left for releases.
            UnsafeAccounting: the share is of another unit or relation.
        """
        self._require_noise()
        with self._lock:
            self._log.flush()
            known = reserved_by(self._log)
            if known == share:
                return
            refusal = ConflictingParameters(
                "what a model spends is set aside once, before the first charge",
                next_step="reserve it when the run begins",
            )
            if known is not None or has_charged(self._log):
                raise refusal
            budget_for(self._config, reserved=share)
            try:
                self._log.record_on(
                    Terms(CHARGING_KINDS, -1), [Event("run.config", reserved_fields(share))]
                )
            except LogMoved:
                raise refusal from None

    def _require_noise(self) -> None:
        if self._config.total_epsilon is None:
            raise NoiseProtocolError(
                "the mode minimal draws no noise, so it has no rounds",
                next_step="call release_mean at once, or choose moderate",
            )

    def _require_aggregates(self) -> None:
        if self._config.annotator_privacy_mode == "strong":
            raise NoiseProtocolError(
                "under the mode strong each value has its noise already, and there is no raw one",
                next_step="add up `estimates` of what log_annotations returns: it costs nothing",
            )

    def _require_rounds(self) -> None:
        self._require_noise()
        self._require_aggregates()

    @abstractmethod
    def _finish(self, last: Round, spend: Spend, *, newest: int) -> object:
        """Draw what was charged for, and publish it."""

    def _attempted(self, attempt: Callable[[Rounds], _Found]) -> _Found:
        """Finish what was charged for, then do one step; again where another process was first."""
        with self._lock:
            self._log.flush()
            for number in range(_ATTEMPTS):
                try:
                    known = rounds.read(self._log)
                    for into, spend in known.pending():
                        self._finish(into, spend, newest=known.newest)
                        known = rounds.read(self._log)
                    return attempt(known)
                except LogMoved:
                    if number == _ATTEMPTS - 1:
                        raise
            raise AssertionError  # the loop returns or raises


def _skipped(last: Round, count: int, reason: str) -> Event:
    fields = {"round": last.number, "slot": last.used, "count": count, "reason": reason}
    return Event("dp.skipped", fields)
