"""`rlhf-audit prove`: a file that shows strangers what stands in a log."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from rlhf_audit_trail.cli.ledger_commands import ledger_option
from rlhf_audit_trail.cli.output import guarded, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlhf_audit_trail.ledger.log import Ledger, Log

__all__ = ["AUTO", "RECEIPT", "Shown", "prove"]

AUTO: Final = "auto"
RECEIPT: Final = "receipt"
_NONE: Final = "none"
_BUNDLE: Final = "bundle"
_OF_ONE_ENTRY: Final = {"tlog-proof": "tlog-proof", "cose": "cose"}  # form to file suffix


@dataclass(frozen=True)
class Shown:
    """Chain evidence for a bundle, or why there is none.

    Attributes:
        data: for the bundle; empty if there is none.
        tree_size: of the tree head that it shows; the bundle needs that head.
        sentence: about it, for people.
    """

    data: bytes = b""
    tree_size: int = 0
    sentence: str = ""


@click.command()
@click.argument("run")
@click.argument("indices", nargs=-1, required=True, type=click.IntRange(min=0), metavar="INDEX...")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where to write the file; RUN.bundle if left out, - for standard output.",
)
@click.option(
    "--open",
    "opened",
    multiple=True,
    metavar="FIELD",
    help="Disclose this sealed field; its value then travels in the bundle.",
)
@click.option(
    "--as",
    "form",
    type=click.Choice([_BUNDLE, *_OF_ONE_ENTRY]),
    default=_BUNDLE,
    help="For one entry also: a c2sp.org/tlog-proof, or a COSE receipt (RFC 9942).",
)
@click.option(
    "--archive", type=click.Path(path_type=Path), metavar="DIR",
    help="Where the entries of a pruned run are, if not at the place where they went.",
)  # fmt: skip
@click.option(
    "--chain",
    "evidence",
    type=click.Choice([AUTO, "storage", RECEIPT, _NONE]),
    default=AUTO,
    help="Chain evidence: of the contract's storage, of the first anchor's receipt, or none; "
    "if left out, what the node of [chain] can give.",
)
@click.option(
    "--block",
    type=click.Choice(["finalized", "safe", "latest"]),
    default="finalized",
    help="Take chain evidence there; a block that is not final may be taken back.",
)
@ledger_option
@guarded
def prove(
    *, run: str, indices: tuple[int, ...], output: Path | None, opened: tuple[str, ...], form: str,
    archive: Path | None, evidence: str, block: str, directory: Path,
) -> None:  # fmt: skip
    """Write a bundle that proves entries INDEX... of RUN under the newest signed tree head."""
    from rlhf_audit_trail.ledger.files import write_whole
    from rlhf_audit_trail.ledger.log import Ledger
    from rlhf_audit_trail.ledger.pruning import archived_entries

    if form != _BUNDLE and (len(indices) != 1 or opened):
        raise click.UsageError(f"--as {form} is for one INDEX, and discloses nothing")
    with Ledger.open(directory) as ledger:
        log = ledger.find(run)
        place = archive or Path(log.archive)
        if log.archive and place.is_dir():
            log.read_pruned_from(archived_entries(place))
        shown = Shown()
        if form == _BUNDLE:
            shown = _show_anchor(ledger, log, max(indices), evidence, block)
            data = _bundle(log, indices, opened, shown)
        else:
            data = _single(log, indices[0], form)
        key_file = ledger.key_file(run).relative_to(ledger.directory)
    suffix = "bundle" if form == _BUNDLE else f"{indices[0]}.{_OF_ONE_ENTRY[form]}"
    target = output or Path(f"{run}.{suffix}")
    if str(target) == "-":
        sys.stdout.buffer.write(data)
        return
    write_whole(target, data)
    say(f"wrote {target}, {len(data):,} bytes; entries proven of {run}: {len(set(indices)):,}")
    if form == _BUNDLE:
        say(f"next: rlhf-audit verify {target} --key {directory / key_file}")
    if shown.sentence:
        say(f"  {shown.sentence}")


def _show_anchor(ledger: Ledger, log: Log, last_index: int, kind: str, block: str) -> Shown:
    if kind == _NONE or (kind == AUTO and not (ledger.chain.rpc_url and log.anchored_sizes())):
        return Shown()  # and nothing of the chain is imported
    from rlhf_audit_trail.cli.prove_chain import show_anchor

    return show_anchor(ledger, log, last_index, kind=kind, block=block)


def _bundle(log: Log, indices: Sequence[int], opened: Sequence[str], shown: Shown) -> bytes:
    covering = [size for size in log.anchored_sizes() if size > max(indices)]
    # the first anchor bounds the time best, the newest is the one easiest to ask for
    heads = {*covering[:1], *covering[-1:], *([shown.tree_size] if shown.data else [])}
    return log.bundle(indices, opened=opened, anchored_sizes=heads, chain=shown.data)


def _single(log: Log, index: int, form: str) -> bytes:
    return log.cose_receipt(index) if form == "cose" else log.tlog_proof(index)
