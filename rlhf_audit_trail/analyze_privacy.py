"""Print the privacy report of an experiment.

python -m rlhf_audit_trail.analyze_privacy --experiment helpful-1 --ledger audit
"""

from __future__ import annotations

import sys

import click

from rlhf_audit_trail.cli.privacy_command import privacy

__all__ = ["main"]


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--experiment", required=True, help="The run's name.")
@click.argument("more", nargs=-1, type=click.UNPROCESSED)
def main(experiment: str, more: tuple[str, ...]) -> None:
    """Print the privacy report of an experiment; other options are those of rlhf-audit privacy."""
    privacy.main(["show", *more, "--", experiment], prog_name="analyze_privacy")


if __name__ == "__main__":
    sys.exit(main())
