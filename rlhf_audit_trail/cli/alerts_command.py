"""`rlhf-audit alerts`: what the detectors found in a run, recomputed from the ledger alone."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from rlhf_audit_trail.cli.ledger_commands import ledger_option
from rlhf_audit_trail.cli.output import guarded, say, show_json, styled

__all__ = ["alerts"]


@click.command()
@click.argument("run")
@ledger_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@guarded
def alerts(*, run: str, directory: Path, as_json: bool) -> None:
    """List the alerts of RUN, each computed again from the figures that the run recorded.

    Also names alerts that these figures give and nobody recorded. Exit code 1 when one
    differs or is missing.
    """
    from rlhf_audit_trail.detectors.checking import DIFFERS, MISSING, check_alerts
    from rlhf_audit_trail.ledger.log import Ledger

    with Ledger.open(directory) as ledger:
        found = check_alerts(ledger.find(run))
    bad = sum(alert.state in {DIFFERS, MISSING} for alert in found)
    if as_json:
        show_json([asdict(alert) for alert in found])
        sys.exit(1 if bad else 0)
    for alert in found:
        say(
            f"{styled(alert.state, 12)} entry {alert.leaf_index:,}  step {alert.step:,}"
            f"  {alert.severity:<9} {alert.name}"
        )
        if alert.finding:
            say(f"  {alert.finding}")
    say(f"alerts: {len(found):,}; that differ or are missing: {bad:,}")
    sys.exit(1 if bad else 0)
