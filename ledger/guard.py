"""The rollback guard: before a store is written to, ask those who remember how far it had grown.

An old backup put in place is consistent in itself: every signature in it verifies. Only
others can tell that there was more: witnesses, the contract, a published copy. Appending to
such a store would make a second history, so a log that a peer knows to be longer, or other,
takes no entries and signs nothing until it has been repaired. Reading goes on.

A peer's word alone stops nobody. It must show a tree head that this log signed, or one that
stands in the contract under our own publisher's address.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from rlhf_audit_trail.ledger.alarm import AlarmFiles, PeerHead
from rlhf_audit_trail.ledger.contradictions import (
    WAY_OUT_OF_FORK,
    WAY_OUT_OF_ROLLBACK,
    WAY_OUT_OF_THEFT,
    Forked,
    RolledBack,
)
from rlhf_audit_trail.ledger.cosignature import open_cosigned_head
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError, BadSignature, MalformedBundle
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.reading import StoredLog
from rlhf_audit_trail.ledger.settings import REFUSE

__all__ = [
    "Answer",
    "Comparison",
    "Guard",
    "Peer",
    "PeerHead",
    "PeerSilent",
    "PeersUnreachable",
    "State",
    "judge",
    "open_own_head",
]

_logger = logging.getLogger(__name__)

TIMEOUT_S: Final = 5.0
QUESTIONS_MAX: Final = 8  # to one peer at a time; a peer that hangs must not gather threads


class PeersUnreachable(AuditTrailError):
    """Nobody who could know of a larger tree gave a usable answer; nothing is published."""


class PeerSilent(AuditTrailError):
    """A peer gave no answer in time, or none that proves anything."""


class Peer(Protocol):
    """Somebody who remembers tree heads of our logs."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def newest(self, log: StoredLog, *, timeout_s: float) -> PeerHead | None:
        """Return the largest tree head of this log that the peer can prove; None for none.

        Raises:
            AuditTrailError: there is no answer, or what it shows is not proven to be ours.
        """


class State(StrEnum):
    """What one peer's answer comes to."""

    AGREES = "agrees"
    NOTHING = "holds nothing"
    CONTRADICTS = "contradicts"
    SILENT = "silent"


@dataclass(frozen=True)
class Answer:
    """One peer's answer, judged; `finding` says why it is silent or what it contradicts."""

    peer: str
    state: State
    head: PeerHead | None = None
    finding: AuditTrailError | None = None


@dataclass(frozen=True)
class Comparison:
    """A log compared with all of its peers."""

    answers: tuple[Answer, ...] = ()

    @property
    def contradiction(self) -> Answer | None:
        """The gravest contradiction: another history before a longer one, then the longest."""
        found = [item for item in self.answers if item.state is State.CONTRADICTS]
        return max(found, key=_gravity, default=None)

    @property
    def is_unheard(self) -> bool:
        """Whether there are peers, and not one of them gave a usable answer."""
        return bool(self.answers) and all(x.state is State.SILENT for x in self.answers)


def _gravity(answer: Answer) -> tuple[bool, int]:
    return isinstance(answer.finding, Forked), answer.head.size if answer.head else 0


