"""Entries that hold the digest of a model's weights, and what the places they stand in can tell.

A ledger has the weights themselves, perhaps; a public log has its entries; a bundle a few of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from rlhf_audit_trail.ledger.weights.manifest import Manifest

__all__ = ["WEIGHT_KINDS", "Place", "Recorded", "StoredTensors", "WeightRecords", "recorded_of"]

WEIGHT_KINDS: Final = ("checkpoint.saved", "model.registered")


@dataclass(frozen=True)
class Recorded:
    """An entry that holds a weights digest.

    Attributes:
        name: a checkpoint's name, or a model's role.
        weights_digest: hex.
        manifest: None where none was kept, or where it is not at hand.
        manifest_digest: hex, of the manifest that the entry names; empty if it names none.
        derivation: how these weights were made of others, such as cast; empty if not said.
        derived_from: those others, as the entry names them.
    """

    run: str
    origin: str
    leaf_index: int
    kind: str
    name: str
    weights_digest: str
    tensors: int
    manifest: Manifest | None = None
    manifest_digest: str = ""
    derivation: str = ""
    derived_from: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True)
class Place:
    """How far a log is signed over an entry, and whether that is anchored.

    Attributes:
        signed_size: of the newest signed tree head; None where it does not cover the entry.
        signed_root: its root, hex.
        anchor: none, a state of the anchor that covers the entry, or not asked.
    """

    signed_size: int | None
    signed_root: str | None
    anchor: str


class StoredTensors(Protocol):
    """Weights that can be read back."""

    def tensor(self, name: str, /) -> bytes:
        """Return the bytes of one tensor, checked."""


class WeightRecords(Protocol):
    """Where recorded weights are looked up."""

    def recorded(self) -> Iterable[Recorded]:
        """Return every entry with a weights digest, oldest first in each log."""

    def tensors(self, recorded: Recorded, /) -> StoredTensors | None:
        """Return the weights themselves, None where they are not to be had."""

    def place(self, recorded: Recorded, /) -> Place:
        """Say how an entry is signed and anchored."""

    def prove(self, recorded: Recorded, /) -> bytes:
        """Return a bundle that proves an entry."""


def recorded_of(
    event: Any, *, run: str, origin: str, leaf_index: int, manifest: Callable[[str, str], Any]
) -> Recorded | None:
    """Return what an entry says about weights; None if that is nothing, or nothing sound.

    Args:
        event: the decoded entry, of anybody.
        run: whose log it stands in.
        origin: of that log.
        leaf_index: its place there.
        manifest: returns the manifest of a digest for weights of a digest, or None.
    """
    if not isinstance(event, dict) or event.get("kind") not in WEIGHT_KINDS:
        return None
    digest, tensors = event.get("weights_digest"), event.get("tensors")
    name = event.get("name", event.get("role"))
    if not isinstance(digest, str) or type(tensors) is not int or not isinstance(name, str):
        return None
    listed, how = _text(event.get("manifest_digest")), _text(event.get("derivation"))
    sources = event.get("derived_from")
    return Recorded(
        run=run,
        origin=origin,
        leaf_index=leaf_index,
        kind=event["kind"],
        name=name,
        weights_digest=digest,
        tensors=tensors,
        manifest=manifest(listed, digest) if listed else None,
        manifest_digest=listed,
        derivation=how,
        derived_from=tuple(
            {name: _text(value) for name, value in x.items()}
            for x in (sources if isinstance(sources, list) else ())
            if isinstance(x, dict)
        ),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
