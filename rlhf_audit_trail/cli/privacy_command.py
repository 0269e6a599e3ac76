"""`rlhf-audit privacy`: what a run may say about its annotators, and whether the sums are right."""

from __future__ import annotations

import sys
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlhf_audit_trail.cli.ledger_commands import ledger_option
from rlhf_audit_trail.cli.output import guarded, say, show_json

if TYPE_CHECKING:
    from rlhf_audit_trail.privacy.report import PrivacyReport

__all__ = ["print_report", "privacy"]


class _RunOrCommand(click.Group):
    """Takes what is no command for the name of a run to be shown."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `show` before a run's name."""
        named = next((x for x in args if not x.startswith("-")), None)
        if named is not None and named not in self.commands:
            args = ["show", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_RunOrCommand)
def privacy() -> None:
    """Show what RUN may say about its annotators' privacy: `rlhf-audit privacy RUN`.

    A run whose name is that of a command is shown by `rlhf-audit privacy show RUN`.
    """


@privacy.command()
@click.argument("run")
@click.option("--annotators", is_flag=True, help="List what each spent here, by pseudonym.")
@click.option("--audit", is_flag=True, help="Also bound epsilon from below by drawing noise.")
@ledger_option
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@guarded
def show(*, run: str, annotators: bool, audit: bool, directory: Path, as_json: bool) -> None:
    """Print budgets, releases, training, disclosures, and what is not protected, of RUN."""
    from rlhf_audit_trail.ledger.log import Ledger
    from rlhf_audit_trail.privacy.ledger_report import audited_release, privacy_report
    from rlhf_audit_trail.privacy.replay import replay_log

    with Ledger.open(directory) as ledger:
        report = privacy_report(ledger, run)
        sums = replay_log(ledger.find(run)).sums if annotators else {}
        found = audited_release(ledger.find(run)) if audit else None
    listed = [
        {"annotator": name, "epsilon_units": spent.epsilon_units,
         "second_units": spent.second_units, "delta_units": spent.delta_units}
        for name, spent in sorted(sums.items())
    ]  # fmt: skip
    if as_json:
        more: dict[str, Any] = {"spent_here": listed} if annotators else {}
        more |= {"audit": None if found is None else asdict(found)} if audit else {}
        show_json(report.to_dict() | more)
    else:
        print_report(report)
        for item in listed:
            say(f"  {item['annotator']}  second units {item['second_units']:,}")
        if found is not None:
            say(f"empirical lower bound of one release: {found.epsilon_low:.4g} <= "
                f"{found.epsilon_claimed:.4g}, of {found.draws:,} draws each")  # fmt: skip
    sys.exit(1 if report.differences else 0)


@privacy.command()
@click.argument("run")
@click.option("--chain", "ask_chain", is_flag=True, help="Compare coins of blocks with the chain.")
@ledger_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@guarded
def recompute(*, run: str, ask_chain: bool, directory: Path, as_json: bool) -> None:
    """Recompute every participant's sums of RUN from its entries, and check the protocol.

    Exit code 1 when something differs; each difference names its entry.
    """
    from rlhf_audit_trail.ledger.log import Ledger
    from rlhf_audit_trail.privacy.coins import check_block
    from rlhf_audit_trail.privacy.errors import PrivacyError
    from rlhf_audit_trail.privacy.replay import replay_log

    with Ledger.open(directory) as ledger:
        found = replay_log(ledger.find(run))
        for coin in ledger.find(run).entries(kind="dp.coin") if ask_chain else ():
            if coin.event["source"] == "prevrandao":
                try:
                    check_block(ledger.chain, coin.event)
                except PrivacyError as error:
                    found.differ(coin.leaf_index, error)
    if as_json:
        differences: list[dict[str, Any]] = [
            {"index": x.leaf_index, "error": type(x.error).__name__, "message": x.error.message}
            for x in found.differences
        ]
        counts = {"charges": len(found.charges), "releases": found.releases}
        counts |= {"labels": sum(count for _, count in found.labels)}
        counts |= {"participants": len(found.sums), "unopened": found.unopened}
        show_json(counts | {"pending": found.pending, "differences": differences})
    else:
        for difference in found.differences:
            say(str(difference))
        say(
            f"charges: {len(found.charges):,}; labels: "
            f"{sum(count for _, count in found.labels):,}; releases: {found.releases:,}; "
            f"participants: {len(found.sums):,}; lists not opened: {found.unopened:,}; "
            f"not released yet: {found.pending:,}; differences: {len(found.differences):,}"
        )
    sys.exit(1 if found.differences else 0)


def print_report(report: PrivacyReport) -> None:
    """Print a report for people; what is spent is rounded up."""
    from rlhf_audit_trail.privacy.report import shown_up

    say(f"run: {report.run}   mode: {report.mode}   unit: {report.unit}   "
        f"relation: {report.relation}   view: {report.view}")  # fmt: skip
    say(report.statement())
    cap = "none" if report.cap_epsilon is None else f"{report.cap_epsilon:g} ({report.strength})"
    say(f"spent by the worst annotator: {_shown(report.total_epsilon)} of {cap}, "
        f"delta {report.dp_delta:g}; in this run alone: {_shown(report.run_epsilon)}")  # fmt: skip
    what = "labels" if report.mode == "strong" else "rounds"
    say(f"{what} left: {report.remaining_rounds:,}; annotators exhausted: {report.exhausted:,}")
    if report.labels.charged:
        say(f"labels charged: {report.labels.charged:,}; privatised: "
            f"{report.labels.privatised:,}; given up: {report.labels.skipped:,}; published: "
            f"{report.labels.released:,}; raw values here: {report.labels.raw:,}")  # fmt: skip
    for name in ("ledger_release", "aggregate_release", "model_release", "combined"):
        found = getattr(report, name)
        shown = "none" if found is None else (
            f"eps {shown_up(found.epsilon_units, 10**12)}, "
            f"delta {shown_up(found.delta_units, 10**18)}, "
            f"{found.unit}, {found.relation}, {found.view}"
        )  # fmt: skip
        say(f"{name}: {shown}")
    for release in report.releases:
        label = release["coin"] if release["has_integrity"] else f"{release['coin']}: no integrity"
        say(f"  release {release['release_index']:,}: {release['statistic']} of "
            f"{release['participants']:,} annotators, std {release['noise']['estimate_std']:.4g}, "
            f"coin {label}")  # fmt: skip
    for name, texts in (("not protected", report.unprotected), ("note", report.caveats),
                        ("CONTRADICTION", report.differences)):  # fmt: skip
        for text in texts:
            say(f"{name}: {text}")


def _shown(value: float | None) -> str:
    from rlhf_audit_trail.privacy.report import shown_up

    return "no finite bound" if value is None else shown_up(Fraction(value), 1)
