"""`rlhf-audit verify`: the auditor's command; click, cryptography, and the kernel."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import click

from rlhf_audit_trail.cli.output import guarded, say, show_json, styled
from rlhf_audit_trail.ledger import verdict as wording
from rlhf_audit_trail.ledger.proof.bundle import MAX_BUNDLE_BYTES, parse_bundle
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError, ProofError
from rlhf_audit_trail.ledger.proof.note import Algorithm, VerifierKey
from rlhf_audit_trail.ledger.proof.tree_head import log_id, open_tree_head
from rlhf_audit_trail.ledger.proof.verify import (
    Examination,
    OnChain,
    TrustPolicy,
    examine_bundle,
)
from rlhf_audit_trail.ledger.trust import (
    AnchorTrust,
    InvalidTrust,
    Trust,
    anchor_trust,
    parse_trust,
    read_keys,
)

__all__ = ["verify"]

CANNOT_TELL: Final = "whether values were true when logged, or whether something was never logged"


class UnreadableFile(AuditTrailError):
    """The file to verify cannot be read."""


@click.command()
@click.argument("bundle", metavar="FILE")
@click.option(
    "--key",
    "keys",
    multiple=True,
    metavar="KEY",
    help="Pin a vkey, or a file of vkeys, of the log. All pinned keys must have signed.",
)
@click.option(
    "--trust-policy",
    type=click.Path(),
    metavar="FILE",
    help="Pin keys, chain, contract and publisher from a JSON file.",
)
@click.option("--rpc", metavar="URL", help="Ask this node whether the chain holds the tree head.")
@click.option("--chain-id", type=int, help="With --rpc: the chain you expect.")
@click.option("--publisher", metavar="ADDRESS", help="With --rpc: who anchors this log.")
@click.option(
    "--contract",
    metavar="ADDRESS",
    help="With --rpc: TreeHeadAnchor; its well-known address if left out.",
)
@click.option(
    "--log-id",
    metavar="HEX",
    help="With --rpc: the log's id on the chain, if the keys you pin are not its first ones.",
)
@click.option("--accept-unpinned", is_flag=True, help="Be content without knowing who signed.")
@click.option("--accept-unanchored", is_flag=True, help="Be content without an anchor.")
@click.option("--json", "as_json", is_flag=True, help="Print rlhf-audit/verify-result/v1.")
@guarded
def verify(
    *,
    bundle: str,
    keys: tuple[str, ...],
    trust_policy: str | None,
    rpc: str | None,
    chain_id: int | None,
    publisher: str | None,
    contract: str | None,
    log_id: str | None,
    accept_unpinned: bool,
    accept_unanchored: bool,
    as_json: bool,
) -> None:
    """Check a bundle: is it unchanged, and who signed it?

    FILE is a bundle, or - for standard input. Without a key from a place you trust the
    answer is at best INCONCLUSIVE: a key that came inside the file proves nothing.
    """
    trust = _trust(keys, trust_policy, chain_id, publisher, contract, log_id)
    if rpc and trust.anchor is None:
        raise click.UsageError("--rpc needs --chain-id and --publisher, or a --trust-policy")
    data = _read(bundle)
    on_chain, trouble = _ask_chain(rpc, trust, data) if rpc else (None, "")
    found = examine_bundle(
        data,
        TrustPolicy(
            keys=trust.keys,
            need_anchor=trust.anchor is not None,
            on_chain=on_chain,
            accept_unpinned=accept_unpinned,
            accept_unanchored=accept_unanchored,
        ),
    )
    if as_json:
        show_json(wording.to_json(found) | ({"chain": trouble} if trouble else {}))
    else:
        _print(found, trouble)
    sys.exit(wording.exit_code(found))


def _trust(
    keys: tuple[str, ...],
    policy_file: str | None,
    chain_id: int | None,
    publisher: str | None,
    contract: str | None,
    log_id: str | None,
) -> Trust:
    """Join flags and policy file; a flag that contradicts the file is refused."""
    pinned: tuple[VerifierKey, ...] = ()
    anchor: AnchorTrust | None = None
    if policy_file is not None:
        try:
            policy = parse_trust(Path(policy_file).read_bytes())
        except OSError as error:
            raise InvalidTrust(f"cannot read {policy_file}: {error.strerror}") from error
        pinned, anchor = policy.keys, policy.anchor
    for text in keys:
        pinned += tuple(key for key in read_keys(text) if key not in pinned)
    if chain_id is not None and publisher is not None:
        if anchor is not None:
            raise click.UsageError("the chain stands in the trust policy; leave out its flags")
        anchor = anchor_trust(
            chain_id=chain_id,
            contract=contract or _known_contract(),
            publisher=publisher,
            log_id=log_id,
        )
    elif (chain_id, publisher, contract, log_id) != (None, None, None, None):
        raise click.UsageError("--chain-id and --publisher belong together")
    return Trust(pinned, anchor)


def _known_contract() -> str:
    """The address at which the contract stands on every chain."""
    from rlhf_audit_trail.ledger.chain.compiled import load_artifact

    return load_artifact().address


def _read(name: str) -> bytes:
    try:
        if name == "-":
            return sys.stdin.buffer.read(MAX_BUNDLE_BYTES + 1)
        with Path(name).open("rb") as file:
            return file.read(MAX_BUNDLE_BYTES + 1)
    except OSError as error:
        raise UnreadableFile(
            f"cannot read {name}: {error.strerror}", next_step="check the file's name"
        ) from error


def _ask_chain(url: str, trust: Trust, data: bytes) -> tuple[tuple[OnChain, ...] | None, str]:
    """Return what the chain says about the file's tree heads, or why it could not be asked."""
    from rlhf_audit_trail.ledger.chain.errors import ChainError, WrongChain, WrongContractCode
    from rlhf_audit_trail.ledger.chain.reader import read_anchored

    signers = [key for key in trust.keys if key.algorithm is Algorithm.ED25519]
    if not signers or trust.anchor is None:
        raise click.UsageError("--rpc needs the log's Ed25519 key: pass --key too")
    answers, trouble = [], ""
    try:
        for size, root in _heads(data):
            said = read_anchored(
                url,
                chain_id=trust.anchor.chain_id,
                contract=trust.anchor.contract,
                publisher=trust.anchor.publisher,
                log_id=trust.anchor.log_id or log_id(signers[0]),
                tree_size=size,
            )
            if said is not None and said.root == root and said.state != "finalized":
                trouble = f"block {said.block_number:,} holds size {size:,}, but is not final yet"
            elif said is not None:  # final, or a contradiction, which needs no waiting
                where = (
                    f"block {said.block_number:,} of chain {trust.anchor.chain_id}, {said.state}"
                )
                answers.append(OnChain(said.tree_size, said.root, where))
    except (WrongChain, WrongContractCode):
        raise
    except ChainError as error:
        return None, error.message
    return tuple(answers), "" if answers else trouble


