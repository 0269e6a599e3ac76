"""Chain evidence for bundles over HTTP: few questions to the node, whatever is asked of us.

Evidence is of a final block, which nothing takes back: what was made once stays right, and is
kept for a while, so that a storm of requests makes a handful of calls. A node that is away is left
alone for a while too.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal

from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader
from rlhf_audit_trail.ledger.chain.errors import ChainError, RpcError
from rlhf_audit_trail.ledger.chain.evidence.making import (
    NoEvidence,
    receipt_evidence,
    storage_evidence,
)
from rlhf_audit_trail.ledger.chain.evidence.own_evidence import (
    own_publisher,
    own_reader,
    require_own,
)
from rlhf_audit_trail.ledger.chain.node.confirming import newest_final
from rlhf_audit_trail.ledger.log import Ledger, Log
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.proof.evm.evidence import ChainEvidence, ChainHead
from rlhf_audit_trail.ledger.settings import SettingsError

__all__ = ["KEPT_S", "RPC_TIMEOUT_S", "ChainParts", "ChainUnavailable", "EvidenceKind", "Part"]

EvidenceKind = Literal["auto", "storage", "none"]
KEPT_S: Final = 12.0  # a block of the main chain
RPC_TIMEOUT_S: Final = 3.0  # somebody waits for the answer
_LOGS_MAX: Final = 1_000  # of a few kilobytes each

_logger = logging.getLogger(__name__)


class ChainUnavailable(AuditTrailError):
    """The ledger's chain cannot be asked for evidence now."""


@dataclass(frozen=True)
class Part:
    """What a bundle says of the chain.

    Attributes:
        data: for the bundle; empty if there is none.
        tree_size: of the tree head that it shows; the bundle needs that head.
        said: the response's header: the block as CHAIN:NUMBER:HASH, or why there is none.
    """

    data: bytes = b""
    tree_size: int = 0
    said: str = "none"


@dataclass(frozen=True)
class _Kept:
    """What the node said of one log; `until_s` on the clock of `ChainParts`.

    Attributes:
        is_receipt: it shows the newest final anchor's event, since the node proves no storage.
    """

    until_s: float
    data: bytes = b""
    chain_id: int = 0
    head: ChainHead | None = None
    missing: NoEvidence | None = None
    is_receipt: bool = False

    @property
    def part(self) -> Part:
        if self.head is None:
            raise self.missing or NoEvidence("nothing was anchored yet")
        block = self.head.block
        said = f"{self.chain_id}:{block.number}:0x{block.hash.hex()}"
        return Part(self.data, self.head.tree_size, said)

    def covers(self, last_index: int) -> bool:
        return self.head is not None and self.head.tree_size > last_index


class ChainParts:
    """Evidence of a ledger's logs; one thread at a time asks the node, for all of them."""

    def __init__(self, ledger: Ledger, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Ask nothing yet; `clock` in seconds."""
        self._ledger = ledger
        self._clock = clock
        self._asking = threading.Lock()  # owns the two below; a reader takes what it finds
        self._kept: dict[int, _Kept] = {}  # by the log's number
        self._away_until_s = float("-inf")

    def of(self, log: Log, last_index: int, kind: EvidenceKind) -> Part:
        """Return evidence of a head that covers an entry; with `auto` perhaps none.

        Raises:
            NoEvidence: asked for by name, and no final anchor covers the entry.
            ChainUnavailable: asked for by name, and the node is away.
        """
        try:
            return self._of(log, last_index, kind)
        except (NoEvidence, ChainUnavailable) as error:
            if kind == "storage":
                raise
            reason = "no_evidence" if isinstance(error, NoEvidence) else "chain_unavailable"
            return Part(said=f"none; reason={reason}")

    def _of(self, log: Log, last_index: int, kind: EvidenceKind) -> Part:
        if kind == "none":
            return Part(said="none; reason=not_asked")
        if kind == "auto" and not (self._ledger.chain.rpc_url and log.anchored_sizes()):
            return Part(said="none; reason=not_anchored")
        found = self._look(log, last_index)
        if found.is_receipt and kind == "storage":
            raise NoEvidence("the node gives no proofs of storage", next_step="ask with chain=auto")
        if found.head is not None:
            require_own(log, found.head, last_index)
        return found.part

    def _look(self, log: Log, last_index: int) -> _Kept:
        """Return what is kept, if it is fresh or the best there is; else ask."""
        kept = self._kept.get(log.number)
        if kept is not None and self._clock() < kept.until_s:
            return kept
        usable = kept is not None and kept.covers(last_index)
        if not self._asking.acquire(blocking=not usable) and kept is not None:
            return kept  # somebody asks already, and what there is will do
        try:
            kept = self._kept.get(log.number)
            if kept is not None and self._clock() < kept.until_s:
                return kept  # somebody asked while we waited
            return self._ask(log, kept, last_index)
        finally:
            self._asking.release()

    def _ask(self, log: Log, kept: _Kept | None, last_index: int) -> _Kept:
        found = self._asked(log, kept) if self._clock() >= self._away_until_s else None
        if found is None and kept is not None and kept.covers(last_index):
            return kept
        if found is None:
            raise ChainUnavailable(
                "the chain cannot be asked now", next_step="ask again later, or with chain=none"
            )
        self._kept.pop(log.number, None)
        while len(self._kept) >= _LOGS_MAX:
            del self._kept[next(iter(self._kept))]  # the one asked for longest ago
        self._kept[log.number] = found
        return found

    def _asked(self, log: Log, kept: _Kept | None) -> _Kept | None:
        """Return what the node says; None if it is away, and is to be left alone for a while."""
        try:
            return self._answer(log, kept)
        except NoEvidence as error:
            return _Kept(self._clock() + KEPT_S, missing=error)
        except (ChainError, SettingsError) as error:
            # its address, which is in the message, is nobody's business out there
            _logger.warning("bundles go out without chain evidence: %s", error.message)
            self._away_until_s = self._clock() + KEPT_S
            return None

    def _answer(self, log: Log, kept: _Kept | None) -> _Kept:
        """Ask for the newest final block, and for proofs only if it is a new one."""
        timeout_s = min(RPC_TIMEOUT_S, self._ledger.chain.rpc_timeout_s)
        with own_reader(self._ledger, timeout_s=timeout_s) as reader:
            number = newest_final(reader.rpc, reader.chain_id)
            until_s = self._clock() + KEPT_S
            if kept is not None and kept.head and kept.head.block.number == number:
                return replace(kept, until_s=until_s)
            publisher = own_publisher(self._ledger)
            try:
                evidence, head = storage_evidence(reader, publisher, log.log_id, block=hex(number))
            except RpcError:  # some nodes give no proofs
                evidence, head = _newest_event(reader, publisher, log, number)
                return _Kept(until_s, bytes(evidence), evidence.chain_id, head, is_receipt=True)
        return _Kept(until_s, bytes(evidence), evidence.chain_id, head)


def _newest_event(
    reader: AnchorReader, publisher: str, log: Log, newest_block: int
) -> tuple[ChainEvidence, ChainHead]:
    """Prove the newest anchor up to a block by its event, for which any full node will do."""
    events = reader.events(publisher, log.log_id)
    final = [event for event in events if event.block_number <= newest_block]
    if not final:
        raise NoEvidence("no final anchor of this log", next_step="wait until its anchor is final")
    return receipt_evidence(reader, final[-1])
