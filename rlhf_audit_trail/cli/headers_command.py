"""`rlhf-audit chain headers`: a list of blocks for those who will check without a node."""

from __future__ import annotations

from pathlib import Path

import click

from rlhf_audit_trail.cli.output import guarded, say
from rlhf_audit_trail.cli.verify_chain import ChainOptions

__all__ = ["headers"]


@click.command()
@click.option(
    "--rpc", multiple=True, required=True, metavar="URL", help="Ask this node; or several."
)
@click.option("--rpc-quorum", type=int, help="How many nodes must agree; more than half.")
@click.option("--chain-id", type=int, required=True, help="The chain you expect there.")
@click.option("--from", "first", type=click.IntRange(min=0), required=True, help="First block.")
@click.option("--to", "last", type=click.IntRange(min=0), help="Last block; the newest final one.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
    help="Where to write the list; standard output if left out.",
)  # fmt: skip
@guarded
def headers(
    *, rpc: tuple[str, ...], rpc_quorum: int | None, chain_id: int, first: int, last: int | None,
    output: Path | None,
) -> None:  # fmt: skip
    """Write number and hash of final blocks, for `rlhf-audit verify --headers`.

    Whoever verifies with such a list trusts who made it. It is worth most when it was written
    and kept by the verifier, or by somebody who has nothing to do with the log.
    """
    from rlhf_audit_trail.ledger.chain.node.confirming import ask_nodes, final_blocks
    from rlhf_audit_trail.ledger.files import write_whole

    needed = ChainOptions(rpc, rpc_quorum, (), None).needed
    with ask_nodes(rpc, needed=needed) as nodes:
        blocks = final_blocks(nodes, chain_id=chain_id, first=first, last=last)
        lines = [f"{x.chain_id}:{x.number}:0x{x.hash.hex()}" for x in blocks]
    if output is None:
        for line in lines:
            say(line)
        return
    write_whole(output, "".join(f"{line}\n" for line in lines).encode())
    say(f"wrote {output}, blocks: {len(lines):,}")
