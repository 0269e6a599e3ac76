"""Provenance of a run between two model checkpoints, recomputed from the stored bytes.

Nothing that the store derived is believed: every leaf is hashed again, the root is built
from those hashes and compared with the signed one, and both checkpoints must lead to it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

from rlhf_audit_trail.ledger.log import Log, StoredEntry
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError, Inconsistent
from rlhf_audit_trail.ledger.proof.merkle import (
    leaf_hash,
    root_hash,
    verify_inclusion,
)
from rlhf_audit_trail.ledger.proof.tree_head import TreeHead
from rlhf_audit_trail.ledger.proof.verify import OnChain

__all__ = ["EmptyRange", "Provenance", "UnknownCheckpoint", "verify_provenance"]

NOT_CHECKED = "not checked"
_STATES = ("pending", "mined", "safe", "finalized")  # from weak to strong


class UnknownCheckpoint(AuditTrailError):
    """The run has no checkpoint of this name."""


class EmptyRange(AuditTrailError):
    """The end checkpoint was recorded before the start checkpoint."""


@dataclass(frozen=True)
class Provenance:
    """What the log shows about the training between two checkpoints.

    True in a condition exactly when it is valid.

    Attributes:
        is_valid: nothing contradicted the signed tree head, nor an anchor.
        failure: the finding; empty when valid.
        merkle_root: root of the signed tree head in hex; empty when none could be opened.
        tree_size: entries under that root.
        chain_verification: `on chain: ...` when the caller brought what the chain says;
            else the state in which an anchor of the range was last seen (pending, mined,
            safe, finalized); else `not checked`.
        start_index: leaf index of the start checkpoint.
        end_index: leaf index of the end checkpoint.
        entries_checked: entries hashed again from their stored bytes.
        updates: optimizer steps that the range records.
    """

    is_valid: bool
    failure: str
    merkle_root: str
    tree_size: int
    chain_verification: str
    start_index: int
    end_index: int
    entries_checked: int
    updates: int

    def __bool__(self) -> bool:
        return self.is_valid


@dataclass
class _Findings:
    """What was found up to the point where a check failed, if one did."""

    head: TreeHead | None = None
    chain: str = NOT_CHECKED
    checked: int = 0
    updates: int = 0


def verify_provenance(
    log: Log,
    *,
    start_checkpoint: str,
    end_checkpoint: str,
    on_chain: Iterable[OnChain] = (),
) -> Provenance:
    """Check a run from one checkpoint to another; a contradiction becomes the result.

    Signs the newest state first if the signed tree head does not yet cover the range.

    Args:
        log: the run's log.
        start_checkpoint: for example `epoch_0`; the newest of that name.
        end_checkpoint: the same one, or a later one.
        on_chain: what the chain was found to say, where the caller asked it.

    Raises:
        UnknownCheckpoint: the run has none of this name.
        EmptyRange: the end was recorded before the start.
    """
    log.flush()
    start, end = _find(log, start_checkpoint), _find(log, end_checkpoint)
    if start.leaf_index > end.leaf_index:
        raise EmptyRange(
            f"{end_checkpoint} was recorded before {start_checkpoint}",
            next_step="exchange the two names",
        )
    found, failure = _Findings(), ""
    try:
        _check(log, (start, end), list(on_chain), found)
    except AuditTrailError as error:
        failure = f"{type(error).__name__}: {error.message}"
    return Provenance(
        is_valid=not failure,
        failure=failure,
        merkle_root=found.head.root.hex() if found.head else "",
        tree_size=found.head.size if found.head else 0,
        chain_verification=found.chain,
        start_index=start.leaf_index,
        end_index=end.leaf_index,
        entries_checked=found.checked,
        updates=found.updates,
    )


def _find(log: Log, name: str) -> StoredEntry:
    """Return the newest checkpoint of this name; a resumed run may have made it twice."""
    known: dict[str, StoredEntry] = {}
    for entry in log.entries(kind="checkpoint.saved"):
        known[entry.event["name"]] = entry
    if name not in known:
        listed = ", ".join(list(known)[-10:]) or "none yet"
        raise UnknownCheckpoint(
            f"the run {log.run_id} has no checkpoint {name!r:.80}",
            next_step=f"known checkpoints: {listed}",
        )
    return known[name]


def _check(
    log: Log, ends: tuple[StoredEntry, StoredEntry], on_chain: list[OnChain], found: _Findings
) -> None:
    """Run all checks, noting in `found` what was reached; raise at the first contradiction."""
    signed = log.published()  # opening it verifies the log's signatures
    if signed is None or signed.head.size <= ends[1].leaf_index:
        signed = log.publish()
    head = found.head = signed.head
    leaves = _rehash(log, head, ends, found)
    if root_hash(leaves) != head.root:
        raise Inconsistent(_altered(log, head, leaves))
    for entry in ends:
        proof = log.prove_inclusion(entry.leaf_index, head.size)
        leaf = leaf_hash(entry.data)
        verify_inclusion(leaf, entry.leaf_index, head.size, proof, head.root)
    found.chain = _anchor_state(log, leaves, ends[1].leaf_index, on_chain)


def _rehash(
    log: Log, head: TreeHead, ends: tuple[StoredEntry, StoredEntry], found: _Findings
) -> list[bytes]:
    """Hash every entry under the tree head again, from the bytes that are stored."""
    leaves: list[bytes] = []
    start, end = (entry.leaf_index for entry in ends)
    for entry in log.entries(stop=head.size):
        if entry.leaf_index != len(leaves):
            break
        leaves.append(leaf_hash(entry.data))
        found.checked += 1
        if start < entry.leaf_index <= end:
            with contextlib.suppress(ValueError):  # damaged bytes: the root will not match
                event = entry.event
                found.updates += event["updates"] if event["kind"] == "policy.update" else 0
    if len(leaves) != head.size:
        raise Inconsistent(
            f"entry {len(leaves):,} is missing: {head.size:,} entries were signed",
            next_step="restore the ledger from a backup",
        )
    return leaves


def _altered(log: Log, head: TreeHead, leaves: list[bytes]) -> str:
    """Name the first entry that does not lead to the signed root, where the tree still can."""
    for index, leaf in enumerate(leaves):
        try:
            proof = log.prove_inclusion(index, head.size)
            verify_inclusion(leaf, index, head.size, proof, head.root)
        except AuditTrailError:
            return f"entry {index:,} is not the one that was signed"
    return "the stored entries do not give the signed root"


def _anchor_state(log: Log, leaves: list[bytes], end: int, on_chain: list[OnChain]) -> str:
    """Return how the range is anchored, after comparing each anchor with the recomputed root.

    Raises:
        Inconsistent: an anchor or the chain holds another root at its size.
    """
    recorded = [(item.tree_size, item.root, item.state) for item in log.anchors()]
    said = [(item.tree_size, item.root, f"on chain: {item.where}") for item in on_chain]
    states = []
    for tree_size, root, state in recorded + said:
        if tree_size > len(leaves):  # a head newer than the signed one; `fsck` compares it
            continue
        if root_hash(leaves[:tree_size]) != root:
            raise Inconsistent(
                f"the anchored root at size {tree_size:,} is not that of the stored entries",
                next_step="keep both as evidence: one of the two histories is forged",
            )
        if tree_size > end:
            states.append(state)
    return max(states, key=_strength, default=NOT_CHECKED)


def _strength(state: str) -> int:
    return _STATES.index(state) if state in _STATES else len(_STATES)
