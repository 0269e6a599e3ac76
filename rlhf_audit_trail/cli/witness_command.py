"""`rlhf-audit witness`: run a witness for other people's logs, and ask witnesses about ours."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from rlhf_audit_trail.cli.ledger_commands import ledger_option
from rlhf_audit_trail.cli.output import guarded, say, show_json
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

if TYPE_CHECKING:
    from rlhf_audit_trail.ledger.log import Ledger, Log
    from rlhf_audit_trail.ledger.tlog_policy import TlogPolicy
    from rlhf_audit_trail.ledger.witness import Witness
    from rlhf_audit_trail.ledger.witness_client import Collection

__all__ = ["read_policy", "witness"]

_KEY: Final = "witness.key"
_NAME: Final = "witness.name"
_LOGS: Final = "logs.vkey"
_DATABASE: Final = "witness.db"
_CONNECTIONS_MAX: Final = 500  # each may hold a request of 128 KiB in memory
_LOGS_TEXT: Final = "# Logs that this witness follows, one vkey a line; restart after a change.\n"


class DirectoryTaken(AuditTrailError):
    """The directory for a new witness holds something already."""


class WitnessMissing(AuditTrailError):
    """There is no witness in this directory."""


def directory_argument(command: Any) -> Any:
    """Add the witness's directory."""
    return click.argument("directory", type=click.Path(path_type=Path))(command)


@click.group()
def witness() -> None:
    """Watch that logs only grow, and sign what was seen (c2sp.org/tlog-witness).

    A witness adds trust only when somebody else than the log's operator runs it.
    """


@witness.command()
@directory_argument
@click.option("--name", required=True, help="Its name in signatures: witness.example/w1.")
@guarded
def init(*, directory: Path, name: str) -> None:
    """Make a witness in DIRECTORY, which must be new or empty."""
    from rlhf_audit_trail.ledger.cosignature import Cosigner
    from rlhf_audit_trail.ledger.keys import write_secret

    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise DirectoryTaken(f"{directory} is not empty", next_step="choose a new directory")
    Cosigner.derive(bytes(32), name)  # refuses a bad name before anything is written
    directory.mkdir(parents=True, exist_ok=True)
    secret = write_secret(directory / _KEY)
    (directory / _LOGS).write_text(_LOGS_TEXT, "utf-8")
    (directory / _NAME).write_text(name + "\n", "utf-8")
    say(f"made the witness {name} in {directory}")
    say(f"  secret       {directory / _KEY}   keep a copy apart; never publish it")
    say(f"  logs         {directory / _LOGS}   put the vkeys of the logs to follow here")
    say("  public keys, for the policies of those who trust it:")
    for key in Cosigner.derive(secret, name).keys:
        say(f"{key}")
    say(f"next: rlhf-audit witness serve {directory}")


def _open(directory: Path) -> Witness:
    from rlhf_audit_trail.ledger.cosignature import Cosigner
    from rlhf_audit_trail.ledger.keys import read_secret
    from rlhf_audit_trail.ledger.trust import InvalidTrust, read_keys
    from rlhf_audit_trail.ledger.witness import Witness

    if not (directory / _NAME).is_file():
        raise WitnessMissing(
            f"there is no witness in {directory}",
            next_step=f"run: rlhf-audit witness init {directory} --name NAME",
        )
    name = (directory / _NAME).read_text("utf-8").strip()
    cosigner = Cosigner.derive(read_secret(directory / _KEY), name)
    try:
        log_keys = read_keys(str(directory / _LOGS))
    except InvalidTrust as error:
        error.next_step = f"put the vkeys of the logs to follow into {directory / _LOGS}"
        raise
    return Witness(cosigner, log_keys, directory / _DATABASE)


@witness.command()
@directory_argument
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=8081, show_default=True, type=click.IntRange(0, 65535),
    help="Port to listen on; 0 takes any free one.",
)  # fmt: skip
@guarded
def serve(*, directory: Path, host: str, port: int) -> None:
    """Serve the witness in DIRECTORY: add-checkpoint, and what it holds for monitors."""
    import uvicorn

    from rlhf_audit_trail.api.witness_app import create_witness_app
    from rlhf_audit_trail.cli.listening import listening

    with _open(directory) as opened, listening(host, port) as (listener, where):
        click.echo(f"the witness {opened.cosigner.name} serves on {where}", err=True)
        config = uvicorn.Config(
            create_witness_app(opened), log_level="warning", limit_concurrency=_CONNECTIONS_MAX
        )
        uvicorn.Server(config).run(sockets=[listener])


