"""`rlhf-audit verify`: the auditor's command; click, cryptography, and the kernel."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import click

from rlhf_audit_trail.cli.output import guarded, say, show_json, styled
from rlhf_audit_trail.cli.verify_chain import ChainOptions, chain_options, look_at_chain
from rlhf_audit_trail.ledger import verdict as wording
from rlhf_audit_trail.ledger.proof.bundle import MAX_BUNDLE_BYTES
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.proof.verify import Examination, TrustPolicy, examine_bundle
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


def _open_page(context: click.Context, _: click.Parameter, wanted: bool) -> None:  # noqa: FBT001 - click's callback
    """Say where this installation's own copy of the page is, show it if there is a browser, end."""
    if not wanted:
        return
    import webbrowser

    from rlhf_audit_trail.ledger.page import PAGE_PATH

    say(PAGE_PATH.resolve().as_uri())
    webbrowser.open(PAGE_PATH.resolve().as_uri())
    context.exit(0)


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
@chain_options
@click.option("--chain-id", type=int, help="The chain you expect anchors on.")
@click.option("--publisher", metavar="ADDRESS", help="Who anchors this log there.")
@click.option(
    "--contract",
    metavar="ADDRESS",
    help="TreeHeadAnchor there; its well-known address if left out.",
)
@click.option(
    "--log-id",
    metavar="HEX",
    help="The log's id there, if the keys you pin are not its first ones.",
)
@click.option("--accept-unpinned", is_flag=True, help="Be content without knowing who signed.")
@click.option("--accept-unanchored", is_flag=True, help="Be content without an anchor.")
@click.option("--json", "as_json", is_flag=True, help="Print rlhf-audit/verify-result/v1.")
@click.option(
    "--open",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_open_page,
    help="Open verify.html instead, the same verifier as an offline page, and end.",
)
@guarded
def verify(
    *,
    bundle: str,
    keys: tuple[str, ...],
    trust_policy: str | None,
    rpc: tuple[str, ...],
    rpc_quorum: int | None,
    blocks: tuple[str, ...],
    headers: str | None,
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
    options = ChainOptions(rpc, rpc_quorum, blocks, headers)
    if publisher is not None and chain_id is None:
        chain_id = options.chain_id
    trust = _trust(keys, trust_policy, chain_id, publisher, contract, log_id)
    data = _read(bundle)
    view = look_at_chain(options, trust, data)
    found = examine_bundle(
        data,
        TrustPolicy(
            keys=trust.keys,
            need_anchor=trust.anchor is not None,
            on_chain=view.on_chain,
            chain=view.chain,
            accept_unpinned=accept_unpinned,
            accept_unanchored=accept_unanchored,
        ),
    )
    on_trust = view.on_trust(found)
    if as_json:
        more = {"chain": view.trouble, "on_trust": on_trust}
        show_json(wording.to_json(found) | {name: said for name, said in more.items() if said})
    else:
        _print(found, view.trouble, on_trust)
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
    from rlhf_audit_trail.ledger.chain.contract.compiled import load_artifact

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


def _print(found: Examination, trouble: str, on_trust: list[str]) -> None:
    for check in found.checks:
        state = check.state.replace("_", " ")
        say(f"{styled(state, 10)} {wording.STEPS[check.step - 1]:<11} {check.text}")
        if check.finding is not None and check.finding.expected:
            say(f"{'':22} expected {check.finding.expected}")
            say(f"{'':22} found    {check.finding.actual or 'nothing'}")
    if trouble:
        say(f"{styled('not shown', 10)} {'chain':<11} {trouble}")
    say(f"{styled(wording.verdict(found))}  {_headline(found)}")
    for sentence in on_trust:
        say(f"On trust: {sentence}. A header does not name its chain.")
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
