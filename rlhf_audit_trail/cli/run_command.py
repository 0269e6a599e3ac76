"""`rlhf-audit run -- COMMAND`: a training is recorded without a change of its code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

from rlhf_audit_trail.cli.output import guarded

__all__ = ["run"]


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--ledger",
    envvar="RLHF_AUDIT_LEDGER",
    required=True,
    metavar="DIR|URL",
    help="The ledger's directory, or its address on another machine.",
)
@click.option("--name", metavar="RUN", help="The run's name; by default the trainer's own.")
@click.option(
    "--source",
    default="human",
    show_default=True,
    help="Who gave the preferences: human, user_interaction, ai_feedback, simulated.",
)
@click.option("--judge-model", default="", help="The judging model, for ai_feedback.")
@click.option("--model", default="policy", show_default=True, help="The policy's name.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@guarded
def run(
    *,
    ledger: str,
    name: str | None,
    source: str,
    judge_model: str,
    model: str,
    command: tuple[str, ...],
) -> None:
    """Run a training, and record what its trainers do.

    Trainers of transformers and TRL are recorded, in COMMAND and the processes it starts, such
    as those of `accelerate launch`. Of a loop of its own, only what optimizers do is seen:
    updates, how far weights moved, gradients, learning rates; not rows, rewards, metrics and
    checkpoints, and the record says so. Exits as COMMAND does.

        rlhf-audit run --ledger audit -- python train.py
    """
    from rlhf_audit_trail import launch
    from rlhf_audit_trail.run_events import check_source

    check_source(source, judge_model)
    folder = str(Path(str(launch.__file__)).parent)
    is_address = ledger.startswith(("http://", "https://"))
    chosen = {
        "RLHF_AUDIT_LEDGER": ledger if is_address else str(Path(ledger).absolute()),
        "RLHF_AUDIT_SOURCE": source,
        "RLHF_AUDIT_JUDGE_MODEL": judge_model,
        "RLHF_AUDIT_MODEL": model,
        "PYTHONPATH": os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH", "")])),
    }
    if name:
        chosen["RLHF_AUDIT_RUN"] = name
    try:
        done = subprocess.run(command, env=os.environ | chosen, check=False)
    except FileNotFoundError as error:
        raise click.UsageError(f"there is no command {command[0]!r}") from error
    # by a signal, as a shell tells it
    sys.exit(done.returncode if done.returncode >= 0 else 128 - done.returncode)
