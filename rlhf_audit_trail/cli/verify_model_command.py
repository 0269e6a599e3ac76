"""`rlhf-audit verify-model`: which checkpoint of which log these weights are."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from rlhf_audit_trail.cli.ledger_commands import ledger_option
from rlhf_audit_trail.cli.output import guarded, say, show_json, styled

if TYPE_CHECKING:
    from rlhf_audit_trail.weights.model_check import ModelVerdict
    from rlhf_audit_trail.weights.public_weights import PublicWeights
    from rlhf_audit_trail.weights.recorded_weights import Recorded, WeightRecords

__all__ = ["verify_model"]

_CODES: Final = {"recorded": 0, "differs": 1, "near": 3, "unknown": 3}
_WORDS: Final = {
    "recorded": "VERIFIED", "differs": "FAILED", "near": "INCONCLUSIVE", "unknown": "INCONCLUSIVE"
}  # fmt: skip
_SHOWN_MAX: Final = 20


@click.command("verify-model")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--run", default="", metavar="RUN", help="Search this run only; else all.")
@click.option(
    "--checkpoint", default="", metavar="NAME",
    help="The weights are said to be this checkpoint: anything else is a failure.",
)  # fmt: skip
@click.option(
    "--log", "logs", multiple=True, metavar="PLACE",
    help="Search this public log instead of a ledger: an address, an export or a mirror.",
)  # fmt: skip
@click.option(
    "--bundle", type=click.Path(path_type=Path), metavar="FILE",
    help="Search the entries of this bundle instead of a ledger.",
)  # fmt: skip
@click.option(
    "--key", "keys", multiple=True, metavar="KEY",
    help="With --log or --bundle: pin a vkey, or a file of vkeys; all of a log must have signed.",
)  # fmt: skip
@click.option(
    "--manifest", "manifests", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="With --log or --bundle: a checkpoint's manifest, which tells its tensors.",
)  # fmt: skip
@click.option(
    "--proof", type=click.Path(path_type=Path), metavar="FILE",
    help="Write a bundle that proves the entry found.",
)  # fmt: skip
@ledger_option
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
@guarded
def verify_model(
    *,
    path: Path,
    run: str,
    checkpoint: str,
    logs: tuple[str, ...],
    bundle: Path | None,
    keys: tuple[str, ...],
    manifests: tuple[Path, ...],
    proof: Path | None,
    directory: Path,
    as_json: bool,
) -> None:
    """Tell which recorded checkpoint the weights in PATH are, a file or a model's folder.

    Reads safetensors, whole or in shards, torch files and torch.distributed.checkpoint folders;
    executes nothing. Recorded weights are looked up in a ledger or, by outsiders, in a public log
    or a bundle, under a key from a place they trust. Exit code 0 recorded, 1 not the checkpoint
    named, or forged, 3 unknown, 4 unreadable.
    """
    asked = _Asked(logs, bundle, keys, manifests)
    asked.check()
    with ExitStack() as opened:
        public = asked.public()
        records: WeightRecords = public or _of_ledger(directory, run, opened)
        from rlhf_audit_trail.weights.model_check import check_model
        from rlhf_audit_trail.weights.model_files import read_model

        found = read_model(path)
        verdict = check_model(records, found, checkpoint=checkpoint, run=run)
        if public is not None and public.manifests.unused:
            raise click.UsageError(
                f"{public.manifests.unused:,} of the manifests belongs to no entry searched"
            )
        shown = [_placed(records, x) for x in verdict.matches]
        if proof is not None and verdict.matches:
            from rlhf_audit_trail.ledger.files import write_whole

            write_whole(proof, records.prove(verdict.matches[-1]))
    code = _CODES[verdict.state]
    if as_json:
        show_json(_record(verdict, found.form, shown) | _searched(public))
        sys.exit(code)
    _tell(verdict, found.form, shown)
    _tell_searched(public)
    if proof is not None and verdict.matches:
        say(f"wrote {proof}; next: rlhf-audit verify {proof}")
    sys.exit(code)


@dataclass(frozen=True)
class _Asked:
    """The options of outsiders."""

    logs: tuple[str, ...]
    bundle: Path | None
    keys: tuple[str, ...]
    manifests: tuple[Path, ...]

    def check(self) -> None:
        """Refuse what would be left unused, or believed without a reason."""
        if self.logs and self.bundle is not None:
            raise click.UsageError("give --log or --bundle, not both")
        if (self.logs or self.bundle is not None) and not self.keys:
            raise click.UsageError(
                "pin the log's key with --key, from a place you trust: one that came with the log "
                "proves nothing"
            )
        if (self.keys or self.manifests) and not self.logs and self.bundle is None:
            raise click.UsageError("--key and --manifest belong to --log or --bundle")

    def public(self) -> PublicWeights | None:
        """Return what outsiders search, None where that is a ledger."""
        from rlhf_audit_trail.ledger.trust import read_keys
        from rlhf_audit_trail.weights.public_weights import (
            Manifests,
            bundled_weights,
            logged_weights,
        )

        if not self.logs and self.bundle is None:
            return None
        keys = tuple(dict.fromkeys(key for text in self.keys for key in read_keys(text)))
        manifests = Manifests(x.read_bytes() for x in self.manifests)
        if self.bundle is not None:
            return bundled_weights(self.bundle.read_bytes(), keys, manifests)
        return logged_weights(self.logs, keys, manifests)


def _of_ledger(directory: Path, run: str, opened: ExitStack) -> WeightRecords:
    from rlhf_audit_trail.ledger.log import Ledger
    from rlhf_audit_trail.weights.ledger_weights import LedgerWeights

    return LedgerWeights(opened.enter_context(Ledger.open(directory)), run)


# --- what was found -----------------------------------------------------------------------------


def _placed(records: WeightRecords, recorded: Recorded) -> dict[str, Any]:
    """Say where an entry stands, and how far its log is signed and anchored."""
    place = records.place(recorded)
    return {
        "run": recorded.run,
        "origin": recorded.origin,
        "name": recorded.name,
        "kind": recorded.kind,
        "leaf_index": recorded.leaf_index,
        "signed_size": place.signed_size,
        "signed_root": place.signed_root,
        "anchor_state": place.anchor,
        "derivation": recorded.derivation,
        "derived_from": [dict(x) for x in recorded.derived_from],
    }


def _record(verdict: ModelVerdict, form: str, shown: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "state": verdict.state,
        "form": form,
        "weights_digest": verdict.digest,
        "matches": shown,
        "nearest": verdict.nearest and _named(verdict.nearest),
        "equal_tensors": verdict.equal,
        "tensors": verdict.tensors,
        "differences": [asdict(x) for x in verdict.differences],
        "changed_files": list(verdict.changed),
        "missing_files": list(verdict.missing),
        "sources": [
            {"said": dict(x.said), "recorded": x.entry and _named(x.entry)} for x in verdict.sources
        ],
        "not_told": list(verdict.untold),
    }


def _named(recorded: Recorded) -> dict[str, Any]:
    return {"run": recorded.run, "origin": recorded.origin, "name": recorded.name,
            "leaf_index": recorded.leaf_index}  # fmt: skip


def _searched(public: PublicWeights | None) -> dict[str, Any]:
    if public is None:
        return {}
    heads = [{"origin": x.origin, "size": x.size, "root": x.root.hex()} for x in public.heads]
    return {"searched": heads, "not_searched": list(public.left_out)}


def _tell(verdict: ModelVerdict, form: str, shown: list[dict[str, Any]]) -> None:
    for item in shown:
        covered = (
            f"under the signed tree head of {item['signed_size']:,}"
            if item["signed_size"]
            else "not signed yet"
        )
        what = "checkpoint" if item["kind"] == "checkpoint.saved" else "model in the role"
        say(f"{styled('passed', 10)} {what} {item['name']} of {item['origin']}")
        say(f"{'':10} entry {item['leaf_index']:,}, {covered}; anchor: {item['anchor_state']}")
    for source in verdict.sources:
        where = "in no log searched"
        if source.entry is not None:
            where = f"entry {source.entry.leaf_index:,} of {source.entry.origin}"
        how = shown[-1]["derivation"] or "derivation"
        say(f"{'':10} by its entry a {how} of {_said(source.said)}: {where}")
    for name in verdict.missing:
        say(f"{styled('not shown', 10)} {name} is not there, though the index names it")
    for name in verdict.changed:
        say(f"{styled('failed', 10)} {name} is not the file that was saved beside these weights")
    for difference in verdict.differences[:_SHOWN_MAX]:
        say(f"{styled('failed', 10)} {difference.tensor} {difference.what}")
    if len(verdict.differences) > _SHOWN_MAX:
        say(f"{'':10} and {len(verdict.differences) - _SHOWN_MAX:,} more; --json shows all")
    for sentence in verdict.untold:
        say(f"{styled('not shown', 10)} {sentence}")
    say(f"{styled(_WORDS[verdict.state])}  {_headline(verdict)}")
    say(f"  {form}, weights digest {verdict.digest}")


def _said(said: Any) -> str:
    name = "@".join(x for x in (said.get("name", ""), said.get("revision", "")) if x)
    digest = said.get("weights_digest", "")[:16]
    return " ".join(x for x in (name, f"({digest}…)" if digest else "") if x)


def _tell_searched(public: PublicWeights | None) -> None:
    for head in public.heads if public else ():
        say(f"  searched {head.origin}, {head.size:,} entries that the keys you pinned signed")
    for origin in public.left_out if public else ():
        say(f"{styled('not shown', 10)} {origin} was not searched: you pinned no key of it")


def _headline(verdict: ModelVerdict) -> str:
    if verdict.matches and not verdict.missing:
        beside = "; files beside them changed" if verdict.changed else ""
        return f"these are recorded weights{beside}"
    if verdict.nearest is None:
        return "these weights are in no log searched"
    name = f"{verdict.nearest.name} of {verdict.nearest.origin}"
    if verdict.nearest.manifest is None:
        return f"these are not the weights of {name}, whose tensors were not listed"
    return f"{verdict.equal:,} of {verdict.tensors:,} tensors equal {name}, the rest differ"
