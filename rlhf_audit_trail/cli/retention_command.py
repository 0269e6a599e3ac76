"""`rlhf-audit retention`: sealed values that were kept for long enough go."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from rlhf_audit_trail.cli.ledger_commands import ledger_option
from rlhf_audit_trail.cli.output import guarded, say, show_json

__all__ = ["retention"]


@click.group()
def retention() -> None:
    """Destroy sealed values that were kept for as long as `[retention]` says."""


@retention.command()
@click.option("--dry-run", is_flag=True, help="Only say what is due.")
@ledger_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@guarded
def run(*, dry_run: bool, directory: Path, as_json: bool) -> None:
    """Destroy what is due now; the registry log counts it, and proofs stay."""
    from rlhf_audit_trail.ledger.log import Ledger
    from rlhf_audit_trail.ledger.retention import expire, read_retention

    with Ledger.open(directory) as ledger:
        settings = read_retention(ledger)
        done = expire(ledger, settings, is_dry=dry_run)
    found = [
        {"run": run_id, "kind": kind, "entries": count}
        for (run_id, kind), count in done.entries.items()
    ]
    if as_json:
        record = {"dry_run": dry_run, "classes": settings.days, "due": found}
        show_json(record | {"leftovers": done.leftovers})
    else:
        if not settings.days:
            say("[retention] names no kind of event: everything is kept")
        verb = "due" if dry_run else "destroyed"
        for item in found:
            say(f"{verb}: the sealed values of {item['entries']:,} entries, {item['kind']}, "
                f"{item['run']}")  # fmt: skip
        if settings.days and not found:
            say("nothing is due")
        for place in done.leftovers:
            say(f"  not reached: {place}; say it again")
    if done.leftovers:
        sys.exit(5)
