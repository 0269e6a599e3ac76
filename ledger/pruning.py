"""Pruning: the bytes of a closed run's entries move to an archive; the tree stays.

First the archive is written and read back, then the registry log says what goes, by which
policy, and the archive's digest; only then are bytes removed. Leaf hashes, tiles and tree
heads stay, so that inclusion and consistency are provable as before, and an entry from the
archive still verifies. Killed anywhere and started again, it goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, delete, select, update

from rlhf_audit_trail.ledger.budget_entries import BUDGET_KINDS
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.export import update_export
from rlhf_audit_trail.ledger.log import REGISTRY, Ledger, Log
from rlhf_audit_trail.ledger.mirror import KEYS_FILE
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.proof.tree_head import TreeHead
from rlhf_audit_trail.ledger.public_log import DirectoryLog, NotServed, PublicLog
from rlhf_audit_trail.ledger.settings import SettingsError, read_tables
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.compacting import compact
from rlhf_audit_trail.ledger.store.database import transact
from rlhf_audit_trail.ledger.store.entries import FILED_ENTRIES, unfile_subjects
from rlhf_audit_trail.ledger.tiles import TILE_WIDTH, tile_path
from rlhf_audit_trail.ledger.verified_log import VerifiedLog, open_pinned

__all__ = [
    "ArchiveDamaged",
    "NotPrunable",
    "PrunePolicy",
    "PruneResult",
    "archive_digest",
    "archived_entries",
    "prune",
    "read_policy",
]

_CHUNK_ENTRIES: Final = 4 * FILED_ENTRIES  # whole tiles, so that none stays filed for nothing
# a gap explains missing sequence numbers, which fsck asks about; and budgets outlive their runs
_KEPT_KINDS: Final = ("gap", *BUDGET_KINDS)
_LOGS = models.LogRow.__table__  # type: ignore[attr-defined]
_ENTRIES = models.EntryRow.__table__  # type: ignore[attr-defined]
_VAULT = models.VaultRow.__table__  # type: ignore[attr-defined]


class NotPrunable(AuditTrailError):
    """The run is not closed, signed and anchored, or the policy says that it must be kept."""


class ArchiveDamaged(AuditTrailError):
    """The archive is not the one whose digest the registry log has."""


@dataclass(frozen=True)
class PrunePolicy:
    """Table `[prune]` of a policy file; the registry log repeats it.

    Attributes:
        reason: why, in words; never empty.
        keep_days: how long after its closing a run must be kept.
        require_anchor: whether the last tree head must stand on a chain; where a chain is
            configured it must in any case.
        drop_vault: whether the sealed values and their salts are deleted, too. They are in
            no archive: nobody could open a commitment of this run again.
    """

    reason: str = ""
    keep_days: int = 0
    require_anchor: bool = False
    drop_vault: bool = False

    def __post_init__(self) -> None:
        """Refuse a policy that says nothing; raises SettingsError."""
        if not self.reason.strip() or self.keep_days < 0:
            raise SettingsError(
                "a prune policy needs a reason in words, and keep_days of 0 or more",
                next_step='write reason = "..." below [prune]',
            )


@dataclass(frozen=True)
class PruneResult:
    """What was done.

    Attributes:
        tree_size: entries of the run.
        entries: entries whose bytes were removed now.
        vault_rows: vault rows that were deleted now.
        archive_digest: SHA-256 in hex, see `archive_digest`.
        freed_bytes: how much smaller the database is on disk.
        not_freed: why all or some of the room stayed with the database; empty if none did.
    """

    tree_size: int
    entries: int
    vault_rows: int
    archive_digest: str
    freed_bytes: int = 0
    not_freed: str = ""


def read_policy(path: Path) -> PrunePolicy:
    """Read a policy file.

    Raises:
        UnknownSetting, SettingsError: it is not one table `[prune]` with known settings.
    """
    return read_tables(path, {"prune": PrunePolicy})["prune"]


def prune(
    ledger: Ledger,
    run_id: str,
    archive: Path,
    policy: PrunePolicy,
    *,
    now: datetime | None = None,
    is_compacting: bool = True,
) -> PruneResult:
    """Move the bytes of a run's entries to an archive, and give their room back to the disk.

    Args:
        ledger: open.
        run_id: of a closed run.
        archive: new or empty directory, or an export of this run.
        policy: by which it is done.
        now: the clock.
        is_compacting: whether room is given back; see `store.compacting`. It takes as long as
            copying the database, and can be had by the next call.

    Raises:
        LedgerMissing, NotPrunable: there is no such run, or it must be kept.
        ArchiveDamaged: entries were pruned before, and this is not their archive.
        Contradiction, DirectoryTaken, DirectoryInUse, MirrorDamaged: the archive cannot be
            written; nothing was removed.
    """
    archive = archive.absolute()
    log, head = _prunable(ledger, run_id, policy, now or datetime.now(UTC))
    digest = _archive(ledger, log, head, archive, policy)
    place = update(_LOGS).where(_LOGS.c.number == log.number).values(archive=str(archive))
    transact(ledger.engine, lambda connection: connection.execute(place))
    entries = vault_rows = 0
    for begin in range(0, head.size, _CHUNK_ENTRIES):

        def work(connection: Connection, begin: int = begin) -> tuple[int, int]:
            return _remove(connection, log.number, begin, drop_vault=policy.drop_vault)

        removed, dropped = transact(ledger.engine, work)
        entries, vault_rows = entries + removed, vault_rows + dropped
    done = PruneResult(head.size, entries, vault_rows, digest)
    if not is_compacting:
        return replace(done, not_freed="it was not asked for")
    space = compact(ledger.engine)
    return replace(done, freed_bytes=space.freed_bytes, not_freed=space.reason)


# --- may it go? -----------------------------------------------------------------------------


def _prunable(
    ledger: Ledger, run_id: str, policy: PrunePolicy, now: datetime
) -> tuple[Log, TreeHead]:
    """Return the log and its last head after showing that everything says that it ended there."""
    log, registry = ledger.find(run_id), ledger.registry
    if run_id == REGISTRY:
        raise NotPrunable("the registry log is never pruned", next_step="name a closed run")
    closed = _last(registry, "run.closed", run_id)
    signed = log.published()
    if not log.closed or closed is None or signed is None:
        raise NotPrunable(
            f"the run {run_id} is not closed",
            next_step="close it: its recorder's close(), or Log.close()",
        )
    head = signed.head
    if (closed["tree_size"], closed["root"]) != (
        head.size,
        head.root.hex(),
    ) or log.size != head.size:
        raise NotPrunable(
            f"the run {run_id} was closed with another size or root than it has now",
            next_step="run rlhf-audit fsck",
        )
    due = datetime.fromisoformat(closed["recorded_at"]) + timedelta(days=policy.keep_days)
    if now < due:
        raise NotPrunable(
            f"the policy keeps the run {run_id} until {due:%Y-%m-%d %H:%M} UTC",
            next_step="prune it then",
        )
    has_chain = ledger.chain.rpc_url or any(True for _ in registry.entries(kind="chain.registered"))
    if (policy.require_anchor or has_chain) and head.size not in log.anchored_sizes():
        raise NotPrunable(
            f"the last tree head of {run_id} is not anchored", next_step="run: rlhf-audit anchor"
        )
    return log, head


def _last(registry: Log, kind: str, run_id: str) -> dict[str, Any] | None:
    found = [x.event for x in registry.entries(kind=kind) if x.event.get("run") == run_id]
    return found[-1] if found else None


# --- the archive ----------------------------------------------------------------------------


def _archive(ledger: Ledger, log: Log, head: TreeHead, archive: Path, policy: PrunePolicy) -> str:
    """Write the archive, read it back, and enter it in the registry log; return its digest."""
    said = _said(ledger.registry, log.run_id)
    if log.archive:  # begun before: the bytes may be nowhere else
        digest = _digest_of(archive, log.keys_at(head.size), head)
        if said is None or said["archive_digest"] != digest:
            raise ArchiveDamaged(
                f"{archive} is not the archive to which {log.run_id} was pruned",
                next_step=f"give the one at {log.archive}, or a copy of it",
            )
    else:
        update_export(log, archive)
        digest = archive_digest(archive, log.keys_at(head.size), head)
    fields: dict[str, Any] = {"run": log.run_id, "origin": log.origin, "tree_size": head.size}
    fields |= {"root": head.root.hex(), "archive_digest": digest, "policy": asdict(policy)}
    if said is None or any(said[name] != value for name, value in fields.items()):
        ledger.registry.record(Event("run.pruned", fields)).result()
    return digest


def _said(registry: Log, run_id: str) -> dict[str, Any] | None:
    """Return the newest run.pruned of a run, unless its entries were put back since."""
    events = [
        entry
        for kind in ("run.pruned", "log.restored")
        for entry in registry.entries(kind=kind)
        if entry.event.get("run") == run_id
    ]
    newest = max(events, key=lambda entry: entry.leaf_index, default=None)
    return newest.event if newest is not None and newest.event["kind"] == "run.pruned" else None


def _digest_of(archive: Path, keys: Iterable[VerifierKey], head: TreeHead) -> str:
    try:
        return archive_digest(archive, keys, head)
    except AuditTrailError as error:
        raise ArchiveDamaged(
            f"{archive} is not a sound archive: {error.message}",
            next_step="give a sound copy of the archive",
        ) from error


def archive_digest(archive: Path, keys: Iterable[VerifierKey], head: TreeHead) -> str:
    """Read an archive back from disk, verify all of it, and return its digest.

    The digest is the SHA-256 of the lines `<SHA-256 in hex>  <path>` of the tree head, the
    keys and every tile of this tree, sorted by path: what `sha256sum` prints for them.

    Raises:
        BadSignature, PolicyUnmet, Inconsistent, MalformedBundle: it is not this log's.
        NotServed, Unreachable: a file is missing, or not readable.
    """
    source = DirectoryLog(archive)
    public = PublicLog(source)
    signed = open_pinned(public.tree_head(), keys)
    verified = VerifiedLog(public, signed.head)
    verified.extends(head)
    names = ["checkpoint", KEYS_FILE]
    for level in verified.levels():
        for tile_index, width in verified.tiles(level):
            verified.hash_tile(level, tile_index, width)
            names.append(tile_path(level, tile_index, width))
            if level == 0:
                verified.entries(tile_index, width)
                names.append(tile_path("entries", tile_index, width))
    lines = hashlib.sha256()
    for name in sorted(names):
        path = archive / name
        if not path.is_file():
            raise NotServed(f"the archive has no file {name}", next_step="write it anew")
        with path.open("rb") as file:
            lines.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n".encode())
    return lines.hexdigest()


def archived_entries(archive: Path) -> Callable[[int], bytes]:
    """Return how to read an archive's entries by leaf index; the caller compares them.

    What it returns raises NotServed, MalformedBundle or Unreachable.
    """
    public = PublicLog(DirectoryLog(archive))
    kept: dict[int, tuple[bytes, ...]] = {}

    def entry_at(leaf_index: int) -> bytes:
        tile_index, slot = divmod(leaf_index, TILE_WIDTH)
        if tile_index not in kept:
            kept.clear()
            kept[tile_index] = _entry_tile(archive, public, tile_index)
        if slot >= len(kept[tile_index]):
            raise NotServed(f"the archive has no entry {leaf_index:,}")
        return kept[tile_index][slot]

    return entry_at


def _entry_tile(archive: Path, public: PublicLog, tile_index: int) -> tuple[bytes, ...]:
    """Read a whole entry tile, or the widest partial one."""
    partials = archive / f"{tile_path('entries', tile_index, TILE_WIDTH)}.p"
    is_full = not partials.is_dir()
    widths = [] if is_full else [int(x.name) for x in partials.iterdir() if x.name.isdecimal()]
    return public.entries(tile_index, max(widths, default=TILE_WIDTH))


# --- removing -------------------------------------------------------------------------------


def _remove(
    connection: Connection, number: int, begin: int, *, drop_vault: bool
) -> tuple[int, int]:
    """Empty the entries of one chunk; return how many, and how many vault rows went."""
    entry, sealed, last = _ENTRIES.c, _VAULT.c, begin + _CHUNK_ENTRIES - 1
    here = (entry.log_number == number) & entry.leaf_index.between(begin, last)
    emptied = connection.execute(
        update(_ENTRIES)
        .where(here, entry.kind.not_in(_KEPT_KINDS), entry.data != b"")
        .values(data=b"")
    )
    dropped = 0
    if drop_vault:
        theirs = (sealed.log_number == number) & sealed.leaf_index.between(begin, last)
        kept = select(entry.leaf_index).where(here, entry.kind.in_(BUDGET_KINDS))
        theirs &= sealed.leaf_index.not_in(kept)
        dropped = connection.execute(delete(_VAULT).where(theirs)).rowcount
        unfile_subjects(
            connection, number, range(begin // FILED_ENTRIES, last // FILED_ENTRIES + 1)
        )
    return emptied.rowcount, dropped
