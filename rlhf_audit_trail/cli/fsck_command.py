"""`rlhf-audit fsck`: check everything that is stored, or a directory with an exported log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from rlhf_audit_trail.cli.ledger_commands import ledger_option
from rlhf_audit_trail.cli.output import guarded, say, show_json, styled

if TYPE_CHECKING:
    from rlhf_audit_trail.ledger.findings import Finding, Progress

__all__ = ["fsck"]

_REDRAW_S: Final = 0.2


@click.command()
@ledger_option
@click.option(
    "--export", "exported", type=click.Path(path_type=Path), metavar="DIR",
    help="Check an export or mirror instead of the ledger.",
)  # fmt: skip
@click.option(
    "--key", "keys", multiple=True, metavar="KEY",
    help="With --export: pin a vkey, or a file of vkeys, of the log.",
)  # fmt: skip
@click.option(
    "--jobs", type=click.IntRange(min=1), metavar="N",
    help="Processes that work; all cores if left out.",
)  # fmt: skip
@click.option(
    "--progress/--no-progress", "with_progress", default=None,
    help="Show how far it has come, on standard error; on a terminal by default.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@guarded
def fsck(
    *,
    directory: Path,
    exported: Path | None,
    keys: tuple[str, ...],
    jobs: int | None,
    with_progress: bool | None,
    as_json: bool,
) -> None:
    """Check everything that is stored, and name what is broken.

    Exit code 0 sound, 1 damaged, 4 or 5 when something could not be checked.
    """
    if keys and exported is None:
        raise click.UsageError("--key belongs to --export; a ledger has its own keys")
    if exported is not None:
        counts, findings = _check_export(exported, keys, as_json=as_json)
    else:
        shown = sys.stderr.isatty() if with_progress is None else with_progress
        counts, findings = _check_ledger(directory, jobs, shown=shown, as_json=as_json)
    if as_json:
        found = [asdict(finding) for finding in findings]
        show_json(counts | {"sound": not findings, "findings": found})
    else:
        _conclude(counts, findings)
    if findings:
        sys.exit(1 if any(finding.is_damage for finding in findings) else 5)


def _check_ledger(
    directory: Path, jobs: int | None, *, shown: bool, as_json: bool
) -> tuple[dict[str, Any], list[Finding]]:
    from rlhf_audit_trail.ledger.fsck import Summary, open_damaged
    from rlhf_audit_trail.ledger.fsck import fsck as check

    summary, findings = Summary(), []
    with open_damaged(directory) as storage, _meter(shown=shown) as meter:
        progress = meter.show if shown else None
        for finding in check(storage, jobs=jobs, summary=summary, progress=progress):
            findings.append(finding)
            if not as_json:
                meter.clear()
                _tell(finding)
    return asdict(summary), findings


def _check_export(
    directory: Path, texts: tuple[str, ...], *, as_json: bool
) -> tuple[dict[str, Any], list[Finding]]:
    from rlhf_audit_trail.ledger.exported import ExportCheck, exports_in
    from rlhf_audit_trail.ledger.trust import read_keys

    pinned = [key for text in texts for key in read_keys(text)]
    findings, entries, files, places = [], 0, 0, exports_in(directory)
    for place in places:
        check = ExportCheck(place, pinned)
        for finding in check.findings():
            findings.append(finding)
            if not as_json:
                _tell(finding)
        entries, files = entries + check.entries, files + check.files
    if not pinned and not as_json:
        say("checked by the keys in the directory; pin the log's own with --key")
    counts = {"logs": len(places), "entries": entries, "files": files, "findings": len(findings)}
    return counts, findings


def _tell(finding: Finding) -> None:
    word = styled("DAMAGED" if finding.is_damage else "not shown")
    where = f"{finding.log} {finding.what} {finding.where}".strip()
    say(f"{word}  {where}: {finding.detail}")


def _conclude(counts: dict[str, Any], findings: list[Finding]) -> None:
    is_damaged = any(finding.is_damage for finding in findings)
    word = "DAMAGED" if is_damaged else "not shown" if findings else "sound"
    said = f"{counts['logs']:,} logs, {counts['entries']:,} entries"
    say(f"{styled(word)}  {said}, {len(findings):,} findings")
    if is_damaged:
        say("next: restore what is named from a backup or mirror; do not append before")
    elif findings:
        say("next: run it again, with --jobs 1; what was not checked is unknown")


class _Meter:
    """One line on standard error, drawn again a few times a second."""

    def __init__(self) -> None:
        self._began_s = self._drawn_s = time.monotonic()
        self._is_drawn = False

    def show(self, come: Progress) -> None:
        """Draw it, unless it was drawn just now."""
        now_s = time.monotonic()
        if now_s - self._drawn_s < _REDRAW_S:
            return
        self._drawn_s, self._is_drawn = now_s, True
        percent = 100 * come.all_done // max(1, come.all_size)
        rate = come.all_done / (now_s - self._began_s)
        text = f"{come.origin}  {come.all_done:,} of {come.all_size:,} entries, {percent} %"
        click.echo(f"\r\x1b[K{text}, {rate:,.0f}/s", nl=False, err=True)

    def clear(self) -> None:
        """Make room for another line."""
        if self._is_drawn:
            click.echo("\r\x1b[K", nl=False, err=True)
        self._is_drawn = False


@contextmanager
def _meter(*, shown: bool) -> Iterator[_Meter]:
    meter = _Meter()
    try:
        yield meter
    finally:
        if shown:
            meter.clear()
