"""Copies of logs: export and mirror them, import them again, prune what an archive holds."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from rlhf_audit_trail.cli.ledger_commands import ledger_option
from rlhf_audit_trail.cli.output import exit_code_of, guarded, say, show_json, styled
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

if TYPE_CHECKING:
    from rlhf_audit_trail.ledger.importing import Imported
    from rlhf_audit_trail.ledger.log import Ledger
    from rlhf_audit_trail.ledger.mirror import Mirror
    from rlhf_audit_trail.ledger.pruning import PrunePolicy

__all__ = ["export", "import_", "mirror", "prune"]

_NOT_PUBLISHED: Final = 3


# --- export -----------------------------------------------------------------------------------


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="[RUN] DIR")
@click.option("--all", "every", is_flag=True, help="Every run and the registry, below DIR.")
@click.option(
    "--update", is_flag=True, help="DIR may hold an earlier export; only what is new is written."
)
@ledger_option
@guarded
def export(*, names: tuple[str, ...], every: bool, update: bool, directory: Path) -> None:
    """Write RUN's public log to DIR: tree head, tiles, entries, keys; no sealed value.

    Any client of c2sp.org/tlog-tiles can read the directory from a file server, and
    `rlhf-audit import` brings a ledger back from it. Exit code 3 when --all left out a run
    that has no signed tree head.
    """
    from rlhf_audit_trail.ledger.log import REGISTRY, Ledger

    if len(names) != (1 if every else 2):
        raise click.UsageError("give RUN and DIR, or --all and DIR")
    target = Path(names[-1])
    with Ledger.open(directory) as ledger:
        if not every:
            say(_export(ledger, names[0], target, update=update))
            return
        _require_free(target, update=update)
        left_out = _export_all(ledger, (REGISTRY, *ledger.runs()), target, update=update)
    if left_out:
        say(f"{styled('not shown')}  no signed tree head: {', '.join(left_out)}")
        say("next: rlhf-audit anchor, then export again with --update")
        sys.exit(_NOT_PUBLISHED)


def _export_all(ledger: Ledger, runs: tuple[str, ...], target: Path, *, update: bool) -> list[str]:
    """Export every log below a directory; return the runs of which nothing was ever signed."""
    from rlhf_audit_trail.ledger.reading import NotPublished

    left_out = []
    for run in runs:
        try:
            say(_export(ledger, run, target / run, update=update))
        except NotPublished:
            left_out.append(run)
    return left_out


def _export(ledger: Ledger, run: str, target: Path, *, update: bool) -> str:
    from rlhf_audit_trail.ledger.export import export_log, update_export

    if update:
        synced = update_export(ledger.find(run), target)
        return (
            f"wrote {synced.files:,} files to {target}: {synced.new_entries:,} new entries, "
            f"{synced.head.size:,} in all"
        )
    count, size_bytes = export_log(ledger.find(run), target)
    return f"wrote {count:,} files, {size_bytes:,} bytes, to {target}"


def _require_free(target: Path, *, update: bool) -> None:
    from rlhf_audit_trail.ledger.export import ExportTargetTaken

    if not update and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ExportTargetTaken(
            f"{target} is not empty", next_step="choose a new directory, or say --update"
        )


# --- mirror -----------------------------------------------------------------------------------


@click.command()
@click.argument("source", metavar="SOURCE")
@click.argument("target", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--key", "keys", multiple=True, metavar="KEY",
    help="Pin a vkey, or a file of vkeys, of the log; all must have signed. Left out, the keys "
    "with which DIR was made.",
)  # fmt: skip
@click.option("--once", is_flag=True, help="Look once and exit; this is the default.")
@click.option(
    "--every", "interval", type=click.FloatRange(min=0.1), metavar="SECONDS",
    help="Look again and again.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print each look as JSON.")
@guarded
def mirror(
    *,
    source: str,
    target: Path,
    keys: tuple[str, ...],
    once: bool,
    interval: float | None,
    as_json: bool,
) -> None:
    """Follow the log at SOURCE, an address or a directory, into DIR, which is then a log too.

    All is verified before it is written, the tree head last: DIR is a sound log at every
    moment. Exit code 1 contradiction (evidence is written beside DIR), 3 not all keys signed
    or something is not served, 4 unreadable, 5 not reachable. With --every only a
    contradiction ends it.
    """
    from rlhf_audit_trail.ledger.mirror import Mirror, keys_in
    from rlhf_audit_trail.ledger.public_log import PublicLog, open_source
    from rlhf_audit_trail.ledger.trust import read_keys

    if once and interval is not None:
        raise click.UsageError("choose one of --once and --every")
    pinned = tuple(dict.fromkeys(key for text in keys for key in read_keys(text)))
    pinned = pinned or keys_in(target)
    if not pinned:
        raise click.UsageError("pin the log's keys with --key")
    follower = Mirror(PublicLog(open_source(source)), target, pinned)
    while True:
        code = _follow(follower, target, as_json=as_json)
        if interval is None or code == 1:
            sys.exit(code)
        time.sleep(interval)


def _follow(follower: Mirror, target: Path, *, as_json: bool) -> int:
    """Look once, print what came, and return the exit code."""
    from rlhf_audit_trail.ledger.mirror import SourceContradiction

    try:
        synced = follower.sync()
    except SourceContradiction as error:
        if as_json:
            record = {"state": "contradiction", "finding": type(error.finding).__name__}
            show_json(record | {"text": error.message, "evidence": str(error.file)})
        else:
            say(f"{styled('FAILED')}  {error.message}")
            say(f"  next: {error.next_step}")
        return 1
    except AuditTrailError as error:
        if as_json:
            show_json({"state": "unknown", "finding": type(error).__name__, "text": error.message})
        else:
            click.echo(f"error: {error}", err=True)
        return exit_code_of(error)
    head = synced.head
    if as_json:
        record = {"state": "sound", "origin": head.origin, "root": head.root.hex()}
        sizes = {"tree_size": head.size, "new_entries": synced.new_entries}
        show_json(record | sizes | {"files": synced.files})
    else:
        say(
            f"{styled('sound', 10)} {head.origin}  {head.size:,} entries, "
            f"{synced.new_entries:,} new, {synced.files:,} files written to {target}"
        )
    return 0


# --- import -----------------------------------------------------------------------------------


@click.command("import")
@click.argument("source", metavar="SOURCE")
@click.option(
    "--vault", "backup", metavar="FILE",
    help="An older copy of ledger.db, or the URL of a PostgreSQL database into which a backup "
    "was restored: bring sealed values from it, where they still open.",
)  # fmt: skip
@ledger_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@guarded
def import_(*, source: str, backup: str | None, directory: Path, as_json: bool) -> None:
    """Bring back entries that the ledger lacks, from an export or mirror of its own logs.

    SOURCE is one log, an address or a directory, or a directory that holds several, such as
    `rlhf-audit export --all` writes. Where the database is lost altogether, settings and
    operator key suffice. All is verified before anything is written; interrupted, the same
    command goes on. Sealed values are in no public log: --vault brings them from a backup.
    """
    from rlhf_audit_trail.ledger.importing import import_copies

    done = import_copies(directory, source, backup=backup)
    if as_json:
        show_json([asdict(item) for item in done])
        return
    for item in done:
        _show_import(item)
    say("next: rlhf-audit fsck")


def _show_import(item: Imported) -> None:
    if item.entries:
        say(f"{item.run}: put back {item.entries:,} entries, {item.from_size:,} to "
            f"{item.from_size + item.entries - 1:,}; {item.to_size:,} in all")  # fmt: skip
    else:
        say(f"{item.run}: nothing is missing of its {item.to_size:,} entries")
    if item.vault.rows or item.vault.refused or item.vault.erased:
        say(f"  sealed values: {item.vault.rows:,} brought, {item.vault.erased:,} erased, "
            f"{item.vault.refused:,} refused")  # fmt: skip
    if item.unopenable:
        say(f"  {item.unopenable:,} entries have sealed fields that nobody can open any more; "
            "a backup of the database may have them: --vault FILE")  # fmt: skip


# --- prune ------------------------------------------------------------------------------------


@click.command()
@click.argument("run")
@click.option(
    "--archive", required=True, type=click.Path(path_type=Path), metavar="DIR",
    help="Where the entries go: a new directory, or an export of this run.",
)  # fmt: skip
@click.option(
    "--policy", "policy_file", type=click.Path(path_type=Path), metavar="FILE",
    help="TOML with a table [prune]: reason, keep_days, require_anchor, drop_vault.",
)  # fmt: skip
@click.option("--reason", metavar="TEXT", help="A policy of one sentence, instead of a file.")
@click.option(
    "--keep-room", is_flag=True,
    help="Leave the database as large as it is; giving room back means to rewrite it.",
)  # fmt: skip
@ledger_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@guarded
def prune(
    *, run: str, archive: Path, policy_file: Path | None, reason: str | None, directory: Path,
    keep_room: bool, as_json: bool,
) -> None:  # fmt: skip
    """Move the entries of the closed RUN to an archive; what proves them stays here.

    The archive is written and read back, and its digest entered in the registry log, before
    any byte is removed. Inclusion and consistency stay provable; entries are read from the
    archive (`rlhf-audit prove --archive DIR`) or put back (`rlhf-audit import DIR`). Their
    room goes back to the disk where nobody else has the database open; else say it again later.
    """
    from rlhf_audit_trail.ledger.log import Ledger
    from rlhf_audit_trail.ledger.pruning import prune as prune_run

    policy = _policy(policy_file, reason)
    with Ledger.open(directory) as ledger:
        done = prune_run(ledger, run, archive, policy, is_compacting=not keep_room)
    if as_json:
        show_json(asdict(done))
        return
    say(f"pruned {run}: {done.entries:,} of {done.tree_size:,} entries moved to {archive}")
    if done.vault_rows:
        say(f"  {done.vault_rows:,} vault rows deleted, as the policy says")
    say(f"  archive digest {done.archive_digest}, also in the registry log")
    say(f"  {done.freed_bytes:,} bytes of the disk are free again")
    if done.not_freed:
        say(f"  the database keeps what room is left in it: {done.not_freed}")
    say("next: keep a second copy of the archive; rlhf-audit anchor")


def _policy(path: Path | None, reason: str | None) -> PrunePolicy:
    from rlhf_audit_trail.ledger.pruning import PrunePolicy, read_policy

    if (path is None) == (reason is None):
        raise click.UsageError("give --policy FILE or --reason TEXT")
    return read_policy(path) if path is not None else PrunePolicy(reason=reason or "")
