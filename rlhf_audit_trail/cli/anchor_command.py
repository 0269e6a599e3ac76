"""`rlhf-audit anchor`: sign, have cosigned, and anchor; once, or for as long as it runs."""

from __future__ import annotations

import dataclasses
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rlhf_audit_trail.cli.anchor_report import (
    anchors_record,
    costs_record,
    plan_record,
    print_anchors,
    print_costs,
    print_plan,
    print_round,
)
from rlhf_audit_trail.cli.ledger_commands import ledger_option
from rlhf_audit_trail.cli.output import exit_code_of, guarded, show_json

if TYPE_CHECKING:
    from rlhf_audit_trail.ledger.chain.anchoring.publishing import Publisher
    from rlhf_audit_trail.ledger.chain.signing.signer import Signer
    from rlhf_audit_trail.ledger.log import Ledger, Log

__all__ = ["anchor"]


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN...]")
@click.option("--deploy", is_flag=True, help="Put the contract on the chain first, if it lacks it.")
@click.option("--follow", is_flag=True, help="Keep running, and anchor as [anchor] says.")
@click.option("--dry-run", is_flag=True, help="Show what would be sent and cost; sign nothing.")
@click.option("--costs", is_flag=True, help="Show what anchors have cost; send nothing.")
@click.option(
    "--keystore",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Keystore v3 file of the publisher; its password is asked for.",
)
@ledger_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@guarded
def anchor(
    *,
    runs: tuple[str, ...],
    deploy: bool,
    follow: bool,
    dry_run: bool,
    costs: bool,
    keystore: Path | None,
    directory: Path,
    as_json: bool,
) -> None:
    """Sign the newest tree heads of RUN..., or of all logs, and anchor them on the chain.

    Nodes and chain id stand below [chain] in rlhf-audit.toml, caps and signer below [anchor];
    the publisher's key is read from RLHF_AUDIT_PUBLISHER_KEY unless those say otherwise. All
    logs go into as few transactions as possible. The witnesses of the policy below [witnesses]
    are waited for, 10 seconds for all logs together; what they have not signed until then is
    anchored all the same.

    Exit code 1, and nothing is signed, when a witness, mirror or the contract shows that the
    store is not the newest copy; 1 as well when the chain lost anchors that were final, which
    are sent again; 3 when all is anchored and a quorum is missing, or when a
    transaction waits for its block or for lower fees.
    """
    from rlhf_audit_trail.ledger.chain.anchoring.publishing import Publisher
    from rlhf_audit_trail.ledger.log import Ledger

    if follow + dry_run + costs > 1 or (runs and (follow or costs)):
        raise click.UsageError("--follow, --dry-run and --costs stand alone, with no RUN")
    with Ledger.open(directory) as ledger:
        signer = _signer(ledger, keystore)
        if follow:
            _follow(ledger, signer, as_json=as_json)
            return
        with Publisher(ledger, signer) as publisher:
            if costs:
                _show_costs(ledger, publisher, as_json=as_json)
                return
            contract = publisher.deploy() if deploy and not dry_run else None
            logs = [ledger.find(run) for run in runs or (*ledger.runs(), "registry")]
            if dry_run:
                _show_plan(publisher, logs, as_json=as_json)
                return
            sys.exit(_anchor(ledger, publisher, logs, contract, as_json=as_json))


def _anchor(
    ledger: Ledger, publisher: Publisher, logs: list[Log], contract: str | None, *, as_json: bool
) -> int:
    """Anchor once and show it; return the exit code, or raise what the gravest finding is."""
    step = publisher.anchor_all(logs)
    record = anchors_record(ledger, publisher, logs, step, contract)
    if as_json:
        show_json(record)
    else:
        print_anchors(record)
    for finding in sorted([*step.findings.values(), *step.vanished], key=exit_code_of):
        raise finding  # the gravest has the lowest code
    return 3 if record["waiting"] or any(x["quorum"] is False for x in record["anchors"]) else 0


def _show_plan(publisher: Publisher, logs: list[Log], *, as_json: bool) -> None:
    record = plan_record(publisher.plan(logs), {log.log_id: log.origin for log in logs})
    if as_json:
        show_json(record)
    else:
        print_plan(record)


def _show_costs(ledger: Ledger, publisher: Publisher, *, as_json: bool) -> None:
    record = costs_record(publisher.costs(), ledger.anchoring.warn_below_anchors)
    if as_json:
        show_json(record)
    else:
        print_costs(record)


def _follow(ledger: Ledger, signer: Signer, *, as_json: bool) -> None:
    """Anchor as the policy wants until the process is told to end."""
    from rlhf_audit_trail.ledger.chain.anchoring.following import Follower, Round
    from rlhf_audit_trail.ledger.settings import SettingsError

    if not ledger.anchoring.is_automatic:
        raise SettingsError(
            "there is nothing to follow: no setting says when to anchor",
            next_step="set every_entries, every_s, at_checkpoints or at_run_end below [anchor]",
        )
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())

    def tell(found: Round) -> None:
        print_round(ledger, found, as_json=as_json)

    with Follower(ledger, lambda: signer, tell=tell):
        ended.wait()


def _signer(ledger: Ledger, keystore: Path | None) -> Signer:
    from rlhf_audit_trail.ledger.chain.signing.signers import make_signer
    from rlhf_audit_trail.ledger.settings import KEYSTORE

    def ask() -> str:
        return str(click.prompt("password of the keystore", hide_input=True, err=True))

    settings = ledger.anchoring
    if keystore is not None:
        settings = dataclasses.replace(settings, signer=KEYSTORE, keystore=str(keystore.absolute()))
    return make_signer(settings, ledger.directory, ask_password=ask)
