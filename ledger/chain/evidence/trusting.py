"""What a verifier trusts about a chain, in the kernel's terms; standard library only, and light.

Chain, contract, publisher and log come from the verifier's own trust policy, the code's hash from
the published artifact, blocks from whoever the verifier believes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from rlhf_audit_trail.ledger.chain.contract.compiled import load_artifact
from rlhf_audit_trail.ledger.proof.bundle import parse_bundle
from rlhf_audit_trail.ledger.proof.errors import ProofError
from rlhf_audit_trail.ledger.proof.evm.evidence import (
    ChainEvidence,
    ChainTrust,
    TrustedBlock,
    read_block,
)
from rlhf_audit_trail.ledger.proof.verify import Examination
from rlhf_audit_trail.ledger.trust import AnchorTrust, InvalidTrust

__all__ = ["chain_trust", "evidence_block", "on_trust", "parse_block", "read_headers"]

_BLOCK: Final = re.compile(r"([1-9][0-9]{0,15}):(0|[1-9][0-9]{0,15}):0x([0-9a-fA-F]{64})")
_ANCHOR_STEP: Final = 7
_HEADERS_BYTES_MAX: Final = 64 * 1024 * 1024


def chain_trust(
    anchor: AnchorTrust, log_id: bytes, blocks: tuple[TrustedBlock, ...] = ()
) -> ChainTrust:
    """Return by what chain evidence is to be judged."""
    artifact = load_artifact()
    return ChainTrust(
        chain_id=anchor.chain_id,
        contract=bytes.fromhex(anchor.contract[2:]),
        publisher=bytes.fromhex(anchor.publisher[2:]),
        log_id=log_id,
        code_hash=artifact.code_hash,
        address_binds_code=anchor.contract.lower() == artifact.address.lower(),
        blocks=blocks,
    )


def evidence_block(data: bytes) -> int | None:
    """Return the number of the block that a bundle's evidence is of; None if it has none."""
    try:
        chain = parse_bundle(data).chain
        return read_block(ChainEvidence.parse(chain).header).number if chain else None
    except ProofError:  # which the verifier will report
        return None


def on_trust(found: Examination, trust: ChainTrust, number: int | None) -> list[str]:
    """Say, for people, what a verdict took on trust: the block, if its evidence counted."""
    is_anchored = any((x.step, x.state) == (_ANCHOR_STEP, "passed") for x in found.checks)
    return [
        f"block {x.number:,} of chain {x.chain_id} has hash 0x{x.hash.hex()}: {x.by}"
        for x in trust.blocks
        if is_anchored and (x.chain_id, x.number) == (trust.chain_id, number)
    ]


def parse_block(text: str, *, by: str) -> TrustedBlock:
    """Read a block such as `1:19204332:0x5e…`: chain id, number and hash.

    Args:
        text: the block.
        by: who says so, for people.

    Raises:
        InvalidTrust: it is none.
    """
    match = _BLOCK.fullmatch(text)
    if match is None:
        raise InvalidTrust(
            f"{text[:100]!r} names no block",
            next_step="write it as CHAIN:NUMBER:HASH, the hash as 0x and 64 hex digits",
        )
    chain_id, number, block_hash = match.groups()
    return TrustedBlock(int(chain_id), int(number), bytes.fromhex(block_hash), by)


def read_headers(path: Path, *, by: str = "") -> tuple[TrustedBlock, ...]:
    """Read a list of blocks, one a line; `#` begins a comment.

    Args:
        path: the file.
        by: who says so, for people; the file, if left out.

    Raises:
        InvalidTrust: there is no such file, it is too large, or a line names no block.
    """
    try:
        if path.stat().st_size > _HEADERS_BYTES_MAX:
            raise InvalidTrust(f"{path} is too large for a list of blocks")
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidTrust(
            f"cannot read the list of blocks {path}",
            next_step="rlhf-audit chain headers writes one",
        ) from error
    kept = (line.strip() for line in lines)
    by = by or f"the list {path} has its hash"
    return tuple(parse_block(line, by=by) for line in kept if line and line[0] != "#")
