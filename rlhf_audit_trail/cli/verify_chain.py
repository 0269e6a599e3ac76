"""What `rlhf-audit verify` asks chains, or takes from its user, about anchors."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from rlhf_audit_trail.ledger.proof.bundle import parse_bundle
from rlhf_audit_trail.ledger.proof.errors import ProofError
from rlhf_audit_trail.ledger.proof.evm.evidence import ChainTrust, TrustedBlock
from rlhf_audit_trail.ledger.proof.tree_head import open_tree_head
from rlhf_audit_trail.ledger.proof.verify import Examination, OnChain
from rlhf_audit_trail.ledger.trust import AnchorTrust, Trust, log_id_of

if TYPE_CHECKING:
    from rlhf_audit_trail.ledger.chain.node.rpc import RpcClient

__all__ = ["ChainOptions", "ChainView", "chain_options", "look_at_chain"]

_Command = TypeVar("_Command", bound=Callable[..., Any])
_NO_EVIDENCE: Final = "the file brings no chain evidence, so that a trusted block shows nothing"


@dataclass(frozen=True)
class ChainOptions:
    """Whom the user believes about blocks.

    Attributes:
        rpc: addresses of nodes.
        quorum: how many of them must say the same; None for more than half.
        blocks: trusted blocks, as CHAIN:NUMBER:HASH.
        headers: file with a list of such blocks.
    """

    rpc: tuple[str, ...]
    quorum: int | None
    blocks: tuple[str, ...]
    headers: str | None

    @property
    def are_given(self) -> bool:
        """Whether the user wants anything to be known of a chain."""
        return bool(self.rpc or self.blocks or self.headers)

    @property
    def chain_id(self) -> int | None:
        """The chain of the first trusted block; None without one, or if it is malformed."""
        first = self.blocks[0].partition(":")[0] if self.blocks else ""
        return int(first) if re.fullmatch(r"[0-9]{1,16}", first) else None

    @property
    def needed(self) -> int:
        """How many nodes must say the same.

        Raises:
            click.UsageError: half of them or fewer, which two answers could reach at once.
        """
        half = len(self.rpc) // 2
        if self.quorum is not None and not half < self.quorum <= len(self.rpc):
            raise click.UsageError(
                f"--rpc-quorum must be more than half of the --rpc addresses: {half + 1} to "
                f"{len(self.rpc)}"
            )
        return self.quorum or half + 1

    def trusted(self) -> tuple[TrustedBlock, ...]:
        """Return the blocks that the user named; raises InvalidTrust."""
        from rlhf_audit_trail.ledger.chain.evidence.trusting import parse_block, read_headers

        named = tuple(parse_block(text, by="you gave its hash") for text in self.blocks)
        return named + (read_headers(Path(self.headers)) if self.headers else ())


@dataclass(frozen=True)
class ChainView:
    """What there is to judge anchors by.

    Attributes:
        on_chain: what nodes say about the file's tree heads; None if they were not asked.
        chain: by what the file's own evidence is judged; None to leave it aside.
        trouble: why something that was asked for is not here.
        block_number: of which the file's evidence is, if it has any.
    """

    on_chain: tuple[OnChain, ...] | None = None
    chain: ChainTrust | None = None
    trouble: str = ""
    block_number: int | None = None

    def on_trust(self, found: Examination) -> list[str]:
        """Say what the verdict took on trust."""
        from rlhf_audit_trail.ledger.chain.evidence.trusting import on_trust

        return on_trust(found, self.chain, self.block_number) if self.chain else []


def chain_options(command: _Command) -> _Command:
    """Give a command the options of `ChainOptions`."""
    for option in (
        click.option("--headers", metavar="FILE", help="Trust a list of such blocks, one a line."),
        click.option(
            "--trusted-block-hash", "blocks", multiple=True, metavar="CHAIN:NUMBER:HASH",
            help="Trust this block, and check the file's own chain evidence offline.",
        ),
        click.option("--rpc-quorum", type=int, help="How many nodes must agree; more than half."),
        click.option(
            "--rpc", multiple=True, metavar="URL",
            help="Ask this node, and others if repeated, about the block or the tree heads.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def look_at_chain(options: ChainOptions, trust: Trust, data: bytes) -> ChainView:
    """Ask nodes, or collect what the user named.

    Raises:
        WrongChain, WrongContractCode: a node serves something else than what is pinned.
        InvalidTrust, click.UsageError: what the user named is of no use.
    """
    name = log_id_of(trust)
    if trust.anchor is None or name is None:
        if options.are_given:
            raise click.UsageError(
                "chain options need the log's Ed25519 --key, and --chain-id and --publisher, or a "
                "--trust-policy with them"
            )
        return ChainView()
    from rlhf_audit_trail.ledger.chain.evidence.trusting import chain_trust, evidence_block

    blocks = options.trusted()
    if any(block.chain_id != trust.anchor.chain_id for block in blocks):
        raise click.UsageError("a trusted block is of another chain than --chain-id")
    number = evidence_block(data)
    if options.rpc and number is None:
        return _ask_heads(options, trust.anchor, name, data)
    trouble = ""
    if options.rpc and number is not None:
        confirmed, trouble = _ask_block(options, trust.anchor.chain_id, number)
        blocks += confirmed
    elif number is None and options.are_given:
        trouble = _NO_EVIDENCE
    chain = chain_trust(trust.anchor, name, blocks)
    return ChainView(chain=chain, trouble=trouble, block_number=number)


def _ask_block(
    options: ChainOptions, chain_id: int, number: int
) -> tuple[tuple[TrustedBlock, ...], str]:
    """Return the block as the nodes have it, or why they do not confirm it."""
    from rlhf_audit_trail.ledger.chain.errors import ChainError, WrongChain
    from rlhf_audit_trail.ledger.chain.node.confirming import ask_nodes, confirm_block

    count = len(options.rpc)
    by = f"{options.needed} of {count} nodes gave its hash" if count > 1 else "a node gave its hash"
    try:
        with ask_nodes(options.rpc, needed=options.needed) as rpc:
            return (confirm_block(rpc, chain_id=chain_id, number=number, by=by),), ""
    except WrongChain:
        raise
    except ChainError as error:
        return (), error.message


def _ask_heads(options: ChainOptions, anchor: AnchorTrust, name: bytes, data: bytes) -> ChainView:
    """Ask the nodes for the tree heads in a file that brings no evidence of its own."""
    from rlhf_audit_trail.ledger.chain.errors import ChainError, WrongChain, WrongContractCode
    from rlhf_audit_trail.ledger.chain.node.confirming import ask_nodes

    try:
        with ask_nodes(options.rpc, needed=options.needed) as rpc:
            return _read_heads(rpc, anchor, name, data)
    except (WrongChain, WrongContractCode):
        raise
    except ChainError as error:
        return ChainView(trouble=error.message)


def _read_heads(rpc: RpcClient, anchor: AnchorTrust, name: bytes, data: bytes) -> ChainView:
    from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader

    reader = AnchorReader(rpc, chain_id=anchor.chain_id, contract=anchor.contract)
    reader.check()
    answers, trouble = [], ""
    for size, root in _heads(data):
        said = reader.anchored(anchor.publisher, name, size)
        if said is not None and said.root == root and said.state != "finalized":
            trouble = f"block {said.block_number:,} holds size {size:,}, but is not final yet"
        elif said is not None:  # final, or a contradiction, which needs no waiting
            where = f"block {said.block_number:,} of chain {anchor.chain_id}, {said.state}"
            answers.append(OnChain(said.tree_size, said.root, where))
    return ChainView(on_chain=tuple(answers), trouble="" if answers else trouble)


def _heads(data: bytes) -> list[tuple[int, bytes]]:
    """Return size and root of a bundle's tree heads; none if it does not parse."""
    try:
        bundle = parse_bundle(data)
        notes = [bundle.tree_head, *(item.tree_head for item in bundle.anchored)]
        heads = [open_tree_head(note, ()).head for note in notes]
        return sorted({(head.size, head.root) for head in heads})
    except ProofError:
        return []
