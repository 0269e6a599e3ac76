"""Whose weights are these? Finds the recorded checkpoint that a model's files hold.

Equal digests answer it. Otherwise the nearest checkpoint is the one with most tensors in common,
and what differs is named: a moved bit, exchanged tensors, another dtype or shape. That needs the
checkpoint's manifest, and moved bits its stored weights; what is not at hand is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rlhf_audit_trail.ledger.weights.digest import TensorRecord, weights_digest
from rlhf_audit_trail.ledger.weights.errors import CheckpointMissing
from rlhf_audit_trail.ledger.weights.manifest import Manifest
from rlhf_audit_trail.weights.model_files import COMPANIONS, FoundModel
from rlhf_audit_trail.weights.recorded_weights import Recorded, StoredTensors, WeightRecords

__all__ = ["Difference", "ModelVerdict", "Source", "check_model"]

_COMPARED_MAX: Final = 64  # tensors of which bits are counted
_PLACES_MAX: Final = 3


@dataclass(frozen=True)
class Difference:
    """A tensor that is not the recorded one, and how; `what` is a sentence for people."""

    tensor: str
    kind: str  # bits, swapped, dtype, shape, missing, added
    what: str


@dataclass(frozen=True)
class Source:
    """Weights from which others were made.

    Attributes:
        said: name, revision, weights digest and log as far as the entry names them.
        entry: where their digest is recorded, None where that is in no log searched.
    """

    said: Mapping[str, str]
    entry: Recorded | None


@dataclass(frozen=True)
class ModelVerdict:
    """The answer.

    Attributes:
        state: recorded, differs (from the checkpoint asked for), near, unknown.
        digest: hex, of what was found.
        matches: entries with this digest, the newest last.
        nearest: where there is no match.
        equal: tensors in common with `nearest`.
        differences: to it.
        changed: files beside equal weights that are not those of the checkpoint.
        missing: shards that are not there.
        sources: what the newest of `matches` was made from, as its entry says.
        untold: what could not be compared, and why; sentences for people.
    """

    state: str
    digest: str
    matches: Sequence[Recorded] = ()
    nearest: Recorded | None = None
    equal: int = 0
    tensors: int = 0
    differences: Sequence[Difference] = ()
    changed: Sequence[str] = ()
    missing: Sequence[str] = ()
    sources: Sequence[Source] = ()
    untold: Sequence[str] = ()


def check_model(
    records: WeightRecords, found: FoundModel, *, checkpoint: str = "", run: str = ""
) -> ModelVerdict:
    """Compare a model with what was recorded.

    Args:
        records: where that is looked up.
        found: the model.
        checkpoint: the model is said to be this one; the newest of that name.
        run: look in this run only.

    Raises:
        CheckpointMissing: no entry has that name.
        AuditTrailError: the records cannot be read, or are not what was signed.
    """
    everything = [x for x in records.recorded() if run in ("", x.run)]
    known = [x for x in everything if x.name == checkpoint][-1:] if checkpoint else everything
    if checkpoint and not known:
        raise CheckpointMissing(
            f"no checkpoint {checkpoint!r:.120} with weights is recorded",
            next_step="rlhf-audit checkpoint list shows what is",
        )
    own = found.records()
    digest = weights_digest(own).hex()
    matches = [x for x in known if _same(x, own, digest)]
    if matches and not found.missing:
        return _recognised(matches, everything, found, is_named=bool(checkpoint))
    compared = [(_equal(x.manifest, own), x) for x in known if x.manifest is not None]
    equal, nearest = max(compared, key=lambda x: x[0], default=(0, None))
    if not equal and not checkpoint:
        nearest = None
    if nearest is None and checkpoint:
        nearest = known[-1]
    return ModelVerdict(
        "differs" if checkpoint else "near" if nearest else "unknown",
        digest,
        nearest=nearest,
        equal=equal,
        tensors=nearest.tensors if nearest else len(own),
        differences=_differences(records, nearest, found, own) if nearest else [],
        changed=_changed(nearest, found.companions) if nearest else [],
        missing=found.missing,
        untold=_not_compared(known),
    )


def _recognised(
    matches: Sequence[Recorded], known: Iterable[Recorded], found: FoundModel, *, is_named: bool
) -> ModelVerdict:
    newest = matches[-1]
    changed = _changed(newest, found.companions)
    by_digest = {x.weights_digest: x for x in known}
    untold = []
    if found.companions and newest.manifest_digest and newest.manifest is None:
        untold.append("whether files beside the weights changed: that is in its manifest")
    return ModelVerdict(
        "differs" if changed and is_named else "recorded",
        newest.weights_digest,
        matches=matches,
        changed=changed,
        sources=[
            Source(x, by_digest.get(x.get("weights_digest", ""))) for x in newest.derived_from
        ],
        untold=untold,
    )


def _not_compared(known: Sequence[Recorded]) -> list[str]:
    """Say of how many only the digest of all weights was compared, which tells nothing nearer."""
    bare = [x for x in known if x.manifest is None]
    if not bare:
        return []
    listed = sum(bool(x.manifest_digest) for x in bare)
    of_these = f"; {listed:,} of these have a manifest that is not here" if listed else ""
    return [f"which tensors differ from {len(bare):,} of {len(known):,} recorded weights{of_these}"]


def _same(known: Recorded, records: Sequence[TensorRecord], digest: str) -> bool:
    """Equal digests, or the same weights in a file that holds tied tensors more than once."""
    if known.weights_digest == digest:
        return True
    if known.manifest is None or not known.manifest.aliases:
        return False
    by_name = {record.name: record for record in records}
    left = [
        record
        for record in records
        if not _is_copy(record, by_name.get(known.manifest.aliases.get(record.name, "")))
    ]
    return weights_digest(left).hex() == known.weights_digest


def _is_copy(record: TensorRecord, first: TensorRecord | None) -> bool:
    return first is not None and _content(record) == _content(first)


def _content(record: TensorRecord) -> tuple[str, tuple[int, ...], bytes]:
    return record.dtype, record.shape, record.root


def _equal(manifest: Manifest | None, records: Sequence[TensorRecord]) -> int:
    own = set() if manifest is None else set(manifest.tensors)
    return sum(record in own for record in records)


def _changed(known: Recorded, companions: Mapping[str, str]) -> list[str]:
    """Name files that matter and are not those saved with the checkpoint."""
    if known.manifest is None or not companions:
        return []
    saved = {x.path: x.sha256 for x in known.manifest.files if x.path in COMPANIONS}
    if not saved:  # the checkpoint was recorded without its folder
        return []
    return sorted(x for x in saved.keys() | companions.keys() if saved.get(x) != companions.get(x))


def _differences(
    known: WeightRecords, nearest: Recorded, found: FoundModel, records: Sequence[TensorRecord]
) -> list[Difference]:
    if nearest.manifest is None:
        return []
    wanted = {record.name: record for record in nearest.manifest.tensors}
    by_content: dict[Any, list[str]] = {}
    for record in wanted.values():
        by_content.setdefault(_content(record), []).append(record.name)
    stored = known.tensors(nearest)
    named: list[Difference] = []
    for record in records:
        recorded = wanted.get(record.name)
        if recorded != record:
            own = stored if len(named) < _COMPARED_MAX else None
            named.append(_difference(record, recorded, by_content, found, own))
    here = {record.name for record in records}
    aliases = nearest.manifest.aliases
    named += [
        Difference(name, "missing", f"is missing, {item.dtype} {list(item.shape)}")
        for name, item in wanted.items()
        if name not in here and not any(aliases.get(x) == name for x in here)
    ]
    return named


def _difference(
    record: TensorRecord,
    wanted: TensorRecord | None,
    by_content: Mapping[Any, Iterable[str]],
    found: FoundModel,
    stored: StoredTensors | None,
) -> Difference:
    name = record.name
    others = [x for x in by_content.get(_content(record), ()) if x != name]
    if wanted is None:
        also = f"; it holds what was recorded as {others[0]}" if others else ""
        return Difference(name, "added", f"was not recorded{also}")
    if others:
        return Difference(name, "swapped", f"holds what was recorded as {others[0]}")
    if record.shape != wanted.shape:
        what = f"has the shape {list(record.shape)}, recorded was {list(wanted.shape)}"
        return Difference(name, "shape", what)
    if record.dtype != wanted.dtype:
        what = f"is {record.dtype}, recorded was {wanted.dtype}: cast, and so other weights"
        return Difference(name, "dtype", what)
    return Difference(name, "bits", _bits(found.tensors[name].data, name, stored))


def _bits(data: memoryview, name: str, stored: StoredTensors | None) -> str:
    """Say how many bits differ and where, if the recorded weights are stored."""
    if stored is None:
        return "has other values"
    bits = int.from_bytes(stored.tensor(name), "little") ^ int.from_bytes(data, "little")
    moved, count = bits.to_bytes(len(data), "little"), bits.bit_count()
    at = -1
    places: list[str] = []
    while len(places) < _PLACES_MAX and (at := _next(moved, at + 1)) >= 0:
        places.append(f"bit {moved[at].bit_length() - 1} of byte {at:,}")
    said = ", ".join(places) + (" …" if count > len(places) else "")
    return f"differs in {count:,} {'bit' if count == 1 else 'bits'}: {said}"


def _next(data: bytes, start: int) -> int:
    rest = data[start:].lstrip(b"\0")
    return len(data) - len(rest) if rest else -1
