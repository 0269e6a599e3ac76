"""`rlhf-audit ingest`: annotations that were made elsewhere become entries of a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from rlhf_audit_trail.cli.ledger_commands import ledger_option
from rlhf_audit_trail.cli.output import guarded, say, show_json

if TYPE_CHECKING:
    from rlhf_audit_trail.importers import AnnotationImport

__all__ = ["ingest"]

_SHOWN_MAX: Final = 20  # of what was left out; the log names the first thousand
_SOURCES: Final = ("human", "user_interaction", "ai_feedback", "simulated")
_FORMATS: Final = (
    "auto", "pairs", "hh-rlhf", "ultrafeedback", "argilla", "label-studio", "prodigy",
)  # fmt: skip


@click.command()
@click.argument("run")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--source", required=True, type=click.Choice(_SOURCES), help="Who gave the preferences."
)
@click.option(
    "--format", "form", default="auto", show_default=True, type=click.Choice(_FORMATS),
    help="Of the rows; `auto` tells it from the first one.",
)  # fmt: skip
@click.option(
    "--column", "columns", multiple=True, metavar="OURS=THEIRS",
    help="Instead of a format: which column holds what. OURS is prompt, response and reward, or "
    "prompt, chosen and rejected; and annotator, item, status, created_at, updated_at, "
    "judge_model.",
)  # fmt: skip
@click.option("--judge-model", default="", metavar="NAME", help="The model, for ai_feedback.")
@click.option(
    "--guideline", type=click.Path(path_type=Path), metavar="FILE",
    help="What the annotators were told; its digest is recorded.",
)  # fmt: skip
@click.option("--revision", default="", metavar="TEXT", help="Of a dataset, such as its commit.")
@click.option(
    "--annotator-prefix", "prefix", metavar="TEXT",
    help="Put before the annotators' ids, so that people of two tools stay two people.",
)  # fmt: skip
@click.option(
    "--since", default="", metavar="TIME",
    help="Leave out what was last changed before: for a newer export of the same project.",
)  # fmt: skip
@click.option("--again", is_flag=True, help="Import a file once more, read in another way.")
@click.option("--dry-run", is_flag=True, help="Read and report; record nothing.")
@ledger_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@guarded
def ingest(
    *, run: str, file: Path, directory: Path, form: str, columns: tuple[str, ...], again: bool,
    guideline: Path | None, revision: str, dry_run: bool, as_json: bool, **reading: Any,
) -> None:  # fmt: skip
    """Record the annotations of FILE in RUN: datasets and exports of annotation tools.

    FILE is JSON Lines, JSON, CSV or parquet. Drafts, discarded, cancelled and bad rows are
    counted with their line and reason; what a model said is kept apart from what people said.
    The same command again records nothing twice, and goes on where it was interrupted.
    """
    from rlhf_audit_trail.importers import Reading, import_annotations
    from rlhf_audit_trail.ledger.log import Ledger

    how = Reading(format=form, columns=_mapping(columns), **reading)
    with Ledger.open(directory) as ledger:
        done = import_annotations(
            ledger, run, file, how, guideline=guideline, revision=revision, is_dry=dry_run,
            is_again=again, on_progress=_progress if sys.stderr.isatty() else None,
        )  # fmt: skip
    if as_json:
        show_json(_record(done))
        return
    _show(done, run, is_dry=dry_run)


def _mapping(columns: tuple[str, ...]) -> dict[str, str]:
    pairs = [text.partition("=") for text in columns]
    if not all(ours and theirs for ours, _, theirs in pairs):
        raise click.UsageError("write --column OURS=THEIRS")
    return {ours: theirs for ours, _, theirs in pairs}


def _progress(done: AnnotationImport) -> None:
    click.echo(f"\r{done.rows:,} rows, {done.recorded:,} recorded", nl=False, err=True)


def _show(done: AnnotationImport, run: str, *, is_dry: bool) -> None:
    if sys.stderr.isatty():
        click.echo("\r\033[K", nl=False, err=True)
    said = ", ".join(f"{count:,} {name}" for name, count in sorted(done.sources.items()))
    say(f"{done.format}: {done.rows:,} rows, {done.annotations:,} annotations ({said or 'none'})")
    if is_dry:
        say("nothing was recorded: --dry-run")
    else:
        say(f"recorded in {run}: {done.recorded:,}; before: {done.already:,}")
    for name, count in sorted(done.judge_models.items()):
        say(f"  judged by {name}: {count:,}")
    if done.unattributed:
        say(f"  unattributed: {done.unattributed:,}; the file does not say who")
    for name, count in sorted(done.left_out.items()):
        say(f"  left out, {name}: {count:,}")
    for item in done.left_out_rows[:_SHOWN_MAX]:
        say(f"    row {item.row:,}: {item.reason}")
    more = sum(done.left_out.values()) - _SHOWN_MAX
    if more > 0:
        say(f"    and {more:,} more; --json lists up to a thousand")


def _record(done: AnnotationImport) -> dict[str, Any]:
    plain = {name: dict(x) if isinstance(x, dict) else x for name, x in vars(done).items()}
    plain["left_out_rows"] = [vars(item) for item in done.left_out_rows]
    return plain
