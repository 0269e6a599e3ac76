"""`rlhf-audit keys`: show the operator's keys, rotate and retire them; trace a log's keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from rlhf_audit_trail.cli.ledger_commands import ledger_option
from rlhf_audit_trail.cli.output import guarded, say, show_json

if TYPE_CHECKING:
    from rlhf_audit_trail.ledger.rotation import KeyChange
    from rlhf_audit_trail.ledger.succession import KeyHistory

__all__ = ["keys"]

# what a log says is not believed: its runs' names become file names only in this form
_RUN_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

_json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.group()
def keys() -> None:
    """Show, rotate and retire the operator's keys; trace a log's keys from old ones.

    A rotation has two steps: `rotate` makes new keys, which sign beside the old ones, and
    `retire`, once everybody has the new ones, ends the overlap.
    """


@keys.command()
@ledger_option
@_json_option
@guarded
def show(*, directory: Path, as_json: bool) -> None:
    """Show which keys sign each log now, and its id on a chain."""
    from rlhf_audit_trail.ledger.log import Ledger

    with Ledger.open(directory) as ledger:
        runs = ("registry", *ledger.runs())
        histories = {run: ledger.find(run).key_history for run in runs}
        files = {run: str(ledger.key_file(run).relative_to(ledger.directory)) for run in runs}
    _print_histories(histories, files, as_json=as_json)


@keys.command()
@ledger_option
@_json_option
@guarded
def rotate(*, directory: Path, as_json: bool) -> None:
    """Make new keys, which sign every open log together with the old ones.

    The old secret stays, the new one is put beside it: copy it to every machine that shares
    the database. Interrupted, it is finished by running it again.
    """
    from rlhf_audit_trail.ledger.log import Ledger
    from rlhf_audit_trail.ledger.rotation import rotate as rotate_keys

    with Ledger.open(directory) as ledger:
        change = rotate_keys(ledger)
        secret = ledger.key_ring.secrets.path(change.generation)
    if as_json:
        _print_change(change, directory)
        return
    done = f"logs changed: {len(change.runs)}" if change.runs else "it had been done before"
    say(f"generation {change.generation} signs beside generation {change.generation - 1}; {done}")
    say(f"  operator key  {directory / secret.name}   keep a copy apart; never publish it")
    say(f"  public keys   {directory / 'keys'}   both generations; publish these again")
    say("next: copy the key to other machines that sign, tell witnesses and auditors the keys,")
    say("      then: rlhf-audit keys retire")


@keys.command()
@ledger_option
@_json_option
@guarded
def retire(*, directory: Path, as_json: bool) -> None:
    """End the overlap: only the new keys sign from now on.

    The old secret file must stay: the vault finds people's values by the first one.
    """
    from rlhf_audit_trail.ledger.log import Ledger
    from rlhf_audit_trail.ledger.rotation import retire as retire_keys

    with Ledger.open(directory) as ledger:
        change = retire_keys(ledger)
    if as_json:
        _print_change(change, directory)
        return
    done = f"logs changed: {len(change.runs)}" if change.runs else "it had been done before"
    say(f"generation {change.generation} signs alone; {done}")
    say(f"  public keys   {directory / 'keys'}   the new ones; publish these again")
    say("next: who has only old keys finds the new ones with: rlhf-audit keys trace")


@keys.command()
@click.argument("place", metavar="URL")
@click.option(
    "--key", "pinned", multiple=True, required=True, metavar="KEY",
    help="A vkey, or a file of vkeys, of the log, however old.",
)  # fmt: skip
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="DIR",
    help="Write the keys to DIR, a file for each log.",
)  # fmt: skip
@_json_option
@guarded
def trace(*, place: str, pinned: tuple[str, ...], output: Path | None, as_json: bool) -> None:
    """Find the present keys of the log at URL from old ones that you trust.

    URL is the address, or the exported directory, of a registry log, which speaks of all
    runs, or of one run. Exit code 0: shown; 1: contradicted; 3: a key or file is missing.
    """
    from rlhf_audit_trail.ledger.files import write_whole
    from rlhf_audit_trail.ledger.key_trace import trace_keys
    from rlhf_audit_trail.ledger.proof.errors import MalformedBundle
    from rlhf_audit_trail.ledger.public_log import PublicLog, open_source
    from rlhf_audit_trail.ledger.trust import read_keys

    own = tuple(dict.fromkeys(key for text in pinned for key in read_keys(text)))
    found = trace_keys(PublicLog(open_source(place)), own)
    files: dict[str, str] = {}
    for run, history in found.histories.items() if output else ():
        if output is None or _RUN_ID.fullmatch(run) is None:
            raise MalformedBundle(f"{run!r:.120} cannot name a run")
        output.mkdir(parents=True, exist_ok=True)
        write_whole(output / f"{run}.vkey", history.eras[-1].key_text)
        files[run] = str(output / f"{run}.vkey")
    if not as_json:
        say(
            f"{found.head.origin}: {found.head.size:,} entries; rotations between the keys you"
            f" gave and those that sign now: {found.rotations}"
        )
    _print_histories(found.histories, files, as_json=as_json)


def _print_change(change: KeyChange, directory: Path) -> None:
    show_json(
        {
            "generation": change.generation,
            "overlapping": change.is_overlapping,
            "changed": list(change.runs),
            "key_files": [str(directory / "keys" / path.name) for path in change.key_files],
        }
    )


def _print_histories(
    histories: dict[str, KeyHistory], files: dict[str, str], *, as_json: bool
) -> None:
    from rlhf_audit_trail.ledger.proof.tree_head import log_id

    records: list[dict[str, Any]] = [
        {
            "run": run,
            "origin": history.origin,
            "log_id": log_id(history.first[0]).hex(),
            "generations": list(history.eras[-1].generations),
            "keys": [str(key) for key in history.now],
            "file": files.get(run),
        }
        for run, history in histories.items()
    ]
    if as_json:
        show_json({"logs": records})
        return
    for record in records:
        numbers = " + ".join(map(str, record["generations"]))
        say(f"{record['origin']}   generation {numbers}")
        for key in histories[record["run"]].now:
            say(f"  {key.algorithm.name.replace('_', '-'):<9} {key.key_id.hex()}")
        say(f"  log id    {record['log_id']}   the same for ever")
        if record["file"]:
            say(f"  file      {record['file']}")
