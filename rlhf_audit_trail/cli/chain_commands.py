"""`rlhf-audit anchor`: sign and anchor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rlhf_audit_trail.cli.ledger_commands import ledger_option
from rlhf_audit_trail.cli.output import guarded, say, show_json

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
    from RLHF_AUDIT_PUBLISHER_KEY or from a keystore file.
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
                }
            )
    if as_json:
        show_json({"contract": contract, "publisher": signer.address, "anchors": done})
        return
    if contract:
        say(f"contract {contract}")
    for item in done:
        what = f"anchored in block {item['block_number']:,}" if item["new"] else "nothing new"
        say(f"{item['origin']:<40} {item['tree_size']:>10,}  {what}, {item['state']}")