class Guard:
    """Compares logs with peers; safe to share between threads.

    What contradicted a log is remembered until the log contains it: a peer that is down
    today does not make yesterday's finding untrue.
    """

    def __init__(
        self,
        peers: Sequence[Peer] = (),
        *,
        timeout_s: float = TIMEOUT_S,
        when_unreachable: str = REFUSE,
        alarms: AlarmFiles | None = None,
        publisher: str = "",
    ) -> None:
        """Remember whom to ask; nobody is asked yet.

        Args:
            peers: who is asked, all at the same time.
            timeout_s: how long they may take together.
            when_unreachable: see `GuardSettings`.
            alarms: where contradictions are kept across starts.
            publisher: the only address under which anchors count, if the operator names one:
                a key may be stolen, and what its thief anchored then stops nothing any more.
        """
        self.peers = tuple(peers)
        self.timeout_s = timeout_s
        self._when_unreachable = when_unreachable
        self._alarms = alarms
        self._publisher = publisher.lower()
        self._kept: dict[str, PeerHead] = {}  # by origin, where there are no files
        self._slots = [threading.BoundedSemaphore(QUESTIONS_MAX) for _ in self.peers]

    def asking(self, peers: Sequence[Peer]) -> Guard:
        """Return a guard of the same settings that asks these peers."""
        return Guard(
            peers,
            timeout_s=self.timeout_s,
            when_unreachable=self._when_unreachable,
            alarms=self._alarms,
            publisher=self._publisher,
        )

    def compare(self, log: StoredLog) -> Comparison:
        """Ask every peer about a log and judge the answers; takes about `timeout_s` at most.

        Raises:
            AlarmUnreadable: something contradicted this log, and nobody can tell what.
        """
        earlier = self._recalled(log)
        said = zip(self.peers, self._ask(log), strict=True)
        answers = [_judged(log, peer.name, answer) for peer, answer in said]
        if earlier is not None:
            recalled = _judged(log, earlier.peer, earlier)
            answers += [recalled] if recalled.state is State.CONTRADICTS else []
        found = Comparison(tuple(answers))
        if found.contradiction is not None:
            self._keep(log, found.contradiction)
        elif earlier is not None:
            self._forget(log)
        return found

    def heed(self, log: StoredLog, head: PeerHead) -> Comparison:
        """Judge a tree head that came in by another way, such as a witness's reply."""
        found = Comparison((_judged(log, head.peer, head),))
        if found.contradiction is not None:
            self._keep(log, found.contradiction)
        return found

    def require_heard(self, log: StoredLog, found: Comparison) -> None:
        """Refuse to publish what nobody could be asked about, unless the settings allow it.

        Raises:
            PeersUnreachable: every peer is silent.
        """
        if not found.is_unheard or self._when_unreachable != REFUSE:
            return
        reasons = "; ".join(f"{x.peer}: {x.finding.message}" for x in found.answers if x.finding)
        raise PeersUnreachable(
            f"{log.origin} is not published: nobody could be asked whether it is the newest copy "
            f"({reasons})",
            next_step="entries are kept; publish again once one of them answers, or set "
            'when_unreachable = "publish" below [guard] in rlhf-audit.toml',
        )

    # --- asking -----------------------------------------------------------------------

    def _ask(self, log: StoredLog) -> list[PeerHead | AuditTrailError | None]:
        """Ask all at once; who has not answered at the deadline is not waited for."""
        answers: queue.SimpleQueue[tuple[int, PeerHead | AuditTrailError | None]]
        answers, deadline = queue.SimpleQueue(), time.monotonic() + self.timeout_s
        late = PeerSilent(f"no answer within {self.timeout_s:g} s")
        found: list[PeerHead | AuditTrailError | None] = [late] * len(self.peers)
        waiting = len(self.peers)
        for number in range(waiting):
            # daemons: a name server or host that hangs must not hold up the end of the process
            threading.Thread(
                target=self._ask_one, args=(number, log, answers), name="ledger-guard", daemon=True
            ).start()
        while waiting and (left_s := deadline - time.monotonic()) > 0:
            try:
                number, said = answers.get(timeout=left_s)
            except queue.Empty:
                break
            found[number] = said
            waiting -= 1
        return found

    def _ask_one(
        self,
        number: int,
        log: StoredLog,
        answers: queue.SimpleQueue[tuple[int, PeerHead | AuditTrailError | None]],
    ) -> None:
        said: PeerHead | AuditTrailError | None
        if not self._slots[number].acquire(blocking=False):
            answers.put((number, PeerSilent("earlier questions are still unanswered")))
            return
        try:
            said = self.peers[number].newest(log, timeout_s=self.timeout_s)
        except AuditTrailError as error:
            said = error
        except Exception as error:  # noqa: BLE001 - whatever a stranger's answer breaks, it proves nothing
            said = PeerSilent(f"its answer cannot be used: {type(error).__name__}")
        finally:
            self._slots[number].release()
        answers.put((number, said))

    # --- remembering ------------------------------------------------------------------

    def _recalled(self, log: StoredLog) -> PeerHead | None:
        """Return what contradicted the log, unless it is of a publisher that was given up."""
        head = self._alarms.read(log.origin) if self._alarms else self._kept.get(log.origin)
        if head is None or not self._is_given_up(head):
            return head
        self._kept.pop(log.origin, None)
        if self._alarms is not None:
            place = self._alarms.settle(log.origin)
            _logger.warning(
                "%s: anchors of %s count no more, chain.publisher names %s; what was said of "
                "them is kept in %s", log.origin, head.publisher, self._publisher, place,
            )  # fmt: skip
        return None

    def _is_given_up(self, head: PeerHead) -> bool:
        return bool(head.publisher and self._publisher) and head.publisher != self._publisher

    def _keep(self, log: StoredLog, contradiction: Answer) -> None:
        if contradiction.head is None:
            return
        if self._alarms is None:
            self._kept[log.origin] = contradiction.head
        else:
            self._alarms.write(log.origin, contradiction.head)

    def _forget(self, log: StoredLog) -> None:
        """Drop what the store contains by now."""
        self._kept.pop(log.origin, None)
        if self._alarms is not None:
            self._alarms.clear(log.origin)


