"""`rlhf-audit anchor`: sign, have cosigned, and anchor."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlhf_audit_trail.cli.ledger_commands import ledger_option
from rlhf_audit_trail.cli.output import guarded, say, show_json

if TYPE_CHECKING:
    from rlhf_audit_trail.ledger.log import Ledger, Log

__all__ = ["anchor"]


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN...]")
@click.option("--deploy", is_flag=True, help="Put the contract on the chain first, if it lacks it.")
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
    *, runs: tuple[str, ...], deploy: bool, keystore: Path | None, directory: Path, as_json: bool
) -> None:
    """Sign the newest tree heads of RUN..., or of all logs, and anchor them on the chain.

    Node and chain id stand below [chain] in rlhf-audit.toml; the publisher's key is read
    from RLHF_AUDIT_PUBLISHER_KEY or from a keystore file. The witnesses of the policy below
    [witnesses] are waited for, 10 seconds for all logs together; what they have not signed
    until then is anchored all the same.

    Exit code 1, and nothing is signed, when a witness, mirror or the contract shows that the
    store is not the newest copy; 3 when all is anchored and a quorum is missing.
    """
    from rlhf_audit_trail.ledger.chain.publishing import Publisher
    from rlhf_audit_trail.ledger.chain.signer import signer_from_environment, signer_from_keystore
    from rlhf_audit_trail.ledger.log import Ledger

    if keystore is not None:
        password = click.prompt("password of the keystore", hide_input=True, err=True)
        signer = signer_from_keystore(keystore, password)
    else:
        signer = signer_from_environment()
    done: list[dict[str, Any]] = []
    with Ledger.open(directory) as ledger, Publisher(ledger, signer) as publisher:
        contract = publisher.deploy() if deploy else None
        for run in runs or (*ledger.runs(), "registry"):
            log = ledger.find(run)
            said = publisher.anchor(log)
            newest = log.anchors()
            done.append(
                {
                    "origin": log.origin,
                    "tree_size": said.tree_size if said else max(log.anchored_sizes(), default=0),
                    "new": said is not None,
                    "block_number": said.block_number if said else None,
                    "state": newest[-1].state if newest else "none",
                    **_witnessed(ledger, log),
                }
            )
    if as_json:
        show_json({"contract": contract, "publisher": signer.address, "anchors": done})
    else:
        _print(contract, done)
    sys.exit(3 if any(item["quorum"] is False for item in done) else 0)


def _witnessed(ledger: Ledger, log: Log) -> dict[str, Any]:
    """Say whether the newest signed tree head has its quorum, and who has not cosigned it."""
    signed = log.published()
    if ledger.watch.policy is None or signed is None:
        return {"quorum": None, "missing": []}
    found = ledger.watch.await_quorum(log.run_id, signed.head.size, timeout_s=0)
    if found is None or found.head.size < signed.head.size:
        names = [item.shown for item in ledger.watch.policy.witnesses]
        missing = [{"witness": name, "finding": "no answer yet"} for name in names]
        return {"quorum": False, "missing": missing}
    missing = [
        {"witness": x.witness, "finding": x.finding.message if x.finding else ""}
        for x in found.outcomes
        if x.state != "cosigned"
    ]
    return {"quorum": found.is_quorum, "missing": missing}


def _print(contract: str | None, done: list[dict[str, Any]]) -> None:
    if contract:
        say(f"contract {contract}")
    for item in done:
        what = f"anchored in block {item['block_number']:,}" if item["new"] else "nothing new"
        say(f"{item['origin']:<40} {item['tree_size']:>10,}  {what}, {item['state']}")
        if item["quorum"] is False:
            say("  too few witnesses cosigned it:")
        for witness in item["missing"]:
            say(f"  {witness['witness']}  {witness['finding']}")
    if any(item["quorum"] is False for item in done):
        say("next: rlhf-audit witness collect   (anchored all the same)")
