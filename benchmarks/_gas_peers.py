"""What others cost: contracts rebuilt from `peers/Peers.sol`, and figures quoted.

The rebuilt ones take the same call data, with the same proofs, as `TreeHeadAnchor.anchor`. The
quoted ones were measured once, whole transactions on the same Anvil and rules, with code that is
not ours to ship; they are not measured again here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import solcx

from rlhf_audit_trail.ledger.chain.contract.build import compiler_path, node_on_path, standard_input

__all__ = ["PEERS", "QUOTED", "compile_peers"]

PEERS: Final = {
    "EventOnly": "an event only, nothing checked or kept",
    "OverwrittenRoot": "a root overwritten, nothing checked",
    "UncheckedHead": "our head and event, growth not checked",
    "PlainProof": "our head and event, proof checked in plain Solidity",
}

QUOTED: Final = {
    "EAS 1.4.0, attest": 230_000,
    "EAS 1.4.0, attest with refUID": 252_000,
    "EAS 1.4.0, timestamp": 45_900,
    "ChitLogWitness at 10^3 leaves, any sizes": 65_200,
    "ChitLogWitness at 10^6 leaves, any sizes": 75_700,
    "ChitLogWitness at 10^9 leaves, any sizes": 90_000,
    "univocity, publishCheckpoint, with signature check": 136_000,
    "Ceramic, anchorDagCbor, a root only": 26_500,
}
"""Gas of one later anchor, or of the middle of the range that was seen."""

_SOURCE: Final = Path(__file__).parent / "peers" / "Peers.sol"


def compile_peers() -> dict[str, bytes]:
    """Compile with the compiler and settings of the contract; creation code by name."""
    request = standard_input()
    request["sources"] = {"Peers.sol": {"content": _SOURCE.read_text("utf-8")}}
    request["settings"]["outputSelection"] = {"*": {"*": ["evm.bytecode.object"]}}
    with node_on_path():
        answer = solcx.compile_standard(request, solc_binary=compiler_path())
    found = answer["contracts"]["Peers.sol"]
    return {name: bytes.fromhex(found[name]["evm"]["bytecode"]["object"]) for name in PEERS}
