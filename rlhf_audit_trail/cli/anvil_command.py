"""`rlhf-audit anvil`: the development chain of `anvil.toml`, kept across restarts."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import click

from rlhf_audit_trail.cli.output import guarded, say

__all__ = ["anvil"]

_DEFAULT_FILE = Path("anvil.toml")
_SAVE_EVERY_S = 1.0  # at most this much is lost when the machine goes down


@click.command()
@click.option(
    "--config",
    "config_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Settings of chain, state and binary; ./anvil.toml, else defaults.",
)
@click.option("--port", type=click.IntRange(0, 65535), help="Instead of the file's port.")
@guarded
def anvil(*, config_file: Path | None, port: int | None) -> None:
    """Run the local development chain until Ctrl-C; its state is kept for the next time.

    Prints what to set below [chain] in rlhf-audit.toml. Its accounts are public knowledge:
    nothing on it has value.
    """
    from dataclasses import replace

    from rlhf_audit_trail.ledger.chain.node.anvil import Anvil
    from rlhf_audit_trail.ledger.chain.node.anvil_settings import AnvilConfig, read_anvil_config
    from rlhf_audit_trail.ledger.chain.node.rpc import RpcClient, parse_quantity

    if config_file is None and not _DEFAULT_FILE.is_file():
        config = AnvilConfig()
    else:
        config = read_anvil_config(config_file or _DEFAULT_FILE)
    if port is not None:
        config = replace(config, anvil=replace(config.anvil, port=port))
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with Anvil(config) as chain:
        say(f"Anvil on {chain.url}, chain {config.anvil.chain_id}, state in {config.state.path}")
        say(f'  rpc_url = "{chain.url}"')
        say(f"  chain_id = {config.anvil.chain_id}")
        key_file = Path(config.state.path) / "publisher.key"
        key_file.parent.mkdir(parents=True, exist_ok=True)
        key_file.touch(mode=0o600)
        key_file.write_text(chain.accounts[0].key.hex(), "ascii")
        say(f"  export RLHF_AUDIT_PUBLISHER_KEY=$(cat {key_file})   play money, a public key")
        saved = -1
        while not stopped.wait(_SAVE_EVERY_S):
            with RpcClient(chain.url) as rpc:
                height = parse_quantity(rpc.call("eth_blockNumber"))
            if height != saved:
                chain.save_state()
                saved = height
        chain.save_state()
