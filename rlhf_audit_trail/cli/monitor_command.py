"""`rlhf-audit monitor`: follow a public log, and say when it contradicts itself."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlhf_audit_trail.cli.output import exit_code_of, guarded, say, show_json, styled
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

if TYPE_CHECKING:
    from rlhf_audit_trail.ledger.monitor import Contradiction, Monitor, Sighting

__all__ = ["monitor"]


class BadState(AuditTrailError):
    """The file with the last tree head seen cannot be read."""


@click.command()
@click.argument("place", metavar="URL")
@click.option(
    "--key", "keys", multiple=True, metavar="KEY",
    help="Pin a vkey, or a file of vkeys, of the log. All pinned keys must have signed.",
)  # fmt: skip
@click.option(
    "--policy", "policy_file", type=click.Path(path_type=Path), metavar="FILE",
    help="tlog-policy: whose signatures, and which quorum of witnesses, are wanted.",
)  # fmt: skip
@click.option(
    "--state", type=click.Path(path_type=Path), metavar="FILE",
    help="Where to keep the last tree head seen, so that the next run goes on from it.",
)  # fmt: skip
@click.option(
    "--evidence", type=click.Path(path_type=Path), metavar="FILE", show_default=True,
    default=Path("monitor-evidence.json"), help="Where to write what contradicts.",
)  # fmt: skip
@click.option(
    "--interval", default=30.0, show_default=True, type=click.FloatRange(min=0.1),
    help="Seconds between looks.",
)  # fmt: skip
@click.option("--once", is_flag=True, help="Look once and exit.")
@click.option("--json", "as_json", is_flag=True, help="Print each look as JSON.")
@guarded
def monitor(
    *,
    place: str,
    keys: tuple[str, ...],
    policy_file: Path | None,
    state: Path | None,
    evidence: Path,
    interval: float,
    once: bool,
    as_json: bool,
) -> None:
    """Follow the log at URL, an address or an exported directory: all entries, tiles, heads.

    Exit code 0 sound, 1 contradiction (written to the evidence file), 3 too few witnesses or
    something is not served, 4 unreadable, 5 not reachable. Without --once only a
    contradiction ends it.
    """
    watch = _monitor(place, keys, policy_file, state)
    while True:
        code = _look(watch, state, evidence, as_json=as_json)
        if once or code == 1:
            sys.exit(code)
        time.sleep(interval)


def _monitor(
    place: str, keys: tuple[str, ...], policy_file: Path | None, state: Path | None
) -> Monitor:
    from rlhf_audit_trail.cli.witness_command import read_policy
    from rlhf_audit_trail.ledger.monitor import Monitor
    from rlhf_audit_trail.ledger.proof.note import MAX_NOTE_BYTES
    from rlhf_audit_trail.ledger.public_log import PublicLog, open_source
    from rlhf_audit_trail.ledger.trust import read_keys

    policy = read_policy(policy_file) if policy_file else None
    pinned = tuple(dict.fromkeys(key for text in keys for key in read_keys(text)))
    if not pinned and not (policy and policy.logs):
        raise click.UsageError("pin the log's keys with --key, or list the log in --policy")
    note = ""
    if state is not None and state.exists():
        try:
            with state.open("rb") as file:
                note = file.read(MAX_NOTE_BYTES).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise BadState(f"cannot read {state}", next_step="restore it, or begin anew") from error
    return Monitor(PublicLog(open_source(place)), pinned, policy=policy, last_note=note)


def _look(watch: Monitor, state: Path | None, evidence: Path, *, as_json: bool) -> int:
    """Look once; print what was seen, keep it, and return the exit code."""
    from rlhf_audit_trail.ledger.monitor import Contradiction

    try:
        seen = watch.look()
    except Contradiction as error:
        evidence.write_bytes(error.evidence)
        _report(error, evidence, as_json=as_json)
        return 1
    except AuditTrailError as error:
        if as_json:
            show_json({"state": "unknown", "finding": type(error).__name__, "text": error.message})
        else:
            click.echo(f"error: {error}", err=True)
        return exit_code_of(error)
    if state is not None:
        _keep(state, seen.note)
    _print(seen, as_json=as_json)
    return 3 if seen.unmet else 0


def _keep(state: Path, note: str) -> None:
    """Replace the state in one step: half a note would be no note."""
    draft = state.with_name(f".{state.name}.{os.getpid()}")
    draft.write_text(note, "utf-8")
    draft.replace(state)


def _report(error: Contradiction, evidence: Path, *, as_json: bool) -> None:
    finding = error.finding
    if as_json:
        record = {"state": "contradiction", "finding": type(finding).__name__}
        show_json(record | {"text": finding.message, "evidence": str(evidence)})
        return
    say(f"{styled('FAILED')}  {finding.message}")
    if finding.expected:
        say(f"  expected {finding.expected}")
        say(f"  found    {finding.actual or 'nothing'}")
    say(f"  evidence {evidence}")
    say("  next: keep the evidence, and show it to others who rely on this log")


def _print(seen: Sighting, *, as_json: bool) -> None:
    head = seen.head
    witnesses = sorted({key.name for key in seen.cosigned_at_s})
    if as_json:
        record: dict[str, Any] = {"state": "not_shown" if seen.unmet else "sound"}
        record |= {"origin": head.origin, "tree_size": head.size, "root": head.root.hex()}
        record |= {"new_entries": seen.new_entries, "witnesses": witnesses}
        show_json(record | {"text": seen.unmet.message if seen.unmet else ""})
        return
    word = styled("not shown" if seen.unmet else "sound", 10)
    say(
        f"{word} {head.origin}  {head.size:,} entries, {seen.new_entries:,} new,"
        f" {len(witnesses)} witnesses"
    )
    if seen.unmet:
        say(f"  {seen.unmet.message}: {seen.unmet.actual or seen.unmet.expected}")
