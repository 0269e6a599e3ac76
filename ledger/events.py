"""The kinds of event, and how one becomes the bytes of an entry.

An event has public fields, which stand in the entry, and sealed fields, of which
the entry holds only salted commitments; their values go to the vault. What may be
public is decided here, once, and not by the caller: `KINDS` is the whole list.

An entry is compact UTF-8 JSON, written once and never re-encoded (`FORMAT.md`,
section 3).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = [
    "ENTRY_VERSION",
    "KINDS",
    "MAX_ENTRY_BYTES",
    "EntryTooLarge",
    "Event",
    "InvalidEvent",
    "Kind",
    "encode_entry",
    "encode_value",
]

ENTRY_VERSION: Final = 1
MAX_ENTRY_BYTES: Final = 65_535  # entry tiles carry a uint16 length (c2sp.org/tlog-tiles)


class InvalidEvent(AuditTrailError):
    """An event does not fit its kind, or holds a value that JSON cannot carry."""


class EntryTooLarge(AuditTrailError):
    """An entry would exceed 65,535 bytes."""


@dataclass(frozen=True)
class Kind:
    """What an event of one kind holds; a name ending in `?` may be left out."""

    meaning: str
    public: Mapping[str, type | tuple[type, ...]]
    sealed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Event:
    """A typed record of something that happened.

    Attributes:
        kind: a key of `KINDS`.
        fields: public values, in clear in the entry: str, int, float, bool, None, and
            lists and mappings of these.
        sealed: values that only commitments stand for; same types.
        subject: stable id of the person the sealed values are about; empty for the
            run itself. It never reaches an entry, nor any store in clear.
    """

    kind: str
    fields: Mapping[str, Any]
    sealed: Mapping[str, Any] = field(default_factory=dict)
    subject: str = ""


# Made once: `json.dumps` with settings of its own builds an encoder at every call.
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_OPTIONAL_TEXT = (str, type(None))

KINDS: Final[Mapping[str, Kind]] = {
    # --- registry log -----------------------------------------------------------------
    "ledger.created": Kind("A ledger began.", {"organisation": str, "format": int}),
    "run.opened": Kind(
        "A run's own log began; hiding the run later is visible here.",
        {"run": str, "origin": str, "log_keys": list},
    ),
    "run.closed": Kind(
        "A run's log ended at this size and root.",
        {"run": str, "origin": str, "tree_size": int, "root": str},
    ),
    "chain.registered": Kind(
        "Tree heads are anchored here from now on; a new publisher supersedes an old one.",
        {"chain_id": int, "contract": str, "publisher": str},
    ),
    # --- run log ----------------------------------------------------------------------
    "run.started": Kind("Training began.", {"name": str, "model_name": str, "source": str}),
    "run.resumed": Kind(
        "A new process goes on with the run; what the old one did not commit is not here.",
        {"tree_size": int, "reason": str},
    ),
    "run.config": Kind("Settings before the first step.", {"config": dict}, ("seed",)),
    "env.snapshot": Kind(
        "Versions the run uses, and a digest of the code where it is known.",
        {"python": str, "platform": str, "packages": dict, "code_digest?": str},
    ),
    "model.registered": Kind(
        "A model took part in a role: policy_init, reference, reward, value, policy_final.",
        {"role": str, "weights_digest": str, "tensors": int, "parameters": int},
    ),
    "annotation.recorded": Kind(
        "One preference value by one annotator.",
        {"source": str, "batch": int, "judge_model?": str},
        ("prompt", "response", "annotator", "reward"),
    ),
    "rollout.scored": Kind(
        "Completions of the policy were scored.",
        {"policy_step": int, "completions": int},
        (
            "reward_mean",
            "reward_min",
            "reward_max",
            "reward_std",
            "kl_mean",
            "entropy_mean",
            "length_mean",
            "rows",
        ),
    ),
    "policy.update": Kind(
        "The optimizer changed the policy.",
        {
            "policy_step": int,
            "updates": int,
            "algorithm": str,
            "delta_norm_kind": str,  # exact, sampled, or absent when no step was seen
            "rows": int,
            "learning_rate": (int, float, type(None)),
        },
        ("parameter_delta_norm", "grad_norm_preclip", "grad_norm_applied", "statistics"),
    ),
    "checkpoint.saved": Kind(
        "A model checkpoint; without weights it says so.",
        {
            "name": str,
            "epoch": int,
            "weights_digest": _OPTIONAL_TEXT,
            "tensors": int,
            "parameters": int,
            "size_bytes": int,
            "path_digest?": str,
        },
        ("metrics",),
    ),
    "metrics.logged": Kind("Metrics at a step.", {"step": int}, ("metrics",)),
    "alert.raised": Kind(
        "A detector or the recorder itself found something a reader must know.",
        {"name": str, "severity": str, "step": int, "detail": str},
    ),
    "gap": Kind(
        "Events that were observed but could not be recorded.",
        {"of_writer": str, "first_seq": int, "last_seq": int, "count": int, "reason": str},
    ),
    "run.finished": Kind("Training ended: completed or failed.", {"outcome": str, "error": str}),
}


def encode_value(value: Any) -> bytes:
    """Encode a sealed value as the bytes its commitment is made over: compact UTF-8 JSON.

    Raises:
        InvalidEvent: the value holds NaN, infinity or a type that JSON has not.
    """
    try:
        return _ENCODER.encode(value).encode()
    except (TypeError, ValueError, UnicodeEncodeError) as error:
        # the value itself stays out of the message: it may be personal
        raise InvalidEvent(
            f"a value of type {type(value).__name__} cannot be written as JSON",
            next_step="pass finite numbers, text, lists and mappings",
        ) from error


def encode_entry(
    event: Event,
    *,
    run_id: str,
    writer_id: str,
    seq: int,
    recorded_at: str,
    commitments: Mapping[str, str],
) -> bytes:
    """Write an event as the exact bytes of an entry.

    Args:
        event: checked against its kind.
        run_id: the run's id, or `registry`.
        writer_id: 32 hex digits, new for each process start.
        seq: the writer's own count, from 0, without holes.
        recorded_at: the writer's clock, `2026-11-20T10:15:00.123456Z`; a claim only.
        commitments: sealed field name to commitment in hex.

    Raises:
        InvalidEvent: unknown kind, a field missing, surplus or of the wrong type.
        EntryTooLarge: more than 65,535 bytes.
    """
    public = _public(event)
    if commitments.keys() != event.sealed.keys():
        raise InvalidEvent(f"{event.kind}: every sealed field needs exactly one commitment")
    record: dict[str, Any] = {
        "v": ENTRY_VERSION,
        "kind": event.kind,
        "run_id": run_id,
        "writer_id": writer_id,
        "seq": seq,
        "recorded_at": recorded_at,
        **public,
    }
    if commitments:
        order = KINDS[event.kind].sealed
        record["c"] = {name: commitments[name] for name in order if name in commitments}
    data = encode_value(record)
    if len(data) > MAX_ENTRY_BYTES:
        raise EntryTooLarge(
            f"an entry of kind {event.kind} would be {len(data):,} bytes; "
            f"{MAX_ENTRY_BYTES:,} is the most",
            next_step="move the large value to a sealed field or a blob, and refer to its digest",
        )
    return data


@dataclass(frozen=True)
class _Field:
    """A public field's rule, prepared once: this is looked up for every event."""

    name: str
    is_optional: bool
    types: tuple[type, ...]


