"""The compiled contract as it ships: code, address, selectors; standard library only.

The artifact is written by `rlhf_audit_trail.ledger.chain.contract.build` and never by hand.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["ARTIFACT_PATH", "CREATE2_FACTORY", "CREATE2_SALT", "Artifact", "load_artifact"]

ARTIFACT_PATH: Final = Path(__file__).parent / "artifact" / "TreeHeadAnchor.json"

CREATE2_FACTORY: Final = "0x4e59b44847b379578588920cA78FbF26c0B4956C"
"""Arachnid's deterministic deployment proxy, at this address on nearly every chain (EIP-7997)."""

CREATE2_SALT: Final = bytes(32)


@dataclass(frozen=True)
class Artifact:
    """What the rest of the package needs of the compiled contract.

    Attributes:
        address: where the factory puts it on every chain, lower-case hex.
        creation: code that a deployment runs.
        runtime: code that stands at the address afterwards, byte for byte.
        code_hash: Keccak-256 of that code, 32 bytes, as an account on the chain has it.
        functions: signature to selector, 4 bytes.
        events: signature to first topic, 32 bytes.
        errors: signature to selector, 4 bytes.
    """

    address: str
    creation: bytes
    runtime: bytes
    code_hash: bytes
    functions: Mapping[str, bytes]
    events: Mapping[str, bytes]
    errors: Mapping[str, bytes]


@functools.cache
def load_artifact() -> Artifact:
    """Read the artifact that ships with the package."""
    data = json.loads(ARTIFACT_PATH.read_text("utf-8"))
    return Artifact(
        address=data["create2"]["address"],
        creation=bytes.fromhex(data["creationBytecode"][2:]),
        runtime=bytes.fromhex(data["runtimeBytecode"][2:]),
        code_hash=bytes.fromhex(data["runtimeCodeHash"][2:]),
        functions=_hex_values(data["functions"]),
        events=_hex_values(data["events"]),
        errors=_hex_values(data["errors"]),
    )


def _hex_values(table: Mapping[str, str]) -> Mapping[str, bytes]:
    return {name: bytes.fromhex(value) for name, value in table.items()}
