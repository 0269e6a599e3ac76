"""What weights were made from: a base model, an adapter, the checkpoint that was cast or merged.

A cast, merged or quantised model has another digest than the weights it came from, and nothing in
it says which those were. Who makes it says so when it is recorded. That is a claim of the record,
signed with it; that it is true can only be shown by making the model again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rlhf_audit_trail.capture import InvalidColumn, WrongArgument

__all__ = ["DERIVATIONS", "MadeFrom", "derivation_fields"]

DERIVATIONS: Final = (
    "copy",  # the same weights
    "loaded",  # from there, says its configuration; it may have been changed since
    "training",
    "adapter",  # is one to them, and nothing without them
    "merge",  # of adapters or models into one
    "quantisation",
    "cast",  # the same numbers, rounded to another type
    "pruning",
    "distillation",
    "other",
)
_TEXT_LENGTH_MAX: Final = 300
_SOURCES_MAX: Final = 64  # an entry holds 65,535 bytes
_HEX: Final = frozenset("0123456789abcdef")
_DIGEST_LENGTH: Final = 64


@dataclass(frozen=True)
class MadeFrom:
    """Weights that others were made from; what nobody knows is left empty.

    Attributes:
        name: of a model, such as `acme/base-7b`, or of a checkpoint.
        revision: of the name, for example a commit.
        weights_digest: hex, where the weights were digested.
        log: origin of the log that recorded them, where it is another one.
    """

    name: str = ""
    revision: str = ""
    weights_digest: str = ""
    log: str = ""


def derivation_fields(derived_from: Any, derivation: str) -> dict[str, Any]:
    """Return the public fields that say what weights were made from; none for None.

    Args:
        derived_from: a name, a `MadeFrom`, a checkpoint as it was recorded, or several of these.
        derivation: one of `DERIVATIONS`.

    Raises:
        WrongArgument: something else, or nothing that tells one model from another.
        InvalidColumn: a text is too long, or a digest is none.
    """
    if derived_from is None:
        return {}
    if derivation not in DERIVATIONS:
        raise WrongArgument(
            f"{derivation!r:.40} does not say how weights were made from others",
            next_step=f"use one of {', '.join(DERIVATIONS)}",
        )
    given = derived_from if isinstance(derived_from, list | tuple) else [derived_from]
    sources = [_source(x) for x in given]
    if not 0 < len(sources) <= _SOURCES_MAX:
        raise WrongArgument(f"derived_from names {len(sources):,} models, not 1 to {_SOURCES_MAX}")
    return {"derivation": derivation, "derived_from": sources}


def _source(given: Any) -> dict[str, str]:
    if isinstance(given, str):
        given = MadeFrom(name=given)
    if not isinstance(given, MadeFrom):  # what a checkpoint was recorded as
        digest, name = getattr(given, "weights_digest", 0) or "", getattr(given, "name", 0)
        if not isinstance(digest, str) or not isinstance(name, str):
            raise WrongArgument(
                f"derived_from is of type {type(given).__name__}",
                next_step="pass a name, a MadeFrom, or what checkpoint() returned",
            )
        given = MadeFrom(name=name, weights_digest=digest)
    digest = given.weights_digest
    if digest and (len(digest) != _DIGEST_LENGTH or not _HEX.issuperset(digest)):
        raise InvalidColumn("derived_from has a weights digest that is not 64 hex digits")
    found = {
        "name": _public_name(given.name),
        "revision": given.revision,
        "weights_digest": digest,
        "log": given.log,
    }
    if any(not isinstance(x, str) or len(x) > _TEXT_LENGTH_MAX for x in found.values()):
        raise InvalidColumn(f"derived_from holds no text, or more than {_TEXT_LENGTH_MAX} letters")
    if not found["name"] and not digest:
        raise WrongArgument("derived_from names no model", next_step="give a name or a digest")
    return {name: value for name, value in found.items() if value}


def _public_name(name: str) -> str:
    """Return a name without the place on this machine: an entry is public."""
    return Path(name).name if isinstance(name, str) and Path(name).is_absolute() else name
