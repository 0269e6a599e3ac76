"""`rlhf-audit serve`: the public log and verifier over HTTP."""

from __future__ import annotations

from pathlib import Path

import click

from rlhf_audit_trail.cli.ledger_commands import ledger_option
from rlhf_audit_trail.cli.output import guarded
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = ["serve"]


class AddressTaken(AuditTrailError):
    """The address to serve on is in use, or not this machine's."""


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
    """Serve the public log (tiles, proofs, bundles) and POST /api/v1/verify."""
    import socket

    import uvicorn

    from rlhf_audit_trail.api.app import create_app
    from rlhf_audit_trail.ledger.log import Ledger

    with Ledger.open(directory) as ledger, socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen()  # before it is said, so that who reads it can connect
        except OSError as error:
            raise AddressTaken(
                f"cannot listen on {host}:{port}: {error.strerror}",
                next_step="stop the other process, or choose another --port",
            ) from error
        where = f"http://{host}:{listener.getsockname()[1]}"
        who = ledger.settings.organisation
        click.echo(f"serving {who} on {where}   (API: {where}/api/v1/openapi.json)", err=True)
        server = uvicorn.Server(uvicorn.Config(create_app(ledger), log_level="warning"))
        server.run(sockets=[listener])
