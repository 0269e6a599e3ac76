"""`rlhf-audit`: one command for trainers, operators and auditors.

Commands load when they are run: `verify` must start in a fraction of a second on a machine
that has neither torch nor a database.
"""

from __future__ import annotations

import difflib
from importlib import import_module
from keyword import iskeyword
from typing import Final

import click

__all__ = ["main"]

_COMMANDS: Final = {
    "init": ("ledger_commands", "Make a ledger in a new directory."),
    "demo": ("demo_command", "Train, record, anchor, prove, verify, and attack: the whole path."),
    "run": ("run_command", "Run a training and record it, without a change of its code."),
    "serve": ("serve_command", "Serve the public log and the verifier over HTTP."),
    "writer": ("writer_command", "Let other machines append to a run over HTTP."),
    "status": ("ledger_commands", "Show runs, their sizes, signed and anchored tree heads."),
    "anvil": ("anvil_command", "Run the local development chain of anvil.toml."),
    "anchor": ("anchor_command", "Sign the newest tree heads and anchor them on the chain."),
    "chain": ("chain_command", "Deploy the contract, see what is anchored, check its code."),
    "prove": ("prove_command", "Write a bundle that proves entries of a run."),
    "verify": ("verify_command", "Check a bundle: unchanged? and by whom?"),
    "checkpoint": ("checkpoint_command", "List, restore, compare, discard stored weights."),
    "replay": ("replay_command", "Rebuild a run's stored weights, each against its entry."),
    "verify-model": ("verify_model_command", "Tell which recorded checkpoint weights are."),
    "export": ("backup_commands", "Write a run's public log as a static directory."),
    "import": ("backup_commands", "Bring entries back from an export or mirror."),
    "ingest": ("ingest_command", "Record annotations of datasets and annotation tools."),
    "mirror": ("backup_commands", "Follow a public log into a directory."),
    "prune": ("backup_commands", "Move a closed run's entries to an archive; proofs stay."),
    "disclose": ("disclose_command", "Open sealed fields to a named reader, and record that."),
    "retention": ("retention_command", "Destroy sealed values that were kept long enough."),
    "subject": ("subject_command", "Find, hand out or erase what is stored about a person."),
    "alerts": ("alerts_command", "List a run's alerts, and recompute each from the ledger."),
    "privacy": ("privacy_command", "Show what a run may say about its annotators; recompute it."),
    "fsck": ("fsck_command", "Check everything that is stored."),
    "keys": ("keys_command", "Show, rotate and retire the keys that sign; trace a log's keys."),
    "watch": ("watch_command", "Record a training of verl, NeMo-RL or TRL from its files."),
    "monitor": ("monitor_command", "Follow a public log, and say when it contradicts itself."),
    "witness": ("witness_command", "Watch other people's logs, and ask witnesses about yours."),
}


class _LazyGroup(click.Group):
    """Finds a command's module only when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            near = difflib.get_close_matches(cmd_name, _COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"No such command {cmd_name!r}.{hint}")
        module = import_module(f"rlhf_audit_trail.cli.{_COMMANDS[cmd_name][0]}")
        name = f"{cmd_name}_" if iskeyword(cmd_name) else cmd_name.replace("-", "_")
        command: click.Command = getattr(module, name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, so that --help loads none of them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rlhf-audit-trail", prog_name="rlhf-audit")
def main() -> None:
    """Prove, years later and to strangers, what happened in a preference-training run.

    Exit codes: 0 verified or done, 1 failed (evidence contradicts itself or your trust),
    2 wrong usage, 3 inconclusive, 4 unreadable, 5 operational error.
    """
