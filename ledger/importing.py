"""Import: a ledger's logs brought back from exports and mirrors of them.

All copies are verified before anything is written: signatures by the logs' own keys, that
they extend what is stored, every entry against the signed root. The registry log comes first,
since it announces the others; it then says which entries were put back, because a public log
holds no sealed values, and what is missing from the vault since then is no damage.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, select, update
from sqlalchemy.engine import URL, make_url

from rlhf_audit_trail.ledger.budget_entries import rebuild_budgets
from rlhf_audit_trail.ledger.copies import (
    Copy,
    FoundCopy,
    find_copies,
    look_at,
    open_registry,
)
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.files import sync_directory, write_whole
from rlhf_audit_trail.ledger.keyring import read_succession
from rlhf_audit_trail.ledger.keys import LogKeys, OperatorSecrets
from rlhf_audit_trail.ledger.log import (
    GENERATED_KEY,
    REGISTRY,
    SETTINGS_FILE,
    Ledger,
    LedgerMissing,
    Log,
    resolve,
)
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.proof.note import parse_note
from rlhf_audit_trail.ledger.proof.tree_head import parse_tree_head
from rlhf_audit_trail.ledger.reading import Forked, RolledBack
from rlhf_audit_trail.ledger.restoring import Restoration
from rlhf_audit_trail.ledger.settings import LEDGER_TABLES, LedgerSettings, read_tables
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.database import (
    insert_missing,
    keys_engine,
    ledger_engine,
    transact,
)
from rlhf_audit_trail.ledger.store.errors import StoreError
from rlhf_audit_trail.ledger.succession import Succession
from rlhf_audit_trail.ledger.tokens import WriterTokens
from rlhf_audit_trail.ledger.vault import Vault
from rlhf_audit_trail.ledger.vault_backup import Brought, bring_vault_rows, count_unopenable

__all__ = ["Imported", "NotAnnounced", "RegistryMissing", "import_copies"]

# which entries of the registry log are being put back; it cannot say so itself until they are
_BEGUN_FILE: Final = "registry-import"
_LEDGER = models.LedgerRow.__table__  # type: ignore[attr-defined]
_LOGS = models.LogRow.__table__  # type: ignore[attr-defined]


class RegistryMissing(AuditTrailError):
    """There is no registry log, in the store or among the copies; it announces all others."""


class NotAnnounced(AuditTrailError):
    """The registry log does not announce this run, or says another size or root of it."""


@dataclass(frozen=True)
class Imported:
    """What was done for one log.

    Attributes:
        run: the run id, or `registry`.
        from_size: the first entry that was put back, where any was.
        to_size: how many entries the log has now.
        entries: how many were put back.
        unopenable: entries with sealed fields that have no vault row now.
        vault: what a backup gave.
    """

    run: str
    from_size: int
    to_size: int
    entries: int
    unopenable: int
    vault: Brought


def import_copies(
    directory: Path, place: str, *, backup: Path | str | None = None
) -> list[Imported]:
    """Bring a ledger's logs back from the copies at a place.

    Args:
        directory: the ledger's, with settings and operator key; the databases may be lost.
        place: an export or mirror, a directory that has several, or an address.
        backup: an older copy of the ledger's database, for the vault rows; see `bring_vault_rows`.

    Raises:
        LedgerMissing, SettingsError, BadKeyFile: there is nothing to import into.
        NoCopies, ForeignCopy, RegistryMissing, NotAnnounced: there is nothing to import from.
        BadSignature, PolicyUnmet, Inconsistent, MalformedBundle, NotServed, Unreachable: a
            copy is not sound, or not readable; nothing was written.
        Forked, RolledBack: a copy is of another history, or too old.
        StoreMoved: another process appends meanwhile.
    """
    ours = _Ours.read(directory.absolute())
    found = [look_at(x, ours.settings.organisation) for x in find_copies(place)]
    lost = _lost_file(ours.settings.database, ours.directory)
    if lost is not None:
        copies, registry = _make_database(ours, found, lost)
        done = [registry]
    else:
        copies, done = _fill_database(ours, found)
    with Ledger.open(ours.directory) as ledger:
        _record_registry(ledger)
        WriterTokens(ledger).put_back()
        runs = (copy for copy in copies if copy.run_id != REGISTRY)
        done += [_import_run(ledger, copy, backup) for copy in runs]
        rebuild_budgets(ledger.engine, ledger.vault)
    shutil.rmtree(ours.cache, ignore_errors=True)
    return done


@dataclass(frozen=True)
class _Ours:
    """What is left of a ledger whatever was lost: settings and operator keys."""

    directory: Path
    settings: LedgerSettings
    secrets: OperatorSecrets

    @classmethod
    def read(cls, directory: Path) -> _Ours:
        path = directory / SETTINGS_FILE
        if not path.is_file():
            raise LedgerMissing(
                f"there is no ledger in {directory}",
                next_step=f"put {SETTINGS_FILE} and {GENERATED_KEY} there, from your own backup",
            )
        settings: LedgerSettings = read_tables(path, LEDGER_TABLES)["ledger"]
        return cls(directory, settings, OperatorSecrets(directory / GENERATED_KEY))

    @property
    def cache(self) -> Path:
        return self.directory / ".import"

    @property
    def registry_origin(self) -> str:
        return f"{self.settings.organisation}/rlhf/{REGISTRY}"

    def open_copies(
        self, found: Sequence[FoundCopy], stored: Succession | None, stored_size: int = 0
    ) -> list[Copy]:
        """Open all copies, the registry log's first; it says by which keys the others are signed.

        Args:
            found: the copies.
            stored: what the stored registry log says about keys.
            stored_size: how many entries that one has.
        """
        copies, succession = [], stored
        for item in found:
            if item.run_id == REGISTRY:
                copy, theirs = open_registry(item, self.secrets, self.registry_origin, self.cache)
                copies.append(copy)
                succession = theirs if copy.size > stored_size else stored or theirs
        if succession is None:
            raise RegistryMissing(
                f"{self.registry_origin} is neither stored nor among the copies",
                next_step="give a directory that holds copies of the registry log and of the runs",
            )
        histories, runs = succession.histories, [x for x in found if x.run_id != REGISTRY]
        for item in runs:
            if item.run_id not in histories:
                raise _not_announced(item.run_id)
        announced = list(histories)  # logs are numbered in the order in which they began
        for item in sorted(runs, key=lambda item: announced.index(item.run_id)):
            size = parse_tree_head(parse_note(item.note).text).size
            copies.append(item.open(histories[item.run_id].at(size), self.cache))
        return copies


# --- the registry log: before the ledger can be opened ------------------------------------


def _fill_database(ours: _Ours, found: Sequence[FoundCopy]) -> tuple[list[Copy], list[Imported]]:
    """Verify all copies against what is stored, then put the registry log back."""
    if missing := _lost_file(ours.settings.keys_database, ours.directory):
        raise StoreError(
            f"the database {missing} is missing",
            next_step="restore it from a backup; a new one would hide what was lost",
        )
    url = resolve(ours.settings.database, ours.directory)
    with _engines(ours, url) as (engine, keys):
        vault = Vault(keys, ours.secrets.first)
        copies = ours.open_copies(found, *_stored_succession(ours, engine))
        for copy in copies:
            restoration = Restoration(engine, vault, copy)
            restoration.compare()
            restoration.check()
        registry = [x for x in copies if x.run_id == REGISTRY]
        done = [_put_registry_back(ours, engine, Restoration(engine, vault, x)) for x in registry]
    return copies, done


def _stored_succession(ours: _Ours, engine: Engine) -> tuple[Succession | None, int]:
    """Return what the stored registry log says about keys, and its size."""
    with engine.connect() as connection:
        size = connection.scalar(select(_LOGS.c.size).where(_LOGS.c.run_id == REGISTRY))
        if not size:
            return None, 0
        origin = ours.registry_origin
        first = LogKeys.derive(ours.secrets.first, origin).verifier_keys
        return read_succession(connection, Succession.begin(origin, first)), int(size)


def _make_database(
    ours: _Ours, found: Sequence[FoundCopy], lost: Path
) -> tuple[list[Copy], Imported]:
    """Make a new database beside the lost one's place, and rename it once it has the registry.

    A ledger that was opened in between would have begun a second registry log.
    """
    copies = ours.open_copies(found, None)
    for copy in copies:
        for _ in copy.entries(0):  # nothing is made before all of them were read
            pass
    draft = lost.with_name(f".{lost.name}-import")
    for name in (draft.name, f"{draft.name}-wal", f"{draft.name}-shm"):
        draft.with_name(name).unlink(missing_ok=True)
    with _engines(ours, _sqlite_url(draft)) as (engine, keys):
        registry = Restoration(engine, Vault(keys, ours.secrets.first), copies[0])
        done = _put_registry_back(ours, engine, registry)
    draft.replace(lost)
    sync_directory(lost.parent)
    return copies, done


@contextmanager
def _engines(ours: _Ours, url: str) -> Iterator[tuple[Engine, Engine]]:
    engine = ledger_engine(url)
    try:
        keys = keys_engine(resolve(ours.settings.keys_database, ours.directory))
        try:
            yield engine, keys
        finally:
            keys.dispose()
    finally:
        engine.dispose()


def _lost_file(url: str, directory: Path) -> Path | None:
    """Return the path of an SQLite database that is not there."""
    found = make_url(resolve(url, directory))
    if found.get_backend_name() != "sqlite" or not found.database:
        return None
    return None if Path(found.database).is_file() else Path(found.database)


def _sqlite_url(path: Path) -> str:
    return URL.create("sqlite", database=str(path)).render_as_string()


def _put_registry_back(ours: _Ours, engine: Engine, registry: Restoration) -> Imported:
    begin, copy = registry.begin, registry.copy
    marker = ours.directory / _BEGUN_FILE
    if begin < copy.size and not marker.exists():
        write_whole(marker, f"{begin} {copy.size}\n{copy.shown_place}\n")
    owner: dict[str, Any] = {"id": 1, "organisation": ours.settings.organisation}
    owner["created_at"] = registry.created_at()
    transact(engine, lambda connection: insert_missing(connection, _LEDGER, [owner]))
    count = registry.put_back()
    return Imported(REGISTRY, begin, max(registry.size, copy.size), count, 0, Brought())


def _record_registry(ledger: Ledger) -> None:
    """Have the registry log say what of itself was put back, as it can now."""
    marker = ledger.directory / _BEGUN_FILE
    if not marker.is_file():
        return
    sizes, place = marker.read_text("utf-8").splitlines()
    begin, end = map(int, sizes.split())
    fields: dict[str, Any] = {"run": REGISTRY, "from_size": begin, "to_size": end, "source": place}
    ledger.registry.record(Event("log.restored", fields)).result()
    marker.unlink()


# --- runs -----------------------------------------------------------------------------------


def _import_run(ledger: Ledger, copy: Copy, backup: Path | str | None) -> Imported:
    closed = _announced(ledger, copy)
    restoration = Restoration(ledger.engine, ledger.vault, copy)
    restoration.compare()  # the store may have moved since all copies were verified
    begin = restoration.begin
    if begin < copy.size:
        _record_restored(ledger, copy, begin)
    count = restoration.put_back()
    if closed:
        transact(ledger.engine, lambda connection: _close(connection, copy.run_id))
    log = ledger.find(copy.run_id)  # compares tree and tree head again
    brought = Brought()
    if backup is not None:
        brought = bring_vault_rows(ledger.engine, ledger.vault, log, backup)
    lacking = count_unopenable(ledger.engine, log.number)
    return Imported(copy.run_id, begin, log.size, count, lacking, brought)


def _announced(ledger: Ledger, copy: Copy) -> bool:
    """Show that the registry log announces the run; return whether it says that it is closed."""
    if _last(ledger.registry, "run.opened", copy.run_id) is None:
        raise _not_announced(copy.run_id)
    closed = _last(ledger.registry, "run.closed", copy.run_id)
    if closed is None:
        return False
    size, root = closed.get("tree_size"), closed.get("root")
    if copy.size < int(size or 0):
        raise RolledBack(
            f"{copy.origin} was closed with {size:,} entries, the copy has {copy.size:,}",
            next_step="find a newer export or mirror",
        )
    if (size, root) != (copy.size, copy.signed.head.root.hex()):
        raise Forked(
            f"the registry log says that {copy.origin} was closed with another size or root",
            next_step="keep both as evidence; the copy was not imported",
        )
    return True


def _not_announced(run_id: str) -> NotAnnounced:
    return NotAnnounced(
        f"the registry log does not announce the run {run_id!r:.120}",
        next_step="import the registry log, too, from a copy not older than this one",
    )


def _last(registry: Log, kind: str, run_id: str) -> dict[str, Any] | None:
    found = [x.event for x in registry.entries(kind=kind) if x.event.get("run") == run_id]
    return found[-1] if found else None


def _record_restored(ledger: Ledger, copy: Copy, begin: int) -> None:
    """Enter in the registry log what is about to be put back, unless it says so already."""
    registry, end = ledger.registry, copy.size
    pruned = [x.leaf_index for x in registry.entries(kind="run.pruned")
              if x.event.get("run") == copy.run_id]  # fmt: skip
    since = pruned[-1] if pruned else 0
    for entry in registry.entries(since, kind="log.restored"):
        event = entry.event
        if (
            event.get("run") == copy.run_id
            and event["from_size"] <= begin <= end <= event["to_size"]
        ):
            return
    fields: dict[str, Any] = {"run": copy.run_id, "from_size": begin, "to_size": end}
    fields["source"] = copy.shown_place
    registry.record(Event("log.restored", fields)).result()


def _close(connection: Connection, run_id: str) -> None:
    connection.execute(update(_LOGS).where(_LOGS.c.run_id == run_id).values(closed=True))
