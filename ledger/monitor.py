"""A monitor: follows a public log, and shows that it never contradicted itself.

It grows the tree from the entries themselves, so each new tree head is compared with every
entry ever served: that is stronger than a consistency proof, and needs no proof from the log.
Where it is told how to ask a chain, the log must also hold all of what was anchored.
Standard library, `cryptography` and the kernel; memory does not grow with the log.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from rlhf_audit_trail.ledger.anchor_watch import (
    Anchored,
    AnchorUnknown,
    AnchorWatch,
    require_same_history,
)
from rlhf_audit_trail.ledger.cosignature import CosignerKey
from rlhf_audit_trail.ledger.proof.errors import (
    AuditTrailError,
    Inconsistent,
    MalformedBundle,
    PolicyUnmet,
    ProofError,
)
from rlhf_audit_trail.ledger.proof.merkle import leaf_hash
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.proof.tree_head import SignedTreeHead, TreeHead
from rlhf_audit_trail.ledger.public_log import PublicLog
from rlhf_audit_trail.ledger.tiles import (
    TILE_HEIGHT,
    TILE_WIDTH,
    GrowingTree,
    tile_path,
    tile_widths,
)
from rlhf_audit_trail.ledger.tlog_policy import PolicyLog, TlogPolicy, check_policy

__all__ = ["EVIDENCE_SCHEMA", "Contradiction", "Monitor", "Sighting", "evidence_of"]

EVIDENCE_SCHEMA: Final = "rlhf-audit/monitor-evidence/v1"


class Contradiction(AuditTrailError):
    """What the log shows contradicts itself, its signatures, or what it showed before.

    Attributes:
        finding: the first contradiction.
        evidence: JSON for a stranger, who can check the signed notes in it himself.
    """

    def __init__(self, finding: ProofError, evidence: bytes) -> None:
        super().__init__(finding.message, next_step="keep the evidence, and show it to others")
        self.finding = finding
        self.evidence = evidence


@dataclass(frozen=True)
class Sighting:
    """What one look at the log showed, all of it verified.

    Attributes:
        head: the newest tree head.
        note: as served; hand it to the next `Monitor` as `last_note`.
        new_entries: how many entries came since the last sighting.
        cosigned_at_s: the policy's witnesses who cosigned, and when, in POSIX seconds.
        unmet: what the policy wants and the head has not; the head is sound all the same.
        anchored: the newest anchored head, which the log holds; None if nobody was asked, or
            nobody answered.
    """

    head: TreeHead
    note: str
    new_entries: int
    cosigned_at_s: dict[CosignerKey, int]
    unmet: PolicyUnmet | None = None
    anchored: Anchored | None = None


class Monitor:
    """Follows one log; not safe to share between threads."""

    def __init__(
        self,
        log: PublicLog,
        keys: Iterable[VerifierKey],
        *,
        policy: TlogPolicy | None = None,
        last_note: str = "",
        anchors: AnchorWatch | None = None,
    ) -> None:
        """Prepare to look; nothing is fetched yet.

        Args:
            log: where to look.
            keys: the log's keys, which must all sign; empty if the policy lists the log.
            policy: logs, witnesses and quorum; none is wanted if left out.
            last_note: the signed tree head of an earlier sighting, to go on from.
            anchors: whom to ask what was anchored; nobody if left out.

        Raises:
            MalformedBundle, BadSignature: `last_note` is no tree head by these keys.
        """
        self._log = log
        self._keys = tuple(keys)
        self._policy = policy or TlogPolicy()
        self._head = self._open(last_note)[0].head if last_note else None
        self._note = last_note
        self._tree: GrowingTree | None = None
        self._anchors = anchors

    def look(self) -> Sighting:
        """Fetch the newest tree head, and check everything that came since the last look.

        Raises:
            Contradiction: the first one found; looking again finds it again.
            MalformedBundle: the tree head does not parse, so nobody signed it.
            PolicyUnmet: no key of the log is known, so nothing can be checked.
            NotServed, Unreachable: it could not be checked; the next look goes on.
            AuditTrailError: the chain asked is not the pinned one.
        """
        anchored, unknown = self._ask_chain()  # first: a log publishes before it anchors
        note = self._log.tree_head()
        try:
            signed, cosigned, unmet = self._open(note)
        except (MalformedBundle, PolicyUnmet):
            raise
        except ProofError as error:
            raise Contradiction(error, evidence_of(error, note, self._note)) from error
        try:
            before = self._follow(signed.head)
        except ProofError as error:
            raise Contradiction(error, evidence_of(error, note, self._note)) from error
        if self._anchors is not None and anchored is not None:
            try:
                require_same_history(anchored, signed.head, self._log)
            except ProofError as error:
                evidence = evidence_of(error, note, self._note, anchored)
                raise Contradiction(error, evidence) from error
            unmet = unmet or self._anchors.unmet(anchored, signed.head)
        self._head, self._note = signed.head, note
        new_entries = signed.head.size - before
        return Sighting(signed.head, note, new_entries, cosigned, unmet or unknown, anchored)

    def _ask_chain(self) -> tuple[Anchored | None, PolicyUnmet | None]:
        """Return what is anchored, or why it is unknown; that must not hide a contradiction."""
        if self._anchors is None:
            return None, None
        try:
            return self._anchors.source.newest(), None
        except AnchorUnknown as error:
            return None, PolicyUnmet(error.message, expected="the newest anchor")

    def _follow(self, head: TreeHead) -> int:
        """Grow the tree to `head`; return the size of the last sighting."""
        last = self._head
        if last is not None and head.size < last.size:
            raise Inconsistent(
                f"{head.origin} shows fewer entries than before",
                expected=f"at least {last.size:,}",
                actual=f"{head.size:,}",
            )
        if last is not None and head.size == last.size and head.root != last.root:
            raise Inconsistent(
                f"{head.origin} signed two trees of {head.size:,} entries",
                expected=last.root.hex(),
                actual=head.root.hex(),
            )
        _grow(self._resume(head.size), self._log, head)
        return last.size if last is not None else 0

    def _open(self, note: str) -> tuple[SignedTreeHead, dict[CosignerKey, int], PolicyUnmet | None]:
        """Check signatures; a missing quorum must not hide a contradiction, so it waits."""
        try:
            found = check_policy(self._policy, note, pinned=self._keys)
        except PolicyUnmet as error:
            keys = self._keys + tuple(item.key for item in self._policy.logs)
            logs = tuple(PolicyLog(key) for key in dict.fromkeys(keys))
            found = check_policy(TlogPolicy(logs, self._policy.witnesses), note)
            return found.signed, found.cosigned_at_s, error
        return found.signed, found.cosigned_at_s, None

    def _resume(self, served_size: int) -> GrowingTree:
        """Return the tree as far as it was seen; after a restart, from the log's own tiles."""
        if self._tree is None:
            tree, head = GrowingTree(), self._head
            if head is not None:
                tree = GrowingTree.restore(head.size, self._log.reader(served_size))
                if tree.root() != head.root:
                    raise Inconsistent(
                        f"{head.origin} no longer serves the {head.size:,} entries seen before",
                        expected=head.root.hex(),
                        actual=tree.root().hex(),
                    )
            self._tree = tree
        return self._tree