def _heads(data: bytes) -> list[tuple[int, bytes]]:
    """Return size and root of a bundle's tree heads; none if it does not parse."""
    try:
        bundle = parse_bundle(data)
        notes = [bundle.tree_head, *(item.tree_head for item in bundle.anchored)]
        heads = [open_tree_head(note, ()).head for note in notes]
        return sorted({(head.size, head.root) for head in heads})
    except ProofError:
        return []


def _print(found: Examination, trouble: str) -> None:
    for check in found.checks:
        state = check.state.replace("_", " ")
        say(f"{styled(state, 10)} {wording.STEPS[check.step - 1]:<11} {check.text}")
        if check.finding is not None and check.finding.expected:
            say(f"{'':22} expected {check.finding.expected}")
            say(f"{'':22} found    {check.finding.actual or 'nothing'}")
    if trouble:
        say(f"{styled('not shown', 10)} {'chain':<11} {trouble}")
    say(f"{styled(wording.verdict(found))}  {_headline(found)}")
    say(f"Cannot tell you: {CANNOT_TELL}.")
    finding = found.decisive.finding if found.decisive else None
    if finding is not None and finding.next_step:
        say(f"  next: {finding.next_step}")


def _headline(found: Examination) -> str:
    """Answer both questions in one line: unchanged, and by whom."""
    if found.decisive is None:
        return f"unchanged since it was signed; signer: {_WHO[found.signer]}"
    step = wording.STEPS[found.decisive.step - 1]
    unchanged = {"passed": "yes", "failed": "NO", "unreadable": "cannot be read"}
    return (
        f"at {step}: {found.decisive.text}\n"
        f"  unchanged: {unchanged[wording.integrity(found)]}; by whom: {_WHO[found.signer]}"
    )


_WHO: Final = {
    "pinned": "the keys you pinned",
    "partly_pinned": "not all of the keys you pinned",
    "not_pinned": "unknown, you pinned no key",
    "contradicted": "NOT the keys you pinned",
    "not_shown": "not shown",
}
