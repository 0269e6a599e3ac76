"""`rlhf-audit subject`: what is stored about a person, for the person; or nothing any more."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

import click

from rlhf_audit_trail.cli.ledger_commands import ledger_option
from rlhf_audit_trail.cli.output import guarded, say, show_json

__all__ = ["subject"]

_ID_BYTES_MAX: Final = 65_536
_BASES: Final = ("request", "consent-withdrawn", "objection", "unlawful", "legal-obligation")
_Command = TypeVar("_Command", bound=Any)


@click.group()
def subject() -> None:
    """Find, hand out or erase what is stored about a person.

    WHO is the person's stable id, or a pseudonym of any run. `--id-file` reads it from a file, or
    from standard input, so that it stands in no list of processes and in no history. It is not
    shown again, in no message either.
    """


def _who(command: _Command) -> _Command:
    file = click.option(
        "--id-file", type=click.File("rb"), metavar="FILE",
        help="Read WHO from a file, - for standard input.",
    )  # fmt: skip
    run = click.option("--run", metavar="RUN", default="", help="Only what is in this run.")
    return click.argument("who", required=False)(file(run(ledger_option(command))))


@subject.command()
@_who
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@guarded
def find(
    *, who: str | None, id_file: BinaryIO | None, run: str, directory: Path, as_json: bool
) -> None:
    """List the runs that have values about WHO, and how many entries each."""
    from rlhf_audit_trail.ledger.log import Ledger
    from rlhf_audit_trail.ledger.subjects import find_subject

    name = _name(who, id_file)
    with Ledger.open(directory) as ledger:
        found = find_subject(ledger, name, run_id=run)
    runs = {
        item.run_id: {"pseudonym": item.pseudonym, "entries": len(item.indices)}
        for item in found.runs
    }
    if as_json:
        show_json({"has_secret": found.has_secret, "entries": found.entries, "runs": runs})
        return
    say(f"{found.entries:,} entries in {len(runs):,} runs")
    for name, item in runs.items():
        say(f"  {name}  {item['entries']:,} entries, as {item['pseudonym'] or '(secret gone)'}")
    if not found.has_secret:
        say("their secret is gone: nobody can open these values")


@subject.command()
@_who
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE",
    help="A new file, readable by you alone.",
)  # fmt: skip
@guarded
def export(
    *, who: str | None, id_file: BinaryIO | None, run: str, output: Path, directory: Path
) -> None:
    """Write everything about WHO: values, their commitments and salts, and proofs."""
    from rlhf_audit_trail.ledger.log import Ledger
    from rlhf_audit_trail.ledger.subject_export import export_subject

    name = _name(who, id_file)
    with Ledger.open(directory) as ledger:
        counts = export_subject(ledger, name, output, run_id=run)
    say(f"wrote {output}, {counts.size_bytes:,} bytes: {counts.entries:,} entries, all of their")
    say("  sealed values in clear. Give it to the person over a way that nobody else reads.")
    say(f"each of its {counts.bundles:,} bundles is a file for: rlhf-audit verify")


@subject.command()
@_who
@click.option(
    "--basis", type=click.Choice(_BASES), default=_BASES[0], show_default=True,
    help="Why; stands in the public registry log.",
)  # fmt: skip
@click.option("--yes", is_flag=True, help="Do not ask: it cannot be taken back.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@guarded
def erase(
    *, who: str | None, id_file: BinaryIO | None, run: str, basis: str, yes: bool,
    directory: Path, as_json: bool,
) -> None:  # fmt: skip
    """Destroy all values about WHO, and the secret that opens them; proofs stay."""
    from rlhf_audit_trail.ledger.log import Ledger
    from rlhf_audit_trail.ledger.subjects import erase_subject

    name = _name(who, id_file)
    if not yes:
        click.confirm("Nobody will be able to open these values again. Erase them?", abort=True)
    with Ledger.open(directory) as ledger:
        done = erase_subject(ledger, name, run_id=run, basis=basis)
        uses_server = "postgresql" in {x.dialect.name for x in (ledger.engine, ledger.vault.keys)}
    record = {
        "runs": done.entries,
        "secret_destroyed": done.is_secret_destroyed,
        "leftovers": done.leftovers,
    }
    if as_json:
        show_json(record)
    else:
        _tell(record, uses_server=uses_server)
    if done.leftovers:
        sys.exit(5)


def _tell(record: dict[str, Any], *, uses_server: bool) -> None:
    runs = record["runs"]
    say(f"erased the sealed values of {sum(runs.values()):,} entries in {len(runs):,} runs")
    if record["secret_destroyed"]:
        say("  and the secret: what backups hold of these values opens only with a backup of it")
        say("next: destroy older backups of the secrets' database, or let them run out")
    else:
        say("  but not the secret, which other runs need: backups of this run's values still open")
    if uses_server:
        say("  PostgreSQL keeps deleted rows in its WAL until that is recycled, and in its WAL")
        say("  archive and base backups until you delete them")
    for place in record["leftovers"]:
        say(f"  not reached: {place}; the next command on this ledger tries again")


def _name(who: str | None, id_file: BinaryIO | None) -> str:
    """Return the id that was given, in one way or the other."""
    if (who is None) == (id_file is None):
        raise click.UsageError("say who: WHO, or --id-file FILE")
    if id_file is None:
        return who or ""
    data = id_file.read(_ID_BYTES_MAX + 1)
    try:
        name = data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise click.UsageError("the id is not text in UTF-8") from None
    if not name or len(data) > _ID_BYTES_MAX:
        raise click.UsageError(f"an id has 1 to {_ID_BYTES_MAX:,} bytes")
    return name
