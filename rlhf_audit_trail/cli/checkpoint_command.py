"""`rlhf-audit checkpoint`: the stored weights of a run's checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlhf_audit_trail.cli.ledger_commands import ledger_option
from rlhf_audit_trail.cli.output import guarded, say, show_json

if TYPE_CHECKING:
    from rlhf_audit_trail.ledger.log import Ledger
    from rlhf_audit_trail.ledger.weights.arithmetic import ByteArithmetic
    from rlhf_audit_trail.ledger.weights.checkpoints import CheckpointStore
    from rlhf_audit_trail.ledger.weights.reader import CheckpointReader

__all__ = ["arithmetic", "checkpoint", "opened_store"]


def arithmetic() -> ByteArithmetic:
    """NumPy's where it is installed; plain Python gives the same bytes, more slowly."""
    try:
        from rlhf_audit_trail.weights.byte_arithmetic import NUMPY
    except ModuleNotFoundError:
        from rlhf_audit_trail.ledger.weights.arithmetic import PLAIN

        return PLAIN
    return NUMPY


@contextmanager
def opened_store(directory: Path) -> Iterator[tuple[Ledger, CheckpointStore]]:
    """Open a ledger and the weights that it stores."""
    from rlhf_audit_trail.ledger.log import Ledger
    from rlhf_audit_trail.ledger.weights.checkpoints import CheckpointStore

    with Ledger.open(directory) as ledger:
        yield ledger, CheckpointStore(ledger.engine, ledger.blobs, arithmetic())


@click.group()
def checkpoint() -> None:
    """List, restore, compare and discard the stored weights of checkpoints.

    Weights are stored where the training said so: AuditableRLHF(storage_backend="local").
    """


@checkpoint.command("list")
@click.argument("run")
@ledger_option
@click.option("--json", "as_json", is_flag=True, help="Print the checkpoints as JSON.")
@guarded
def list_(*, run: str, directory: Path, as_json: bool) -> None:
    """Show the recorded checkpoints of RUN, and which weights are stored."""
    with opened_store(directory) as (ledger, store):
        log = ledger.find(run)
        stored = {(x.name, x.weights_digest): x for x in store.stored(log.number)}
        rows = []
        for entry in log.entries(kind="checkpoint.saved"):
            event = entry.event
            found = stored.get((event["name"], event["weights_digest"]))
            rows.append(
                {
                    "name": event["name"],
                    "leaf_index": entry.leaf_index,
                    "weights_digest": event["weights_digest"],
                    "size_bytes": event["size_bytes"],
                    "stored_bytes": found.stored_bytes if found else None,
                    "chain_length": found.chain_length if found else None,
                    "recorded_at": event["recorded_at"],
                    "derivation": event.get("derivation", ""),
                    "derived_from": event.get("derived_from", []),
                }
            )
    if as_json:
        show_json({"run": run, "checkpoints": rows})
        return
    say(f"{'checkpoint':<16} {'entry':>7} {'bytes':>16} {'stored as':<14} {'taking':>16}  digest")
    for row in rows:
        length, taking = row["chain_length"], row["stored_bytes"]
        how = "not stored" if length is None else f"difference {length}" if length else "whole"
        taken = "-" if taking is None else f"{taking:,}"
        digest = (row["weights_digest"] or "no weights")[:16]
        say(
            f"{row['name']:<16} {row['leaf_index']:>7,} {row['size_bytes']:>16,} {how:<14}"
            f" {taken:>16}  {digest}{_made_from(row)}"
        )


def _made_from(row: dict[str, Any]) -> str:
    """Name the weights from which these were made, as their entry does."""
    names = [x.get("name") or x.get("weights_digest", "")[:16] for x in row["derived_from"]]
    return f"  {row['derivation']} of {', '.join(names)}" if names else ""


@checkpoint.command()
@click.argument("run")
@click.argument("name")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
    help="Where to write; NAME.safetensors, or NAME.delta, if left out.",
)  # fmt: skip
@click.option(
    "--as", "form", type=click.Choice(["safetensors", "delta"]), default="safetensors",
    help="The whole weights, or the stored difference as one file (FORMAT.md, section 19).",
)  # fmt: skip
@ledger_option
@guarded
def restore(*, run: str, name: str, output: Path | None, form: str, directory: Path) -> None:
    """Write the weights of checkpoint NAME of RUN, bit for bit, checked against their digest."""
    from rlhf_audit_trail.ledger.weights.safetensors_writer import write_safetensors

    target = output or Path(f"{name}.{form}")
    with opened_store(directory) as (ledger, store):
        found = store.find(ledger.find(run).number, name)
        reader = store.reader(found)
        if form == "safetensors":
            size = write_safetensors(reader, target)
        else:
            size = _write_delta(store, reader, target)
    say(f"wrote {target}, {size:,} bytes; weights digest {found.weights_digest}")
    if form == "safetensors":
        say(f"next: rlhf-audit verify-model {target}")


