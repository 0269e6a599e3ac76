"""Commands on a ledger's own directory: init, status, prove."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rlhf_audit_trail.cli.output import guarded, say, show_json, styled

if TYPE_CHECKING:
    from rlhf_audit_trail.ledger.log import Log

__all__ = ["init", "ledger_option", "status"]

_Command = TypeVar("_Command", bound=Callable[..., Any])


def ledger_option(command: _Command) -> _Command:
    """Add `--ledger DIR`, also read from RLHF_AUDIT_LEDGER; the current directory otherwise."""
    return click.option(
        "--ledger", "directory", default=".", envvar="RLHF_AUDIT_LEDGER", show_default=True,
        type=click.Path(path_type=Path), metavar="DIR", help="The ledger's directory.",
    )(command)  # fmt: skip


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--organisation",
    required=True,
    metavar="NAME",
    help="First part of every log's name, usually a domain: acme.example.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@guarded
def init(*, directory: Path, organisation: str, as_json: bool) -> None:
    """Make a ledger in DIRECTORY, which must be new or empty."""
    from rlhf_audit_trail.ledger.log import SETTINGS_FILE, Ledger

    with Ledger.create(directory, organisation=organisation) as ledger:
        record = {
            "directory": str(directory),
            "settings": str(directory / SETTINGS_FILE),
            "operator_key": str(directory / "operator.key"),
            "registry": ledger.registry.origin,
            "registry_keys": str(ledger.key_file("registry").relative_to(ledger.directory)),
        }
    if as_json:
        show_json(record)
        return
    say(f"made a ledger in {directory}")
    say(f"  settings      {record['settings']}")
    say(f"  operator key  {record['operator_key']}   keep a copy apart; never publish it")
    say(f"  public keys   {directory / 'keys'}   publish these where auditors trust the source")
    say(f"next: AuditableRLHF(model_name=..., ledger={str(directory)!r}) in your training script")


@click.command()
@ledger_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@guarded
def status(*, directory: Path, as_json: bool) -> None:
    """Show every log: its size, the newest signed tree head, the newest anchor.

    Witnesses, mirrors and contract are asked whether this store is the newest copy. Exit
    code 1 when one of them shows that it is not.
    """
    from rlhf_audit_trail.ledger.log import Ledger

    with Ledger.open(directory) as ledger:
        found = [ledger.find(run) for run in ("registry", *ledger.runs())]
        asked = zip(found, _ask_peers(found), strict=True)
        logs = [_log_status(log) | peers for log, peers in asked]
        record = {"organisation": ledger.settings.organisation, "logs": logs}
    alarms = [log["alarm"] for log in logs if log["alarm"]]
    if as_json:
        show_json(record)
        sys.exit(1 if alarms else 0)
    say(f"{'log':<40} {'entries':>10} {'signed':>10} {'anchored':>10}  state")
    for log in logs:
        say(
            f"{log['origin']:<40} {log['size']:>10,} {log['signed_size']:>10,}"
            f" {log['anchored_size']:>10,}  {log['anchor_state']}"
        )
    for name, why in sorted({(x["peer"], x["finding"]) for log in logs for x in log["silent"]}):
        say(f"no answer    {name}: {why}")
    for alarm in alarms:
        say(f"{styled('READ-ONLY')}  {alarm['finding']}")
        say(f"  next: {alarm['next']}")
    behind = [log["run"] for log in logs if log["anchored_size"] < log["size"]]
    if alarms:
        sys.exit(1)
    if behind:
        say(f"next: rlhf-audit anchor   (not anchored to the end: {', '.join(behind)})")


def _ask_peers(logs: list[Log]) -> Iterator[dict[str, Any]]:
    """Yield for each log what contradicts it and who is silent; nobody answers: ask no more."""
    is_heard = True
    for log in logs:
        if not is_heard:
            yield {"alarm": None, "silent": []}
            continue
        found = log.compare()
        is_heard = not found.is_unheard
        silent = [
            {"peer": x.peer, "finding": x.finding.message}
            for x in found.answers
            if x.state == "silent" and x.finding
        ]
        alarm = log.alarm and {
            "kind": type(log.alarm).__name__, "finding": log.alarm.message,
            "next": log.alarm.next_step,
        }  # fmt: skip
        yield {"alarm": alarm, "silent": silent}


def _log_status(log: Log) -> dict[str, Any]:
    signed, anchors = log.published(), log.anchors()
    newest = anchors[-1] if anchors else None
    return {
        "run": log.run_id,
        "origin": log.origin,
        "size": log.size,
        "signed_size": signed.head.size if signed else 0,
        "signed_root": signed.head.root.hex() if signed else None,
        "anchored_size": max(log.anchored_sizes(), default=0),
        "anchor_state": newest.state if newest else "none",
    }
