"""What a verifier trusts, read from files and flags: keys pinned, and a chain to ask.

Standard library only; the same rules for command line and service.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rlhf_audit_trail.ledger.proof.bundle import parse_json
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError, MalformedBundle
from rlhf_audit_trail.ledger.proof.note import Algorithm, VerifierKey
from rlhf_audit_trail.ledger.proof.tree_head import log_id

__all__ = [
    "TRUST_SCHEMA",
    "AnchorTrust",
    "InvalidTrust",
    "Trust",
    "anchor_trust",
    "log_id_of",
    "parse_trust",
    "read_keys",
]

TRUST_SCHEMA: Final = "rlhf-audit/trust-policy/v1"
_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}")
_LOG_ID: Final = re.compile(r"[0-9a-fA-F]{64}")
_KEY_FILE_BYTES_MAX: Final = 256 * 1024


class InvalidTrust(AuditTrailError):
    """A pinned key or trust policy cannot be used."""


@dataclass(frozen=True)
class AnchorTrust:
    """Where the verifier expects the log's anchors; never taken from the party under check.

    Attributes:
        chain_id: of the chain.
        contract: address of TreeHeadAnchor.
        publisher: who anchors this log.
        log_id: 32 bytes that name the log there, by its first key; None if the pinned key
            is that first one.
    """

    chain_id: int
    contract: str
    publisher: str
    log_id: bytes | None = None


@dataclass(frozen=True)
class Trust:
    """A trust policy: the log's keys, and where its anchors are, if they are demanded."""

    keys: tuple[VerifierKey, ...]
    anchor: AnchorTrust | None = None


def read_keys(text_or_path: str) -> tuple[VerifierKey, ...]:
    """Read pinned keys: a vkey itself, or a file with one vkey a line (`#` begins a comment).

    Raises:
        InvalidTrust: no such file, or no valid vkey in it.
    """
    text = text_or_path if _looks_like_vkey(text_or_path) else _read(Path(text_or_path))
    lines = [line.strip() for line in text.splitlines()]
    try:
        keys = tuple(VerifierKey.parse(x) for x in lines if x and not x.startswith("#"))
    except MalformedBundle as error:
        raise InvalidTrust(f"not a usable key: {error.message}") from error
    if not keys:
        raise InvalidTrust("there is no key in this file", next_step="one vkey a line is expected")
    return keys


def parse_trust(data: bytes) -> Trust:
    """Read a trust policy: JSON with `schema`, `keys`, and optionally `anchor`.

    Raises:
        InvalidTrust: unknown or missing fields, or a bad key.
    """
    try:
        record = parse_json(data)
        return _trust(record)
    except MalformedBundle as error:
        raise InvalidTrust(f"not a trust policy: {error.message}") from error


def _trust(record: Any) -> Trust:
    if not isinstance(record, dict) or record.get("schema") != TRUST_SCHEMA:
        raise InvalidTrust("not a trust policy", next_step=f'"schema" must be "{TRUST_SCHEMA}"')
    unknown = set(record) - {"schema", "keys", "anchor"}
    keys = record.get("keys")
    if unknown or not isinstance(keys, list) or not all(isinstance(x, str) for x in keys):
        raise InvalidTrust("a trust policy has the fields schema, keys and anchor, and no others")
    anchor = record.get("anchor")
    return Trust(
        tuple(VerifierKey.parse(text) for text in keys), None if anchor is None else _anchor(anchor)
    )


def _anchor(record: Any) -> AnchorTrust:
    wanted = {"chain_id": int, "contract": str, "publisher": str, "log_id": str}
    if (
        not isinstance(record, dict)
        or set(record) | {"log_id"} != set(wanted)
        or any(type(value) is not wanted[name] for name, value in record.items())
    ):
        raise InvalidTrust(
            "a policy's anchor has the fields chain_id, contract, publisher and, if the log's "
            "keys were rotated, log_id"
        )
    return anchor_trust(**record)


def anchor_trust(
    *, chain_id: int, contract: str, publisher: str, log_id: str | None = None
) -> AnchorTrust:
    """Return where anchors are expected, after checking addresses and log id.

    Raises InvalidTrust otherwise.
    """
    if log_id is not None and _LOG_ID.fullmatch(log_id) is None:
        raise InvalidTrust(f"the log id {log_id[:80]!r} is none", next_step="64 hex digits")
    for name, address in (("contract", contract), ("publisher", publisher)):
        if _ADDRESS.fullmatch(address) is None:
            raise InvalidTrust(
                f"the {name} {address[:60]!r} is no address", next_step="0x and 40 hex digits"
            )
    return AnchorTrust(chain_id, contract, publisher, bytes.fromhex(log_id) if log_id else None)


def log_id_of(trust: Trust) -> bytes | None:
    """Return the log's id on the chain: the one named, or that of the first Ed25519 key."""
    if trust.anchor and trust.anchor.log_id:
        return trust.anchor.log_id
    keys = (key for key in trust.keys if key.algorithm is Algorithm.ED25519)
    return next(map(log_id, keys), None)


def _looks_like_vkey(text: str) -> bool:
    # os.path.exists says no to a text too long for a path, where Path.exists raises
    return text.count("+") >= 2 and not os.path.exists(text)  # noqa: PLR2004, PTH110 - name+id+key


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _KEY_FILE_BYTES_MAX:
            raise InvalidTrust(f"{path} is too large to be a key file")
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidTrust(
            f"cannot read the key file {path}",
            next_step="pass a vkey (name+id+key) or a file with one vkey a line",
        ) from error
