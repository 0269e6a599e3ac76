"""`rlhf-audit monitor`: follow a public log, and say when it contradicts itself."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlhf_audit_trail.cli.output import exit_code_of, guarded, say, show_json, styled
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

if TYPE_CHECKING:
    from rlhf_audit_trail.ledger.anchor_watch import AnchorWatch
    from rlhf_audit_trail.ledger.monitor import Contradiction, Monitor, Sighting
    from rlhf_audit_trail.ledger.proof.note import VerifierKey
    from rlhf_audit_trail.ledger.tlog_policy import TlogPolicy

__all__ = ["monitor"]


class BadState(AuditTrailError):
    """The file with the last tree head seen cannot be read."""


@click.command()
@click.argument("place", metavar="URL")
@click.option(
    "--key", "keys", multiple=True, metavar="KEY",
    help="Pin a vkey, or a file of vkeys, of the log. All pinned keys must have signed.",
)  # fmt: skip
@click.option(
    "--policy", "policy_file", type=click.Path(path_type=Path), metavar="FILE",
    help="tlog-policy: whose signatures, and which quorum of witnesses, are wanted.",
)  # fmt: skip
@click.option(
    "--state", type=click.Path(path_type=Path), metavar="FILE",
    help="Where to keep the last tree head seen, so that the next run goes on from it.",
)  # fmt: skip
@click.option(
    "--evidence", type=click.Path(path_type=Path), metavar="FILE", show_default=True,
    default=Path("monitor-evidence.json"), help="Where to write what contradicts.",
)  # fmt: skip
@click.option("--rpc", metavar="URL", help="Ask this node what was anchored of the log.")
@click.option("--chain-id", type=int, help="With --rpc: the chain you expect.")
@click.option("--publisher", metavar="ADDRESS", help="With --rpc: who anchors this log.")
@click.option(
    "--contract", metavar="ADDRESS",
    help="With --rpc: TreeHeadAnchor; its well-known address if left out.",
)  # fmt: skip
@click.option(
    "--log-id", metavar="HEX",
    help="With --rpc: the log's id on the chain, if the keys you pin are not its first ones.",
)  # fmt: skip
@click.option(
    "--max-anchor-age", type=click.FloatRange(min=0), metavar="SECONDS",
    help="With --rpc: how old the newest anchor may be while the log grows.",
)  # fmt: skip
@click.option(
    "--interval", default=30.0, show_default=True, type=click.FloatRange(min=0.1),
    help="Seconds between looks.",
)  # fmt: skip
@click.option("--once", is_flag=True, help="Look once and exit.")
@click.option("--json", "as_json", is_flag=True, help="Print each look as JSON.")
@guarded
def monitor(
    *,
    place: str,
    keys: tuple[str, ...],
    policy_file: Path | None,
    state: Path | None,
    evidence: Path,
    rpc: str | None,
    chain_id: int | None,
    publisher: str | None,
    contract: str | None,
    log_id: str | None,
    max_anchor_age: float | None,
    interval: float,
    once: bool,
    as_json: bool,
) -> None:
    """Follow the log at URL, an address or an exported directory: all entries, tiles, heads.

    With --rpc, --chain-id and --publisher it must also hold all of what was anchored.

    Exit code 0 sound, 1 contradiction (written to the evidence file), 3 too few witnesses, no
    anchor young enough, or something is not served, 4 unreadable, 5 not reachable. Without
    --once only a contradiction ends it.
    """
    from rlhf_audit_trail.cli.witness_command import read_policy

    policy = read_policy(policy_file) if policy_file else None
    pinned = _pinned(keys, policy)
    asked = _Asked(rpc, chain_id, publisher, contract, log_id, max_anchor_age)
    watch = _monitor(place, pinned, policy, state, asked.anchors(pinned, policy))
    while True:
        code = _look(watch, state, evidence, as_json=as_json)
        if once or code == 1:
            sys.exit(code)
        time.sleep(interval)


@dataclass(frozen=True)
class _Asked:
    """The options about a chain."""

    rpc: str | None
    chain_id: int | None
    publisher: str | None
    contract: str | None
    log_id: str | None
    age_s_max: float | None

    def anchors(
        self, pinned: tuple[VerifierKey, ...], policy: TlogPolicy | None
    ) -> AnchorWatch | None:
        """Return whom to ask and what is demanded, None if no node was named."""
        from rlhf_audit_trail.ledger.anchor_watch import AnchorWatch
        from rlhf_audit_trail.ledger.chain.contract.anchors import ContractAnchors
        from rlhf_audit_trail.ledger.chain.contract.compiled import load_artifact
        from rlhf_audit_trail.ledger.proof.note import Algorithm
        from rlhf_audit_trail.ledger.proof.tree_head import log_id as log_id_of
        from rlhf_audit_trail.ledger.trust import anchor_trust

        if self.rpc is None:
            if any(value is not None for value in astuple(self)):
                raise click.UsageError("the options about anchors need --rpc")
            return None
        if self.chain_id is None or self.publisher is None:
            raise click.UsageError("--rpc needs --chain-id and --publisher")
        known = (*pinned, *(item.key for item in (policy.logs if policy else ())))
        signers = [key for key in known if key.algorithm is Algorithm.ED25519]
        if self.log_id is None and not signers:
            raise click.UsageError("--rpc needs the log's Ed25519 key, or its --log-id")
        trust = anchor_trust(
            chain_id=self.chain_id,
            contract=self.contract or load_artifact().address,
            publisher=self.publisher,
            log_id=self.log_id,
        )
        source = ContractAnchors(
            self.rpc, trust.chain_id, trust.contract, trust.publisher,
            trust.log_id or log_id_of(signers[0]),
        )  # fmt: skip
        return AnchorWatch(source, self.age_s_max)


def _pinned(keys: tuple[str, ...], policy: TlogPolicy | None) -> tuple[VerifierKey, ...]:
    from rlhf_audit_trail.ledger.trust import read_keys

    pinned = tuple(dict.fromkeys(key for text in keys for key in read_keys(text)))
    if not pinned and not (policy and policy.logs):
        raise click.UsageError("pin the log's keys with --key, or list the log in --policy")
    return pinned


def _monitor(
    place: str,
    pinned: tuple[VerifierKey, ...],
    policy: TlogPolicy | None,
    state: Path | None,
    anchors: AnchorWatch | None,
) -> Monitor:
    from rlhf_audit_trail.ledger.monitor import Monitor
    from rlhf_audit_trail.ledger.proof.note import MAX_NOTE_BYTES
    from rlhf_audit_trail.ledger.public_log import PublicLog, open_source

    note = ""
    if state is not None and state.exists():
        try:
            with state.open("rb") as file:
                note = file.read(MAX_NOTE_BYTES).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise BadState(f"cannot read {state}", next_step="restore it, or begin anew") from error
    return Monitor(
        PublicLog(open_source(place)), pinned, policy=policy, last_note=note, anchors=anchors
    )


def _look(watch: Monitor, state: Path | None, evidence: Path, *, as_json: bool) -> int:
    """Look once; print what was seen, keep it, and return the exit code."""
    from rlhf_audit_trail.ledger.monitor import Contradiction

    try:
        seen = watch.look()
    except Contradiction as error:
        evidence.write_bytes(error.evidence)
        _report(error, evidence, as_json=as_json)
        return 1
    except AuditTrailError as error:
        if as_json:
            show_json({"state": "unknown", "finding": type(error).__name__, "text": error.message})
        else:
            click.echo(f"error: {error}", err=True)
        return exit_code_of(error)
    if state is not None:
        _keep(state, seen.note)
    _print(seen, as_json=as_json)
    return 3 if seen.unmet else 0


def _keep(state: Path, note: str) -> None:
    """Replace the state in one step: half a note would be no note."""
    draft = state.with_name(f".{state.name}.{os.getpid()}")
    draft.write_text(note, "utf-8")
    draft.replace(state)


def _report(error: Contradiction, evidence: Path, *, as_json: bool) -> None:
    finding = error.finding
    if as_json:
        record = {"state": "contradiction", "finding": type(finding).__name__}
        show_json(record | {"text": finding.message, "evidence": str(evidence)})
        return
    say(f"{styled('FAILED')}  {finding.message}")
    if finding.expected:
        say(f"  expected {finding.expected}")
        say(f"  found    {finding.actual or 'nothing'}")
    say(f"  evidence {evidence}")
    say("  next: keep the evidence, and show it to others who rely on this log")


def _print(seen: Sighting, *, as_json: bool) -> None:
    head = seen.head
    witnesses = sorted({key.name for key in seen.cosigned_at_s})
    if as_json:
        record: dict[str, Any] = {"state": "not_shown" if seen.unmet else "sound"}
        record |= {"origin": head.origin, "tree_size": head.size, "root": head.root.hex()}
        record |= {"new_entries": seen.new_entries, "witnesses": witnesses}
        record |= {"anchored_size": seen.anchored.size if seen.anchored else None}
        show_json(record | {"text": seen.unmet.message if seen.unmet else ""})
        return
    word = styled("not shown" if seen.unmet else "sound", 10)
    say(
        f"{word} {head.origin}  {head.size:,} entries, {seen.new_entries:,} new,"
        f" {len(witnesses)} witnesses"
        + (f", anchored {seen.anchored.size:,}" if seen.anchored else "")
    )
    if seen.unmet:
        say(f"  {seen.unmet.message}: {seen.unmet.actual or seen.unmet.expected}")
