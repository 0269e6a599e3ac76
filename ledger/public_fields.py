"""An event's public fields, checked against its kind and written as JSON.

Done for every event by who records it, so each kind's rules are prepared once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import starmap
from json.encoder import encode_basestring
from typing import Any, Final, NamedTuple

from rlhf_audit_trail.ledger.events import KINDS, InvalidEvent, Kind, encode_text, encode_value

__all__ = ["public_members"]

_ABSENT: Final = object()
# values that cannot be wrong and need no encoder; a float may be infinite, a list hold anything
_SPELLINGS: Final[Mapping[type, Callable[[Any], str]]] = {
    str: encode_basestring,
    int: int.__repr__,
    bool: lambda value: "true" if value else "false",
    type(None): lambda _: "null",
}


class _Field(NamedTuple):
    """A public field's rule, prepared once: this is looked up for every event."""

    name: str
    member: str  # what stands before the value
    spellings: Mapping[type, Callable[[Any], str]]
    is_optional: bool
    types: tuple[type, ...]


def _prepare(kind: Kind) -> tuple[_Field, ...]:
    return tuple(starmap(_field, kind.public.items()))


def _field(name: str, wanted: type | tuple[type, ...]) -> _Field:
    types = wanted if isinstance(wanted, tuple) else (wanted,)
    spellings = {cls: _SPELLINGS[cls] for cls in types if cls in _SPELLINGS}
    bare = name.removesuffix("?")
    return _Field(bare, f",{encode_text(bare)}:", spellings, name.endswith("?"), types)


_FIELDS: Final = {name: _prepare(kind) for name, kind in KINDS.items()}
_SEALED: Final = {name: frozenset(kind.sealed) for name, kind in KINDS.items()}


def public_members(kind: str, fields: Mapping[str, Any], sealed: Mapping[str, Any]) -> str:
    """Return the public fields as JSON in the kind's order, or say which one does not fit.

    Values are never quoted in a message.
    """
    rules = _FIELDS.get(kind)
    if rules is None:
        raise InvalidEvent(f"unknown kind of event {kind!r}", next_step="see events.KINDS")
    members = []
    for rule in rules:
        name, member, spellings, is_optional, _ = rule
        value = fields.get(name, _ABSENT)
        if value is _ABSENT:
            if not is_optional:
                raise InvalidEvent(f"{kind} needs the field {name}")
            continue
        spell = spellings.get(type(value))
        members.append(member + (spell(value) if spell else _checked(kind, rule, value)))
    if len(members) != len(fields) or (sealed and not sealed.keys() <= _SEALED[kind]):
        known = {rule.name for rule in rules}
        surplus = (fields.keys() - known) | (sealed.keys() - _SEALED[kind])
        raise InvalidEvent(f"{kind} has no field {', '.join(sorted(map(str, surplus)))}")
    text = "".join(members)
    if not text.isascii():
        encode_value(text)  # refuses what UTF-8 has not
    return text


def _checked(kind: str, rule: _Field, value: Any) -> str:
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
    return encode_text(value)