def evidence_of(
    finding: ProofError, note: str, note_before: str = "", anchored: Anchored | None = None
) -> bytes:
    """Return JSON that a stranger can check: what was found, and the signed notes as served.

    Where an anchor contradicts them, it says where to find it.
    """
    record: dict[str, Any] = {
        "schema": EVIDENCE_SCHEMA,
        "found_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "finding": type(finding).__name__,
        "message": finding.message,
        "expected": finding.expected,
        "actual": finding.actual,
        "tree_head_seen_before": note_before or None,
        "tree_head": note,
    }
    if anchored is not None:
        record["anchored"] = anchored.evidence()
    return json.dumps(record, indent=2, ensure_ascii=False).encode() + b"\n"


def _grow(tree: GrowingTree, log: PublicLog, head: TreeHead) -> None:
    """Grow the tree to a signed head from served entries, and compare all tiles on the way.

    Interrupted, the next call goes on: what was taken is judged by the next signed root.
    """
    while tree.size < head.size:
        tile_index, known = divmod(tree.size, TILE_WIDTH)
        width = min(TILE_WIDTH, head.size - tile_index * TILE_WIDTH)
        leaves = [leaf_hash(entry) for entry in log.entries(tile_index, width)]
        served = log.hash_tile(0, tile_index, width)
        _same(tile_path("entries", tile_index, width), b"".join(leaves[:known]), tree.edge(0))
        _same(tile_path(0, tile_index, width), served, b"".join(leaves))
        for tile in tree.append(leaves[known:]):
            if tile.level > 0:
                served = log.hash_tile(tile.level, tile.tile_index, TILE_WIDTH)
                _same(tile_path(tile.level, tile.tile_index, TILE_WIDTH), served, tile.hashes)
    if tree.root() != head.root:
        raise Inconsistent(
            f"the entries of {head.origin} do not lead to the signed root of {head.size:,} entries",
            expected=head.root.hex(),
            actual=tree.root().hex(),
        )
    level = 1
    while head.size >> (TILE_HEIGHT * level):
        full, width = tile_widths(level, head.size)
        if width:
            path = tile_path(level, full, width)
            _same(path, log.hash_tile(level, full, width), tree.edge(level))
        level += 1


def _same(path: str, served: bytes, computed: bytes) -> None:
    if served != computed:
        raise Inconsistent(f"{path} does not hold the hashes of the entries below it")