def _judged(log: StoredLog, name: str, said: PeerHead | AuditTrailError | None) -> Answer:
    if said is None:
        return Answer(name, State.NOTHING)
    if isinstance(said, AuditTrailError):
        return Answer(name, State.SILENT, finding=said)
    try:
        judge(log, said)
    except (RolledBack, Forked) as finding:
        return Answer(name, State.CONTRADICTS, said, finding)
    return Answer(name, State.AGREES, said)


def open_own_head(
    log: StoredLog, data: bytes, peer: str, *, also_by: Sequence[VerifierKey] = ()
) -> PeerHead:
    """Read a signed tree head that a peer shows, and make sure that this log signed it.

    Args:
        log: whose keys count: those that the store names for a tree of this size, and those of
            later generations whose secrets are on this machine. An older copy of the store
            knows nothing of them, and they are what its peers have seen last.
        data: the note.
        peer: what messages call the holder.
        also_by: more keys that were shown to be this log's.

    Raises:
        MalformedBundle: no signed tree head.
        BadSignature: none of this log's keys signed it, or a line by one of them is bad.
        PolicyUnmet: a signature cannot be checked here.
    """
    try:
        note = data.decode()
    except UnicodeDecodeError as error:
        raise MalformedBundle("the tree head shown is not UTF-8") from error
    size = open_cosigned_head(note, ()).head.size
    # the keys of that size: a retired key, which somebody else may have, proves nothing new
    signed = open_cosigned_head(note, (*log.keys_at(size), *log.later_keys(), *also_by))
    if not signed.signed_by:
        raise BadSignature(
            "the tree head shown was not signed by this log",
            next_step="if the keys were rotated, copy the newer operator keys to this machine",
        )
    return PeerHead(peer, signed.head.size, signed.head.root, note)


def judge(log: StoredLog, head: PeerHead) -> None:
    """Show that the store holds all of a tree head that was proven to be this log's.

    The head must have been fetched before this is called: another process may append and
    publish meanwhile, and what it made is then in the store, too.

    Raises:
        RolledBack: the store has fewer entries.
        Forked: it has another root at that size.
    """
    size, how = log.size, "signed" if head.note else "anchored"
    theft = "" if head.note else WAY_OUT_OF_THEFT
    if size < head.size:
        raise RolledBack(
            f"{log.origin}: the store has {size:,} entries, and {head.peer} holds a tree of "
            f"{head.size:,} that was {how}: an old copy is in place",
            next_step=WAY_OUT_OF_ROLLBACK + theft,
        )
    if log.root_at(head.size) != head.root:
        raise Forked(
            f"{log.origin}: {head.peer} holds another tree of {head.size:,} entries that was {how}",
            next_step=WAY_OUT_OF_FORK + theft,
        )
