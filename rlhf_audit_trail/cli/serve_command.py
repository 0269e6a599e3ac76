"""`rlhf-audit serve`: the public log and verifier over HTTP."""

from __future__ import annotations

from pathlib import Path

import click

from rlhf_audit_trail.cli.ledger_commands import ledger_option
from rlhf_audit_trail.cli.output import guarded

__all__ = ["serve"]


@click.command()
@ledger_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=8080,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0 takes any free one.",
)
@guarded
def serve(*, directory: Path, host: str, port: int) -> None:
    """Serve the public log (tiles, proofs, bundles) and POST /api/v1/verify.

    Writers with a token (rlhf-audit writer) append here. Their tokens and values travel in
    clear: for more than this machine or a private network, put a TLS proxy in front.
    """
    import uvicorn

    from rlhf_audit_trail.api.app import create_app
    from rlhf_audit_trail.cli.listening import listening
    from rlhf_audit_trail.ledger.log import Ledger

    with Ledger.open(directory) as ledger, listening(host, port) as (listener, where):
        who = ledger.settings.organisation
        click.echo(f"serving {who} on {where}   (API: {where}/api/v1/openapi.json)", err=True)
        server = uvicorn.Server(uvicorn.Config(create_app(ledger), log_level="warning"))
        server.run(sockets=[listener])