@witness.command()
@directory_argument
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
@guarded
def evidence(*, directory: Path, as_json: bool) -> None:
    """Show contradictions that the witness was sent; exit code 1 if a log forked."""
    from dataclasses import asdict

    with _open(directory) as opened:
        found = opened.evidence()
    if as_json:
        show_json([asdict(item) for item in found])
    else:
        for item in found:
            say(f"{item.kind:<9} {item.origin}  size {item.size:,}")
        forks = sum(item.kind == "fork" for item in found)
        say(f"{forks:,} forks, {len(found) - forks:,} heads without proof")
    sys.exit(1 if any(item.kind == "fork" for item in found) else 0)


# --- the log's side ---------------------------------------------------------------------


@witness.command()
@click.argument("runs", nargs=-1, metavar="[RUN...]")
@click.option(
    "--policy", "policy_file", type=click.Path(path_type=Path), metavar="FILE",
    help="tlog-policy with the witnesses, their addresses, and the quorum; "
    "otherwise that of rlhf-audit.toml.",
)  # fmt: skip
@click.option(
    "--timeout", default=10.0, show_default=True, type=click.FloatRange(min=0.1),
    help="Seconds for each log.",
)  # fmt: skip
@ledger_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@guarded
def collect(
    *, runs: tuple[str, ...], policy_file: Path | None, timeout: float, directory: Path,
    as_json: bool,
) -> None:  # fmt: skip
    """Ask witnesses to cosign the newest signed tree head of RUN..., or of every log.

    Exit code 0 when the quorum is met, 1 when a witness shows that a log was rolled back or
    forked, 3 when too few have answered: run it again.
    """
    from rlhf_audit_trail.ledger.log import Ledger

    policy = read_policy(policy_file) if policy_file else None
    with Ledger.open(directory) as ledger:
        policy = policy or ledger.watch.policy
        if policy is None:
            raise click.UsageError("name a policy with --policy, or in rlhf-audit.toml")
        names = runs or ("registry", *ledger.runs())
        rounds = list(_collect(ledger, [ledger.find(name) for name in names], policy, timeout))
    if as_json:
        show_json([_as_json(round_) for round_ in rounds])
    else:
        for round_ in rounds:
            _print(round_)
    if any(round_.alarms for round_ in rounds):
        sys.exit(1)
    sys.exit(0 if rounds and all(round_.is_quorum for round_ in rounds) else 3)


def _collect(ledger: Ledger, logs: list[Log], policy: TlogPolicy, timeout_s: float) -> Any:
    from rlhf_audit_trail.ledger.witness_client import collect as collect_for

    for log in logs:
        if log.published() is None:
            say(f"{log.origin}  has no signed tree head yet")
            continue
        found = collect_for(ledger.engine, log, policy, timeout_s=timeout_s)
        for outcome in found.alarms:  # the log is read-only from here on, in every process
            if outcome.head is not None:
                log.heed(outcome.head)
        yield found


def _as_json(round_: Collection) -> dict[str, Any]:
    return {
        "origin": round_.head.origin,
        "tree_size": round_.head.size,
        "quorum": round_.is_quorum,
        "witnesses": [
            {"name": x.witness, "state": x.state, "finding": x.finding.message if x.finding else "",
             "evidence": x.evidence}
            for x in round_.outcomes
        ],
    }  # fmt: skip


def _print(round_: Collection) -> None:
    word = "quorum" if round_.is_quorum else "no quorum"
    say(f"{round_.head.origin}  size {round_.head.size:,}  {word}")
    for item in round_.outcomes:
        say(f"  {item.state:<9} {item.witness}  {item.finding.message if item.finding else ''}")
        if item.evidence:
            say("".join(f"    {line}\n" for line in item.evidence.split("\n")[:3]).rstrip())
        if item.finding and item.state == "alarm":
            say(f"  next: {item.finding.next_step}")


def read_policy(path: Path) -> TlogPolicy:
    """Read a tlog-policy file; raises InvalidPolicy."""
    from rlhf_audit_trail.ledger.tlog_policy import read_policy as read

    return read(path)