@checkpoint.command()
@click.argument("run")
@click.argument("name")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
    help="Where to write; NAME.manifest.json if left out.",
)  # fmt: skip
@ledger_option
@guarded
def manifest(*, run: str, name: str, output: Path | None, directory: Path) -> None:
    """Write the manifest of checkpoint NAME of RUN, whose digest its entry holds.

    It lists tensors, their digests, and the files that were saved with them. Outsiders need it to
    tell which tensors differ: rlhf-audit verify-model PATH --log PLACE --key KEY --manifest FILE.
    """
    from rlhf_audit_trail.ledger.files import write_whole
    from rlhf_audit_trail.ledger.weights.errors import CheckpointMissing

    target = output or Path(f"{name}.manifest.json")
    with opened_store(directory) as (ledger, _):
        log = ledger.find(run)
        events = [entry.event for entry in log.entries(kind="checkpoint.saved")]
        found = [x for x in events if x["name"] == name and "manifest_digest" in x]
        if not found:
            raise CheckpointMissing(
                f"no manifest of {name!r:.120} was kept",
                next_step="rlhf-audit checkpoint list shows the names",
            )
        data = ledger.blobs.get(found[-1]["manifest_digest"])
    write_whole(target, data)
    say(f"wrote {target}, {len(data):,} bytes; weights digest {found[-1]['weights_digest']}")


def _write_delta(store: CheckpointStore, reader: CheckpointReader, target: Path) -> int:
    import io

    from rlhf_audit_trail.ledger.files import write_whole
    from rlhf_audit_trail.ledger.weights.delta import write_delta

    reader.restore()  # nothing is handed out that does not lead there
    file = io.BytesIO()
    write_delta(file, reader.header, store.segment_bytes(reader.stored))
    write_whole(target, file.getvalue())
    return len(file.getvalue())


@checkpoint.command()
@click.argument("run")
@click.argument("old")
@click.argument("new")
@ledger_option
@click.option("--json", "as_json", is_flag=True, help="Print the differences as JSON.")
@guarded
def diff(*, run: str, old: str, new: str, directory: Path, as_json: bool) -> None:
    """Show which tensors of RUN changed from checkpoint OLD to NEW, and how many of their bits."""
    with opened_store(directory) as (ledger, store):
        number = ledger.find(run).number
        one, other = (store.reader(store.find(number, name)) for name in (old, new))
        rows = list(_differences(one, other))
        tensors = len(other.header.tensors)
    if as_json:
        show_json({"run": run, "old": old, "new": new, "tensors": tensors, "changed": rows})
        return
    for row in rows:
        say(f"{row['tensor']:<60} {row['change']}")
    say(f"{len(rows):,} of {tensors:,} tensors differ")


def _differences(old: CheckpointReader, new: CheckpointReader) -> Iterator[dict[str, Any]]:
    before = {x.record.name: x.record for x in old.header.tensors}
    after = {x.record.name: x.record for x in new.header.tensors}
    for name in sorted(before.keys() | after.keys()):
        one, other = before.get(name), after.get(name)
        if one == other:
            continue
        row: dict[str, Any] = {"tensor": name, "bits": None}
        if one is None or other is None:
            row["change"] = "added" if one is None else "removed"
        elif (one.dtype, one.shape) != (other.dtype, other.shape):
            row["change"] = f"{one.dtype} {list(one.shape)} to {other.dtype} {list(other.shape)}"
        else:
            bits = (int.from_bytes(side.tensor(name), "little") for side in (old, new))
            row["bits"] = (next(bits) ^ next(bits)).bit_count()
            row["change"] = f"{row['bits']:,} of {8 * one.size_bytes:,} bits"
        yield row


@checkpoint.command()
@click.argument("run")
@click.option(
    "--keep-last", required=True, type=click.IntRange(min=0), metavar="N",
    help="The newest N stay.",
)  # fmt: skip
@click.option("--keep", multiple=True, metavar="NAME", help="This one stays, too.")
@click.option("--unfinished", is_flag=True, help="Also what was never stored to the end; only "
              "while nothing is being stored.")  # fmt: skip
@click.option("--ended", is_flag=True, help="The training was killed, and will not go on: also "
              "what it would have gone on from.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show what would go; delete nothing.")
@ledger_option
@click.option("--json", "as_json", is_flag=True, help="Print what went as JSON.")
@guarded
def gc(
    *, run: str, keep_last: int, keep: tuple[str, ...], unfinished: bool, ended: bool,
    dry_run: bool, directory: Path, as_json: bool,
) -> None:  # fmt: skip
    """Discard the stored weights of RUN that are neither kept nor needed by what is kept.

    While the run's training is under way, the two checkpoints that the next one may start from
    stay. Entries and digests stay in any case: what went can no longer be restored, and is still
    recognised. The registry log says what went.
    """
    from rlhf_audit_trail.ledger.weights.gc import chosen_to_go, collect, is_under_way, live_bases

    with opened_store(directory) as (ledger, store):
        log = ledger.find(run)
        stored = store.stored(log.number)
        live = live_bases(stored) if not ended and is_under_way(log) else set()
        gone = chosen_to_go(stored, keep_last=keep_last, keep=keep, live=live)
        left = store.unfinished(log.number) if unfinished else []
        freed = sum(x.stored_bytes for x in gone)
        if not dry_run:
            found = collect(log, ledger.registry, store, gone, unfinished=left)
            gone, freed = list(found.gone), found.freed_bytes
            ledger.registry.publish()
    names = [x.name for x in gone]
    needed = [x.name for x in stored if x.number in live]
    if as_json:
        show_json({"run": run, "dry_run": dry_run, "discarded": names, "unfinished": len(left),
                   "needed_by_training": needed, "freed_bytes": freed})  # fmt: skip
        return
    word = "would discard" if dry_run else "discarded"
    say(f"{word} {len(names):,} checkpoints, {freed:,} bytes{': ' if names else ''}"
        f"{', '.join(names)}")  # fmt: skip
    if left:
        say(f"{word} {len(left):,} that were never stored to the end")
    if needed:
        say(f"kept what the training goes on from: {', '.join(needed)}; if it was killed and will"
            " not go on, --ended")  # fmt: skip
