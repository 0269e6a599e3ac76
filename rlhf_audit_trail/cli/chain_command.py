"""`rlhf-audit chain`: put the contract on a chain, see how far it is used, check its code."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from rlhf_audit_trail.cli.chain_report import (
    code_record,
    deployment_record,
    print_code,
    print_deployment,
    print_plan,
    print_standing,
    standing_record,
)
from rlhf_audit_trail.cli.headers_command import headers
from rlhf_audit_trail.cli.ledger_commands import ledger_option
from rlhf_audit_trail.cli.output import guarded, show_json

if TYPE_CHECKING:
    from rlhf_audit_trail.ledger.chain.contract.deployment import FoundCode
    from rlhf_audit_trail.ledger.chain.signing.signer import Signer
    from rlhf_audit_trail.ledger.settings import ChainSettings

__all__ = ["chain"]

_EXIT_BY_CODE: Final = {"same": 0, "other": 1, "missing": 3}

_json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.group()
def chain() -> None:
    """Put TreeHeadAnchor on a chain, see how far logs are anchored, check its code.

    The contract has the same address on every chain; it follows from the code.
    """


chain.add_command(headers)


@chain.command()
@click.option("--rpc", metavar="URL", help="The node, instead of [chain] in rlhf-audit.toml.")
@click.option("--chain-id", type=click.IntRange(min=1), help="With --rpc: the chain you expect.")
@click.option(
    "--keystore", type=click.Path(path_type=Path), metavar="FILE",
    help="Keystore v3 file of the account that pays; its password is asked for.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show what it would cost, and send nothing.")
@ledger_option
@_json_option
@guarded
def deploy(
    *,
    rpc: str | None,
    chain_id: int | None,
    keystore: Path | None,
    dry_run: bool,
    directory: Path,
    as_json: bool,
) -> None:
    """Put the contract at its address, unless it stands there already.

    Anyone may: the address follows from the code, and nobody owns it. The key of the account
    that pays is read from RLHF_AUDIT_PUBLISHER_KEY or from a keystore file; --dry-run needs
    none. What it costs is shown before anything is sent.
    """
    from rlhf_audit_trail.ledger.chain.contract.deployment import carry_out, plan_deployment
    from rlhf_audit_trail.ledger.chain.node.agreement import connect

    settings = _settings(rpc, chain_id, directory)
    signer = _signer(keystore, is_needed=not dry_run)
    with connect(settings) as client:
        payer = signer.address if signer else None
        plan = plan_deployment(client, payer, chain_id=settings.chain_id)
        if not as_json:
            print_plan(plan, payer)
        done = None
        if not dry_run and signer is not None:
            done = carry_out(client, signer, plan)
    if as_json:
        show_json(deployment_record(plan, payer, done))
    else:
        print_deployment(plan, done)


@chain.command()
@click.option(
    "--publisher", metavar="ADDRESS",
    help="Whose anchors; otherwise that of the settings, else who anchored last.",
)  # fmt: skip
@ledger_option
@_json_option
@guarded
def status(*, publisher: str | None, directory: Path, as_json: bool) -> None:
    """Show chain, contract and publisher, and how far each log is anchored.

    Asks the node below [chain] in rlhf-audit.toml and changes nothing. Exit code 1 when the
    chain contradicts a log or other code stands at the contract's address; 3 when the
    contract is not there yet.
    """
    from rlhf_audit_trail.ledger.chain.anchoring.standing import publisher_of, read_standing
    from rlhf_audit_trail.ledger.chain.node.agreement import connect
    from rlhf_audit_trail.ledger.log import Ledger

    settings = _settings(None, None, directory)
    with Ledger.open(directory) as ledger, connect(settings) as client:
        found = read_standing(ledger, client, publisher=publisher or publisher_of(ledger))
    if as_json:
        show_json(standing_record(found))
    else:
        print_standing(found)
    is_contradicted = any(log.alarm for log in found.logs)
    sys.exit(1 if is_contradicted else _EXIT_BY_CODE[found.code.state])


@chain.command("verify-code")
@click.option(
    "--rpc", "nodes", multiple=True, required=True, metavar="URL",
    help="A node to ask; several must all show the contract.",
)  # fmt: skip
@click.option("--chain-id", type=click.IntRange(min=1), help="The chain you expect.")
@click.option("--contract", metavar="ADDRESS", help="Look there, instead of the derived address.")
@_json_option
@guarded
def verify_code(
    *, nodes: tuple[str, ...], chain_id: int | None, contract: str | None, as_json: bool
) -> None:
    """Compare the code on a chain with the committed contract, byte for byte.

    Needs no ledger. Shows how the address follows from the code, so that you can compute it
    yourself. Exit code 0 the same, 1 other code, 3 no code there, 5 a node does not answer.
    """
    from rlhf_audit_trail.ledger.chain.contract.deployment import derive_address, look_at_code
    from rlhf_audit_trail.ledger.chain.node.rpc import RpcClient

    derivation = derive_address()
    seen: list[tuple[str, FoundCode]] = []
    for url in nodes:
        with RpcClient(url) as client:
            address = contract or derivation.address
            found = look_at_code(client, chain_id=chain_id or 0, address=address)
            seen.append((client.shown_url, found))
    states = {found.state.value for _, found in seen}
    verdict = next(state for state in ("other", "missing", "same") if state in states)
    if as_json:
        show_json(code_record(derivation, seen))
    else:
        print_code(derivation, seen)
    sys.exit(_EXIT_BY_CODE[verdict])


def _settings(rpc: str | None, chain_id: int | None, directory: Path) -> ChainSettings:
    """Return the chain that the options name, else that of the ledger's settings."""
    from rlhf_audit_trail.ledger.log import SETTINGS_FILE, LedgerMissing
    from rlhf_audit_trail.ledger.settings import (
        LEDGER_TABLES,
        ChainSettings,
        SettingsError,
        read_tables,
    )

    if rpc is not None:
        if chain_id is None:
            raise click.UsageError("--rpc needs --chain-id: the chain you expect")
        return ChainSettings(rpc_url=rpc, chain_id=chain_id)
    if chain_id is not None:
        raise click.UsageError("--chain-id needs --rpc")
    path = directory / SETTINGS_FILE
    if not path.is_file():
        raise LedgerMissing(
            f"there is no ledger in {directory}",
            next_step="name one with --ledger, or a node with --rpc and --chain-id",
        )
    settings: ChainSettings = read_tables(path, LEDGER_TABLES)["chain"]
    if not settings.rpc_url or not settings.chain_id:
        raise SettingsError(
            "no chain is configured",
            next_step="set rpc_url and chain_id below [chain] in rlhf-audit.toml, or use --rpc",
        )
    return settings


def _signer(keystore: Path | None, *, is_needed: bool) -> Signer | None:
    """Return who pays; None if nobody is named and nobody is needed."""
    from rlhf_audit_trail.ledger.chain.signing.signer import (
        PUBLISHER_KEY_VARIABLE,
        signer_from_environment,
        signer_from_keystore,
    )

    if keystore is not None:
        password = click.prompt("password of the keystore", hide_input=True, err=True)
        return signer_from_keystore(keystore, password)
    if not is_needed and not os.environ.get(PUBLISHER_KEY_VARIABLE):
        return None
    return signer_from_environment()
