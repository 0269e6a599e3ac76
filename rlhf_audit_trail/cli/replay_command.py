"""`rlhf-audit replay`: whole weights and every difference since, each against its entry."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from rlhf_audit_trail.cli.checkpoint_command import opened_store
from rlhf_audit_trail.cli.ledger_commands import ledger_option
from rlhf_audit_trail.cli.output import guarded, say, show_json, styled

__all__ = ["replay"]

_WORDS = {"proved": "passed", "failed": "failed", "not stored": "not shown"}


@click.command()
@click.argument("run")
@click.option(
    "--key", "pinned", multiple=True, metavar="KEY",
    help="Pin a vkey, or a file of vkeys, of the log; else any key may have signed.",
)  # fmt: skip
@ledger_option
@click.option("--json", "as_json", is_flag=True, help="Print the steps as JSON.")
@guarded
def replay(*, run: str, pinned: tuple[str, ...], directory: Path, as_json: bool) -> None:
    """Rebuild every stored checkpoint of RUN in turn, and check it by its entry.

    The entries are checked by the newest signed tree head. Exit code 0 if all recorded weights
    were rebuilt, 1 if some are not what was recorded or signed, 3 if some are not stored. It
    shows that the states follow from each other as stored, not that the training made them.
    """
    from rlhf_audit_trail.ledger.trust import read_keys
    from rlhf_audit_trail.ledger.weights.replay import check_signed
    from rlhf_audit_trail.ledger.weights.replay import replay as replayed

    keys = tuple(key for text in pinned for key in read_keys(text))
    with opened_store(directory) as (ledger, store):
        log = ledger.find(run)
        steps = []
        for step in replayed(log, store, ledger.blobs):
            steps.append(step)
            if not as_json:
                said = step.finding.message if step.finding else step.how or step.state
                word = styled(_WORDS[step.state], 10)
                say(f"{word} {step.name:<16} entry {step.leaf_index:<8,} {said}")
        size = check_signed(log, steps, keys)
        origin = log.origin
    states = {step.state for step in steps}
    code = 1 if "failed" in states else 3 if "not stored" in states or not steps else 0
    if as_json:
        found = [
            {"name": x.name, "leaf_index": x.leaf_index, "weights_digest": x.weights_digest,
             "state": x.state, "how": x.how, "finding": x.finding and x.finding.message}
            for x in steps
        ]  # fmt: skip
        show_json({"run": run, "origin": origin, "signed_size": size, "steps": found})
        sys.exit(code)
    word = styled({0: "VERIFIED", 1: "FAILED", 3: "INCONCLUSIVE"}[code])
    proved = sum(step.state == "proved" for step in steps)
    say(f"{word}  {proved:,} of {len(steps):,} checkpoints rebuilt as {origin} recorded them")
    if steps and steps[-1].state == "proved":
        covered = "signed" if steps[-1].leaf_index < size else "not yet signed"
        say(f"  the last one, {steps[-1].name}, has {steps[-1].weights_digest}; {covered}")
    sys.exit(code)
