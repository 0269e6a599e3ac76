"""`rlhf-audit disclose`: sealed values for a named reader, and a record of it."""

from __future__ import annotations

from pathlib import Path

import click

from rlhf_audit_trail.cli.ledger_commands import ledger_option
from rlhf_audit_trail.cli.output import guarded, say

__all__ = ["disclose"]


@click.command()
@click.argument("run")
@click.argument("index", type=click.IntRange(min=0))
@click.option(
    "--field", "fields", multiple=True, required=True, metavar="FIELD",
    help="A sealed field to open; may be given several times.",
)  # fmt: skip
@click.option(
    "--to", "reader", required=True, metavar="READER",
    help="Who gets the values; the name stands in the public registry log.",
)  # fmt: skip
@click.option(
    "-o", "--output", "target", required=True, type=click.Path(path_type=Path), metavar="FILE",
    help="A new file, readable by you alone.",
)  # fmt: skip
@ledger_option
@guarded
def disclose(
    *, run: str, index: int, fields: tuple[str, ...], reader: str, target: Path, directory: Path
) -> None:
    """Open sealed fields of entry INDEX of RUN to a named reader, and record that.

    The registry log keeps run, index, names of the fields, the reader and the digest of the
    file; no value. The file is checked with `rlhf-audit verify`.
    """
    from rlhf_audit_trail.ledger.disclosing import disclose as give
    from rlhf_audit_trail.ledger.log import Ledger

    with Ledger.open(directory) as ledger:
        done = give(ledger, run, index, fields=fields, reader=reader, target=target)
        key_file = ledger.key_file(run).relative_to(ledger.directory)
    say(f"wrote {target}, {done.size_bytes:,} bytes: {len(set(fields))} opened fields")
    say(f"  recorded in the registry log, entry {done.registry_index:,}, SHA-256 {done.digest}")
    say(f"next: rlhf-audit verify {target} --key {directory / key_file}")