def _prepare(kind: Kind) -> tuple[_Field, ...]:
    return tuple(
        _Field(
            name.removesuffix("?"),
            name.endswith("?"),
            wanted if isinstance(wanted, tuple) else (wanted,),
        )
        for name, wanted in kind.public.items()
    )


_FIELDS: Final = {name: _prepare(kind) for name, kind in KINDS.items()}


def _public(event: Event) -> dict[str, Any]:
    """Return the public fields in the kind's order, or say which one does not fit.

    Values are never quoted in a message.
    """
    rules = _FIELDS.get(event.kind)
    if rules is None:
        raise InvalidEvent(f"unknown kind of event {event.kind!r}", next_step="see events.KINDS")
    found: dict[str, Any] = {}
    for rule in rules:
        if rule.name in event.fields:
            value = found[rule.name] = event.fields[rule.name]
            if type(value) not in rule.types or type(value) is float:
                _check_value(event.kind, rule, value)
        elif not rule.is_optional:
            raise InvalidEvent(f"{event.kind} needs the field {rule.name}")
    surplus = (event.fields.keys() - found.keys()) | (
        event.sealed.keys() - set(KINDS[event.kind].sealed)
    )
    if surplus:
        raise InvalidEvent(f"{event.kind} has no field {', '.join(sorted(map(str, surplus)))}")
    return found


def _check_value(kind: str, rule: _Field, value: Any) -> None:
    # bool passes isinstance(int) in Python, and would read as a number elsewhere
    fits = isinstance(value, rule.types) and not (
        isinstance(value, bool) and bool not in rule.types
    )
    if not fits:
        names = " or ".join(item.__name__ for item in rule.types)
        raise InvalidEvent(f"{kind}.{rule.name} must be {names}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidEvent(
            f"{kind}.{rule.name} is not a finite number",
            next_step="write it as the text NaN, Infinity or -Infinity in a sealed field",
        )
