"""`rlhf-audit writer`: who may append to a run over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rlhf_audit_trail.cli.ledger_commands import ledger_option
from rlhf_audit_trail.cli.output import guarded, say, show_json

__all__ = ["writer"]


@click.group()
def writer() -> None:
    """Let other machines append to a run over HTTP, each with a token of its own.

    `rlhf-audit serve` takes their entries; the way there must be TLS or a private network.
    """


@writer.command()
@click.argument("name")
@click.option("--run", metavar="RUN", help="The run it may append to; opened if it is new.")
@click.option("--all-runs", is_flag=True, help="It may append to every run there is.")
@ledger_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@guarded
def add(*, name: str, run: str | None, all_runs: bool, directory: Path, as_json: bool) -> None:
    """Make a token for the writer NAME, and show it this once.

    NAME stands in the public registry log: take a machine's, not a person's.
    """
    from rlhf_audit_trail.ledger.bearer import TOKEN_VARIABLE
    from rlhf_audit_trail.ledger.log import Ledger
    from rlhf_audit_trail.ledger.tokens import WriterTokens

    if bool(run) == all_runs:
        raise click.UsageError("say which run: --run RUN, or --all-runs")
    with Ledger.open(directory) as ledger:
        is_new = bool(run) and run not in ledger.runs()
        token = WriterTokens(ledger).grant(name, run or "")
    if as_json:
        show_json({"writer": name, "run": run, "run_opened": is_new, "token": token})
        return
    if is_new:
        say(f"opened the run {run}, which was new")
    say(f"{name} may append to {f'the run {run}' if run else 'every run'}, with this token:")
    say(f"  {token}")
    say("It is kept nowhere and is not shown again.")
    say(f"next: on that machine set {TOKEN_VARIABLE}, and use RemoteLog(url, run_id)")


@writer.command("list")
@ledger_option
@click.option("--json", "as_json", is_flag=True, help="Print writers and their processes as JSON.")
@guarded
def list_(*, directory: Path, as_json: bool) -> None:
    """Show the writers; with --json also the writer ids that stand in their entries."""
    from rlhf_audit_trail.ledger.log import Ledger
    from rlhf_audit_trail.ledger.tokens import WriterTokens

    with Ledger.open(directory) as ledger:
        tokens, processes = WriterTokens(ledger).tokens(), WriterTokens(ledger).writers()
    found: list[dict[str, Any]] = [
        {
            "writer": token.writer,
            "run": token.run_id or None,
            "state": "revoked" if token.revoked_at else "in force",
            "created_at": token.created_at,
            "revoked_at": token.revoked_at or None,
            "token_digest": token.digest.hex(),
            "processes": [
                {"run": x.run_id, "writer_id": x.writer_id, "first_seen_at": x.first_seen_at}
                for x in processes
                if x.writer == token.writer
            ],
        }
        for token in tokens
    ]
    if as_json:
        show_json(found)
        return
    say(f"{'writer':<24} {'run':<24} {'state':<9} {'processes':>9}  made")
    for item in found:
        say(
            f"{item['writer']:<24} {item['run'] or '(every run)':<24} {item['state']:<9}"
            f" {len(item['processes']):>9,}  {item['created_at']}"
        )


@writer.command()
@click.argument("name")
@ledger_option
@guarded
def revoke(*, name: str, directory: Path) -> None:
    """Refuse the writer NAME's token from now on; what it has written stays."""
    from rlhf_audit_trail.ledger.log import Ledger
    from rlhf_audit_trail.ledger.tokens import WriterTokens

    with Ledger.open(directory) as ledger:
        token = WriterTokens(ledger).revoke(name)
    say(f"{name} is refused since {token.revoked_at}")
