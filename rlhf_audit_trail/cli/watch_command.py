"""`rlhf-audit watch`: records a training of another framework from the files it writes."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

import click

from rlhf_audit_trail.cli.ledger_commands import ledger_option
from rlhf_audit_trail.cli.output import guarded, say, show_json

if TYPE_CHECKING:
    from rlhf_audit_trail.sidecar import Look

__all__ = ["watch"]

_SOURCES: Final = ("human", "user_interaction", "ai_feedback", "simulated")


@click.command()
@click.argument("run")
@click.argument(
    "folders", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DIR..."
)
@click.option(
    "--format", "form", required=True, type=click.Choice(("verl", "nemo-rl", "trl-parquet")),
    help="Who writes the files.",
)  # fmt: skip
@click.option(
    "--source", required=True, type=click.Choice(_SOURCES),
    help="Who gave the preferences that the rewards stand for.",
)  # fmt: skip
@click.option("--judge-model", default="", metavar="NAME", help="The model, for ai_feedback.")
@click.option("--once", is_flag=True, help="Look once, instead of again and again.")
@click.option(
    "--every", "interval", default=10.0, show_default=True, type=click.FloatRange(min=0.1),
    metavar="SECONDS", help="How long to wait between two looks.",
)  # fmt: skip
@click.option(
    "--settled", default=5.0, show_default=True, type=click.FloatRange(min=0.0),
    metavar="SECONDS", help="How long a file must have been left alone before it is read.",
)  # fmt: skip
@ledger_option
@click.option("--json", "as_json", is_flag=True, help="Print each look as JSON.")
@guarded
def watch(
    *, run: str, folders: tuple[Path, ...], form: str, source: str, judge_model: str, once: bool,
    interval: float, settled: float, directory: Path, as_json: bool,
) -> None:  # fmt: skip
    """Record in RUN what a training framework writes below DIR: completions and checkpoints.

    The record says that an observer of files made it, and holds each file's digest. Ended or
    killed and started again, it goes on without recording anything twice. DIR of verl is its
    rollout_data_dir, of NeMo-RL its log and checkpoint folders, of TRL the output_dir.
    """
    from rlhf_audit_trail.ledger.log import Ledger
    from rlhf_audit_trail.sidecar import watching

    signal.signal(signal.SIGTERM, _interrupt)
    with (
        Ledger.open(directory) as ledger,
        watching(
            ledger, run, folders, form, source=source, judge_model=judge_model, settled_s=settled
        ) as sidecar,
    ):
        try:
            while True:
                _show(sidecar.look(), as_json=as_json, is_only=once)
                if once:
                    return
                time.sleep(interval)
        except KeyboardInterrupt:  # how watching ends; all that was seen is recorded
            return


def _interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


def _show(look: Look, *, as_json: bool, is_only: bool) -> None:
    """Print a look; of many, only those that found something."""
    has_news = look.files or look.checkpoints or look.unreadable
    if as_json:
        show_json(vars(look))
    elif has_news or is_only:
        say(
            f"recorded {look.files:,} files with {look.completions:,} completions, "
            f"{look.checkpoints:,} checkpoints; unreadable {look.unreadable:,}, "
            f"still being written {look.waiting:,}"
        )
