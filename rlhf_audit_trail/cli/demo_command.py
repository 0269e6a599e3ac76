"""`rlhf-audit demo`: the whole path on this machine."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click

from rlhf_audit_trail.cli.output import guarded, say, show_json, styled
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = ["demo"]


class DirectoryTaken(AuditTrailError):
    """The directory for the demonstration holds something already."""


@click.command()
@click.option(
    "--fast",
    is_flag=True,
    help="Train a policy in plain Python instead of a language model with torch.",
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Keep everything in this new or empty directory, to look at afterwards.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@guarded
def demo(*, fast: bool, keep: Path | None, as_json: bool) -> None:
    """Train, record, anchor, prove, verify, and attack: the whole path.

    Everything runs on this machine: a chain (Anvil), the contract, a small training run.
    Exits with 0 only if all holds and every attack is caught.
    """
    if keep is not None:
        if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
            raise DirectoryTaken(f"{keep} is not empty", next_step="choose a new directory")
        sys.exit(_run(keep, fast=fast, as_json=as_json, kept=True))
    with tempfile.TemporaryDirectory(prefix="rlhf-audit-demo-") as directory:
        sys.exit(_run(Path(directory), fast=fast, as_json=as_json, kept=False))


def _run(directory: Path, *, fast: bool, as_json: bool, kept: bool) -> int:
    from rlhf_audit_trail.demo.story import tell

    def quiet(text: str) -> None:
        click.echo(text, err=True)

    report = tell(directory, fast=fast, say=quiet if as_json else _say_state)
    if as_json:
        show_json(report.to_json())
        return 0 if report.passed else 1
    caught = sum(bool(item["by"]) for item in report.attacks)
    say(f"{caught} of {len(report.attacks)} attacks caught, in {report.elapsed_s} s")
    if not report.passed:
        say(f"{styled('FAILED')}  something above slipped")
        return 1
    say("Look at next:")
    if kept:
        say(f"  rlhf-audit verify {directory}/demo.bundle --key {directory}/demo.vkey")
        say(
            f"  rlhf-audit verify {directory}/demo.bundle --trust-policy "
            f"{directory}/demo.trust.json --trusted-block-hash {report.trusted_block}"
        )
        say(f"  rlhf-audit status --ledger {directory}/ledger")
        say(f"  rlhf-audit fsck --ledger {directory}/ledger")
        say(f"  rlhf-audit serve --ledger {directory}/ledger   then open /api/v1/logs")
    else:
        say("  rlhf-audit demo --keep DIR   keeps ledger, bundle and keys to play with")
    say("  ledger/FORMAT.md             what the verifier checked, step by step")
    return 0


def _say_state(text: str) -> None:
    """Write a line of the story, with the state of an attack in its colour."""
    for word in ("caught", "SLIPPED"):
        text = text.replace(f"  {word:<8} ", f"  {styled(word, 8)} ")
    say(text)
